"""The viewer's page, driven in headless Chromium: looked at, edited, measured, filmed, exported, and left."""

from __future__ import annotations

import json
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from fakes import AnalyticModel, ball, ring_cameras
from PIL import Image
from tiny import make_scene, sphere_scene, train_config

from nerf.errors import UserError
from nerf.geometry.space import Similarity
from nerf.rendering.model import Model
from nerf.training.loop import train
from nerf.views.paths import load_path
from nerf.views.viewer.edits import read_edits
from nerf.views.viewer.subject import Subject

BROWSER = next((path for b in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(b))), None)
if BROWSER is None:
    pytest.skip("no Chromium on this machine", allow_module_level=True)
viser = pytest.importorskip("viser", reason="the viewer's page needs viser")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright, which drives the browser, is not installed")

from nerf.views.viewer.server import Viewer  # noqa: E402

# a browser that draws without a GPU takes both cores for itself: to be run alone, with -m slow
pytestmark = pytest.mark.slow

FLAGS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
WINDOW = {"width": 900, "height": 420}  # wide enough that the panel does not lie over the middle
LONGEST = 200  # pixels of pictures: the browser draws without a GPU, and takes most of the machine for itself
PATIENCE = 90.0  # seconds, on a busy machine
RADIUS = 0.7 * 1.5  # of the ball, world


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nerf.views.viewer.pace.LONGEST", LONGEST)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=BROWSER, headless=True, args=FLAGS)
        yield running
        running.close()


@pytest.fixture(scope="module")
def scene() -> Any:
    cameras = ring_cameras(6, 48)
    model = ball_model()
    images = []
    for i in range(6):
        view = model.render_image(cameras, i, normals=False)
        rgba = np.concatenate([view.color, view.opacity[..., None]], axis=2)
        images.append((np.clip(rgba, 0, 1) * 255).astype(np.uint8))
    return make_scene(images, cameras)


def ball_model() -> AnalyticModel:
    return AnalyticModel(
        ball(0.7), scene_from_world=Similarity.around([0.0, 0.0, 0.0], 1.5), cameras=ring_cameras(6, 48)
    )


@pytest.fixture
def viewer(scene: Any, tmp_path: Path) -> Iterator[Viewer]:
    subject = Subject("ball", ball_model(), folder=tmp_path)
    subject.set_scene(scene)
    serving = Viewer(subject, port=0)
    yield serving
    serving.close()


@pytest.fixture
def page(browser: Any, viewer: Viewer) -> Iterator[Any]:
    yield from opened(browser, viewer.address)


def opened(browser: Any, address: str) -> Iterator[Any]:
    """A page of its own, as another browser's would be."""
    context = browser.new_context(viewport=WINDOW, accept_downloads=True)
    shown = context.new_page()
    shown.goto(address)
    shown.get_by_role("tab", name="View").wait_for(timeout=1000 * PATIENCE)
    yield shown
    context.close()


def until(true: Callable[[], Any], what: str = "", patience: float = PATIENCE) -> None:
    """Wait for something that other threads do."""
    end = time.monotonic() + patience
    while not true():
        assert time.monotonic() < end, f"not in time: {what or true}"
        time.sleep(0.05)


def settled(viewer: Viewer, i: int = 0) -> Any:
    """Client i, once its finest picture is there."""
    until(lambda: len(viewer.clients) > i, "a client")
    client = viewer.clients[i]
    until(lambda: client.viewport.pace.level is None and client.viewport.pictures > 0, "the finest picture")
    return client


def seen(page: Any) -> np.ndarray:
    """What the page shows, [h,w,3]."""
    import io

    return np.asarray(Image.open(io.BytesIO(page.screenshot(timeout=2000 * PATIENCE))).convert("RGB")).astype(int)


def press(control: Any) -> None:
    """Click a control, wherever the panel has scrolled to: a browser that draws without a GPU is slow to hold still."""
    control.wait_for(state="attached", timeout=1000 * PATIENCE)
    control.dispatch_event("click")


def tab(page: Any, name: str) -> None:
    """Open a tab, which listens to pointers and not to clicks: it can be dragged."""
    control = page.get_by_role("tab", name=name)
    control.click(timeout=1000 * PATIENCE)
    until(lambda: control.get_attribute("aria-selected") == "true", f"the tab {name}")


def test_the_page_shows_the_scene_and_refines_it(page: Any, viewer: Viewer) -> None:
    client = settled(viewer)
    assert client.viewport.pictures >= 2  # coarse first
    page.wait_for_timeout(1500)  # the page fades in
    picture = seen(page)
    middle, side = picture[210, 450], picture[390, 30]
    assert side.min() > 245 and middle.min() < 230  # a coloured ball on white
    assert re.search(r"200 . 93 in \d", page.content())


