"""Compiles the CPU kernels: one plain C-ABI shared library per instruction set, which serves every Python and torch.

Used by setup.py, `python -m nerf.kernels.build` and `python nerf/kernels/build.py`. Standard library only, because
it also runs in an isolated build. Instruction sets are never mixed in one library: a template compiled twice leaves one
weak symbol, and the baseline path would die of SIGILL.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

KERNELS = Path(__file__).resolve().parent
SOURCES = KERNELS / "src"
LIBRARIES = KERNELS / "lib"

# No -ffast-math and no contraction: the march must give the same bits on every machine (a NaN must also stay a NaN).
COMMON_FLAGS = (
    "-O3",
    "-std=c++17",
    "-fPIC",
    "-shared",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
)

# std::vector's members are exported in spite of -fvisibility: bind ours to ours, whatever else is loaded.
# Not part of the hash: no number depends on it.
LINK_FLAGS = ("-Wl,-Bsymbolic",) if sys.platform == "linux" else ()

# Every variant names its whole instruction set, so that a compiler whose own default is higher cannot leak it in.
VARIANTS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {
        "baseline": ("-march=x86-64", "-mtune=generic", "-msse2"),
        "avx2": ("-march=x86-64", "-mtune=generic", "-mavx2", "-mfma", "-mf16c"),
        "avx512": (
            *("-march=x86-64", "-mtune=generic", "-mavx2", "-mfma", "-mf16c"),
            *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"),
        ),
    },
    "aarch64": {"neon": ("-march=armv8-a",)},
}

NOT_BUILT = "the CPU kernels were not built, and nerf will run its slow reference kernels"


@dataclasses.dataclass
class Report:
    """What one build did. `built` maps a variant to its library; `failed` maps a variant to the compiler's words."""

    compiler: list[str] | None = None
    openmp: bool = False
    seconds: float = 0.0
    built: dict[str, Path] = dataclasses.field(default_factory=dict)
    failed: dict[str, str] = dataclasses.field(default_factory=dict)
    reason: str = ""  # why nothing was tried, in one line

    def summary(self) -> str:
        """One line for the person who installs."""
        if self.reason:
            return self.reason
        compiler = f"{shlex.join(self.compiler or [])}{'' if self.openmp else ' (no OpenMP)'}"
        failed = f"; failed: {', '.join(self.failed)}" if self.failed else ""
        return (
            f"CPU kernels: built {', '.join(self.built) or 'nothing'} with {compiler} in {self.seconds:.1f} s{failed}"
        )


def source_files(sources: Path = SOURCES) -> list[Path]:
    """The files that the CPU libraries are made of, sorted by name."""
    if not sources.is_dir():
        return []
    ours = (p for p in sources.iterdir() if p.suffix in (".cpp", ".h") and not p.name.startswith("cuda_"))
    return sorted(ours, key=lambda p: p.name)


def source_hash(sources: Path = SOURCES) -> str:
    """First 16 hex digits of a SHA-256 over the sources' names and bytes and over the compiler flags.

    The library exports the same string as `nerf_source_hash()`; a loader compares the two and refuses a stale build.
    """
    digest = hashlib.sha256(repr((COMMON_FLAGS, sorted(VARIANTS.items()))).encode())
    for path in source_files(sources):
        content = path.read_bytes()
        digest.update(f"{path.name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def file_name_of(variant: str) -> str:
    return f"libnerf_cpu_{variant}.so"


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)


def find_compiler() -> list[str] | None:
    """The C++ compiler as the start of a command: $CXX alone if it is set, else c++, g++, clang++, else ziglang.

    `python -I` sees the environment that asked for the build even from within pip's isolated one, so that
    `pip install ziglang && pip install .` works on a machine without a system compiler.
    """
    if os.environ.get("CXX", "").strip():
        candidates = [shlex.split(os.environ["CXX"])]
    else:
        candidates = [["c++"], ["g++"], ["clang++"], [sys.executable, "-I", "-m", "ziglang", "c++"]]
    for command in candidates:
        program = shutil.which(command[0])
        if program is None:
            continue
        try:
            if _run([program, *command[1:], "--version"]).returncode == 0:
                return [program, *command[1:]]
        except OSError:
            continue
    return None


def _is_zig(compiler: list[str]) -> bool:
    return "ziglang" in compiler or Path(compiler[0]).name == "zig"


def target_machine(compiler: list[str]) -> str:
    """The processor that the compiler writes code for (not always ours: cross compilers), as in VARIANTS."""
    triple = "" if _is_zig(compiler) else _run([*compiler, "-dumpmachine"]).stdout.strip()
    machine = (triple.split("-")[0] or platform.machine()).lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def _for_zig(flags: tuple[str, ...], machine: str) -> list[str]:
    # zig targets the machine it runs on unless told otherwise, wants its own spelling, and traps undefined behaviour
    plain = [flag for flag in flags if not flag.startswith(("-march=", "-mtune="))]
    cpu = {"x86_64": "-mcpu=x86_64", "aarch64": "-mcpu=generic"}[machine]
    system = "macos" if sys.platform == "darwin" else "linux-gnu"
    return ["-target", f"{machine}-{system}", cpu, "-fno-sanitize=undefined", *plain]


