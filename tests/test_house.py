"""The house stays walkable: who may import whom, and what `import nerf` costs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from rooms import PAGE, ROOMS, imports, modules, page_with_drawing, room_of  # noqa: E402

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
    "h5py": "h5py",
    "viser": "viser",
    "rasterio": "rasterio",
}


def test_nothing_lies_loose_in_the_package() -> None:
    loose = {path.name for path in (ROOT / "nerf").glob("*.py")}
    assert loose == {"__init__.py", "__main__.py", "errors.py"}
    folders = {path.parent.name for path in (ROOT / "nerf").glob("*/__init__.py")}
    assert folders | {"errors"} == set(ROOMS)


def test_a_room_comes_after_all_that_it_may_know() -> None:
    order = list(ROOMS)
    for room, (_, known) in ROOMS.items():
        assert all(order.index(other) < order.index(room) for other in known), room


@pytest.mark.parametrize("module", modules())
def test_a_module_imports_only_rooms_that_its_own_may_know(module: str) -> None:
    own = room_of(module)
    if own in ("", "__main__"):
        return  # names of the package, looked up when first used; the entry point
    for name, _ in imports(modules()[module]):
        other = room_of(name)
        if name.split(".")[0] == "nerf" and other not in ("", own):  # `from nerf import __version__` knows no room
            assert other in ROOMS[own][1], f"{module} imports {name}: {own} may not know {other} (scripts/rooms.py)"


def test_every_arrow_of_the_table_is_used() -> None:
    used = {(room_of(m), room_of(name)) for m, path in modules().items() for name, _ in imports(path)}
    unused = [(room, other) for room, (_, known) in ROOMS.items() for other in known if (room, other) not in used]
    assert not unused, f"no module needs {unused}: take them out of scripts/rooms.py"


def test_no_two_modules_import_each_other() -> None:
    """Not even through others, and not even inside functions (types alone may)."""
    found = modules()

    def module_of(name: str) -> str:
        while name not in found:
            name = name.rpartition(".")[0]
        return name

    knows = {
        m: {module_of(n) for n, _ in imports(path, type_checking=False) if n.split(".")[0] == "nerf"} - {m, "nerf"}
        for m, path in found.items()
    }
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join([*trail[trail.index(module) :], module])
        if module not in done:
            for other in sorted(knows[module]):
                visit(other, (*trail, module))
            done.add(module)

    for module in found:
        visit(module, ())


def test_the_drawing_of_the_rooms_is_that_of_the_table() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text == page_with_drawing(text), "docs/architecture.md is stale: python scripts/rooms.py"


@pytest.mark.parametrize("module", modules())
def test_a_module_imports_only_what_is_installed_with_it(module: str) -> None:
    for name, at_module_level in imports(modules()[module], type_checking=False):
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
    assert listed("colmap") | listed("capture") | listed("exr") | listed("ct") | listed("view") | listed("maps") == set(
        OPTIONAL.values()
    )


def run(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("command", [["-c", "import nerf"], ["-m", "nerf", "--help"]])
def test_the_door_opens_at_once(command: list[str]) -> None:
    def seconds(*arguments: str) -> float:
        started = time.process_time_ns(), os.times()
        done = run(*arguments)
        assert done.returncode == 0, done.stderr
        now = os.times()  # the child's processor time: another busy process must not fail this
        return now.children_user + now.children_system - started[1].children_user - started[1].children_system

    took = min(seconds(*command) for _ in range(3))
    assert took < 0.5, f"{took:.2f} s of processor time"


@pytest.mark.parametrize("module", ["nerf", "nerf.errors", "nerf.cli.doctor", "nerf.cli.main"])
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
