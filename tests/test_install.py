"""What an install does: a wheel for every Python when a compiler is there, one without kernels when none is.

A copy of the package with a small stand-in for the kernels is built, without network and without pip's isolation, so
that this takes seconds; .ci/run does the same for the real thing, in empty environments.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from nerf.kernels import build

ROOT = Path(__file__).resolve().parent.parent

STAND_IN = """
#ifdef _OPENMP
#include <omp.h>
#endif
#define API extern "C" __attribute__((visibility("default")))
API const char* nerf_source_hash() { return NERF_SOURCE_HASH; }
API int baseline() {
#ifdef __AVX2__
    return 0;
#else
    return 1;
#endif
}
"""

needs_compiler = pytest.mark.skipif(build.find_compiler() is None, reason="needs a C++ compiler")


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    folder = tmp_path / "src"
    folder.mkdir()
    (folder / "cpu.cpp").write_text(STAND_IN)
    return folder


def hash_of(library: Path) -> str:
    handle = ctypes.CDLL(str(library))
    handle.nerf_source_hash.restype = ctypes.c_char_p
    return handle.nerf_source_hash().decode()


# --- build.py ---


@needs_compiler
def test_one_library_for_each_instruction_set(tmp_path: Path, sources: Path) -> None:
    report = build.build(tmp_path / "lib", sources)
    machine = build.target_machine(report.compiler or [])
    assert not report.failed and list(report.built) == list(build.VARIANTS[machine])
    for variant, path in report.built.items():
        assert path == tmp_path / "lib" / build.file_name_of(variant)
        assert hash_of(path) == build.source_hash(sources)
        if machine == "x86_64":
            assert ctypes.CDLL(str(path)).baseline() == (variant == "baseline")
    assert sorted(p.name for p in (tmp_path / "lib").iterdir()) == sorted(p.name for p in report.built.values())


def test_the_hash_follows_the_sources(sources: Path) -> None:
    before = build.source_hash(sources)
    assert len(before) == 16 and before == build.source_hash(sources)
    (sources / "note.txt").write_text("not compiled")
    assert build.source_hash(sources) == before
    (sources / "a.h").write_text("")
    with_header = build.source_hash(sources)
    assert with_header != before
    (sources / "a.h").rename(sources / "b.h")
    assert build.source_hash(sources) not in (before, with_header)


@needs_compiler
def test_only_what_changed_is_compiled_again(tmp_path: Path, sources: Path) -> None:
    library = build.build(tmp_path / "lib", sources, ["baseline"]).built["baseline"]
    written = library.stat().st_mtime_ns
    build.build(tmp_path / "lib", sources, ["baseline"], force=False)
    assert library.stat().st_mtime_ns == written
    with open(sources / "cpu.cpp", "a") as file:
        file.write("// changed\n")
    build.build(tmp_path / "lib", sources, ["baseline"], force=False)
    assert library.stat().st_mtime_ns > written and hash_of_in_child(library) == build.source_hash(sources)


def hash_of_in_child(library: Path) -> str:
    code = (
        "import ctypes, sys; h = ctypes.CDLL(sys.argv[1]); h.nerf_source_hash.restype = ctypes.c_char_p; "
        "print(h.nerf_source_hash().decode())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(library)], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@needs_compiler
@pytest.mark.skipif(sys.platform != "linux" or os.uname().machine != "x86_64", reason="needs several instruction sets")
def test_a_variant_that_fails_leaves_the_others(tmp_path: Path, sources: Path) -> None:
    (tmp_path / "lib").mkdir()
    stale = tmp_path / "lib" / build.file_name_of("avx512")
    stale.write_text("stale")
    with open(sources / "cpu.cpp", "a") as file:
        file.write('#ifdef __AVX512F__\n#error "no such registers"\n#endif\n')
    report = build.build(tmp_path / "lib", sources)
    assert list(report.built) == ["baseline", "avx2"] and list(report.failed) == ["avx512"]
    assert "no such registers" in report.failed["avx512"] and "failed: avx512" in report.summary()
    assert not stale.exists()


def fake_compiler(folder: Path, script: str) -> str:
    path = folder / "fake-c++"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@needs_compiler
def test_a_compiler_without_openmp_still_compiles(
    tmp_path: Path, sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = " ".join(build.find_compiler() or [])
    script = f'for a in "$@"; do [ "$a" = -fopenmp ] && exit 1; done; exec {real} "$@"'
    monkeypatch.setenv("CXX", fake_compiler(tmp_path, script))
    report = build.build(tmp_path / "lib", sources)
    assert report.built and not report.openmp and "no OpenMP" in report.summary()


def test_what_keeps_the_kernels_from_being_built_is_said(
    tmp_path: Path, sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "/no/such/compiler")
    report = build.build(tmp_path / "lib", sources)
    assert not report.built and "no C++ compiler" in report.summary() and "/no/such/compiler" in report.summary()
    monkeypatch.setenv("CXX", fake_compiler(tmp_path, 'echo "avr-none"'))
    assert "no CPU kernels for avr" in build.build(tmp_path / "lib", sources).summary()
    monkeypatch.setenv("NERF_NO_NATIVE", "1")
    assert "NERF_NO_NATIVE" in build.build(tmp_path / "lib", sources).summary()
    for line in (build.NOT_BUILT, report.summary()):
        assert "\n" not in line and "slow reference kernels" in line


# --- wheels, through the same door that pip uses ---


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git would hand out, with the stand-in for the kernels and a stale library in the source tree."""
    pytest.importorskip("setuptools", minversion="77", reason="needs setuptools 77 or newer (pip install -e .[dev])")
    folder = tmp_path_factory.mktemp("tree")
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("nerf", "scripts", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "lib"))
    (folder / "data").mkdir()
    (folder / "data" / "__init__.py").write_text("")
    (folder / "nerf" / "kernels" / "src" / "cpu.cpp").write_text(STAND_IN)
    (folder / "nerf" / "kernels" / "lib").mkdir()
    (folder / "nerf" / "kernels" / "lib" / build.file_name_of("stale")).write_text("stale")
    return folder