def _has_openmp(compiler: list[str], folder: Path) -> bool:
    probe = folder / "openmp.cpp"
    probe.write_text('#include <omp.h>\nextern "C" int threads() { return omp_get_max_threads(); }\n')
    library = folder / "openmp.so"
    return _run([*compiler, "-shared", "-fPIC", "-fopenmp", str(probe), "-o", str(library)]).returncode == 0


def build(
    output: Path = LIBRARIES,
    sources: Path = SOURCES,
    variants: list[str] | None = None,
    force: bool = True,
    extra_flags: tuple[str, ...] = (),
) -> Report:
    """Compiles `sources`/cpu.cpp once per instruction set into `output`; a compiler's failure is reported, not raised.

    A variant that fails leaves the others standing. Libraries are written beside their place and renamed into it, so
    that a process that has the old one mapped keeps running. `force=False` keeps what already holds the current hash.
    """
    started = time.perf_counter()
    main = sources / "cpu.cpp"
    if os.environ.get("NERF_NO_NATIVE", "") not in ("", "0"):
        return Report(reason=f"NERF_NO_NATIVE is set: {NOT_BUILT}")
    if not main.is_file():
        return Report(reason=f"no CPU kernel sources at {main}: nothing was built")
    if sys.platform == "win32":
        return Report(reason=f"Windows is not supported yet: {NOT_BUILT}")
    compiler = find_compiler()
    if compiler is None:
        cxx = os.environ.get("CXX", "")
        set_to = f" (CXX is set to {cxx!r}, which does not run)" if cxx.strip() else ""
        return Report(reason=f"no C++ compiler found: {NOT_BUILT}{set_to}")
    machine = target_machine(compiler)
    if machine not in VARIANTS:
        return Report(compiler, reason=f"there are no CPU kernels for {machine} yet: {NOT_BUILT}")
    report = Report(compiler)

    current = source_hash(sources)
    output.mkdir(parents=True, exist_ok=True)
    wanted = {name: flags for name, flags in VARIANTS[machine].items() if variants is None or name in variants}
    with tempfile.TemporaryDirectory() as scratch:
        report.openmp = _has_openmp(compiler, Path(scratch))

        def compile_one(name: str) -> tuple[str, str]:
            library = output / file_name_of(name)
            if not force and library.is_file() and current.encode() in library.read_bytes():
                return name, ""
            flags = tuple(wanted[name])
            command = [*compiler, *COMMON_FLAGS, *(_for_zig(flags, machine) if _is_zig(compiler) else flags)]
            command += ["-fopenmp" if report.openmp else "-pthread", f'-DNERF_SOURCE_HASH="{current}"', *LINK_FLAGS]
            command += extra_flags
            temporary = library.with_name(f".{library.name}.{os.getpid()}")
            try:
                done = _run([*command, str(main), "-o", str(temporary)])
                if done.returncode != 0:
                    library.unlink(missing_ok=True)  # a stale one must not pose as this one
                    return name, f"{shlex.join(command)}\n{done.stderr.strip() or f'exit code {done.returncode}'}"
                os.replace(temporary, library)
            finally:
                temporary.unlink(missing_ok=True)
            return name, ""

        with concurrent.futures.ThreadPoolExecutor(max_workers=min(len(wanted), os.cpu_count() or 1) or 1) as pool:
            for name, error in pool.map(compile_one, wanted):
                if error:
                    report.failed[name] = error
                else:
                    report.built[name] = output / file_name_of(name)
    report.seconds = time.perf_counter() - started
    return report


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m nerf.kernels.build", description="Compile nerf's CPU kernels.")
    parser.add_argument("--output", type=Path, default=LIBRARIES, help="folder for the libraries")
    parser.add_argument("--sources", type=Path, default=SOURCES, help="folder with cpu.cpp and its headers")
    parser.add_argument("--variant", action="append", help="only this instruction set (may be repeated)")
    parser.add_argument("--force", action="store_true", help="compile even what is already up to date")
    parser.add_argument("--flag", action="append", default=[], help="one more compiler flag, e.g. --flag=-g")
    parser.add_argument("--hash", action="store_true", help="print the hash of the sources and stop")
    arguments = parser.parse_args()
    if arguments.hash:
        print(source_hash(arguments.sources))
        return 0
    force = arguments.force or bool(arguments.flag)
    report = build(arguments.output, arguments.sources, arguments.variant, force, tuple(arguments.flag))
    for name, error in report.failed.items():
        print(f"--- {name} ---\n{error}", file=sys.stderr)
    print(report.summary())
    return 0 if report.built and not report.failed else 1


if __name__ == "__main__":
    sys.exit(main())
