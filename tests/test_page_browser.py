"""The page as a browser shows it: headless Chromium draws it in software, its hands are events that the tests send."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from fakes import ring_cameras
from PIL import Image

from nerf.geometry.cameras import Cameras
from nerf.meshing.preview import render_mesh
from nerf.views.page import page_text
from nerf.views.page.harmonics import colors_towards
from nerf.views.page.stage import Stage, view_numbers

BROWSER = next((b for b in ("chromium", "chromium-browser", "google-chrome") if shutil.which(b)), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
QUIET = [f"--disable-{what}" for what in ("quic", "background-networking", "component-update", "sync")]
QUIET += ["--force-color-profile=srgb", "--no-first-run", "--window-size=600,400"]
PAPER = (244, 242, 238)
Z_UP = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]], dtype=torch.float64)  # to the page's y


def browse(page: str, tmp_path: Path, *options: str, fragment: str = "") -> bytes:
    """What Chromium prints of a page on the disk."""
    if BROWSER is None:
        pytest.skip("no Chromium on this machine")
    file = tmp_path / "page.html"
    file.write_text(page, encoding="utf-8")
    command = [BROWSER, *FLAGS, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", *options, file.as_uri() + fragment]
    return subprocess.run(command, capture_output=True, timeout=180, cwd=tmp_path).stdout


def shown(page: str, tmp_path: Path, fragment: str = "") -> np.ndarray:
    """A picture of the page without its words and buttons: [h,w,3] int, as large as the window."""
    browse(page, tmp_path, f"--screenshot={tmp_path / 'shot.png'}", fragment=f"#bare&{fragment}")
    return np.asarray(Image.open(tmp_path / "shot.png").convert("RGB")).astype(int)


def stage(cameras: Cameras, fov: float = 0.6) -> Stage:
    """Each camera is a view and a frame of the path."""
    numbers = view_numbers(cameras, Z_UP, torch.zeros(3, dtype=torch.float64))
    return Stage(
        Z_UP, torch.zeros(3, dtype=torch.float64), fov, {f"v{k}": x for k, x in enumerate(numbers)}, numbers, 4.0
    )


def square() -> trimesh.Trimesh:
    """In the yz plane, its up z, before the first of `ring_cameras`; the texture red above and blue below."""
    corners = np.array([[0, -1, -1], [0, 1, -1], [0, 1, 1], [0, -1, 1]], np.float64)
    texture = np.zeros((16, 16, 3), np.uint8)
    texture[:8], texture[8:] = (200, 60, 40), (40, 60, 200)
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=Image.fromarray(texture))
    visual = trimesh.visual.TextureVisuals(uv=np.array([[0, 0], [1, 0], [1, 1], [0, 1]]), material=material)
    return trimesh.Trimesh(corners, [[0, 1, 2], [0, 2, 3]], visual=visual, process=False)


def test_a_textured_mesh_stands_upright_before_the_viewer(tmp_path: Path) -> None:
    page = page_text(square(), stage(ring_cameras(8, elevation=0.0)), "square")
    picture = shown(page, tmp_path)
    np.testing.assert_allclose(picture[130, 300], (200, 60, 40), atol=4)  # sRGB as it was written
    np.testing.assert_allclose(picture[260, 300], (40, 60, 200), atol=4)
    np.testing.assert_allclose(picture[200, 20], PAPER, atol=1)
    bare = shown(page, tmp_path, "look=2")[130, 300]
    assert np.ptp(bare) <= 3 and bare.min() > 100  # grey and lit


def test_the_page_shows_what_our_own_rasteriser_draws(tmp_path: Path) -> None:
    """A ball with vertex colours and changing ones, in another frame than the page's, from two sides."""
    ball = trimesh.creation.icosphere(4)
    generator = np.random.default_rng(0)
    colors = 128 + 60 * np.sin(3 * np.asarray(ball.vertices))
    ball.visual.vertex_colors = np.concatenate([colors, np.full((len(colors), 1), 255)], axis=1).astype(np.uint8)
    harmonics = torch.from_numpy(generator.normal(size=(9, 3)) * 0.25).float().expand(len(ball.vertices), 9, 3).clone()
    harmonics *= torch.from_numpy(np.asarray(ball.vertices)[:, :1, None]).float().abs()
    cameras = ring_cameras(8, elevation=0.3).resized(400, 400)
    fov = float(2 * torch.atan(200 / cameras.fy[0]))
    page = page_text(ball, stage(cameras, fov), "ball", harmonics=harmonics)
    vertices, eyes = torch.from_numpy(np.asarray(ball.vertices)), cameras.centres
    for k in (0, 3):
        added = colors_towards(harmonics, vertices, eyes[k])
        background = tuple(x / 255 for x in PAPER)
        changing, fixed = (render_mesh(ball, cameras, k, background, added=x).color * 255 for x in (added, None))
        for look, want in ((0, changing), (1, fixed)):
            picture = shown(page, tmp_path, f"view={k}&look={look}")[:, 100:500]
            assert psnr(picture, want) > 35, (k, look)
        assert psnr(changing, fixed) < 30  # so each of the two was told from the other


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return float(-10 * np.log10(np.square((one - other) / 255).mean()))


