"""The house stays walkable: who may import whom, what `import nerf` costs, and that the README's commands exist."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Every module may import only rows above its own (and within its own folder). The order is that of the walk from photos
# to a mesh; a name covers what is below it, and the longest one that fits counts.
HOUSE = {
    "nerf.errors": "one sentence for a user's mistake",
    "nerf.files": "whole or not there",
    "nerf.interrupts": "Ctrl-C waits for whole steps",
    "nerf.views.progress": "one bar for all that takes long",
    "nerf.memory": "freed, and given back to the system",
    "nerf.kernels": "the only door to native code",
    "nerf.doctor": "what this machine has",
    "nerf.light": "the sRGB curve",
    "nerf.space": "box, contraction, Similarity, NDC",
    "nerf.cameras": "pixels <-> rays",
    "nerf.encodings": "HashGrid and the others",
    "nerf.networks": "MLP",
    "nerf.fields": "encoding + network",
    "nerf.occupancy": "which cells hold something",
    "nerf.rendering": "rays -> colours",
    "nerf.losses": "on per-ray tensors",
    "nerf.metrics": "PSNR, SSIM",
    "nerf.checkpoint": "one file that survives crashes",
    "nerf.model": "what a checkpoint holds",
    "nerf.datasets": "files -> Scene",
    "nerf.pixels": "which pixels to learn from next",
    "nerf.working_set": "the same of sets larger than memory",
    "nerf.appearance": "exposure of single photos",
    "nerf.objective": "what rays are held to",
    "nerf.refinement": "corrections of poses",
    "nerf.visibility": "cells that no photo shows",
    "nerf.display": "the bar of a training or a fit",
    "nerf.recipe": "how a scene is trained",
    "nerf.training": "the loop",
    "nerf.alignment": "other cameras, in the frame of refined ones",
    "nerf.surfaces": "triangle meshes as tensors",
    "nerf.views": "camera paths, video, pictures",
    "nerf.signals": "image, audio, video -> coordinates and values; their fields",
    "nerf.fitting": "the loop for signals",
    "nerf.capture": "photos without poses -> photos with poses",
    "nerf.runs": "what a run folder holds",
    "nerf.exports": "cameras for other programs",
    "nerf.meshing": "field -> mesh",
    "nerf.evaluation": "model against photos",
    "nerf.meshing.judge": "mesh against the true one",
    "nerf.views.report": "the page at the end",
    "nerf.signals.options": "what every fit takes",
    "nerf.signals.packing": "weights in few bits",
    "nerf.signals.surface": "fitted shapes as meshes and pictures",
    "nerf.signals.kinds": "nerf fit shape, ct, set",
    "nerf.signals.verbs": "nerf fit, nerf sample",
    "nerf.reconstruct": "all of it in one verb",
    "nerf.cli": "the verbs, by name",
    "nerf.__main__": "python -m nerf",
    "nerf": "names, looked up when first used",
}

# import name -> what is installed for it; the second table is for what a function may ask for and do without
NEEDED = {
    "torch": "torch",
    "numpy": "numpy",
    "PIL": "pillow",
    "imageio": "imageio",
    "imageio_ffmpeg": "imageio-ffmpeg",
    "trimesh": "trimesh",
    "fast_simplification": "fast-simplification",
    "safetensors": "safetensors",
    "tyro": "tyro",
    "rich": "rich",
}
OPTIONAL = {
    "pycolmap": "pycolmap",
    "av": "av",
    "pillow_heif": "pillow-heif",
    "OpenEXR": "OpenEXR",
}


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted((ROOT / "nerf").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path) -> list[tuple[str, bool]]:
    """(dotted name, at module level?) of every import, without those under TYPE_CHECKING, which never run."""
    found: list[tuple[str, bool]] = []

    def walk(node: ast.AST, top: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                found.extend((alias.name, top) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: write imports in full"
                found.extend((f"{child.module}.{alias.name}", top) for alias in child.names)
            walk(child, top and not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)))

    walk(ast.parse(path.read_text()), True)
    return found


def row_of(name: str) -> str | None:
    while name and name not in HOUSE:
        name = name.rpartition(".")[0]
    return name or None


def is_name_of_the_package(name: str) -> bool:
    return name.startswith("nerf.") and row_of(name) == "nerf"  # `from nerf import __version__`


def test_every_module_has_a_row() -> None:
    lost = [name for name in modules() if name != "nerf" and row_of(name) == "nerf"]
    assert not lost, f"no row in HOUSE for {lost}"
    gone = [name for name in HOUSE if name not in modules()]
    assert not gone, f"HOUSE has a row for {gone}, which do not exist"


@pytest.mark.parametrize("module", modules())
def test_a_module_imports_only_rows_above_it(module: str) -> None:
    order = list(HOUSE)
    own = row_of(module)
    for name, _ in imports(modules()[module]):
        if name.split(".")[0] != "nerf" or is_name_of_the_package(name):
            continue
        row = row_of(name)
        above = order.index(str(row)) < order.index(str(own))
        assert row == own or above, f"{module} imports {name}, which is below it"


@pytest.mark.parametrize("module", modules())
def test_a_module_imports_only_what_is_installed_with_it(module: str) -> None:
    for name, at_module_level in imports(modules()[module]):
        package = name.split(".")[0]
        if package == "nerf" or package in sys.stdlib_module_names or package in NEEDED:
            continue
        assert package in OPTIONAL, f"{module} imports {package}, which is no dependency"
        assert not at_module_level, f"{module} imports {package}, which may be missing, outside a function"


def test_the_tables_above_are_those_of_pyproject() -> None:
    text = (ROOT / "pyproject.toml").read_text()

    def listed(key: str) -> set[str]:
        block = re.search(rf"^{key} = \[(.*?)\]", text, re.M | re.S)
        assert block, key
        return {re.split(r"[<>=!~ ]", item)[0] for item in re.findall(r'"([^"]+)"', block[1])}

    assert listed("dependencies") == set(NEEDED.values())
    assert listed("colmap") | listed("capture") | listed("exr") == set(OPTIONAL.values())


def run(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("command", (["-c", "import nerf"], ["-m", "nerf", "--help"]))
def test_the_door_opens_at_once(command: list[str]) -> None:
    def seconds(*arguments: str) -> float:
        started = time.process_time_ns(), os.times()
        done = run(*arguments)
        assert done.returncode == 0, done.stderr
        now = os.times()  # the child's processor time: another busy process must not fail this
        return now.children_user + now.children_system - started[1].children_user - started[1].children_system

    took = min(seconds(*command) for _ in range(3))
    assert took < 0.5, f"{took:.2f} s of processor time"


@pytest.mark.parametrize("module", ("nerf", "nerf.errors", "nerf.doctor", "nerf.cli"))
def test_torch_stays_outside_until_it_is_needed(module: str) -> None:
    heavy = ("torch", "numpy", "tyro", "rich")
    done = run("-c", f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])")
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_what_the_package_names_exists() -> None:
    import nerf

    for name in nerf.__all__:
        assert getattr(nerf, name) is not None
        assert name in dir(nerf)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = nerf.nonsense
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", nerf.__version__)


def test_nothing_big_or_private_is_in_the_repository() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("no git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if not path.is_file():
            continue
        limit = 2_000_000 if name.startswith("data/sample/") else 1_000_000
        assert path.stat().st_size <= limit, f"{name} is {path.stat().st_size} bytes"
        assert not name.startswith(("shared/", "nerf/kernels/lib/", "data/scenes/")), name
        if path.suffix in (".py", ".sh", ".md", ".toml", ".h", ".cpp", ".cu"):
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                assert not re.search(r"/(home|root|Users|work)/", line), f"{name}:{number} holds a path of one machine"


# --- the README ---


def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_two_commands_come_first() -> None:
    code = re.findall(r"^```(?:bash|sh)\n(.*?)^```", readme(), re.M | re.S)
    lines = [line.split("#")[0].strip() for line in code[0].splitlines() if line.strip()]
    assert lines[-2:] == ["bash scripts/demo.sh", "bash scripts/test.sh"]
    for name in ("scripts/demo.sh", "scripts/test.sh", ".ci/run"):
        assert os.access(ROOT / name, os.X_OK), f"{name} is not executable"


def test_every_command_of_the_readme_exists() -> None:
    from nerf.cli import VERBS

    code = "\n".join(re.findall(r"^```(?:bash|sh)\n(.*?)^```", readme(), re.M | re.S))
    called = set(re.findall(r"^\s*nerf ([a-z-]+)", code, re.M))
    assert called and called <= set(VERBS), f"README calls {called - set(VERBS)}"
    assert {"reconstruct", "train", "eval", "render", "mesh", "doctor"} <= called
    for script in re.findall(r"(?:bash|python) (\S+\.(?:sh|py))", code):
        assert (ROOT / script).is_file(), script


def test_every_option_of_the_readme_exists() -> None:
    code = "\n".join(re.findall(r"^```(?:bash|sh)\n(.*?)^```", readme(), re.M | re.S))
    helps: dict[str, str] = {}
    for line in code.splitlines():
        found = re.match(r"\s*nerf ([a-z-]+)(.*)", line.split("#")[0])
        if not found:
            continue
        verb, rest = found.groups()
        if verb == "fit":  # one verb for each kind of signal
            verb = f"fit {rest.split()[0]}"
        if verb not in helps:
            helps[verb] = run("-m", "nerf", *verb.split(), "--help").stdout
        for option in re.findall(r"(?<!\S)--?[a-z][a-z-]*", rest):
            assert re.search(rf"(?<![\w-]){option}(?![\w-])", helps[verb]), f"nerf {verb} has no {option}"


@pytest.mark.parametrize("page", sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("*.md")))
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", (ROOT / page).read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (ROOT / page).parent.joinpath(target).exists(), f"{page} links to {target}"
