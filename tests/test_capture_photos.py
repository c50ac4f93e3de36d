"""nerf.capture before pycolmap: which photos are used, what their EXIF says, upright pictures, frames of a video."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from captures import draw, pose, write_photos
from PIL import Image

from nerf import capture
from nerf.capture import photos as listing
from nerf.capture import prepare, video
from nerf.capture.exif import Exif, read_exif
from nerf.capture.features import sharpness
from nerf.capture.photos import group_cameras, read_photos
from nerf.cli import main as cli
from nerf.errors import UserError
from nerf.io.images import read_header, read_pixels
from nerf.io.outputs import OutputFolder


def save(path: Path, size: tuple[int, int] = (300, 220), seed: int = 0, exif: dict[int, object] | None = None) -> None:
    """A photo of noise, with EXIF tags (those above 0x8000 go to the inner directory)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))
    tags = Image.Exif()
    for tag, value in (exif or {}).items():
        if tag < 0x8000 or tag == 0x8825:  # GPS: a directory beside the inner one
            tags[tag] = value
        else:
            tags.get_ifd(0x8769)[tag] = value
    picture.save(path, exif=tags, quality=90)


# ---- EXIF


def test_focal_lengths_of_exif() -> None:
    full_frame = Exif(focal_35mm=50.0)  # a 36 x 24 mm picture: 50 mm are 50/36 of its width
    assert full_frame.focal_pixels(3600, 2400) == pytest.approx(5000, rel=1e-3)
    assert full_frame.focal_pixels(2400, 3600) == pytest.approx(5000, rel=1e-3)
    sensor = Exif(focal_mm=5.85, pixels_per_mm=500.0, stated_width=2832)
    assert sensor.focal_pixels(2832, 2128) == pytest.approx(2925)
    assert sensor.focal_pixels(1416, 1064) == pytest.approx(2925 / 2), "a reduced copy"
    assert Exif().focal_pixels(100, 100) is None
    assert Exif(focal_35mm=1.0).focal_pixels(4000, 3000) is None, "nothing has such a lens"


def test_exif_of_a_file(tmp_path: Path) -> None:
    tags = {0x010F: "Maker\0", 0x0110: "Phone 3", 0x0112: 6, 0x920A: 4.2, 0xA405: 26, 0xA434: "wide"}
    tags[0x8825] = {1: "S", 2: (33.0, 51.0, 30.0), 3: "E", 4: (151.0, 12.0, 0.0)}
    save(tmp_path / "a.jpg", exif=tags)
    with Image.open(tmp_path / "a.jpg") as image:
        found = read_exif(image)
    assert (found.make, found.model, found.lens, found.orientation) == ("Maker", "Phone 3", "wide", 6)
    assert found.gps == pytest.approx((-33.858333, 151.2))
    for place in (
        {1: "N", 2: (0, 0, 0), 3: "E", 4: (0, 0, 0)},
        {1: "N", 2: (95, 0, 0), 3: "E", 4: (7, 0, 0)},
        {2: (9, 9, 9)},
    ):
        save(tmp_path / "b.jpg", exif={0x8825: place})
        with Image.open(tmp_path / "b.jpg") as image:
            assert read_exif(image).gps is None
    assert found.focal_mm == pytest.approx(4.2) and found.focal_35mm == 26
    photo = read_photos_of(tmp_path, 3, tags).photos[0]
    assert (photo.width, photo.height) == (220, 300), "upright"
    assert photo.focal == pytest.approx(26 / 43.267 * np.hypot(300, 220), rel=1e-3)


def read_photos_of(folder: Path, n: int, tags: dict[int, object]) -> listing.Photos:
    for k in range(n):
        save(folder / "set" / f"{k}.jpg", seed=k, exif=tags)
    return read_photos(folder / "set")