def test_dragging_turns_the_view_and_buttons_jump_to_cameras(page: Any, viewer: Viewer) -> None:
    client = settled(viewer)
    before, pictures = client.viewport.c2w.clone(), client.viewport.pictures
    page.mouse.move(200, 400)
    page.mouse.down()
    page.mouse.move(320, 420, steps=6)
    page.mouse.up()
    until(lambda: not torch.allclose(client.viewport.c2w, before, atol=1e-3), "a turned view")
    settled(viewer)
    assert client.viewport.pictures > pictures
    press(page.get_by_text("Next", exact=True))
    goal = ring_cameras(6, 48).c2w[1]
    until(lambda: torch.allclose(client.viewport.c2w, goal, atol=1e-3), "the second camera")
    press(page.get_by_text("Back to the start"))
    start = viewer.subject.first_view()[0]
    until(lambda: torch.allclose(client.viewport.c2w, start, atol=1e-3), "the first view")


def test_the_photo_beside_its_rendering(page: Any, viewer: Viewer) -> None:
    client = settled(viewer)
    press(page.get_by_label("Compare", exact=True))
    page.get_by_text("PSNR at").wait_for(timeout=1000 * PATIENCE)
    until(lambda: client.viewport.pace.level is None, "the finest picture")
    page.wait_for_timeout(500)
    value = float(page.get_by_text("PSNR at").inner_text().split(" dB")[0])
    assert value > 35 and "trained on" in page.get_by_text("PSNR at").inner_text()
    rendered = client.viewport.pictures
    press(page.get_by_label("Show the error"))
    until(lambda: client.viewport.pictures > rendered, "the error")
    page.wait_for_timeout(700)
    right = seen(page)[210, 480]
    assert right.max() < 90  # next to no error: black
    page.mouse.move(200, 300)  # who moves has done with comparing
    page.mouse.down()
    page.mouse.move(330, 300, steps=5)
    page.mouse.up()
    until(lambda: client.viewport.photo is None, "the end of comparing")
    until(lambda: not page.get_by_label("Compare", exact=True).is_checked(), "the box unchecked")


def test_a_crop_is_kept_undone_and_cuts_the_mesh(page: Any, viewer: Viewer, tmp_path: Path) -> None:
    client = settled(viewer)
    tab(page, "Edit")
    press(page.get_by_label("Keep only a box"))
    until(lambda: read_edits(tmp_path).crop is not None, "the crop in its file")
    until(lambda: client.edit.crop_handles.region is not None, "the crop's handles")
    crop = read_edits(tmp_path).crop
    assert crop is not None and 2 * RADIUS < crop.size[0] < 2 * RADIUS + 0.5  # all of the ball
    corner = crop.corners()[-1] - torch.tensor([0.0, 0.0, crop.size[2] / 2], dtype=torch.float64)
    event = type("Event", (), {"phase": "end"})  # a drag of the corner handle, down to the middle of the ball
    place = client.frame.points(corner[None])[0].numpy()
    client.edit.crop_handles._stretched(event, type("Handle", (), {"position": place}))
    lower = read_edits(tmp_path).crop
    assert lower is not None and lower.size[2] == pytest.approx(crop.size[2] / 2, rel=1e-3)
    settled(viewer)
    tab(page, "Export")
    page.get_by_label("Cells", exact=True).fill("32")
    page.get_by_label("Cells", exact=True).press("Enter")
    with page.expect_download(timeout=1000 * PATIENCE) as download:
        press(page.get_by_text("Make the mesh"))
        until(lambda: (tmp_path / "mesh-edited.glb").is_file(), "the mesh")
        press(page.get_by_text("mesh-edited.glb").last)
    assert download.value.suggested_filename == "mesh-edited.glb"
    mesh = trimesh.load(tmp_path / "mesh-edited.glb", force="mesh")
    part = max(mesh.split(only_watertight=False), key=lambda piece: len(piece.faces))  # corners that no photo shows
    assert part.bounds[1][1] == pytest.approx(0.0, abs=0.05)  # up is y in a GLB: cut at the middle of the ball
    assert part.extents[[0, 2]] == pytest.approx(2 * RADIUS, abs=0.2)  # and whole across
    tab(page, "Edit")
    for _ in range(2):
        press(page.get_by_text("Undo", exact=True))
        page.wait_for_timeout(200)
    until(lambda: read_edits(tmp_path).crop is None, "no crop")


