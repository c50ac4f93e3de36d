"""Mesh files: what a GLB says of up, colours and material; textures that travel with their mesh."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from nerf.errors import UserError
from nerf.geometry.triangles import read_mesh, read_textured_mesh
from nerf.meshing.evaluation import evaluate_mesh
from nerf.meshing.files import check_path, save_mesh
from nerf.meshing.glb import upright


def ball() -> trimesh.Trimesh:
    mesh = trimesh.creation.icosphere(subdivisions=2, radius=2.0)
    mesh.apply_translation((5, 1, -3))
    mesh.visual.vertex_colors = (np.random.default_rng(0).random((len(mesh.vertices), 4)) * 255).astype(np.uint8)
    return mesh


def textured() -> trimesh.Trimesh:
    """A square in the plane z = 0 whose texture is red to the right and green above."""
    picture = np.zeros((8, 16, 3), np.uint8)
    picture[:, :, 0] = np.arange(16) * 17
    picture[:, :, 1] = (np.arange(8) * 36)[::-1, None]
    material = trimesh.visual.material.PBRMaterial(
        baseColorTexture=Image.fromarray(picture), baseColorFactor=[255] * 4, metallicFactor=0.0, roughnessFactor=1.0
    )
    square = np.array([[0, 0, 0], [2, 0, 0], [2, 1, 0], [0, 1, 0]], float)
    visual = trimesh.visual.TextureVisuals(uv=np.array([[0, 0], [1, 0], [1, 1], [0, 1.0]]), material=material)
    return trimesh.Trimesh(square, [[0, 1, 2], [0, 2, 3]], visual=visual, process=False)


def parts(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    magic, version, length = struct.unpack_from("<4sII", data)
    assert (magic, version, length) == (b"glTF", 2, len(data)) and length % 4 == 0
    size, kind = struct.unpack_from("<I4s", data, 12)
    assert kind == b"JSON" and size % 4 == 0
    size2, kind2 = struct.unpack_from("<I4s", data, 20 + size)
    assert kind2 == b"BIN\0" and 28 + size + size2 == length
    return json.loads(data[20 : 20 + size]), data[28 + size :]


def turned(q: list[float], v: np.ndarray) -> np.ndarray:
    x, y, z, w = q
    return v + 2 * np.cross([x, y, z], np.cross([x, y, z], v) + w * v)


@pytest.mark.parametrize(
    ("up", "taken"),
    [
        ((0, 0, 1), (0, 0, 1)),
        ((0, 1, 0), (0, 1, 0)),
        ((0, -3, 0), (0, -1, 0)),
        ((1, 0, 0), (1, 0, 0)),
        ((0.1, -0.1, 2), (0, 0, 1)),  # about z
        ((1, 1, 1), (1, 1, 1)),
        ((-0.3, -0.9, 0.4), (-0.3, -0.9, 0.4)),
    ],
)
def test_the_turn_brings_up_to_y(up: tuple[float, ...], taken: tuple[float, ...]) -> None:
    q = upright(np.array(up, float))
    assert np.linalg.norm(q) == pytest.approx(1)
    axis = np.array(taken, float) / np.linalg.norm(taken)
    np.testing.assert_allclose(turned(q, axis), [0, 1, 0], atol=1e-12)
    assert upright(None) == upright(np.zeros(3)) == [0, 0, 0, 1]


def test_a_glb_of_a_world_whose_up_is_z_stands_in_its_own_coordinates_in_blender(tmp_path: Path) -> None:
    mesh, path = ball(), tmp_path / "ball.glb"
    save_mesh(mesh, path, torch.tensor([0.0, 0.02, 1.0]))
    seen = trimesh.load(path, process=False, force="mesh").vertices  # as any reader places it: y is up
    blender = np.stack([seen[:, 0], -seen[:, 2], seen[:, 1]], axis=1)
    np.testing.assert_allclose(blender, mesh.vertices, atol=1e-5)
    assert torch.allclose(read_mesh(path).vertices, torch.from_numpy(np.array(mesh.vertices)), atol=1e-6)


def test_what_a_glb_says_of_itself(tmp_path: Path) -> None:
    mesh, path = ball(), tmp_path / "ball.glb"
    save_mesh(mesh, path)
    document, binary = parts(path)
    assert document["materials"][0]["extensions"] == {"KHR_materials_unlit": {}}
    assert document["extensionsUsed"] == ["KHR_materials_unlit"]
    assert document["materials"][0]["pbrMetallicRoughness"] == {"metallicFactor": 0.0, "roughnessFactor": 1.0}
    primitive = document["meshes"][0]["primitives"][0]
    colors = document["accessors"][primitive["attributes"]["COLOR_0"]]
    assert colors["normalized"] and colors["componentType"] == 5123
    view = document["bufferViews"][colors["bufferView"]]
    raw = np.frombuffer(binary, np.uint16, colors["count"] * 4, view["byteOffset"]).reshape(-1, 4) / 65535
    s = np.array(mesh.visual.vertex_colors)[:, :3] / 255
    linear = np.where(s <= 0.04045, s / 12.92, ((s + 0.055) / 1.055) ** 2.4)
    np.testing.assert_allclose(raw[:, :3], linear, atol=1e-5)
    position = document["accessors"][primitive["attributes"]["POSITION"]]
    np.testing.assert_allclose([position["min"], position["max"]], mesh.bounds, atol=1e-6)
    for each in document["bufferViews"]:
        assert each["byteOffset"] % 4 == 0 and each["byteOffset"] + each["byteLength"] <= len(binary)
    np.testing.assert_array_equal(trimesh.load(path, process=False, force="mesh").faces, mesh.faces)


@pytest.mark.parametrize("kind", ["glb", "obj"])
def test_a_texture_travels_with_its_mesh(kind: str, tmp_path: Path) -> None:
    mesh, path = textured(), tmp_path / f"square.{kind}"
    save_mesh(mesh, path)
    names = {p.name for p in tmp_path.iterdir()}
    assert names == ({"square.glb"} if kind == "glb" else {"square.obj", "square.mtl", "square.png"})
    again = read_textured_mesh(path)
    np.testing.assert_allclose(again.vertices, mesh.vertices, atol=1e-6)
    np.testing.assert_allclose(again.visual.uv, mesh.visual.uv, atol=1e-6)
    material = again.visual.material
    image = material.baseColorTexture if kind == "glb" else material.image
    np.testing.assert_array_equal(np.array(image.convert("RGB")), np.array(mesh.visual.material.baseColorTexture))
    if kind == "obj":
        text = (tmp_path / "square.mtl").read_text()
        assert "map_Kd square.png" in text and "Kd 1.0" in text


@pytest.mark.parametrize("kind", ["ply", "obj", "glb", "stl"])
def test_every_kind_keeps_the_shape_and_the_place(kind: str, tmp_path: Path) -> None:
    mesh, path = ball(), tmp_path / f"ball.{kind}"
    save_mesh(mesh, path, torch.tensor([0.0, 0.0, 1.0]))
    again = read_mesh(path)
    assert len(again.faces) == len(mesh.faces)
    truth = tmp_path / "truth.ply"
    mesh.export(truth)
    assert evaluate_mesh(again, read_mesh(truth), 2000).chamfer < 1e-5


def test_a_folder_that_is_not_writable_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)  # whoever runs the tests may write everywhere
    with pytest.raises(UserError, match=r"is not writable, so mesh\.glb cannot go there"):
        check_path(tmp_path / "mesh.glb")
    monkeypatch.undo()
    monkeypatch.setattr("os.replace", lambda a, b: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    (tmp_path / "mesh.ply").write_bytes(b"precious")
    with pytest.raises(UserError, match="No space left on device"):
        save_mesh(trimesh.creation.box(), tmp_path / "mesh.ply")
    assert (tmp_path / "mesh.ply").read_bytes() == b"precious" and len(list(tmp_path.iterdir())) == 1


def test_paths_that_cannot_be_written_are_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\.ply, \.obj, \.glb, \.stl"):
        check_path(tmp_path / "mesh.fbx")
    for name in ("mesh.ply", "mesh.stl"):
        with pytest.raises(UserError, match="carries no texture"):
            check_path(tmp_path / name, textured=True)
    (tmp_path / "mesh.png").write_bytes(b"precious")
    with pytest.raises(UserError, match=r"mesh.png exists"):
        check_path(tmp_path / "mesh.obj", overwrite=False, textured=True)
    check_path(tmp_path / "mesh.obj", overwrite=False)