def test_cameras_are_grouped_by_size_model_lens_and_focal_length(tmp_path: Path) -> None:
    wide, tele = {0x0110: "Phone", 0xA405: 26}, {0x0110: "Phone", 0xA405: 77}
    settings = [((300, 220), wide), ((300, 220), wide), ((220, 300), wide), ((300, 220), tele), ((300, 220), {})]
    for k, (size, tags) in enumerate(settings):
        save(tmp_path / f"{k}.jpg", size, k, tags)
    save(tmp_path / "5.jpg", (300, 220), 5, wide | {0x0112: 6})  # held upright, turned when it is shown
    found = read_photos(tmp_path)
    assert group_cameras(found.photos) == [0, 0, 1, 2, 3, 4]
    lines = listing.describe_cameras(found.photos, group_cameras(found.photos))
    assert len(lines) == 5 and lines[0].startswith("2 pictures of 300x220 (Phone; focal length")
    assert "not stated" in lines[3]


# ---- what is used and what is left out


def test_bad_files_among_good_ones_are_named(tmp_path: Path) -> None:
    for k in range(4):
        save(tmp_path / f"good_{k}.jpg", (600, 440), seed=k)
    (tmp_path / "broken.jpg").write_bytes(b"this is no picture")
    shutil.copy(tmp_path / "good_0.jpg", tmp_path / "twice.jpg")
    save(tmp_path / "thumb.jpg", (160, 120), seed=9)
    (tmp_path / "._good_1.jpg").write_bytes(b"what macOS leaves behind")
    (tmp_path / "notes.txt").write_text("no photo")
    found = read_photos(tmp_path)
    assert [p.name for p in found.photos] == [f"good_{k}.jpg" for k in range(4)]
    assert "cannot be read" in found.left_out["broken.jpg"] and "same file as good_0.jpg" in found.left_out["twice.jpg"]
    assert "thumbnail" in found.left_out["thumb.jpg"] and len(found.left_out) == 3


def test_photos_are_found_in_the_usual_places(tmp_path: Path) -> None:
    for k in range(3):
        save(tmp_path / "a" / "images" / f"{k}.jpg", seed=k)
        save(tmp_path / "b" / "left" / f"{k}.jpg", seed=k)
        save(tmp_path / "b" / "right" / f"{k}.jpg", seed=10 + k)
        save(tmp_path / "b" / "masks" / f"{k}.jpg", seed=20 + k)
    assert len(read_photos(tmp_path / "a").photos) == 3
    names = [p.name for p in read_photos(tmp_path / "b").photos]
    assert len(set(names)) == 6 and "left_0.jpg" in names and "right_0.jpg" in names


def test_photos_at_several_levels_are_all_taken(tmp_path: Path) -> None:
    for k in range(3):
        save(tmp_path / "shoot" / f"{k}.jpg", seed=k)
        save(tmp_path / "shoot" / "second" / "round" / f"{k + 3}.JPG", seed=3 + k)
        save(tmp_path / "shoot" / "images_4" / f"{k}.jpg", seed=20 + k)
        save(tmp_path / "shoot" / ".trash" / f"{k}.jpg", seed=30 + k)
        save(tmp_path / "shoot" / "depth" / f"{k}.png", seed=40 + k)
    found = read_photos(tmp_path / "shoot")
    assert sorted(p.name for p in found.photos) == ["0.jpg", "1.jpg", "2.jpg", "3.JPG", "4.JPG", "5.JPG"]
    assert any("3 of 6 photos lie in folders of their own: second/round" in line for line in found.notes)
    save(tmp_path / "album" / "cover.jpg", seed=9)
    shutil.copytree(tmp_path / "shoot" / "second", tmp_path / "album" / "DCIM")
    assert len(read_photos(tmp_path / "album").photos) == 4


def test_a_photo_in_two_formats_counts_once(tmp_path: Path) -> None:
    """HEIC beside JPEG, as phones and clouds export them; photos of one name that differ stay."""
    for k in range(3):
        picture = Image.fromarray(draw(pose(k, 8)))
        picture.save(tmp_path / f"IMG_{k}.jpg", quality=90)
        picture.resize((480, 360)).save(tmp_path / f"IMG_{k}.webp", quality=80)
        Image.fromarray(draw(pose(k + 4, 8))).save(tmp_path / f"IMG_{k}.png")
    found = read_photos(tmp_path)
    assert sorted(p.source.name for p in found.photos) == sorted(
        f"IMG_{k}.{s}" for k in range(3) for s in ("webp", "png")
    )
    assert found.left_out["IMG_1.jpg"] == "the same picture as IMG_1.webp"


