"""What a viewer renders next, and when: without a browser, by a clock that the tests turn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import AnalyticModel, FakeModel, ball
from tiny import sphere_scene, train_config

from nerf.geometry.light import decode, encode
from nerf.rendering.model import Model
from nerf.training.loop import Trainer, train
from nerf.views.viewer.compare import beside, compared, fitted, inner_size
from nerf.views.viewer.loop import RenderLoop
from nerf.views.viewer.pace import QUIET, Pace
from nerf.views.viewer.sharing import SharedTraining
from nerf.views.viewer.subject import InputPhoto
from nerf.views.viewer.viewport import Shown, Viewport, in_tiles, z_depths

POSE = FakeModel().cameras.c2w[0]


class Clock:
    """Time that passes when it is told to, or by so much at each look."""

    def __init__(self, tick: float = 0.0) -> None:
        self.now, self.tick = 0.0, tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


# ---- how large a picture is


def test_a_moving_view_is_coarse_and_one_at_rest_refines_to_the_window() -> None:
    pace = Pace(longest=800)
    pace.moved(0.0)
    levels, sizes, now = [], [], 0.0
    while (waited := pace.wait(now)) is not None:
        now += waited
        size = pace.next_size(now, 1600, 800)
        assert size is not None
        levels.append(size.level)
        sizes.append((size.width, size.height))
        pace.finished(size.level, size.width * size.height / 1e5, size.width * size.height, pace.turn, size.last)
    assert levels == [0, 1, 2, 3] and sizes[-1] == (800, 400)
    assert sizes == sorted(sizes)
    assert now >= QUIET  # finer ones wait until the view has rested
    assert all(abs(w / h - 2) < 0.03 for w, h in sizes)


def test_the_first_picture_follows_the_speed_of_the_machine() -> None:
    def first(rate: float) -> int:
        pace = Pace()
        for _ in range(20):
            pace.finished(0, 0.1, round(rate * 0.1), -1)
        size = pace.next_size(1.0, 1280, 720)
        assert size is not None
        return size.width * size.height

    slow, fast = first(1e5), first(8e5)
    assert 7 < fast / slow < 9  # pixels for the same time
    assert first(1e5) == pytest.approx(1e5 * 0.07, rel=0.1)


def test_a_move_ends_fine_pictures_and_lets_coarse_ones_be_finished() -> None:
    pace = Pace()
    turn = pace.turn
    pace.moved(1.0)
    assert pace.cancelled(1, turn) and pace.cancelled(2, turn) and not pace.cancelled(0, turn)
    pace.finished(0, 0.05, 5000, turn)  # of the view before: what is next is coarse again
    size = pace.next_size(1.0, 640, 480)
    assert size is not None and size.level == 0


def test_what_has_changed_is_drawn_again_without_a_coarse_one_between() -> None:
    pace = Pace()
    pace.finished(2, 1.0, 10, pace.turn, last=True)
    assert pace.wait(5.0) is None
    pace.changed()
    size = pace.next_size(5.0, 640, 480)
    assert size is not None and size.level == 1
    pace.finished(2, 1.0, 10, pace.turn, last=True)
    pace.refresh()
    size = pace.next_size(5.0, 640, 480)
    assert size is not None and size.last


def test_no_window_no_picture() -> None:
    assert Pace().next_size(0.0, 0, 0) is None


# ---- the pictures


def viewport(model: Model, clock: Clock | None = None) -> tuple[Viewport, list[Shown]]:
    shown: list[Shown] = []
    made = Viewport(lambda: model, shown.append, clock or Clock(1e-4))
    return made, shown


def test_a_client_sees_the_scene_coarse_then_fine() -> None:
    clock = Clock(2e-3)
    view, shown = viewport(FakeModel(), clock)
    assert view.begin(0.0) is None  # no camera yet
    view.look_from(POSE, 0.7, (300, 200))
    view.with_depth = True
    loop = RenderLoop(clock)
    loop.add(view)
    for _ in range(2000):
        loop.step()
        clock.now += 0.01
    assert [s.size.last for s in shown][-1] and len(shown) == view.pictures >= 2
    last = shown[-1]
    assert last.picture.shape == (200, 300, 3) and last.picture.dtype == np.uint8
    assert last.picture[100, 150].max() < 255 and (last.picture[2, 2] == 255).all()  # the ball, and white around it
    assert last.z_depths is not None and np.isinf(last.z_depths[0, 0])
    assert last.z_depths[100, 150] == pytest.approx(4.0 - 0.7 * 1.5, abs=0.02)  # world: 4 away, less its radius


@pytest.mark.parametrize("mode", ["depth", "normal", "opacity"])
def test_every_mode_has_a_picture(mode: str) -> None:
    view, shown = viewport(FakeModel())
    view.set_mode(mode)
    view.look_from(POSE, 0.7, (64, 48))
    for _ in range(40):
        if (work := view.begin(10.0)) is not None:
            list(work)
    middle, corner = shown[-1].picture[24, 32], shown[-1].picture[1, 1]
    assert not np.array_equal(middle, corner)
    with pytest.raises(ValueError, match="mode: expected"):
        view.set_mode("nonsense")


@pytest.mark.parametrize("linear", [False, True])
def test_light_is_chosen_and_the_model_stays_as_it_is(linear: bool) -> None:
    model = FakeModel()
    model.linear, model.exposure = linear, 0.8 if linear else 1.0
    background = model.background.clone()
    view, shown = viewport(model)
    view.look_from(POSE, 0.7, (64, 48))

    def seen(**light: Any) -> np.ndarray:
        view.set_light(**light)
        view.pace.level = 3
        while (work := view.begin(10.0)) is not None:
            list(work)
        return shown[-1].picture.astype(int)

    plain = seen()
    dark = seen(background="black")
    assert dark[1, 1].max() == 0 and np.abs(dark[24, 32] - plain[24, 32]).max() <= 1
    assert np.abs(seen(background="grey")[1, 1] - 128).max() <= 1
    dimmed = seen(stops=-1.0, background="")
    halved = encode(decode(torch.from_numpy(plain[24, 32] / 255)) / 2) * 255
    assert np.abs(halved.numpy() - dimmed[24, 32]).max() <= 2
    assert torch.equal(model.background, background) and np.array_equal(seen(stops=0.0), plain)


def test_a_move_is_seen_between_two_tiles() -> None:
    view, shown = viewport(FakeModel())
    view.look_from(POSE, 0.7, (640, 640))
    view.pace.level, view.pace.rate = 2, 1e3
    work = view.begin(10.0)
    assert work is not None
    next(work)
    view.look_from(FakeModel().cameras.c2w[3], 0.7, (640, 640))
    assert len(list(work)) <= 1 and not shown


def test_tiles_make_the_picture_of_one_piece() -> None:
    model = AnalyticModel(ball(0.6))
    cameras = model.cameras.subset([2])
    whole = model.render_image(cameras, 0)
    *_, (view, _) = in_tiles(model, cameras, True, rate=1.0)
    assert view is not None and view.normal is not None and whole.normal is not None
    np.testing.assert_array_equal(view.color, whole.color)
    np.testing.assert_array_equal(view.normal, whole.normal)


def test_depths_along_the_axis_are_small_however_large_the_picture_is() -> None:
    model = FakeModel()
    cameras = model.cameras.subset([0]).resized(700, 700)
    depths = z_depths(model, cameras, model.render_image(cameras, 0, normals=False))
    assert max(depths.shape) <= 512 and np.isfinite(depths).any()


# ---- in turn


class Wanting:
    """Wants n pictures of k tiles; counts what it got."""

    def __init__(self, pictures: int, tiles: int, broken: bool = False) -> None:
        self.pictures, self.tiles, self.broken, self.done = pictures, tiles, broken, 0

    def begin(self, now: float) -> Iterator[None] | None:
        if self.pictures == 0:
            return None
        self.pictures -= 1
        return self._work()

    def wait(self, now: float) -> float | None:
        return 0.0 if self.pictures else None

    def _work(self) -> Iterator[None]:
        for _ in range(self.tiles):
            if self.broken:
                raise RuntimeError("no picture")
            self.done += 1
            yield


def test_clients_get_tiles_in_turn() -> None:
    loop, few, many = RenderLoop(), Wanting(3, 1), Wanting(1, 100)
    loop.add(many)
    loop.add(few)
    for _ in range(14):
        loop.step()
    assert few.done == 3 and 4 <= many.done <= 11  # who wants little does not wait for who wants much


def test_one_broken_picture_ends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    loop, bad, good = RenderLoop(), Wanting(1, 3, broken=True), Wanting(1, 3)
    told: list[Exception] = []
    loop.failed = lambda source, error: told.append(error)
    loop.add(bad)
    loop.add(good)
    while loop.step():
        pass
    assert good.done == 3 and len(told) == 1
    assert "a picture could not be made" in capsys.readouterr().err


def test_who_has_gone_gets_nothing_and_is_not_kept() -> None:
    loop, gone = RenderLoop(), Wanting(1, 5)
    loop.add(gone)
    loop.step()
    loop.remove(gone)
    assert not loop.step() and gone.done == 1 and loop.n_sources == 0


def test_long_work_comes_after_pictures() -> None:
    loop, client, film = RenderLoop(), Wanting(1, 2), Wanting(1, 3)
    work = film.begin(0.0)
    assert work is not None
    loop.add_patient(work)
    loop.add(client)
    order = []
    while loop.step():
        order.append((client.done, film.done))
    assert order[1] == (2, 0) and order[-1] == (2, 3)


def test_a_thread_renders_and_ends() -> None:
    loop, client = RenderLoop(), Wanting(2, 4)
    loop.start()
    loop.add(client)
    for _ in range(200):
        if client.done == 8:
            break
        torch.utils.data.get_worker_info()  # any short call: the thread has its turn
        import time

        time.sleep(0.01)
    loop.stop()
    assert client.done == 8


# ---- beside a training


class Endless:
    """Somebody who always wants more; each tile takes as long as it says."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self.clock, self.seconds = clock, seconds

    def begin(self, now: float) -> Iterator[None]:
        while True:
            self.clock.now += self.seconds
            yield

    def wait(self, now: float) -> float | None:
        return 0.0


