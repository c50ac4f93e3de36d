"""Cameras, rotations, frames and spaces, light, triangle meshes: mathematics over plain tensors, no files."""