def thumbnails(folder: Path, n: int) -> None:
    save(folder / "0.jpg", (40, 30))
    picture = (folder / "0.jpg").read_bytes()
    for k in range(1, n):
        (folder / f"{k}.jpg").write_bytes(picture + b"%d" % k)  # what follows the picture is ignored


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda d: None, "holds no photos"),
        (lambda d: [save(d / f"{k}.jpg", seed=k) for k in range(2)], "2 photos can be used, at least 3"),
        (lambda d: [save(d / f"{k}.jpg") for k in range(5)], "all 5 photos are the same file"),
        (lambda d: thumbnails(d, 2000), "all 2000 images are smaller than 200"),
        (lambda d: [(d / f"{k}.png").write_bytes(b"x") for k in range(3)], "cannot be read as an image"),
    ],
)
def test_folders_that_cannot_do(tmp_path: Path, make: object, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pycolmap")
    folder = tmp_path / "photos"
    folder.mkdir()
    make(folder)  # type: ignore[operator]
    assert cli.run(["poses", str(folder), "-o", str(tmp_path / "out")]) == 2
    text = capsys.readouterr().err
    assert words in text and text.count("\n") == 1 and not (tmp_path / "out").exists()


# ---- upright pictures


def test_pictures_are_written_upright_and_are_files_of_their_own(tmp_path: Path) -> None:
    upright = draw(pose(2, 8))
    folder = tmp_path / "set"
    folder.mkdir()
    for orientation in (1, 3, 6, 8):
        tags = Image.Exif()
        tags[0x0112] = orientation
        back = {1: 0, 3: 2, 6: 1, 8: 3}[orientation]  # turns, counter-clockwise, that the viewer undoes
        Image.fromarray(np.rot90(upright, back).copy()).save(folder / f"{orientation}.jpg", exif=tags, quality=98)
    save(folder / "other.png", (320, 240))
    written = write_all(folder, tmp_path / "out")
    for orientation in (1, 3, 6, 8):
        path = written / f"{orientation}.jpg"
        with Image.open(path) as image:
            assert image.getexif().get(0x0112, 1) == 1
            shown = np.asarray(image).astype(float)
        assert shown.shape == upright.shape and np.abs(shown - upright).mean() < 6, orientation
        assert (path.read_bytes() == (folder / path.name).read_bytes()) == (orientation == 1)
    before = (folder / "other.png").read_bytes()
    assert (written / "other.png").read_bytes() == before
    with open(written / "other.png", "r+b") as file:  # edited in place
        file.write(b"another picture")
    assert (folder / "other.png").read_bytes() == before


def write_all(source: Path, out: Path, masks: Path | None = None) -> Path:
    for name in ("images", "masks"):
        (out / name).mkdir(parents=True, exist_ok=True)
    for photo in read_photos(source, masks).photos:
        prepare.write_photo(photo, out)
    return out / "images"


def test_deep_pictures_keep_their_bits_and_are_turned(tmp_path: Path) -> None:
    import imageio_ffmpeg

    rng = np.random.default_rng(0)
    folder = tmp_path / "set"
    folder.mkdir()
    pixels = rng.integers(0, 65535, (220, 300, 3), dtype=np.uint16)
    for k, suffix in enumerate(("png", "tiff", "tiff")):
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb48le"]
        command += ["-s", "300x220", "-i", "-", str(folder / f"{k}.{suffix}")]
        subprocess.run(command, input=(pixels + np.uint16(k)).tobytes(), check=True)
    written = write_all(folder, tmp_path / "out")
    assert sorted(p.name for p in written.iterdir()) == ["0.png", "1.png", "2.png"]
    for k in range(3):
        picture = read_header(written / f"{k}.png")
        assert picture.dtype == np.uint16 and (read_pixels(picture) == pixels + np.uint16(k)).all()


def test_heic_photos_become_jpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    (tmp_path / "set").mkdir()
    for k in range(3):
        Image.fromarray(draw(pose(k, 8))).save(tmp_path / "set" / f"IMG_{k}.HEIC", quality=95)
    written = write_all(tmp_path / "set", tmp_path / "out")
    assert sorted(p.name for p in written.iterdir()) == ["IMG_0.jpg", "IMG_1.jpg", "IMG_2.jpg"]
    assert np.abs(np.asarray(Image.open(written / "IMG_1.jpg")).astype(float) - draw(pose(1, 8))).mean() < 12
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF")
    with pytest.raises(UserError, match="pip install pillow-heif"):
        read_photos(tmp_path / "set")


def test_masks_follow_their_photos(tmp_path: Path) -> None:
    folder, masks = tmp_path / "set", tmp_path / "m"
    masks.mkdir()
    for k in range(3):
        save(folder / f"{k}.jpg", (300, 220), k, {0x0112: 6} if k == 1 else None)
        mask = np.full((220, 300), 255, np.uint8)
        mask[:, :100] = 0  # of the picture as stored
        Image.fromarray(mask).save(masks / (f"{k}.jpg.png" if k else "0.png"))
    write_all(folder, tmp_path / "out", masks)
    plain = np.asarray(Image.open(tmp_path / "out" / "masks" / "0.jpg.png"))
    assert plain.shape == (220, 300) and (plain[:, :100] == 0).all() and (plain[:, 100:] == 255).all()
    turned = np.asarray(Image.open(tmp_path / "out" / "masks" / "1.jpg.png"))
    assert turned.shape == (300, 220) and (turned[:100] == 0).all() and (turned[100:] == 255).all()
    with pytest.raises(UserError, match="none of its files belongs to a photo"):
        read_photos(folder, folder)  # photos are no masks
    Image.fromarray(np.zeros((50, 300), np.uint8)).save(masks / "0.png")
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(UserError, match="expected the same shape"):
        write_all(folder, tmp_path / "out", masks)


def test_a_full_disk_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pycolmap")
    write_photos(tmp_path / "photos", 3)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(prepare, "_cloned", lambda *_: False)
    monkeypatch.setattr(shutil, "copyfile", full)
    assert cli.run(["poses", str(tmp_path / "photos"), "-o", str(tmp_path / "out")]) == 2
    text = capsys.readouterr().err
    assert "No space left on device" in text and "photo_00.png" in text and "Traceback" not in text


def test_ctrl_c_while_photos_are_prepared_keeps_those_that_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pycolmap")
    write_photos(tmp_path / "photos", 4)
    real, done = prepare.copy, []

    def stopped(source: Path, target: Path) -> None:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(target.name)
        real(source, target)

    command = ["poses", str(tmp_path / "photos"), "-o", str(tmp_path / "out")]
    monkeypatch.setattr(prepare, "copy", stopped)
    assert cli.run(command) == 130 and "Traceback" not in capsys.readouterr().err
    assert sorted(p.name for p in (tmp_path / "out" / "images").iterdir()) == done
    monkeypatch.setattr(prepare, "copy", lambda source, target: (done.append(target.name), real(source, target)))

    def far_enough(*_: object) -> None:
        raise UserError("far enough")

    monkeypatch.setattr("nerf.capture._solve", far_enough)
    assert cli.run(command) == 2 and "far enough" in capsys.readouterr().err
    names = [f"photo_{k:02d}.png" for k in range(4)]
    assert sorted(p.name for p in (tmp_path / "out" / "images").iterdir()) == names and sorted(set(done)) == names


# ---- where it may write, and what is missing


def data_set(path: Path) -> OutputFolder:
    """A folder of ours for frames."""
    folder = OutputFolder.open(path, "dataset", overwrite=True)
    (path / "images").mkdir(exist_ok=True)
    return folder


def test_folders_of_others_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pycolmap")
    write_photos(tmp_path / "photos", 3)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("in the way")
    cases = (
        ("photos", "the photos themselves lie there"),
        ("photos/images", "the photos themselves lie there"),
        ("other", "is not empty"),
        ("file", "is a file"),
        ("/proc/nerf-out", "cannot be written to"),
    )
    for out, words in cases:
        assert cli.run(["poses", str(tmp_path / "photos"), "-o", str(tmp_path / out)]) == 2
        text = capsys.readouterr().err
        assert words in text and text.count("\n") == 1, text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "other", "photos"]


