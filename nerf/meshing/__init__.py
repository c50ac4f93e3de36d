"""A radiance field to a triangle mesh, textured and in the frame of the photos' poses, and meshes against the truth."""