@pytest.mark.parametrize("tile", [0.01, 0.03, 0.2])
@pytest.mark.parametrize("step", [0.02, 0.1])
def test_looking_takes_a_fifth_of_the_time(tile: float, step: float) -> None:
    clock = Clock()
    loop = RenderLoop(clock)
    loop.add(Endless(clock, tile))
    shared = SharedTraining(loop)
    for _ in range(400):
        assert shared(None)
        clock.now += step  # a step of the training
    training = 400 * step
    assert training / clock.now > 0.80  # what else looking costs, a training still takes at most a third longer
    assert training / clock.now < 0.82 + 0.02  # and what may be used is used


def test_nobody_looking_costs_nothing() -> None:
    clock = Clock()
    shared = SharedTraining(RenderLoop(clock))
    for _ in range(10):
        shared(None)
        clock.now += 0.1
    assert shared.seconds["pictures"] == 0.0 and clock.now == pytest.approx(1.0)


def test_a_paused_training_waits_and_shows_and_goes_on() -> None:
    clock = Clock()
    loop = RenderLoop(clock)
    client = Wanting(1, 3)
    shared = SharedTraining(loop)
    loop.add(client)
    shared.pause(True)

    class Resume:
        """Goes on once the picture is there."""

        def begin(self, now: float) -> Iterator[None] | None:
            if client.done == 3:
                shared.pause(False)
            return None

        def wait(self, now: float) -> float | None:
            return 0.0

    loop.add(Resume())
    assert shared(None) and client.done == 3
    shared.stop()
    assert not shared(None)