def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_photos(tmp_path / "photos", 3)
    monkeypatch.setattr("nerf.capture.find_spec", lambda name: None)
    assert cli.run(["poses", str(tmp_path / "photos"), "-o", str(tmp_path / "out")]) == 2
    assert "nerf-reconstruct[capture]" in capsys.readouterr().err
    (tmp_path / "a.mp4").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    assert cli.run(["poses", str(tmp_path / "a.mp4"), "-o", str(tmp_path / "out")]) == 2
    assert "needs the package av" in capsys.readouterr().err


def test_what_needs_poses(tmp_path: Path, sample: Path) -> None:
    write_photos(tmp_path / "photos", 3)
    (tmp_path / "film.MOV").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    assert capture.needs_poses(tmp_path / "photos") and capture.needs_poses(tmp_path / "film.MOV")
    assert not capture.needs_poses(sample) and not capture.needs_poses(tmp_path / "empty")
    assert not capture.needs_poses(sample / "transforms_train.json") and not capture.needs_poses(tmp_path / "missing")


# ---- video


def write_video(path: Path, frames: list[np.ndarray]) -> None:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.bit_rate = "yuv420p", 8_000_000
        for frame in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def test_the_sharpest_frame_of_each_interval(tmp_path: Path) -> None:
    pytest.importorskip("av")
    from nerf.capture.video import take_frames

    frames = []
    for k in range(12):
        sharp = draw(pose(k, 12))
        small = Image.fromarray(sharp).resize((40, 30)).resize((320, 240), Image.Resampling.BICUBIC)
        frames += [sharp if j == k % 3 else np.asarray(small) for j in range(3)]
    write_video(tmp_path / "a.mp4", frames)
    (tmp_path / "out" / "images").mkdir(parents=True)
    found = take_frames(tmp_path / "a.mp4", data_set(tmp_path / "out"), 12)
    assert found.is_video and [p.name for p in found.photos] == [f"frame_{3 * k + k % 3:06d}.jpg" for k in range(12)]
    first = np.asarray(Image.open(found.photos[0].source)).astype(float)
    assert (found.photos[0].width, found.photos[0].height) == (320, 240) and np.abs(first - frames[0]).mean() < 12
    assert "12 frames of 36" in found.notes[0]


