"""The page's panels without a browser: viser's handles are stand-ins that keep what they are given."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fakes import AnalyticModel, ball, ring_cameras
from tiny import make_scene

from nerf.errors import UserError
from nerf.geometry.space import Similarity
from nerf.views.viewer.client import ORANGE, PALE, Client
from nerf.views.viewer.door import Door, is_local, new_token
from nerf.views.viewer.edits import read_edits
from nerf.views.viewer.exports import free_name
from nerf.views.viewer.loop import RenderLoop
from nerf.views.viewer.panels.gizmos import outline, with_corner
from nerf.views.viewer.panels.training import curve, state_in_words
from nerf.views.viewer.regions import Region
from nerf.views.viewer.sharing import SharedTraining
from nerf.views.viewer.subject import Subject, open_subject

RADIUS = 1.05  # of the ball, world


class Handle:
    """Anything that viser returns: attributes as given, `value` tells its callbacks, `with` does nothing."""

    def __init__(self, label: str = "", **about: Any) -> None:
        self.__dict__.update(label=label, visible=True, removed=False, told=[], _value=None)
        self.__dict__.update(about)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "value":
            changed = value != self._value
            self.__dict__["_value"] = value
            if changed:
                self.press()
        else:
            self.__dict__[name] = value

    @property
    def value(self) -> Any:
        return self._value

    def choose(self, value: Any) -> None:
        """As from the page."""
        self.__dict__["_value"] = value
        self.press()

    def press(self) -> None:
        for tell in self.told:
            tell(SimpleNamespace(target=self, phase="end"))

    def on_update(self, do: Callable[..., Any]) -> None:
        self.told.append(do)

    on_click = on_upload = on_update

    def add_tab(self, label: str) -> Handle:
        return Handle(label)

    def remove(self) -> None:
        assert not self.removed, f"{self.label} is removed twice"
        self.removed = True

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Adder:
    """viser's `gui` or `scene`."""

    def __init__(self) -> None:
        self.made: list[Handle] = []
        self.background: Any = None
        self.clicked: list[Callable[..., Any]] = []

    def __getattr__(self, name: str) -> Callable[..., Handle]:
        if not name.startswith("add_"):
            raise AttributeError(name)

        def add(label: str = "", *rest: Any, **about: Any) -> Handle:
            value = about.pop("initial_value", None)
            if value is None and rest:
                value = rest[0] if isinstance(rest[0], bool) or name != "add_dropdown" else next(iter(rest[0]))
                value = rest[3] if name == "add_slider" else value
                about.setdefault("options", rest[0])
            about.setdefault("content", label)
            made = Handle(label, kind=name, _value=value, **about)
            self.made.append(made)
            return made

        return add

    def set_background_image(self, picture: Any, **about: Any) -> None:
        self.background = picture

    def on_click(self) -> Callable[..., Any]:
        return self.clicked.append

    def remove_click_callback(self) -> None:
        self.clicked.clear()


class Camera(SimpleNamespace):
    """viser's: vectors are arrays, whatever they are set to."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, np.asarray(value, np.float64) if isinstance(value, tuple) else value)


class Browser:
    """viser's client."""

    def __init__(self) -> None:
        self.gui, self.scene, self.said, self.downloads = Adder(), Adder(), [], []
        self.camera = Camera(
            wxyz=np.array([1.0, 0, 0, 0]),
            position=np.array([0.0, 0, -3]),
            look_at=np.zeros(3),
            up_direction=np.array([0.0, 0, 1]),
            fov=0.8,
            image_width=60,
            image_height=40,
            on_update=lambda do: None,
        )

    @contextmanager
    def atomic(self) -> Iterator[None]:
        yield

    def add_notification(self, title: str, body: str, **about: Any) -> Handle:
        self.said.append(f"{title}: {body}")
        return Handle(title)

    def send_file_download(self, name: str, content: bytes) -> None:
        self.downloads.append(name)


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    cameras = ring_cameras(6, 32)
    model = AnalyticModel(ball(0.7), scene_from_world=Similarity.around([0.0, 0, 0], 1.5), cameras=cameras)
    images = [np.full((32, 32, 4), 128, np.uint8) for _ in range(6)]
    subject = Subject("ball", model, folder=tmp_path)
    subject.set_scene(make_scene(images, cameras))
    return subject


@pytest.fixture
def viewer(subject: Subject) -> Any:
    viewer: Any = SimpleNamespace(
        subject=subject, loop=RenderLoop(), sharing=None, training=False, paused=False, progress=None, check_says=""
    )
    return viewer