def test_looking_changes_no_bit_of_a_training(tmp_path: Path) -> None:
    scene = sphere_scene(6, 24)
    alone = train(scene, train_config(steps=8), tmp_path / "alone", progress=False)
    loop, shown = RenderLoop(), []
    shared = SharedTraining(loop, share=0.9)
    view = Viewport(lambda: shared.trainer and shared.trainer.model, shown.append)
    view.look_from(POSE, 0.7, (48, 48))
    loop.add(view)

    def between(trainer: Trainer) -> bool:
        view.pace.changed()
        return shared(trainer)

    watched = train(scene, train_config(steps=8), tmp_path / "watched", progress=False, between=between)
    assert shown and shared.seconds["pictures"] > 0
    a, b = alone.to_state()[0], watched.to_state()[0]
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_training_that_is_ended_from_outside_is_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = SharedTraining(RenderLoop())

    def between(trainer: Trainer) -> bool:
        if trainer.step == 7:
            shared.stop()
        return shared(trainer)

    model = train(sphere_scene(6, 24), train_config(steps=500), tmp_path / "run", progress=False, between=between)
    assert model.meta["steps"] == 7 and "ended at step 7" in capsys.readouterr().err
    assert Model.load(tmp_path / "run").meta["steps"] == 7


def test_paused_time_is_no_training_time(tmp_path: Path) -> None:
    import time

    def between(trainer: Trainer) -> bool:
        time.sleep(0.05)
        return True

    model = train(sphere_scene(6, 24), train_config(steps=20), tmp_path / "run", progress=False, between=between)
    started = time.perf_counter()
    train(sphere_scene(6, 24), train_config(steps=20), tmp_path / "plain", progress=False)
    plain = time.perf_counter() - started
    assert model.meta["seconds"] < max(0.5, 3 * plain)  # of which 1 s was waiting