def test_a_camera_that_stands_still_gives_one_frame(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("av")
    pytest.importorskip("pycolmap")
    from nerf.capture.video import take_frames

    still = [draw(pose(0, 8))] * 6
    write_video(tmp_path / "moves.mp4", [*still, *(draw(pose(k, 8)) for k in range(1, 7)), *still])
    (tmp_path / "out" / "images").mkdir(parents=True)
    found = take_frames(tmp_path / "moves.mp4", data_set(tmp_path / "out"), 18)
    assert 7 <= len(found.photos) <= 9 and "near-duplicates dropped" in found.notes[0]
    assert len(list((tmp_path / "out" / "images").iterdir())) == len(found.photos)
    write_video(tmp_path / "still.mp4", still)
    assert cli.run(["poses", str(tmp_path / "still.mp4"), "-o", str(tmp_path / "new")]) == 2
    assert "the camera has to move" in capsys.readouterr().err.replace("\n", " ")


def test_videos_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    av = pytest.importorskip("av")
    pytest.importorskip("pycolmap")
    (tmp_path / "noise.mp4").write_bytes(bytes(range(256)) * 40)
    write_video(tmp_path / "good.mp4", [draw(pose(k, 8)) for k in range(4)])
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "good.mp4").read_bytes()[:300])
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 44100
        for packet in [*stream.encode(sound), *stream.encode()]:
            container.mux(packet)
    for name, words in (("noise.mp4", "as a video"), ("cut.mp4", "cut.mp4"), ("sound.mp4", "holds no pictures")):
        assert cli.run(["poses", str(tmp_path / name), "-o", str(tmp_path / "out")]) == 2
        text = capsys.readouterr().err
        assert words in text and text.count("\n") == 1 and not (tmp_path / "out").exists(), text
    assert cli.run(["poses", str(tmp_path / "good.mp4"), "-o", str(tmp_path / "out"), "--frames", "2"]) == 2
    assert "--frames is 2, expected a whole number from 3 to 100000" in capsys.readouterr().err


