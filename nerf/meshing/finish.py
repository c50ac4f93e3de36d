"""From the extracted surface to what people use: fewer faces, and a texture from the photos."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nerf import kernels
from nerf.io.pictures import to_display
from nerf.io.progress import Progress
from nerf.meshing.atlas import unwrap
from nerf.meshing.clean import decimate, is_closed, vertex_normals
from nerf.meshing.extract import to_trimesh
from nerf.meshing.fused import farthest_point_sample
from nerf.meshing.refine import MAX_VIEWS, refine_vertices
from nerf.meshing.texture import bake, exposure_gains, field_colors, load_photo_colors, photo_ratings
from nerf.training.alignment import as_trained

if TYPE_CHECKING:
    import trimesh

    from nerf.datasets import Scene
    from nerf.geometry.cameras import Cameras
    from nerf.geometry.space import Similarity
    from nerf.rendering.model import Model

TEXTURED_FACES = 200_000
_SMALL_PHOTOS = 640  # pixels; a smaller texture holds all that they show


def usual_texture(cameras: Cameras) -> int:
    """Texels along the longer side of a texture from photos of these sizes."""
    largest = max(int(cameras.widths.max()), int(cameras.heights.max()))
    return 4096 if largest >= _SMALL_PHOTOS else 2048


def decimate_mesh(model: Model, mesh: trimesh.Trimesh, n_faces: int, colours: bool = True) -> trimesh.Trimesh:
    """The mesh (world frame) with at most about n_faces faces; vertices have the colours of the nearest ones before,
    or, where the mesh has none, the field's."""
    vertices, faces, normals, info = _decimate(mesh, n_faces)
    rgb = None
    visual: Any = mesh.visual
    if colours and getattr(visual, "kind", None) == "vertex":
        rgb = _nearest(vertices, mesh, np.asarray(visual.vertex_colors))[:, :3]
    elif colours:
        with torch.no_grad():
            rgb = to_display(field_colors(model, vertices, normals).numpy(), linear=False)
    return to_trimesh(vertices, faces, normals, info, vertex_colors=rgb)


def _nearest(points: Tensor, mesh: trimesh.Trimesh, values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Of values [v,k] of the vertices of a mesh those [n,k] of the vertices that are nearest to points [n,3] on it."""
    vertices, faces = (torch.from_numpy(np.array(x)) for x in (mesh.vertices, mesh.faces))
    corners = faces[kernels.nearest_points(points, vertices, faces).faces]
    nearest = (vertices[corners] - points[:, None]).norm(dim=2).argmin(dim=1)
    return values[corners.gather(1, nearest[:, None])[:, 0].numpy()]


def texture_mesh(
    model: Model,
    scene: Scene,
    mesh: trimesh.Trimesh,
    size: int,
    n_faces: int = TEXTURED_FACES,
    show_progress: bool = True,
) -> trimesh.Trimesh:
    """The mesh (world frame) simplified to about n_faces faces, with a texture of size x size texels from the photos.

    Vertices are moved to where the training photos agree (see refine.refine_vertices), in the poses that training
    refined. Those along seams of the texture are doubled, so the result is closed only when they are merged by place.
    Raises UserError where the size does not hold the charts or fast-simplification is missing. Not differentiable.
    Sources: quadric error metrics, Garland and Heckbert 1997; view selection and colours, Waechter et al. 2014.

    >>> model, scene = nerf.Model.load("runs/robot/checkpoint.safetensors"), nerf.load("data/sample", downscale=8)
    >>> mesh = nerf.texture_mesh(model, scene, nerf.extract_mesh(model, resolution=24), size=256)
    >>> mesh.visual.material.baseColorTexture.size
    (256, 256)
    """
    import trimesh
    from PIL import Image

    scene = as_trained(scene, model)
    photos = scene.splits["train"]
    with torch.no_grad(), Progress("texture", shown=show_progress):
        vertices, faces, normals, info = _decimate(mesh, n_faces)
        ratings = photo_ratings(scene, vertices, faces, normals, photos)
        gains = exposure_gains(model, scene, ratings, vertices, normals, photos)
        asked = farthest_point_sample(scene.cameras.centres[photos], MAX_VIEWS)
        load = partial(_load_common_exposure, model, scene)
        pictures = [partial(load, int(photos[row]), gains[row]) for row in asked.tolist()]
        vertices = refine_vertices(scene, vertices, faces, normals, photos[asked], ratings[asked], pictures)
        normals = _normals(vertices, faces)  # the ratings hold: nothing moved by more than a pixel
        atlas = unwrap(vertices, faces, size)
        texture = bake(model, scene, atlas, vertices, normals, photos, ratings, gains)
    picture = Image.fromarray(to_display(texture.numpy(), linear=False))
    x, y = (atlas.uv.double() / atlas.size).unbind(1)
    factors = {"baseColorFactor": [255] * 4, "metallicFactor": 0.0, "roughnessFactor": 1.0}
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=picture, **factors)
    visual = trimesh.visual.TextureVisuals(uv=torch.stack([x, 1 - y], dim=1).numpy(), material=material)
    return to_trimesh(vertices[atlas.corners], atlas.faces, normals[atlas.corners], info, visual=visual)


def _load_common_exposure(model: Model, scene: Scene, i: int, gains: Tensor) -> Tensor:
    return load_photo_colors(model, scene, i) / gains


def transform_mesh(mesh: trimesh.Trimesh, to: Similarity) -> None:
    """Take a mesh to another frame, in place; its colours, texture and what is known of it stay."""
    normals = to.apply_directions(torch.from_numpy(np.array(mesh.vertex_normals))).numpy()
    mesh.vertices = to.apply(torch.from_numpy(np.array(mesh.vertices))).numpy()
    mesh.vertex_normals = normals  # type: ignore[method-assign]


def _decimate(mesh: trimesh.Trimesh, n_faces: int) -> tuple[Tensor, Tensor, Tensor, dict]:
    vertices, faces = (torch.from_numpy(np.array(x)) for x in (mesh.vertices, mesh.faces))
    vertices, faces = decimate(vertices, faces, n_faces, mesh.metadata.get("closed", False))
    info = {**mesh.metadata, "closed": is_closed(faces.int().numpy(), len(vertices))}
    return vertices, faces, _normals(vertices, faces), info


def _normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """[v,3] float64; computed in float32, so not about a far-away origin."""
    return vertex_normals(vertices - vertices.mean(dim=0), faces).double()