def test_a_length_is_measured_and_sets_the_size(page: Any, viewer: Viewer, tmp_path: Path) -> None:
    client = settled(viewer)
    tab(page, "Edit")
    press(page.get_by_text("Click two points"))
    page.get_by_text("Click the two ends").wait_for()
    ends = []
    for x in (WINDOW["width"] / 2 - 80, WINDOW["width"] / 2 + 60):
        page.mouse.click(x, WINDOW["height"] / 2)
        until(lambda: len(client.edit.clicks) == len(ends) + 1, "a click")
        ends.append(client.edit.clicks[-1])
    page.get_by_text("units of the photos").wait_for()
    for end in ends:
        assert float(end.norm()) == pytest.approx(RADIUS, abs=0.01)  # on the ball
    length = float((ends[1] - ends[0]).norm())
    pixel = 2 * np.tan(client.viewport.fov / 2) / WINDOW["height"]  # at a distance of 1
    distance = float(client.viewport.c2w[:, 3].norm())

    def across(pixels: float) -> float:
        """How far from the axis a ray meets the ball."""
        slope = pixels * pixel
        along = (distance - np.sqrt(RADIUS**2 * (1 + slope**2) - distance**2 * slope**2)) / (1 + slope**2)
        return float(along * slope)

    assert length == pytest.approx(across(80) + across(60), rel=0.05)
    page.get_by_label("It is truly").fill("2")
    page.get_by_label("It is truly").press("Enter")
    press(page.get_by_text("Set the size of everything"))
    until(lambda: read_edits(tmp_path).scale != 1.0, "a scale")
    assert read_edits(tmp_path).scale * length == pytest.approx(2.0, rel=1e-6) and read_edits(tmp_path).unit == "m"
    page.get_by_text("2 m").wait_for()


def test_a_ball_in_the_way_is_hidden_and_up_is_set(page: Any, viewer: Viewer, tmp_path: Path) -> None:
    client = settled(viewer)
    tab(page, "Edit")
    press(page.get_by_text("Ball", exact=True))
    press(page.get_by_text("Hide what is inside"))
    until(lambda: len(read_edits(tmp_path).hidden) == 1, "something hidden")
    press(page.get_by_text("Show all again (1 hidden)"))
    until(lambda: not read_edits(tmp_path).hidden, "nothing hidden")
    press(page.get_by_text("Click on it", exact=True))
    page.get_by_text("Click on the ground").wait_for()
    page.mouse.click(WINDOW["width"] / 2, WINDOW["height"] / 2)
    until(lambda: read_edits(tmp_path).up is not None, "an up direction")
    up = torch.tensor(read_edits(tmp_path).up, dtype=torch.float64)
    towards = client.viewport.c2w[:, 3] / client.viewport.c2w[:, 3].norm()
    assert float(up @ towards) > 0.99  # the ball is level where it faces the viewer


def test_a_path_is_made_saved_and_filmed(page: Any, viewer: Viewer, tmp_path: Path) -> None:
    client = settled(viewer)
    tab(page, "Film")
    press(page.get_by_text("Add this view"))
    until(lambda: len(client.film.path.views) == 1, "a key view")
    client.go_to_photo(2)
    press(page.get_by_text("Add this view"))
    until(lambda: len(client.film.path.views) == 2, "two key views")
    page.get_by_label("Frames a second").fill("2")
    page.get_by_label("Frames a second").press("Enter")
    until(lambda: client.film.path.fps == 2, "frames a second")
    press(page.get_by_text("For nerf", exact=True))
    until(lambda: (tmp_path / "camera-path.json").is_file(), "the path")
    assert len(load_path(tmp_path / "camera-path.json").cameras) == 4
    press(page.get_by_text("Render the film"))
    until(lambda: (tmp_path / "film.mp4").is_file(), "the film")
    from nerf.signals.video import read_video

    film = read_video(tmp_path / "film.mp4")
    assert film.shape == (4, 180, 320)


def test_a_picture_of_any_size_and_the_cameras(page: Any, viewer: Viewer, tmp_path: Path) -> None:
    settled(viewer)
    tab(page, "Export")
    for label, value in (("Width", "120"), ("Height", "90")):
        page.get_by_label(label).fill(value)
        page.get_by_label(label).press("Enter")
    page.wait_for_timeout(300)
    press(page.get_by_text("Save the picture"))
    until(lambda: (tmp_path / "view.png").is_file(), "the picture")
    assert Image.open(tmp_path / "view.png").size == (120, 90)


def test_two_browsers_see_for_themselves_and_one_may_go(
    browser: Any, page: Any, viewer: Viewer, tmp_path: Path
) -> None:
    first = settled(viewer)
    other = opened(browser, viewer.address)
    second_page = next(other)
    second = settled(viewer, 1)
    assert first is not second and viewer.loop.n_sources == 2
    second.go_to_photo(3)
    until(lambda: not torch.allclose(first.viewport.c2w, second.viewport.c2w, atol=1e-2), "two views")
    tab(second_page, "Edit")
    press(second_page.get_by_label("Keep only a box"))
    until(lambda: read_edits(tmp_path).crop is not None, "the crop")
    until(lambda: first.edit.crop.value, "the other page knows")
    second.viewport.pace.changed()  # in the middle of a picture
    second_page.close()
    next(other, None)
    until(lambda: len(viewer.clients) == 1 and viewer.loop.n_sources == 1, "one client left")
    assert second.closed and not second._nodes.get("cameras")
    first.viewport.pace.changed()
    viewer.loop.wake()
    settled(viewer)