def backend(tree: Path, hook: str, output: Path, **environment: str) -> tuple[Path, str]:
    """Calls one hook of the build backend, as pip does; returns what it made and what it said."""
    code = f"import sys; from setuptools import build_meta; print(build_meta.{hook}(sys.argv[1]))"
    inherited = {k: v for k, v in os.environ.items() if k not in ("CXX", "NERF_NO_NATIVE", "PYTHONPATH")}
    output.mkdir(exist_ok=True)
    command = [sys.executable, "-c", code, str(output)]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, env={**inherited, **environment})
    assert done.returncode == 0, done.stderr
    return output / done.stdout.strip().splitlines()[-1], done.stderr


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as file:
        return {name for name in file.namelist() if not name.endswith("/")}


def expected(tree: Path) -> set[str]:
    package = tree / "nerf"
    files = {p.relative_to(tree).as_posix() for p in package.rglob("*") if p.is_file() and p.parent.name != "lib"}
    return {name for name in files if not name.endswith((".pyc",))}


@needs_compiler
def test_a_wheel_serves_every_python_and_holds_fresh_libraries(tree: Path, tmp_path: Path) -> None:
    wheel, said = backend(tree, "build_wheel", tmp_path / "wheel")
    python, abi, platform = wheel.stem.split("-")[-3:]
    assert (python, abi) == ("py3", "none") and platform not in ("any", "")
    assert "CPU kernels: built" in said
    names = {name for name in names_in(wheel) if ".dist-info/" not in name}
    libraries = {name for name in names if name.startswith("nerf/kernels/lib/")}
    machine = build.target_machine(build.find_compiler() or [])
    assert libraries == {f"nerf/kernels/lib/{build.file_name_of(v)}" for v in build.VARIANTS[machine]}
    assert names - libraries == expected(tree)
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path / "out")
        info = next(name for name in file.namelist() if name.endswith(".dist-info/WHEEL"))
        assert b"Root-Is-Purelib: false" in file.read(info)
        assert b"nerf = nerf.cli.main:main" in file.read(info.replace("WHEEL", "entry_points.txt"))
        assert any(name.endswith("licenses/LICENSE") for name in file.namelist())
    for name in libraries:
        assert hash_of(tmp_path / "out" / name) == build.source_hash(tree / "nerf/kernels/src")


def test_without_a_compiler_the_wheel_is_for_any_machine(tree: Path, tmp_path: Path) -> None:
    wheel, said = backend(tree, "build_wheel", tmp_path / "wheel", NERF_NO_NATIVE="1")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert said.count(build.NOT_BUILT) == 1
    assert {name for name in names_in(wheel) if ".dist-info/" not in name} == expected(tree)
    with zipfile.ZipFile(wheel) as file:
        info = next(name for name in file.namelist() if name.endswith(".dist-info/WHEEL"))
        assert b"Root-Is-Purelib: true" in file.read(info)


@needs_compiler
def test_an_editable_install_compiles_into_the_source_tree(tree: Path, tmp_path: Path) -> None:
    library = tree / "nerf" / "kernels" / "lib"
    backend(tree, "build_editable", tmp_path / "editable")
    built = sorted(p for p in library.iterdir() if p.name != build.file_name_of("stale"))
    assert built
    for path in built:
        assert hash_of(path) == build.source_hash(tree / "nerf/kernels/src")
        path.unlink()
    wheel, _ = backend(tree, "build_editable", tmp_path / "editable", NERF_NO_NATIVE="1")
    assert wheel.is_file()


def test_the_source_archive_can_build_everything(tree: Path, tmp_path: Path) -> None:
    archive, _ = backend(tree, "build_sdist", tmp_path / "sdist")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert expected(tree) <= names
    assert {"setup.py", "pyproject.toml", "LICENSE", "CHANGELOG.md", "README.md", "MANIFEST.in"} <= names
    assert {"scripts/test.sh", "scripts/demo.sh", "tests/test_install.py"} <= names
    assert not {name for name in names if name.endswith(".so")}
