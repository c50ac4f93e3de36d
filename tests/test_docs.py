"""What README.md and docs/ print is true: commands, options, scripts, links and named functions exist; Python runs."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nerf
from nerf.cli import main as cli

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for pattern in ("*.md", "docs/*.md", "data/*.md", "examples/*.md")
    for path in sorted(ROOT.glob(pattern))
}
README = PAGES["README.md"]


def blocks(language: str, page: str) -> list[str]:
    return re.findall(rf"^```(?:{language})\n(.*?)^```", PAGES[page], re.M | re.S)


def commands() -> list[tuple[str, str]]:
    """(page, line without its comment) of every line in a block of shell."""
    return [
        (page, line.split("#")[0].strip())
        for page in PAGES
        for block in blocks("bash|sh", page)
        for line in block.splitlines()
        if line.split("#")[0].strip()
    ]


# --- commands ---


def test_the_two_commands_come_first() -> None:
    lines = [line.split("#")[0].strip() for line in blocks("bash|sh", "README.md")[0].splitlines() if line.strip()]
    assert lines[-2:] == ["bash scripts/demo.sh", "bash scripts/test.sh"]
    for name in ("scripts/demo.sh", "scripts/test.sh", ".ci/run"):
        assert os.access(ROOT / name, os.X_OK), f"{name} is not executable"


def test_every_verb_is_in_the_readme_and_every_command_exists() -> None:
    from nerf.cli.main import VERBS

    called = {(page, found[1]) for page, line in commands() if (found := re.match(r"nerf ([a-z-]+)", line))}
    assert not [(page, verb) for page, verb in called if verb not in VERBS]
    assert {"reconstruct", "train", "eval", "render", "mesh", "doctor"} <= {v for p, v in called if p == "README.md"}
    assert set(re.findall(r"^\| `nerf ([a-z-]+)", README, re.M)) == set(VERBS)  # the table of verbs
    for page, line in commands():
        for script in re.findall(r"(?:bash|python) (\S+\.(?:sh|py))", line):
            assert (ROOT / script).is_file(), f"{page}: {script}"


def test_every_option_exists() -> None:
    """Those in blocks of shell, and those named in the text of a page beside the verb (README's table)."""
    helps: dict[str, str] = {}

    def help_of(*command: str) -> str:
        key = " ".join(command)
        if key not in helps and command[:2] == ("-m", "nerf"):
            with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
                cli.run([*command[2:], "--help"])
            helps[key] = said.getvalue()
        if key not in helps:
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            helps[key] = subprocess.run(
                [sys.executable, *command, "--help"], cwd=ROOT, capture_output=True, text=True, env=environment
            ).stdout
        return helps[key]

    table = [("README.md", row) for row in re.findall(r"^\| `(nerf [^|]*\|.*)", README, re.M)]
    for page, line in commands() + table:
        if found := re.match(r"nerf ([a-z-]+)(.*)", line):
            verb, rest = found.groups()
            kind = [rest.split()[0]] if verb == "fit" else []  # one verb for each kind of signal
            text = help_of("-m", "nerf", verb, *kind)
        elif found := re.match(r"python (scripts/\w+\.py)(.*)", line):
            script, rest = found.groups()
            command = [rest.split()[0]] if script == "scripts/bench.py" else []
            text = help_of(script, *command)
        else:
            continue
        for option in re.findall(r"(?<![\w-])--?[a-z][a-z-]*", rest):
            assert re.search(rf"(?<![\w-]){option}(?![\w-])", text), f"{page}: {line}: there is no {option}"


def test_every_environment_variable_is_read_somewhere() -> None:
    """Each in the table of support.md stands in the sources, and each of ours in the sources stands in the table."""
    listed = set(re.findall(r"^\| `([A-Z_]+)` \|", PAGES["docs/support.md"], re.M))
    files = [*ROOT.glob("nerf/**/*.py"), *ROOT.glob("scripts/*.sh"), ROOT / "scripts/bench.py"]
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    ours = set(re.findall(r"environ(?:\.get\(|\[)\"(NERF_[A-Z_]+)\"", text))
    assert ours and ours <= listed, ours - listed
    assert not [name for name in listed - {"TMPDIR"} if name not in text]  # TMPDIR is read by tempfile


# --- links and names ---


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(#[^)\s]+)?\)", PAGES[page]):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path = (ROOT / page).parent.joinpath(target) if target else ROOT / page
        assert path.exists(), f"{page} links to {target}"
        if anchor and path.suffix == ".md":
            titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)
            slugs = {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}
            assert anchor[1:] in slugs, f"{page} links to {target}{anchor}"


@pytest.mark.parametrize("page", PAGES)
def test_files_named_in_a_page_exist(page: str) -> None:
    for name in re.findall(r"`((?:nerf|scripts|tests|docs|data|\.ci|\.github)/[\w./-]*\w\.\w+)`", PAGES[page]):
        assert name == "docs/pictures" or (ROOT / name).exists(), f"{page} names {name}"


def test_the_functions_of_the_two_walks_are_in_their_files() -> None:
    rows = re.findall(r"^\|[^|]*\|[^|]*\| `([\w.]+)` \| \[[^]]*\]\(\.\./([^)]+)\)", PAGES["docs/architecture.md"], re.M)
    assert len(rows) >= 15
    for name, file in rows:
        text = (ROOT / file).read_text(encoding="utf-8")
        for part in name.split("."):
            assert re.search(rf"^\s*(?:def|class) {part}\b", text, re.M), f"{file} has no {name}"


def test_the_shares_of_the_gpus_code_are_counted() -> None:
    """Lines without comments and blank ones, of the files in each row; to a tenth, so that not every change counts."""
    sources, rows = ROOT / "nerf" / "kernels" / "src", []
    for row in re.findall(r"^\| [^|]+ \| (\d+) \| (\d+) % \| ([^|]+) \|$", PAGES["docs/other-gpus.md"], re.M):
        names = re.findall(r"`([\w.]+)`", row[2])
        lines = [line.strip() for name in names for line in (sources / name).read_text().splitlines()]
        counted = sum(bool(line) and not line.startswith("//") for line in lines)
        assert int(row[0]) == pytest.approx(counted, rel=0.1), row
        rows.append((names, counted, int(row[1])))
    assert {name for names, *_ in rows for name in names} == {
        path.name for path in sources.iterdir() if path.suffix in (".h", ".cu") and not path.name.startswith("cpu_")
    }
    total = sum(counted for _, counted, _ in rows)
    assert all(100 * counted / total == pytest.approx(share, abs=2) for _, counted, share in rows)


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 140
    assert max(len(line) for line in README.splitlines() if not line.startswith("|")) <= 132


def test_the_pictures_are_small() -> None:
    for path in (ROOT / "docs/pictures").iterdir():
        assert path.stat().st_size < 200_000, path


# --- Python ---


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = blocks("python", "README.md")
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) <= 12
    # the same, only shorter: few steps, a coarse mesh, fewer and smaller views
    for printed, short in (
        ("minutes=2", "steps=100"),
        ("resolution=256", "resolution=48"),
        ('nerf.load("data/sample")', 'nerf.load("data/sample", downscale=8)'),
    ):
        assert printed in code
        code = code.replace(printed, short)
    (tmp_path / "data").symlink_to(ROOT / "data")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)

    checkpoint = tmp_path / "runs" / "robot" / "checkpoint.safetensors"
    assert checkpoint.is_file() and checkpoint.with_name("mesh.glb").stat().st_size > 1000
    view = names["view"]
    assert isinstance(view, nerf.View) and view.color.ndim == 3 and view.normal is not None


def test_the_python_that_fits_an_image_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    (code,) = blocks("python", "docs/signals.md")
    assert "steps=2000" in code and "1024, 1024" in code
    Image.new("RGB", (16, 12), (40, 80, 120)).save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code.replace("steps=2000", "steps=60").replace("1024, 1024", "24, 32"), "signals.md", "exec"), names)
    assert (tmp_path / "runs/photo/checkpoint.safetensors").is_file()
    assert getattr(names["pixels"], "shape", None) == (24, 32, 3)


def test_no_other_page_has_python_that_nothing_runs() -> None:
    assert {page for page in PAGES if blocks("python", page)} <= {"README.md", "docs/signals.md", "docs/api.md"}


def test_the_camera_path_of_the_formats_can_be_read(tmp_path: Path) -> None:
    from nerf.views.paths.key_frames import load_path

    (text,) = blocks("json", "docs/formats.md")
    (tmp_path / "path.json").write_text(text)
    path = load_path(tmp_path / "path.json")
    assert len(path.cameras) == 1 and path.fps == 24