def test_who_sends_nonsense_ends_its_own_connection(page: Any, viewer: Viewer) -> None:
    client = settled(viewer)
    port = viewer.door.port
    handshake = (
        "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    for said in (b"\0" * 40_000, b"no request\r\n\r\n", handshake.encode() + b"\xff" * 5000):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as line:
            line.sendall(said)
            line.settimeout(10)
            try:
                while line.recv(4096):
                    pass
            except OSError:
                pass  # reset, which ends it too
    before = client.viewport.pictures
    client.viewport.pace.changed()
    viewer.loop.wake()
    until(lambda: client.viewport.pictures > before, "another picture")


def test_training_is_watched_paused_and_ended(browser: Any, tmp_path: Path) -> None:
    subject = Subject("run", folder=None)
    viewer = Viewer(subject, port=0, training=True)
    scene = sphere_scene(6, 24)
    (tmp_path / "check.json").write_text(json.dumps({"paragraph": "The photos fit their cameras."}))
    subject.folder = tmp_path
    viewer.training_begins(scene)
    done: list[Model] = []

    def work() -> None:
        model = train(scene, train_config(steps=1_000_000), tmp_path / "run", progress=False, between=viewer.sharing)
        viewer.training_ended(model)
        done.append(model)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        shown = opened(browser, viewer.address)
        page = next(shown)
        until(lambda: viewer.clients and viewer.clients[0].viewport.pictures > 2, "pictures while it trains")
        tab(page, "Training")
        page.get_by_text("training: step").wait_for(timeout=1000 * PATIENCE)
        page.get_by_text("Photos against cameras").wait_for()
        press(page.get_by_text("Pause", exact=True))
        sharing = viewer.sharing
        assert sharing is not None
        until(lambda: sharing.paused, "a pause")
        page.get_by_text("paused: step").wait_for(timeout=1000 * PATIENCE)
        until(lambda: sharing.seconds["paused"] > 0, "the end of the step that was under way")
        step = sharing.trainer.step
        client = viewer.clients[0]
        before = client.viewport.pictures
        client.viewport.pace.changed()
        viewer.loop.wake()
        until(lambda: client.viewport.pictures > before, "pictures while it is paused")
        assert sharing.trainer.step == step
        press(page.get_by_text("Resume", exact=True))
        until(lambda: sharing.trainer.step > step, "more steps")
        press(page.get_by_text("Stop and save"))
        until(lambda: done, "the end")
        assert Model.load(tmp_path / "run").meta["steps"] == done[0].meta["steps"]
        page.get_by_text("done: step").wait_for(timeout=1000 * PATIENCE)
        before = client.viewport.pictures
        client.viewport.pace.changed()
        viewer.loop.wake()
        until(lambda: client.viewport.pictures > before, "pictures after it")
        shown.close()
    finally:
        if viewer.sharing is not None:
            viewer.sharing.stop()
        thread.join(timeout=60)
        viewer.close()
    assert not thread.is_alive()


def test_a_mesh_alone_is_shown(browser: Any, tmp_path: Path) -> None:
    from nerf.views.viewer.subject import open_subject

    box = trimesh.creation.box((2.0, 1.0, 1.0))
    box.visual.vertex_colors = np.tile(np.array([200, 60, 40, 255], np.uint8), (len(box.vertices), 1))
    box.export(tmp_path / "box.ply")
    viewer = Viewer(open_subject(tmp_path / "box.ply"), port=0)
    try:
        shown = opened(browser, viewer.address)
        page = next(shown)
        until(lambda: viewer.clients and viewer.clients[0].has("mesh"), "the mesh")
        page.wait_for_timeout(2500)
        middle = seen(page)[210, 450]
        assert middle[0] > middle[1] + 30  # red
        shown.close()
    finally:
        viewer.close()


def test_a_port_that_is_taken_and_one_that_cannot_be(viewer: Viewer) -> None:
    other = Viewer(Subject("ball", ball_model()), port=viewer.door.port)
    assert other.door.port == viewer.door.port + 1 or other.door.port > viewer.door.port
    other.close()
    with pytest.raises(UserError, match="the viewer cannot listen at"):
        Viewer(Subject("ball", ball_model()), host="192.0.2.1", port=0)
