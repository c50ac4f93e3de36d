"""The folder of a run, the verbs train and reconstruct on eight small photos, and the report."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import FakeModel
from small_scenes import write_transforms
from tiny import FIELD, make_scene, sphere_scene

from nerf.cli.reconstruct import ReconstructArgs, turntable
from nerf.cli.reconstruct import main as main_reconstruct
from nerf.cli.train import DEFAULT_MINUTES, TrainArgs
from nerf.cli.train import main as main_train
from nerf.errors import UserError
from nerf.fields.radiance import FieldOptions
from nerf.meshing.sides import render_six_sides, write_six_sides
from nerf.rendering.model import Model
from nerf.signals.video import read_video
from nerf.training import runs
from nerf.training.config import TrainConfig
from nerf.training.evaluation import evaluate
from nerf.training.runs import Run, open_run, read_run, write_run
from nerf.views import report
from nerf.views.curve import curve_points, curve_svg, curves, nice_ticks
from nerf.views.report import write_report

SOLID = replace(FIELD, density_bias=5.0)  # from the start, so that five steps have a surface


@dataclass(frozen=True)
class SmallConfig(TrainConfig):
    field: FieldOptions | None = SOLID
    occupancy_resolution: int = 32
    batch_samples: int = 2048


def shrink(patch: pytest.MonkeyPatch) -> None:
    """Coarser, smaller and shorter, so that a whole run takes seconds."""
    patch.setattr("nerf.training.config.TrainConfig", SmallConfig)
    patch.setattr("nerf.cli.reconstruct.VIDEO_FRAMES", 2)
    patch.setattr("nerf.meshing.sides.render_six_sides", partial(render_six_sides, size=48))


def brief(data: Path, out: Path, **more: Any) -> ReconstructArgs:
    """Few steps, and of the mesh as little as shows that it was made."""
    return ReconstructArgs(data, out, **{"steps": 5, "resolution": 24, "texture": 256, "ask": "off", **more})


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight cut-out photos; what is trained on them is small."""
    shrink(monkeypatch)
    return write_transforms(tmp_path / "data", n=8, channels=4)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A run of eight photos with odd names, two of them held out; what was printed, on both streams."""
    root = tmp_path_factory.mktemp("whole")
    data = write_transforms(root / "a <scene> & more", n=8, channels=4)
    for photo in sorted((data / "images").iterdir()):
        photo.rename(photo.with_name(f"<b>{photo.name}"))  # names of files are not to be trusted
    file = data / "transforms.json"
    file.write_text(file.read_text().replace("images/", "images/<b>"))
    printed, told = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed), redirect_stderr(told):
        shrink(patch)
        main_reconstruct(brief(data, root / "out", steps=100, downscale=2, holdout=4, ask="warn"))
    return root / "out", printed.getvalue(), told.getvalue()


# ---- the folder of a run


def open_and_close(*args: Any, **options: Any) -> None:
    open_run(*args, **options).close()


def test_a_run_of_before_nerf_json_is_replaced_only_when_asked(tmp_path: Path) -> None:
    """Its run.json says which names are its own."""
    write_run(tmp_path, Run("x"))
    (tmp_path / "eval").mkdir()
    for name in ("mesh.glb", "eval/0001_a.png", "eval/mine.png", "mine.txt"):
        (tmp_path / name).write_bytes(b"precious")
    with pytest.raises(UserError, match=r"another run.*another -o, or give --overwrite"):
        open_run(tmp_path, Run("x"), resume=False, overwrite=False)  # no checkpoint: nothing to resume
    (tmp_path / "checkpoint.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"another run.*--resume.*--overwrite"):
        open_run(tmp_path, Run("x"), resume=False, overwrite=False)
    with open_run(tmp_path, Run("x"), resume=False, overwrite=True) as folder:
        assert (tmp_path / "mesh.glb").exists()  # only cleared once the new scene could be loaded
        folder.clear()
    left = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert left == {"mine.txt", "eval/mine.png"}


@pytest.mark.parametrize("change", [{"downscale": 2}, {"holdout": 4}])
def test_resume_needs_the_same_scene(tmp_path: Path, change: dict[str, Any]) -> None:
    write_run(tmp_path, Run("x"))
    (tmp_path / "checkpoint.safetensors").write_bytes(b"")
    open_and_close(tmp_path, Run("x"), resume=True, overwrite=False)
    with pytest.raises(UserError, match=f"was made with {next(iter(change))}"):
        open_run(tmp_path, Run(**{"data": "x", **change}), resume=True, overwrite=False)
    with pytest.raises(UserError, match="one of them"):
        open_run(tmp_path, Run("x"), resume=True, overwrite=True)


def test_a_damaged_run_file_is_named(tmp_path: Path) -> None:
    for text in ("{", "[1]", '{"downscale": 1}', "\x00"):
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(UserError, match=r"run.json"):
            read_run(tmp_path)


def test_few_images_are_all_trained_on_unless_asked(tmp_path: Path) -> None:
    data = write_transforms(tmp_path / "data", n=8)
    run = Run(str(data))
    scene = runs.load_for_training(run)
    assert len(scene.splits["train"]) == 8 and len(scene.splits["test"]) == 0
    assert (run.images, run.held_out_views) == (8, 0)
    assert sum("none is held out" in line for line in scene.notes) == 1
    assert not any(line.startswith("held out") for line in scene.notes)
    run = Run(str(data), holdout=4)
    assert len(runs.load_for_training(run).splits["test"]) == 2 and run.held_out_views == 2
    run = Run(str(write_transforms(tmp_path / "many", n=30)))
    assert runs.load_for_training(run).splits["test"].tolist() == [0, 8, 16, 24] and run.held_out_views == 4


def test_the_files_own_split_is_kept(tmp_path: Path) -> None:
    names = [f"images/{i:03d}.png" for i in range(8)]
    lists = {"train_filenames": names[:6], "val_filenames": names[6:7], "test_filenames": names[7:]}
    data = write_transforms(tmp_path, n=8, **lists)
    assert runs.load_for_training(Run(str(data))).splits["test"].tolist() == [7]


def test_a_run_file_of_before_still_loads(tmp_path: Path) -> None:
    """As written before options of loading were a record; the keys stay."""
    before = {"data": "/photos", "downscale": 2, "kind": "colmap", "holdout": 4, "masks": "/photos/masks"}
    before |= {"held_out_views": 3, "images": 24, "longest": 800}
    (tmp_path / "run.json").write_text(json.dumps({"format": "nerf-run", "version": 1, **before}))
    run = read_run(tmp_path)
    assert run is not None and run.masks == Path("/photos/masks") and (run.kind, run.longest) == ("colmap", 800)
    write_run(tmp_path, run)
    written = json.loads((tmp_path / "run.json").read_text())
    assert before.items() <= written.items() and read_run(tmp_path) == run
    open_and_close(tmp_path, run, resume=True, overwrite=False)
    with pytest.raises(UserError, match="was made with masks /photos/masks, not None"):
        open_run(tmp_path, replace(run, masks=None), resume=True, overwrite=False)


def test_a_run_finds_its_scene_again(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    write_run(out, Run(str(data), holdout=2))
    assert len(runs.scene_of_run(out, {}).splits["test"]) == 4
    moved = data.rename(tmp_path / "moved")
    with pytest.raises(UserError, match="--data"):
        runs.scene_of_run(out, {})
    assert len(runs.scene_of_run(out, {}, moved).splits["test"]) == 4
    with pytest.raises(UserError, match="--data"):
        runs.scene_of_run(tmp_path, {})
    assert len(runs.scene_of_run(tmp_path, {"data": str(moved)}).splits["test"]) == 0


# ---- the verbs


def test_train_says_how_long(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert DEFAULT_MINUTES == 5.0
    monkeypatch.setattr("nerf.cli.train.DEFAULT_MINUTES", 0.01)
    main_train(TrainArgs(data, tmp_path / "a", ask="off"))
    main_train(TrainArgs(data, tmp_path / "b", steps=7, seed=3, ask="off"))
    main_train(TrainArgs(data, tmp_path / "b", steps=7, seed=3, resume=True))
    first, second = (Model.load(tmp_path / run / "checkpoint.safetensors") for run in "ab")
    assert (first.meta["minutes"], first.meta["seed"]) == (0.01, 0)
    assert (second.meta["minutes"], second.meta["steps"], second.meta["seed"]) == (None, 7, 3)
    assert len(second.names) == 8


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"minutes": 1.0, "steps": 5}, "one of them"),
        ({"minutes": 0.0}, "--minutes"),
        ({"minutes": float("nan")}, "--minutes"),
        ({"steps": 0}, "--steps"),
        ({"downscale": 0}, "--downscale"),
        ({"holdout": 1}, "--holdout"),
        ({"holdout": -3}, "--holdout"),
        ({"data": Path("/nowhere/at/all")}, "no such folder"),
    ],
)
def test_impossible_arguments_are_named(data: Path, tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        main_train(TrainArgs(**{"data": data, "out": tmp_path / "out", **change}))
    assert not (tmp_path / "out").exists()


def test_overwrite_keeps_the_old_run_until_the_scene_is_loaded(tmp_path: Path, data: Path) -> None:
    out = tmp_path / "out"
    main_train(TrainArgs(data, out, steps=2, ask="off"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty"):
        main_train(TrainArgs(tmp_path / "empty", out, overwrite=True))
    assert (out / "checkpoint.safetensors").exists()


def test_reconstruct_does_all_of_it(whole: tuple[Path, str, str]) -> None:
    out, printed, told = whole
    for name in ("checkpoint.safetensors", "eval/eval.json", "video.mp4", "mesh.glb", "mesh.html", "report.html"):
        assert (out / name).stat().st_size > 0 and str(out / name) in printed
    assert "PSNR" in printed and "2 held-out views" in printed
    assert re.search("depth maps .*\nfusing .*\nmeshing .*\ntexture ", told)
    result = json.loads((out / "eval" / "eval.json").read_text())
    assert result["psnr"] > 16 and result["protocol"]["held_out"]
    assert "by 2" in result["protocol"]["down_scaling"] and result["protocol"]["training"]["steps"] == 100
    text = read_page(out / "report.html").text
    assert "8 images, of which 2 were held out and never trained on" in text
    with pytest.raises(UserError, match="another run"):
        main_reconstruct(brief(out.parent / "a <scene> & more", out, downscale=2, holdout=4))


def failing(error: Exception) -> Callable[..., None]:
    """A step that fails, whatever it is given."""

    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def test_a_stage_that_fails_does_not_stop_the_next(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr("nerf.meshing.extract.extract_mesh", failing(UserError("the field is empty")))
    with pytest.raises(UserError, match="mesh: the field is empty"):
        main_reconstruct(brief(data, out))
    assert "mesh: the field is empty" in read_page(out / "report.html").text and (out / "video.mp4").exists()
    assert "TRAINED on" in capsys.readouterr().out
    run = read_run(out)
    assert run is not None and run.images == 8 and run.held_out_views == 0
    # nor does one that ends as nobody foresaw
    monkeypatch.setattr("nerf.meshing.extract.extract_mesh", failing(ZeroDivisionError("division by zero")))
    with pytest.raises(ZeroDivisionError):
        main_reconstruct(brief(data, out, resume=True))
    said = "mesh: ZeroDivisionError: division by zero"
    assert said in read_page(out / "report.html").text
    printed = capsys.readouterr()
    assert said in printed.err and "report.html" in printed.out  # where all the rest lies


def test_a_run_that_ends_before_its_model_has_a_report(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    for error in (UserError("there is nothing to learn"), ZeroDivisionError("division by zero")):
        with monkeypatch.context() as patch:
            patch.setattr("nerf.training.loop.Trainer.train_step", failing(error))
            with pytest.raises(type(error)):
                main_reconstruct(brief(data, out, resume=True))
        text = read_page(out / "report.html").text
        assert "training" in text and str(error) in text and "evaluation, video, mesh: not begun" in text
    main_reconstruct(brief(data, out, resume=True))  # the folder is still the run's
    assert "not begun" not in read_page(out / "report.html").text


@pytest.mark.parametrize("error", [UserError("they hardly differ"), ZeroDivisionError("division by zero")])
def test_a_run_that_ends_before_its_poses_has_a_report(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, out = write_transforms(tmp_path / "photos", n=3), tmp_path / "out"
    (photos / "transforms.json").unlink()
    monkeypatch.setattr("nerf.capture.find_poses", failing(error))
    with pytest.raises(type(error)):
        main_reconstruct(brief(photos, out))
    assert f"poses: {error}" in read_page(out / "report.html").text.replace("ZeroDivisionError: ", "")


def test_a_finished_report_stays_until_there_is_another(whole: tuple[Path, str, str], tmp_path: Path) -> None:
    shutil.copytree(whole[0], tmp_path / "out")
    (tmp_path / "empty").mkdir()
    before = (tmp_path / "out" / "report.html").read_bytes()
    with pytest.raises(UserError, match="empty"):
        main_reconstruct(brief(tmp_path / "empty", tmp_path / "out", overwrite=True))
    assert (tmp_path / "out" / "report.html").read_bytes() == before


def test_the_turntable_is_at_most_640_pixels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shrink(monkeypatch)
    model = FakeModel()
    model.cameras.widths[:], model.cameras.heights[:] = 1080, 1920
    turntable(model, tmp_path / "video.mp4")
    assert read_video(tmp_path / "video.mp4").shape == (2, 640, 360)


# ---- the report


class Page(HTMLParser):
    """Checks that tags are closed in order, and collects links and text."""

    VOID = ("meta", "img", "br", "line", "polyline")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_data(self, data: str) -> None:
        self.text += data


def read_page(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    page.close()
    assert page.open == []
    return page


def test_the_report_shows_and_links_what_is_there(whole: tuple[Path, str, str], tmp_path: Path) -> None:
    out = Path(shutil.copytree(whole[0], tmp_path / "out"))
    page = read_page(write_report(out, ["chosen for <reasons>"]))
    assert "a <scene> & more" in page.text and "chosen for <reasons>" in page.text and "<b>000" in page.text
    assert "2 were held out" in page.text and "dB PSNR" in page.text and "PSNR, dB" in page.text
    # Whole in itself: pictures inside, of two views, of the mesh's six sides, of depth and of the cameras from above;
    # every other link is a file beside it.
    assert sum(link.startswith("data:image/jpeg") for link in page.links) == 10
    for link in page.links:
        assert link.startswith("data:") or (out / link).is_file(), link


def test_a_report_of_an_empty_folder_is_a_page(tmp_path: Path) -> None:
    assert "Nothing was measured" in read_page(write_report(tmp_path)).text


def test_a_damaged_training_file_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "training.json").write_text('{"curve": [')
    read_page(write_report(tmp_path))
    assert "training.json is left out" in capsys.readouterr().err


def test_views_from_the_best_to_the_worst(tmp_path: Path) -> None:
    scene = sphere_scene(10, 20, n_test=9)
    random = np.random.default_rng(0)
    noise = [random.normal(0, 0.01 * (5 * i % 9), (20, 20, 4)) for i in range(10)]
    images = [(255 * (scene.pixels.image(i).numpy() + noise[i]).clip(0, 1)).astype(np.uint8) for i in range(10)]
    scene = make_scene(images, scene.cameras, n_test=9)
    result = evaluate(FakeModel(), scene, "test", tmp_path / "eval", show_progress=False)
    page = read_page(write_report(tmp_path))
    shown = [float(x) for x in re.findall(r"png: ([0-9.]+) dB", page.text)]
    want = sorted((view.psnr for view in result.views), reverse=True)
    assert len(shown) == report.N_VIEWS and shown == sorted(shown, reverse=True)
    assert shown[0] == pytest.approx(want[0], abs=0.01) and shown[-1] == pytest.approx(want[-1], abs=0.01)


def test_ticks_enclose_with_round_numbers() -> None:
    assert nice_ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert nice_ticks(17.3, 31.9) == [15, 20, 25, 30, 35]
    assert nice_ticks(5, 5) == [5, 6]


def test_curve_points_survive_what_is_not_a_number() -> None:
    entries = [{"seconds": 2, "psnr": 20}, {"seconds": 1, "psnr": None}, "x", {"seconds": 1, "psnr": float("nan")}, {}]
    assert curve_points({"curve": entries}) == [(2.0, 20.0)]
    svg = curve_svg({"psnr": [(0.0, 10.0), (1.0, 10.0)]})  # flat: no division by zero
    assert "polyline" in svg and "nan" not in svg and "held-out" not in svg
    assert "minutes" in curve_svg({"psnr": [(0.0, 10.0), (600.0, 30.0)]})
    both = [{"seconds": s, "psnr": 20 + s, "held_out": 18 + s} for s in (1.0, 2.0)]
    assert curve_svg(curves({"curve": both})).count("<polyline") == 2
    assert curves({"curve": both[:1]}) == {}


def test_the_page_in_a_browser(whole: tuple[Path, str, str], tmp_path: Path) -> None:
    """Headless Chromium draws it, wide and narrow: pictures show, nothing sticks out sideways."""
    browser = next((b for b in ("chromium", "chromium-browser", "google-chrome") if shutil.which(b)), None)
    if browser is None:
        pytest.skip("no Chromium on this machine")
    out = Path(shutil.copytree(whole[0], tmp_path / "out"))
    write_run(out, Run("/photos/" + "long_name_" * 20, images=8, held_out_views=2))
    page = write_report(out, ["x" * 300])
    # The page reports its own width into its title, which --dump-dom then prints.
    probe = "<script>document.title = document.documentElement.scrollWidth + ' of ' + innerWidth + ', broken ' + "
    probe += "[...document.images].filter(i => { i.loading = 'eager'; return i.complete && !i.naturalWidth }).length"
    probe += "</script></body>"
    page.write_text(page.read_text().replace("</body>", probe))
    for width in (1200, 600):
        flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
        command = [browser, *flags, f"--window-size={width},900", page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        found = re.search(r"<title>(\d+) of (\d+), broken (\d+)</title>", done.stdout)
        assert found, done.stderr[-500:]
        assert int(found[1]) <= int(found[2]) and found[3] == "0"


def test_mesh_pictures_and_counts_reach_the_page(tmp_path: Path) -> None:
    import trimesh

    box = trimesh.creation.box(extents=(2.0, 1.0, 0.5))
    (tmp_path / "mesh.glb").write_bytes(box.export(file_type="glb"))
    write_six_sides(box, torch.tensor([0.0, -1.0, 0.0]), torch.tensor([0.0, 0.0, 1.0]), tmp_path / "mesh_views")
    page = read_page(write_report(tmp_path))
    assert report.triangles(tmp_path / "mesh.glb") == 12 and "12 triangles" in page.text
    assert sum(link.startswith("data:image/jpeg") for link in page.links) == 6
    (tmp_path / "mesh.glb").write_bytes(b"glTF but not really")
    assert report.triangles(tmp_path / "mesh.glb") == 0