# ---- beside the photo


def test_a_photo_beside_its_rendering() -> None:
    photo = np.full((40, 60, 3), 0.5, np.float32)
    rendered = np.full((20, 30, 3), 0.6, np.float32)
    found = compared(photo, rendered)
    assert found.psnr == pytest.approx(20.0, abs=0.01)  # an error of 0.1
    picture = beside(found, 0.5, (30, 20))
    assert picture.shape == (20, 30, 3)
    assert tuple(picture[10, 3]) == (128,) * 3 and tuple(picture[10, 27]) == (153,) * 3
    assert tuple(picture[10, 14]) == (38, 112, 200)  # the edge
    assert (beside(found, 0.0, (30, 20)) == 153).all() and (beside(found, 1.0, (30, 20)) == 128).all()
    mask = np.ones((40, 60), bool)
    mask[:, 30:] = False
    half = compared(np.where(np.arange(60)[None, :, None] < 30, photo, 0), rendered, mask)
    assert half.psnr == pytest.approx(20.0, abs=0.01)  # only what counts


def test_a_picture_of_another_shape_lies_in_the_middle() -> None:
    picture = np.full((10, 10, 3), 200, np.uint8)
    wide, tall = fitted(picture, (40, 20)), fitted(picture, (10, 40))
    assert wide.shape == (10, 20, 3) and (wide[:, 5:15] == 200).all() and (wide[:, :5] == 236).all()
    assert tall.shape == (40, 10, 3) and (tall[15:25] == 200).all()
    assert inner_size((400, 200), (100, 100)) == (100, 50) and inner_size((40, 20), (100, 100)) == (40, 20)


def test_comparing_renders_the_photos_camera_and_sliding_renders_nothing() -> None:
    model = FakeModel()
    view, shown = viewport(model)
    view.look_from(POSE, 0.7, (64, 64))
    cameras = model.cameras.subset([3])
    truth = model.render_image(cameras, 0).color
    view.compare_with(InputPhoto("a.png", cameras, lambda: (truth, None)))
    for _ in range(4):
        if (work := view.begin(10.0)) is not None:
            list(work)
    found = shown[-1].compared
    assert found is not None and found.psnr > 45 and shown[-1].z_depths is None  # 8 bits are all that differs
    model.vignetting = torch.tensor([[-0.5, 0.0]]).expand(len(model.cameras), 2)  # type: ignore[assignment]
    view.compare_with(InputPhoto("a.png", cameras, lambda: (truth, None)))
    work = view.begin(15.0)
    assert work is not None
    list(work)
    darker = shown[-1].compared
    assert darker is not None and darker.psnr < found.psnr - 10, "as the lens changes it, brighter in the middle"
    before = len(shown)
    view.slide(0.25)
    view.slide(error=True)
    assert len(shown) == before + 2 and view.begin(20.0) is None
    view.compare_with(None)
    work = view.begin(30.0)
    assert work is not None
    list(work)
    assert shown[-1].compared is None


def test_a_picture_that_fails_is_not_tried_again_and_again(capsys: pytest.CaptureFixture[str]) -> None:
    view, shown = viewport(FakeModel())
    view.look_from(POSE, 0.7, (30, 20))
    loop = RenderLoop()
    loop.add(view)
    view.background = "no such colour"
    assert loop.step() and not loop.step() and not shown
    assert capsys.readouterr().err.count("a picture could not be made") == 1
    for wrong in ({"background": "depth"}, {"stops": float("nan")}, {"stops": 99.0}):
        with pytest.raises(ValueError, match="light"):
            view.set_light(**wrong)
    view.set_light(1.0, "grey")
    while loop.step():
        pass
    assert shown
