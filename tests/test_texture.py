"""Textures: charts that do not overlap, texels for every face, colours from the photos that show them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from nerf import datasets
from nerf.errors import UserError
from nerf.geometry.space import Box, Similarity
from nerf.meshing.atlas import Atlas, fill, texels, unwrap
from nerf.meshing.clean import decimate, vertex_normals
from nerf.meshing.evaluation import evaluate_mesh_views
from nerf.meshing.packing import pack
from nerf.meshing.preview import bilinear
from nerf.meshing.texture import bake, blend_photos, feather_ratings, photo_ratings

SAMPLE = Path(__file__).parent.parent / "data" / "sample"
GREY = 0.3125


class GreyField:
    """Stands in for a model whose field is grey everywhere; remembers for how many points it was asked."""

    def __init__(self) -> None:
        self.scene_from_world, self.space, self.asked = Similarity.identity(), Box(), 0
        self.linear, self.exposure = False, 1.0
        self.given_poses = self.log_gains = self.vignetting = self.falloff = None

    def color(self, points: Tensor, directions: Tensor) -> Tensor:
        assert torch.allclose(directions.norm(dim=1), torch.ones(len(points)), atol=1e-4)
        self.asked += len(points)
        return torch.full((len(points), 3), GREY)


def tensors(mesh: trimesh.Trimesh) -> tuple[Tensor, Tensor, Tensor]:
    vertices, faces = torch.from_numpy(np.array(mesh.vertices)), torch.from_numpy(np.array(mesh.faces))
    return vertices, faces, vertex_normals(vertices, faces).double()


# ---- the flat side


def test_filling_keeps_what_is_known_and_leaves_nothing_empty() -> None:
    g = torch.Generator().manual_seed(0)
    texture, known = torch.rand(37, 50, 3, generator=g), torch.rand(37, 50, generator=g) < 0.05
    filled = fill(texture, known)
    assert torch.equal(filled[known], texture[known])
    assert bool(filled.isfinite().all())
    low, high = texture[known].amin(dim=0), texture[known].amax(dim=0)
    assert bool((filled >= low - 1e-6).all() and (filled <= high + 1e-6).all())  # means of known colours
    one = torch.zeros(37, 50, dtype=torch.bool)
    one[3, 40] = True
    torch.testing.assert_close(fill(texture, one), texture[3, 40].expand(37, 50, 3))


def test_filling_takes_the_near_colour() -> None:
    texture, known = torch.zeros(64, 64, 3), torch.zeros(64, 64, dtype=torch.bool)
    known[:, 10], known[:, 50] = True, True
    texture[:, 50] = 1.0
    filled = fill(texture, known)
    assert float(filled[:, 12].max()) < 0.2 and float(filled[:, 48].min()) > 0.8


def test_charts_do_not_overlap_and_every_face_has_texels() -> None:
    mesh = trimesh.creation.icosphere(subdivisions=4, radius=100.0)
    mesh.apply_translation((1000, -50, 3))
    vertices, faces, _ = tensors(mesh)
    atlas = unwrap(vertices, faces, 512)
    assert atlas.size == 512
    assert torch.equal(atlas.corners[atlas.faces], faces), "faces keep their order"
    a, b, c = atlas.uv[atlas.faces].unbind(dim=1)
    areas = ((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]).abs() / 2
    flat, face, weights = texels(atlas)
    # As many texels as the charts' area: were two charts on one place, they would be fewer.
    assert len(flat) == pytest.approx(float(areas.sum()), rel=0.03)
    assert len(face.unique()) == len(faces)
    counts = torch.bincount(face, minlength=len(faces))
    assert float((counts - areas).abs().max()) < 12  # half a face's outline
    on_faces = (weights[..., None] * vertices[faces[face]]).sum(dim=1)
    assert float((on_faces - torch.tensor([1000.0, -50, 3])).norm(dim=1).min()) > 99


def test_texture_sizes_that_do_not_fit_are_refused() -> None:
    vertices, faces, _ = tensors(trimesh.creation.box())
    for size in (0, 15, 20_000):
        with pytest.raises(UserError, match="--texture"):
            unwrap(vertices, faces, size)


def test_charts_are_few_and_fill_the_texture() -> None:
    """A rough ball: faces that look aside for themselves stay with their neighbours."""
    mesh = trimesh.creation.icosphere(subdivisions=5)
    mesh.vertices *= 1 + 0.004 * np.random.default_rng(0).standard_normal((len(mesh.vertices), 1))
    vertices, faces, _ = tensors(mesh)
    atlas = unwrap(vertices, faces, 1024)
    pieces = trimesh.Trimesh(np.pad(atlas.uv.numpy(), ((0, 0), (0, 1))), atlas.faces.numpy(), process=False)
    assert trimesh.graph.connected_component_labels(pieces.face_adjacency).max() + 1 < 40
    a, b, c = atlas.uv[atlas.faces].unbind(dim=1)
    areas = ((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]).abs() / 2
    assert float(areas.sum()) > 0.5 * 1024**2
    assert float(atlas.uv.min()) > 0 and float(atlas.uv.max()) < 1024


def test_packed_charts_keep_their_gap_and_their_shape() -> None:
    g = torch.Generator().manual_seed(0)
    sides = torch.rand(200, 2, generator=g, dtype=torch.float64).square() * 4 + 0.05
    square = torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1]], dtype=torch.float64)
    flat = (square * sides[:, None]).reshape(-1, 2)
    faces = (torch.tensor([[0, 1, 2], [0, 2, 3]]) + 4 * torch.arange(200)[:, None, None]).reshape(-1, 3)
    uv = pack(flat, faces, torch.arange(400) // 2, 512, 4)
    assert uv is not None and float(uv.min()) >= 2 and float(uv.max()) <= 510
    places = uv.reshape(200, 4, 2)
    scales = (places[:, 1] - places[:, 0]).norm(dim=1) / sides[:, 0]
    torch.testing.assert_close(scales, scales[:1].expand(200))
    low, high = places.amin(dim=1), places.amax(dim=1)
    gaps = torch.maximum(low[:, None] - high, low - high[:, None]).amax(dim=2).fill_diagonal_(4)
    assert float(gaps.min()) >= 4 - 1e-9
    assert float((high - low).prod(dim=1).sum()) > 0.6 * 512**2


def test_an_open_shell_and_more_pieces_than_texels() -> None:
    shell = trimesh.creation.icosphere(subdivisions=3)
    vertices, faces, _ = tensors(shell)
    upper = faces[(vertices[faces][..., 2] > 0).all(dim=1)]
    atlas = unwrap(vertices, upper, 256)
    assert torch.equal(atlas.corners[atlas.faces], upper) and len(texels(atlas)[1].unique()) == len(upper)
    one = torch.from_numpy(np.array(trimesh.creation.box().vertices))
    box = torch.from_numpy(np.array(trimesh.creation.box().faces))
    many = 400
    vertices = (one + 3 * torch.arange(many)[:, None, None]).reshape(-1, 3)
    faces = (box + 8 * torch.arange(many)[:, None, None]).reshape(-1, 3)
    with pytest.raises(UserError, match=r"--texture 64 does not hold the mesh's 2,400 charts: give a larger size"):
        unwrap(vertices, faces, 64)


def test_bilinear_colours_are_those_of_pixel_centres() -> None:
    picture = torch.rand(5, 7, 3, generator=torch.Generator().manual_seed(1))
    uv = torch.tensor([[0.5, 0.5], [6.5, 4.5], [2.0, 1.5], [-3.0, 9.0]], dtype=torch.float64)
    found = bilinear(picture, uv)
    expected = torch.stack([picture[0, 0], picture[4, 6], (picture[1, 1] + picture[1, 2]) / 2, picture[4, 0]])
    torch.testing.assert_close(found, expected)


def test_photos_that_disagree_count_less() -> None:
    colors = torch.tensor([[[0.2, 0.2, 0.2], [0.22, 0.2, 0.2], [0.9, 0.9, 0.9]], [[0.1, 0.2, 0.3]] * 3])
    mean, seen = blend_photos(colors, torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]))
    assert seen.tolist() == [True, False]
    assert float((mean[0] - 0.2).abs().max()) < 0.1  # a plain mean is 0.43


def test_decimation_keeps_the_shape_and_the_place() -> None:
    mesh = trimesh.creation.icosphere(subdivisions=5, radius=2.0)
    mesh.apply_translation((5e5, 4e6, 100.0))
    vertices, faces, _ = tensors(mesh)
    fewer, kept = decimate(vertices, faces, 1000)
    assert 500 < len(kept) <= 1000
    radius = (fewer - torch.tensor([5e5, 4e6, 100.0])).norm(dim=1)
    assert 1.95 < float(radius.min()) and float(radius.max()) < 2.05
    same, all_faces = decimate(vertices, faces, 10**6)
    assert torch.equal(same, vertices) and torch.equal(all_faces, faces)


def test_an_open_shell_stays_open() -> None:
    mesh = trimesh.creation.icosphere(subdivisions=5)
    upper = mesh.triangles_center[:, 2] > 0
    shell = trimesh.Trimesh(mesh.vertices, mesh.faces[upper], process=False)
    vertices, faces, _ = tensors(shell)
    fewer, kept = decimate(vertices, faces, 2000, closed=False)
    made = trimesh.Trimesh(fewer.numpy(), kept.numpy(), process=False)
    assert len(kept) <= 2000 and not made.is_watertight
    border = made.edges_unique[np.bincount(made.edges_unique_inverse) == 1]
    assert np.abs(made.vertices[border][..., 2]).max() < 0.06, "its one border is where it was"
    assert made.vertices[:, 2].max() > 0.98


# ---- photos of the bundled scene on its true mesh


@pytest.fixture(scope="module")
def scene() -> datasets.Scene:
    return datasets.load(SAMPLE, quiet=True)


@pytest.fixture(scope="module")
def truth() -> trimesh.Trimesh:
    return trimesh.load(SAMPLE / "mesh.ply", process=False)


def test_a_photo_rates_what_it_shows(scene: datasets.Scene, truth: trimesh.Trimesh) -> None:
    vertices, faces, normals = tensors(truth)
    photos = scene.splits["train"][:3]
    ratings = photo_ratings(scene, vertices, faces, normals, photos)
    for row, i in zip(ratings, photos.tolist(), strict=True):
        towards = scene.cameras.centres[i] - vertices
        facing = (towards * normals).sum(dim=1) > 0
        assert not bool((row[~facing] > 0).any()), "a photo rates what turns away from it"
        assert 0.1 < float((row > 0).float().mean()) < 0.6
    before = ratings.clone()
    after = feather_ratings(ratings, faces)
    assert bool((after <= before).all()) and bool((after[before == 0] == 0).all())


def test_what_lies_behind_or_at_a_camera_is_rated_as_a_number(scene: datasets.Scene, truth: trimesh.Trimesh) -> None:
    vertices, faces, normals = tensors(truth)
    photos = scene.splits["train"][:2]
    expected = photo_ratings(scene, vertices, faces, normals, photos)
    camera, ahead = scene.cameras.centres[photos[0]], scene.cameras.forward[photos[0]]
    wall = [camera + ahead * t + camera.roll(1) * s for t, s in ((-1.0, 0.1), (-1e-200, 0.2), (1e-200, 0.3), (0, 0))]
    more = torch.stack([*wall, *(camera + 1e-300 * camera.roll(k) for k in range(2))]).double()
    n = len(vertices)
    all_faces = torch.cat([faces, torch.tensor([[0, 1, 2], [3, 4, 5]]) + n])
    towards = torch.nn.functional.normalize(ahead, dim=0).neg().expand(len(more), 3)
    ratings = photo_ratings(scene, torch.cat([vertices, more]), all_faces, torch.cat([normals, towards]), photos)
    assert bool(ratings.isfinite().all()) and bool((ratings.double().pow(4) < 3e38).all())
    torch.testing.assert_close(ratings[1, :n], expected[1])


def test_a_texture_from_photos_looks_like_the_photos(scene: datasets.Scene, truth: trimesh.Trimesh) -> None:
    vertices, faces, normals = tensors(truth)
    atlas, field = unwrap(vertices, faces, 1024), GreyField()
    photos = scene.splits["train"]
    ratings = photo_ratings(scene, vertices, faces, normals, photos)
    gains = torch.ones(len(photos), 3)
    texture = bake(field, scene, atlas, vertices, normals, photos, ratings, gains)  # type: ignore[arg-type]
    assert texture.shape == (atlas.size, atlas.size, 3) and 0 <= float(texture.min()) <= float(texture.max()) < 1.1
    flat, face, _ = texels(atlas)
    grey = ((texture.reshape(-1, 3)[flat] - GREY).abs() < 1e-6).all(dim=1)
    assert 0 < float(grey.float().mean()) < 0.2, "what no photo shows takes the field's colour, and only that"
    seen = torch.zeros(len(faces), dtype=torch.bool)
    seen[face[~grey]] = True
    assert float(seen.float().mean()) > 0.7
    from PIL import Image

    flat_uv = atlas.uv / atlas.size
    image = Image.fromarray((texture.clamp(0, 1) * 255).round().byte().numpy())
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=image)
    uv = torch.stack([flat_uv[:, 0], 1 - flat_uv[:, 1]], dim=1).numpy()
    visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    made = trimesh.Trimesh(
        vertices[atlas.corners].numpy(), atlas.faces.numpy(), visual=visual, process=False, validate=False
    )
    assert evaluate_mesh_views(made, scene).psnr > 28


def test_an_atlas_of_one_face_is_coloured_too() -> None:
    one = Atlas(torch.arange(3), torch.tensor([[0, 1, 2]]), torch.tensor([[1.0, 1], [30, 1], [1, 30]]).double(), 32)
    flat, face, weights = texels(one)
    assert len(flat) == pytest.approx(29 * 29 / 2, abs=20) and int(face.max()) == 0
    assert torch.allclose(weights.sum(dim=1), torch.ones(len(flat)).double())