@pytest.fixture
def client(viewer: Any) -> Client:
    made = Client(viewer, Browser())
    viewer.subject.history.told.append(made.redraw)
    return made


def from_eye(x: float, z: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A click straight along y, at (x, z)."""
    return torch.tensor([x, -5.0, z]).double(), torch.tensor([0.0, 1, 0]).double()


def test_the_cells_that_rays_stop_in_are_drawn(client: Client, subject: Subject) -> None:
    client.look.occupancy.choose(True)
    (node,) = client._nodes["occupancy"]
    model = subject.model
    assert model is not None
    n = int(model.occupancy.occupied.sum())
    few = subject.occupied_cells(100)
    assert few is not None and 50 < len(few) <= 100 < n
    reach = 1.5 * float(model.occupancy.cell_centres(torch.arange(8))[0].abs().max())
    assert float(few.abs().max()) <= reach + 1e-6
    client.look.occupancy.choose(False)
    assert not client.has("occupancy") and node.removed


def test_two_clicks_measure_and_set_the_size(client: Client, tmp_path: Path) -> None:
    edit = client.edit
    edit.measure.press()
    assert client.handle.scene.clicked and "two ends" in edit.message.content
    edit.take_click(*from_eye(-0.5, 0.0))
    edit.take_click(*from_eye(0.5, 0.0))
    assert not client.handle.scene.clicked and edit.message.content == ""
    assert edit.measured == pytest.approx(1.0, abs=0.01) and edit.length.visible
    assert "units of the photos" in edit.length.content
    edit.true.choose(3.0)
    edit.unit.choose("m")
    edit.set_scale.press()
    edits = read_edits(tmp_path)
    assert edits.scale == pytest.approx(3.0, rel=0.01) and edits.unit == "m" and "3</b> m" in edit.length.content
    edit.undo.choose("Undo")
    assert read_edits(tmp_path).scale == 1.0
    edit.measure.choose("Click two points")
    with pytest.raises(UserError, match="no surface where you clicked"):
        edit.take_click(*from_eye(3.0, 0.0))
    for x in (-0.5, 0.5):
        edit.take_click(*from_eye(x, 0.0))
    assert client.has("/clicks") and edit.set_scale.visible
    edit.measure.choose("Clear")
    assert not client.has("/clicks") and not edit.set_scale.visible and not client.handle.scene.clicked


def test_three_clicks_and_a_plane_set_what_is_up(client: Client, tmp_path: Path) -> None:
    edit = client.edit
    edit.upright.choose("Three clicks")
    for x, z in ((-0.3, -0.2), (0.3, -0.2), (0.0, 0.4)):
        edit.take_click(*from_eye(x, z))
    up = read_edits(tmp_path).up
    assert up is not None and up[1] < -0.9 and not edit.clicks  # towards who clicked
    np.testing.assert_allclose(
        client.frame.from_world.apply_directions(torch.tensor([up]).double())[0], [0, 0, 1], atol=1e-9
    )
    edit.upright.choose("Reset")
    assert read_edits(tmp_path).up is None
    edit.upright.choose("Click on it")
    edit.take_click(*from_eye(0.0, 0.0))
    up, ground = read_edits(tmp_path).up, read_edits(tmp_path).ground
    assert up is not None and ground is not None
    np.testing.assert_allclose(up, [0, -1, 0], atol=0.02)
    np.testing.assert_allclose(ground, [0, -RADIUS, 0], atol=0.01)
    height = client.frame.points(torch.tensor([ground]).double())[0, 2]
    assert float(height) == pytest.approx(0.0, abs=1e-6)  # the ground is at height 0


def test_the_crop_follows_numbers_and_handles(client: Client, tmp_path: Path) -> None:
    edit = client.edit
    edit.crop.choose(True)
    assert edit.size.visible and client.has("/crop")
    whole = read_edits(tmp_path).crop
    assert whole is not None and all(2 * RADIUS < x < 2 * RADIUS + 0.5 for x in whole.size)  # nothing is lost at first
    edit.size.choose((1.0, 2.0, 3.0))
    edit.centre.choose((0.5, 0.0, 0.0))
    crop = read_edits(tmp_path).crop
    assert crop is not None
    np.testing.assert_allclose(crop.size, [1, 2, 3], atol=1e-6)
    np.testing.assert_allclose(
        client.frame.points(torch.tensor([crop.centre]).double())[0] * 1.5, [0.5, 0, 0], atol=1e-6
    )
    edit.handles.choose(False)
    assert not client.has("/crop") and read_edits(tmp_path).crop == crop
    edit.handles.choose(True)
    edit.measure.choose("Click two points")
    assert not client.has("/crop")  # its handles would take the clicks
    edit.measure.choose("Clear")
    assert client.has("/crop")
    middle = next(node for node in client.handle.scene.made if node.label == "/crop/middle" and not node.removed)
    middle.position = (0.0, 0.2, 0.0)
    middle.press()  # a drag has ended
    crop = read_edits(tmp_path).crop
    assert crop is not None
    np.testing.assert_allclose(client.frame.points(torch.tensor([crop.centre]).double())[0], [0, 0.2, 0], atol=1e-6)
    edit.crop.choose(False)
    assert read_edits(tmp_path).crop is None and not client.has("/crop")
    for _ in range(9):
        edit.undo.choose("Undo")
    assert not (tmp_path / "edits.json").exists() or read_edits(tmp_path).empty


def test_what_is_in_the_way_is_hidden(client: Client, tmp_path: Path) -> None:
    edit = client.edit
    client.go_to(ring_cameras(6, 32).c2w[0])
    edit.begin.choose("Ball")
    assert edit.hide.visible and client.has("/hide")
    region = edit.hide_handles.region
    assert region is not None and np.linalg.norm(region.centre) == pytest.approx(
        RADIUS, abs=0.01
    )  # on what is looked at
    edit.hide_size.choose(0.3)
    edit.hide.press()
    assert [r.size[0] for r in read_edits(tmp_path).hidden] == [pytest.approx(0.3)]
    assert not edit.hide.visible and edit.show_all.visible
    edit.show_all.press()
    assert not read_edits(tmp_path).hidden


def test_mistakes_are_told_on_the_page_and_end_nothing(client: Client) -> None:
    client.film.play.press()
    client.film.save.choose("For nerf")
    assert [s.split(":")[0] for s in client.handle.said] == ["That did not work"] * 2
    client.subject.scene = None
    client.look.compare.choose(True)
    assert not client.look.compare.value and "photos of this run are not here" in client.handle.said[-1]


def test_key_views_are_put_in_order_and_kept_in_a_file(client: Client, tmp_path: Path) -> None:
    film = client.film
    for i in (0, 2, 4):
        client.go_to_photo(i)
        film.add.press()
    assert len(film.path.views) == 3 and film.keys.value == "3" and film.seconds.visible
    keys = [
        node
        for node in client.handle.scene.made
        if node.label.startswith("/path/") and node.kind != "add_line_segments"
    ]
    assert [node.visible for node in keys if not node.removed] == [True, True, False]  # not the one in which one stands
    film.seconds.choose(5.0)
    film.order.choose("Earlier")
    assert [v.seconds for v in film.path.views] == [2.0, 5.0, 2.0]
    film.change.choose("Remove")
    assert len(film.path.views) == 2
    film.speed.choose(2.0)
    film.closed.choose(True)
    assert film.path.duration == 2.0 and "2 key views, 2.0 s" in film.about.content
    film.save.choose("For nerf")
    film.save.choose("For nerfstudio")
    assert client.handle.downloads == ["camera-path.json", "camera-path-nerfstudio.json"]
    content = (tmp_path / "camera-path.json").read_bytes()
    film.change.choose("Remove")
    film.load.choose(SimpleNamespace(content=content))
    assert len(film.path.views) == 2 and film.path.closed and film.path.speed == 2.0
    film.load.choose(SimpleNamespace(content=b"{}"))
    assert "That did not work" in client.handle.said[-1] and len(film.path.views) == 2


def test_files_are_written_while_the_loop_runs(client: Client, viewer: Any, tmp_path: Path) -> None:
    client.export.width.choose(40)
    client.export.height.choose(30)
    client.export.picture.press()
    client.go_to_photo(0)
    client.film.add.press()
    client.film.size.choose("320 x 180")
    client.film.render.press()
    client.film.render.press()  # once more: stop
    while viewer.loop.step():
        pass
    assert (tmp_path / "view.png").is_file() and not (tmp_path / "film.mp4").exists()
    assert client.film.render.label == "Render the film" and not client.export.bar.visible
    assert free_name(tmp_path, "view.png").name == "view-2.png"


def test_what_is_shown_and_from_where(client: Client) -> None:
    look = client.look
    assert list(look.show.options) == ["Colour", "Depth", "Normals", "Opacity"]
    look.show.choose("Depth")
    assert client.viewport.mode == "depth"
    look.step.choose("Next")
    assert look.chosen == 1
    np.testing.assert_allclose(client.pose()[0][:, 3], ring_cameras(6, 32).c2w[1][:, 3], atol=1e-6)
    look.cameras.choose(True)
    frusta = [node for node in client.handle.scene.made if node.kind == "add_camera_frustum"]
    assert len(frusta) == 6 and not frusta[1].visible and frusta[3].visible  # not the one in which one stands
    assert client.viewport.with_depth and client.viewport.pace.level is not None  # what is behind the scene is hidden
    frusta[3].press()
    assert look.chosen == 3 and frusta[1].visible
    look.compare.choose(True)
    assert look.slider.visible and client.viewport.photo is not None
    late = Camera(**{**vars(client.handle.camera), "position": np.array([9.0, 9.0, 9.0])})
    client.moved(late)  # sent before the browser knew where to go
    client.moved(client.handle.camera)
    assert client.viewport.photo is not None
    client.handle.camera.position = client.handle.camera.position + 0.1
    client.moved(client.handle.camera)
    assert client.viewport.photo is None and not look.compare.value
    look.cameras.choose(False)
    assert all(node.removed for node in frusta) and not client.viewport.with_depth


def test_photos_are_left_out_of_training_and_brought_back(client: Client, subject: Subject, tmp_path: Path) -> None:
    look, edit = client.look, client.edit
    name = subject.scene.names[1]
    look.cameras.choose(True)
    frusta = [node for node in client.handle.scene.made if node.kind == "add_camera_frustum"]
    look.step.choose("Next")
    assert look.left_out.visible and not look.left_out.value and not look.n_left_out.visible
    look.left_out.choose(True)
    assert read_edits(tmp_path).left_out == (name,) and frusta[1].color == PALE != frusta[2].color
    assert "1 photo left out of training" in look.n_left_out.content and name in edit.left_out.content
    look.step.choose("Next")
    assert not look.left_out.value
    look.left_out.choose(True)
    assert len(read_edits(tmp_path).left_out) == 2 and "2 photos" in look.n_left_out.content
    edit.undo.choose("Undo")
    assert read_edits(tmp_path).left_out == (name,) and not look.left_out.value and frusta[2].color != PALE
    edit.bring_back.press()
    assert not read_edits(tmp_path).left_out and not edit.photos.visible and frusta[1].color != PALE
    for i in range(5):  # all but the one that is kept to measure by
        look.choose(i)
        look.left_out.choose(True)
    assert "one photo at least must stay" in client.handle.said[-1] and not look.left_out.value
    assert len(read_edits(tmp_path).left_out) == 4
    look.choose(5)
    assert look.left_out.disabled and frusta[5].color == ORANGE
    with pytest.raises(UserError, match="not trained on anyway"):
        subject.leave_out(5, True)


@pytest.mark.parametrize("broken", [{"fov": np.nan}, {"position": np.array([np.inf, 0, 0])}, {"wxyz": np.zeros(4)}])
def test_a_camera_that_is_none_changes_nothing(client: Client, broken: dict[str, Any]) -> None:
    before = client.viewport.c2w
    camera = SimpleNamespace(**{**vars(client.handle.camera), **broken})
    client.moved(camera)
    assert client.viewport.c2w is before


def test_the_training_as_it_is_told(viewer: Any) -> None:
    viewer.sharing = SharedTraining(viewer.loop)
    viewer.check_says = "The photos <fit>."
    viewer.pause = viewer.sharing.pause
    client = Client(viewer, Browser())
    panel = client.training
    assert panel is not None and panel.checked.visible and "&lt;fit&gt;" in panel.said.content
    points = [{"step": 50 * k, "seconds": 5.0 * k, "psnr": 20.0 + k} for k in (1, 2, 3)]
    panel.update(SimpleNamespace(step=160, total_steps=200, seconds=16.0, curve=points), "training")
    assert "step 160 of 200 (80 %)" in panel.state.content and "<polyline" in panel.curve.content
    panel.pause.press()
    assert viewer.sharing.paused
    panel.update(SimpleNamespace(step=200, total_steps=200, seconds=20.0, curve=points), "done")
    assert not panel.pause.visible and not panel.stop.visible
    drawn = curve([point | {"held_out": 19.0} for point in points])
    assert "held-out photos" in drawn and "held-out photos" not in panel.curve.content
    assert "begins after" in curve([]) and state_in_words(1, None, 0, [], "x") == "x: step 1, 0:00:00"


def test_a_training_that_has_not_begun_has_a_page() -> None:
    subject = Subject("run")
    waiting: Any = SimpleNamespace(
        subject=subject, loop=RenderLoop(), training=True, paused=False, progress=None, check_says=""
    )
    waiting.sharing = SharedTraining(waiting.loop)
    client = Client(waiting, Browser())
    assert not waiting.loop.step()  # nothing to see yet, and nothing that fails
    subject.model = AnalyticModel(ball(0.7), cameras=ring_cameras(4, 16))
    client.redraw()
    client.go_to(*subject.first_view())
    assert waiting.loop.step() and next(iter(client.look.show.options)) == "Colour"


def test_a_closed_client_is_forgotten(client: Client, viewer: Any) -> None:
    assert viewer.loop.n_sources == 1
    client.close()
    assert viewer.loop.n_sources == 0
    client.safely(lambda: pytest.fail("nothing is done for it"))()


def test_regions_have_outlines_and_corners() -> None:
    box = Region("box", (0, 0, 0), (2, 4, 6))
    lines = outline(box)
    assert lines.shape == (12, 2, 3) and np.abs(lines).max(axis=(0, 1)).tolist() == [1, 2, 3]
    np.testing.assert_allclose(np.linalg.norm(outline(Region("sphere", (0, 0, 0), (2, 2, 2))), axis=2), 1)
    small = with_corner(box, torch.tensor([-9.0, 0.0, 3.0]).double())
    assert small.size[0] == pytest.approx(0.12) and small.size[1:] == (2.0, 6.0)  # never turned inside out


# ---- what can be opened


def test_what_cannot_be_opened_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        open_subject(tmp_path / "none")
    with pytest.raises(UserError, match="there is no such file"):
        open_subject(tmp_path / "none.glb")


def test_up_of_our_own_meshes_is_that_of_the_world(tmp_path: Path) -> None:
    import trimesh

    from nerf.meshing.files import save_mesh

    up = torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64)
    save_mesh(trimesh.creation.box(), tmp_path / "box.glb", up)
    subject = open_subject(tmp_path / "box.glb")
    assert subject.mesh_up is not None
    np.testing.assert_allclose(subject.mesh_up, up, atol=1e-6)
    trimesh.creation.box().export(tmp_path / "box.ply")
    ply = open_subject(tmp_path / "box.ply")
    assert ply.mesh_up is not None and ply.mesh_up.tolist() == [0, 0, 1]
    pose, fov = ply.first_view()
    assert pose.shape == (3, 4) and fov == 45.0


# ---- the door


@pytest.fixture
def door() -> Iterator[Door]:
    made = Door("127.0.0.1", 0, behind=1)
    yield made
    made.close()


def request(target: str = "/", **headers: str) -> bytes:
    lines = [f"GET {target} HTTP/1.1", *(f"{k}: {v}" for k, v in ({"Host": "127.0.0.1:80"} | headers).items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def test_only_pages_of_this_machine_pass(door: Door) -> None:
    assert door.answer(request()) is None
    assert door.answer(request(Origin="http://127.0.0.1:80")) is None
    for refused in (request(Origin="http://evil.example"), request(Host="evil.example"), b"nonsense\r\n\r\n"):
        answer = door.answer(refused)
        assert answer is not None and answer.split()[1] in (b"400", b"403")


def test_from_outside_a_token_is_asked_for(door: Door) -> None:
    door.token = new_token()
    assert f"?token={door.token}" in door.address
    asked = door.answer(request(Host="10.0.0.7"))
    assert asked is not None and b"403" in asked and b"token" in asked
    wrong = door.answer(request("/?token=wrong"))
    assert wrong is not None and b"403" in wrong
    right = door.answer(request(f"/?token={door.token}"))
    assert right is not None and b"303" in right and b"HttpOnly" in right and b"SameSite=Strict" in right
    assert door.answer(request(Host="10.0.0.7", Cookie=f"nerf_token={door.token}")) is None
    other = door.answer(request(Cookie="nerf_token=other"))
    assert other is not None and b"403" in other
    assert is_local("127.0.0.1") and not is_local("0.0.0.0")


def test_without_viser_the_verb_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    from nerf.cli import main as cli

    monkeypatch.setitem(sys.modules, "viser", None)
    assert cli.run(["view", str(tmp_path)]) == 2
    assert "pip install 'nerf-reconstruct[view]'" in capsys.readouterr().err
    data = tmp_path / "data"
    data.mkdir()
    (data / "transforms.json").write_text(json.dumps({}))
    assert cli.run(["train", str(data), "-o", str(tmp_path / "run"), "--view"]) == 2
    assert "pip install 'nerf-reconstruct[view]'" in capsys.readouterr().err and not (tmp_path / "run").exists()
    assert cli.run(["view", str(tmp_path), "--port", "70000"]) == 2
    assert "--port is 70000" in capsys.readouterr().err