def test_a_video_that_claims_more_than_memory_holds_is_no_lack_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    av = pytest.importorskip("av")
    (tmp_path / "a.mp4").write_bytes(b"damaged")

    def fails(*_: object, **__: object) -> None:
        raise av.error.MemoryError(errno.ENOMEM, "Cannot allocate memory", "a.mp4")

    monkeypatch.setattr(av, "open", fails)
    with pytest.raises(UserError, match=r"a.mp4: cannot be opened as a video .it claims to be larger than any"):
        video.check_video(tmp_path / "a.mp4")


def test_damaged_frames_of_a_video_are_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    av = pytest.importorskip("av")
    pytest.importorskip("pycolmap")
    from nerf.capture.video import take_frames

    write_video(tmp_path / "good.mp4", [draw(pose(k, 30)) for k in range(30)])
    packets = []
    with av.open(str(tmp_path / "good.mp4")) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    assert len(packets) == 30
    data = bytearray((tmp_path / "good.mp4").read_bytes())
    for k in (4, 5, 11):
        data[packets[k][0] : packets[k][0] + packets[k][1]] = bytes(packets[k][1])
    (tmp_path / "bad.mp4").write_bytes(data)
    (tmp_path / "out" / "images").mkdir(parents=True)
    names = [p.name for p in take_frames(tmp_path / "bad.mp4", data_set(tmp_path / "out"), 30).photos]
    assert 20 <= len(names) <= 27 and max(names) >= "frame_000020.jpg"
    for at, size in packets[2:]:
        data[at : at + size] = bytes(size)
    (tmp_path / "bad.mp4").write_bytes(data)
    assert cli.run(["poses", str(tmp_path / "bad.mp4"), "-o", str(tmp_path / "new")]) == 2
    assert "of its frames can be decoded, at least 3 are needed" in capsys.readouterr().err.replace("\n", " ")


def test_ctrl_c_while_frames_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pycolmap")
    write_video(tmp_path / "a.mp4", [draw(pose(k, 8)) for k in range(8)])
    real, written = video._write, []

    def stopped(frame: object, images: Path, number: int) -> object:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(number)
        return real(frame, images, number)

    command = ["poses", str(tmp_path / "a.mp4"), "-o", str(tmp_path / "out")]
    monkeypatch.setattr(video, "_write", stopped)
    assert cli.run(command) == 130 and "the same command again continues" in capsys.readouterr().err
    monkeypatch.setattr(video, "_write", real)

    def far_enough(*_: object) -> None:
        raise UserError("far enough")

    monkeypatch.setattr("nerf.capture._solve", far_enough)
    assert cli.run(command) == 2 and "far enough" in capsys.readouterr().err
    assert len(list((tmp_path / "out" / "images").iterdir())) == 8


def test_sharpness_falls_with_blur_and_not_with_brightness() -> None:
    grey = draw(pose(1, 8)).mean(axis=2).astype(np.uint8)
    blurred = np.asarray(Image.fromarray(grey).resize((60, 45)).resize((320, 240), Image.Resampling.BICUBIC))
    assert sharpness(blurred) < 0.2 * sharpness(grey)
    assert sharpness(grey // 2 + 100) == pytest.approx(sharpness(grey) / 4, rel=0.2)