HANDS = """<script>
requestAnimationFrame = (draw) => setTimeout(() => draw(performance.now()), 16);  // Chromium draws none in virtual time
const said = {}, wait = (ms) => new Promise((done) => setTimeout(done, ms));
const pointer = (kind, x, y, id = 1, buttons = 1) =>
  canvas.dispatchEvent(new PointerEvent(kind, { pointerId: id, clientX: x, clientY: y, buttons }));
const key = (kind, name) => canvas.dispatchEvent(new KeyboardEvent(kind, { key: name, bubbles: true }));
const now = () => structuredClone(view);
async function until(done) { for (let k = 0; k < 400 && !done(); k++) await wait(50); }
async function hold(name) {
  const before = JSON.stringify(view);
  key("keydown", name); await until(() => JSON.stringify(view) !== before); key("keyup", name); return now();
}
async function drag(dx, dy, buttons = 1) {
  pointer("pointerdown", 100, 100, 1, buttons); pointer("pointermove", 100 + dx, 100 + dy, 1, buttons);
  pointer("pointerup", 0, 0); await wait(50); return now();
}
addEventListener("load", async () => {
  await wait(500);
  canvas.setPointerCapture = () => {};  // knows real fingers only
  said.start = now();
  said.dragged = await drag(10, 20);
  said.moved = await drag(10, 0, 2);
  said.left = await hold("ArrowLeft");
  canvas.dispatchEvent(new WheelEvent("wheel", { deltaY: 100, cancelable: true })); said.zoomed = now();
  pointer("pointerdown", 100, 100, 1); pointer("pointerdown", 200, 100, 2); pointer("pointermove", 300, 100, 2);
  said.pinched = now(); pointer("pointerup", 0, 0, 1); pointer("pointerup", 0, 0, 2);
  find("views").value = 2; find("views").onchange({ target: find("views") });
  await until(() => !journey); said.jumped = now();
  find("fly").click(); said.eyes = [eyeOf(view)]; await drag(30, 10); said.eyes.push(eyeOf(view));
  said.looked = now(); said.walked = await hold("ArrowUp"); find("fly").click();
  find("play").click(); await until(() => time > 0.5); said.playing = [playing, time, now()];
  await drag(1, 1); said.stopped = playing;
  said.asked = performance.getEntriesByType("resource").map((entry) => entry.name);
  said.error = find("error").textContent; said.looks = [...find("look").options].map((o) => o.text);
  document.body.dataset.said = JSON.stringify(said);
});
</script></body>"""


def test_mouse_fingers_and_keys_do_what_they_say(tmp_path: Path) -> None:
    cameras = ring_cameras(8, elevation=0.3)
    page = page_text(square(), stage(cameras), "square").replace("</body>", HANDS)
    dom = browse(page, tmp_path, "--virtual-time-budget=60000", "--dump-dom").decode()
    found = re.search(r'data-said="([^"]*)"', dom)
    assert found, dom[-2000:]
    said: dict[str, Any] = json.loads(unescape(found[1]))
    assert said["error"] == "" and said["looks"] == ["Colours", "Shape only"]
    assert not [name for name in said["asked"] if not name.startswith("data:")]
    start, dragged, moved = said["start"], said["dragged"], said["moved"]
    assert dragged["azimuth"] == pytest.approx(start["azimuth"] - 0.08)
    assert dragged["elevation"] == pytest.approx(start["elevation"] + 0.16) and dragged["target"] == start["target"]
    assert moved["azimuth"] == dragged["azimuth"] and np.linalg.norm(moved["target"]) > 0.01
    assert moved["azimuth"] - 3 < said["left"]["azimuth"] < moved["azimuth"]
    assert said["zoomed"]["distance"] == pytest.approx(start["distance"] * np.exp(0.1))
    assert said["pinched"]["distance"] == pytest.approx(said["zoomed"]["distance"] / 2)
    *target, azimuth, elevation, distance = stage(cameras).path[2]
    jumped = said["jumped"]
    assert [*jumped["target"], jumped["elevation"], jumped["distance"]] == pytest.approx([*target, elevation, distance])
    assert np.cos(jumped["azimuth"] - azimuth) == pytest.approx(1)
    np.testing.assert_allclose(*said["eyes"], atol=1e-6)  # flying, a drag turns the head alone
    assert said["looked"]["azimuth"] != jumped["azimuth"]
    step = np.subtract(said["walked"]["target"], said["looked"]["target"])
    ahead = np.subtract(said["looked"]["target"], said["eyes"][1])
    assert step @ ahead / np.linalg.norm(step) / np.linalg.norm(ahead) == pytest.approx(1, abs=1e-6)
    on, seconds, there = said["playing"]
    assert on and 0.5 < seconds < 1 and not said["stopped"]
    assert there["distance"] == pytest.approx(4.0, rel=0.1) and there["elevation"] == pytest.approx(0.3, abs=1e-4)


def test_a_mesh_without_colours_shows_its_shape(tmp_path: Path) -> None:
    box = trimesh.creation.box()
    box.visual = None  # type: ignore[assignment]
    box = trimesh.Trimesh(box.vertices, box.faces, process=False)
    picture = shown(page_text(box, stage(ring_cameras(8, elevation=0.0)), "box"), tmp_path)
    assert np.ptp(picture[200, 300]) <= 3 and 100 < picture[200, 300].min() < 235
