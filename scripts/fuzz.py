"""Damaged inputs by the thousand: whatever a file holds, a verb ends with its work done or with one sentence.

    python scripts/fuzz.py --cases 20000 --seed 1 --out fuzz.json
    python scripts/fuzz.py --kinds meshes,models --cases 500
    python scripts/fuzz.py --replay meshes:123        # one case again, with its traceback; the files are kept

Each case is a small right input (scripts/fuzzing/corpus.py), one file of which is damaged
(scripts/fuzzing/mutations.py), read by the function that the verbs use. Cases run by twenties in processes forked from
one that has imported everything, with 2 GB of memory and ten seconds of processor time for each (a minute by the
clock). How one can end:

    fine        it was read
    sentence    a UserError of one line
    unclear     a UserError of several lines, or with control characters in it
    traceback   any other exception; counted by the innermost line of nerf/ that it went through
    hang, memory, crash

The last five are failures, and the exit status is then 1.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # a process that has threads cannot be forked safely
ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts"), str(ROOT / "tests")]  # the scenes are those of the tests

import torch  # noqa: E402
from fuzzing.corpus import ALONE, KINDS  # noqa: E402
from fuzzing.mutations import mutate  # noqa: E402

from nerf.cli.main import MACHINE_SAYS_NO  # noqa: E402
from nerf.errors import UserError  # noqa: E402
from nerf.io.machine import machine  # noqa: E402

SECONDS, MEMORY = 10.0, 2 << 30
BY_THE_CLOCK = 6 * SECONDS  # on a machine that has other work, and where nothing is computed
A_PROCESS = 20  # cases; to fork takes longer than most of them
GOOD = ("fine", "sentence")
ENDS = (*GOOD, "unclear", "traceback", "hang", "memory", "crash")


class End(NamedTuple):
    """How a case ended."""

    kind: str
    number: int
    end: str
    place: str = ""  # innermost line of nerf/
    message: str = ""


def campaign(kinds: Iterable[str], cases: int, seed: int, first: int = 0) -> Iterator[End]:
    """So many cases, the kinds in turn; the same for the same seed, whatever other kinds there are."""
    kinds = list(kinds)
    with tempfile.TemporaryDirectory(prefix="nerf-fuzz-") as name:
        folder = Path(name)
        for kind in kinds:
            written(kind, folder / kind)
        todo = [(kinds[i % len(kinds)], first + i // len(kinds)) for i in range(cases)]
        while todo:
            for end in run_cases(todo[:A_PROCESS], seed, folder):
                yield end
                todo.pop(0)


def written(kind: str, folder: Path) -> None:
    """Write the right input of a kind, which must be read, in a process of its own: what does so may start threads.
    What is imported meanwhile is imported here, so that no case has to wait for it."""
    folder.mkdir(parents=True)
    told = folder.with_name(f"{kind}.told")
    if (child := os.fork()) == 0:
        try:
            _silence()
            KINDS[kind].write(folder)
            case = folder.with_name("case")
            for file in sorted(folder.iterdir()) if kind in ALONE else [folder]:
                copied(kind, folder, case, file)
                with suppress(*[UserError] * (KINDS[kind].damage is not None)):  # names: some outputs are in the way
                    KINDS[kind].read(case)
            told.write_text(json.dumps(list(sys.modules)))
        except BaseException:
            told.write_text(traceback.format_exc())
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        raise SystemExit(f"the right input {kind} is not read: {told.read_text()}")
    for name in json.loads(told.read_text()):
        if name not in sys.modules:
            with suppress(Exception):
                import_module(name)


def copied(kind: str, right: Path, case: Path, file: Path) -> None:
    """A fresh folder with what was written, or with the one file of it alone where each is an input by itself."""
    shutil.rmtree(case, ignore_errors=True)
    if kind in ALONE:
        case.mkdir()
        shutil.copy(file, case)
    else:
        shutil.copytree(right, case)


def damaged(kind: str, number: int, seed: int, right: Path, case: Path) -> None:
    """A copy of the right input with one file damaged."""
    random, what = Random(f"{seed}:{kind}:{number}"), KINDS[kind]
    chosen = random.choice(sorted(right.glob(random.choice(what.files)))) if what.files else right
    copied(kind, right, case, chosen)
    if what.damage is not None:
        what.damage(case, random)
    else:
        (case / chosen.relative_to(right)).write_bytes(mutate(chosen.read_bytes(), chosen.suffix, random))


def run_cases(cases: list[tuple[str, int]], seed: int, folder: Path, show: bool = False) -> Iterator[End]:
    """How cases end that one process goes through, up to the first that it does not survive."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.setpgid(0, 0)
        _limit()
        if not show:
            _silence()
        for kind, number in cases:
            signal.setitimer(signal.ITIMER_PROF, SECONDS)  # which ends the process
            try:
                damaged(kind, number, seed, folder / kind, folder / "case")
                end = End(kind, number, *_read(kind, folder / "case", show))
            except BaseException as error:
                end = End(kind, number, "crash", "scripts/", "".join(traceback.format_exception(error))[-300:])
            os.chdir(folder)
            os.write(writing, json.dumps(end).encode() + b"\n")
        os._exit(0)
    os.close(writing)
    try:
        with open(reading, "rb", buffering=0) as answers:
            for kind, number in cases:
                ready = select.select([answers], [], [], BY_THE_CLOCK)[0]
                if line := answers.readline() if ready else b"":
                    yield End(*json.loads(line))
                    continue
                status = os.waitpid(child, 0 if ready else os.WNOHANG)[1]
                is_hang = not ready or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF)
                yield End(kind, number, "hang" if is_hang else "crash")
                break
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # what it started goes with it
        with suppress(ChildProcessError):
            os.waitpid(child, 0)


def _silence() -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)


def _limit() -> None:
    """Two gigabytes of addresses above what is there already."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _read(kind: str, case: Path, show: bool) -> tuple[str, str, str]:
    try:
        KINDS[kind].read(case)
        return "fine", "", ""
    except BaseException as error:
        if show:
            traceback.print_exc()
        place, message = _place(error), str(error)[:300].encode("utf-8", "backslashreplace").decode()
        if any("alloc" in str(e) or isinstance(e, MemoryError) for e in _chain(error)):
            return "memory", place, message
        if isinstance(error, UserError):
            odd = any(unicodedata.category(letter) in ("Cc", "Zl", "Zp") for letter in str(error))
            return "unclear" if odd else "sentence", place, message
        if isinstance(error, OSError) and error.errno in MACHINE_SAYS_NO:  # nerf/cli/main.py makes a sentence of it
            return "sentence", place, message
        return "traceback", place, f"{type(error).__name__}: {message}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        if not type(error).__module__.startswith("av."):  # FFmpeg refuses a header's claim by the same name
            yield error
        error = error.__cause__ or error.__context__


def _place(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).is_relative_to(ROOT / "nerf")]
    if not frames:
        return "outside of nerf/"
    return f"{Path(frames[-1].filename).relative_to(ROOT)}:{frames[-1].lineno}"


def table(ends: list[End]) -> str:
    """A row for each kind, and the places of failures."""
    counts = Counter((end.kind, end.end) for end in ends)
    kinds = list(dict.fromkeys(end.kind for end in ends))
    rows = [["kind", *ENDS], *([kind, *(str(counts[kind, end]) for end in ENDS)] for kind in kinds)]
    rows.append(["all", *(str(sum(counts[kind, end] for kind in kinds)) for end in ENDS)])
    lines = ["  ".join(f"{cell:<15}" if i == 0 else f"{cell:>9}" for i, cell in enumerate(row)) for row in rows]
    for (end, place), found in failures(ends).items():
        lines.append(
            f"\n{len(found)} x {end} {place}: {found[0].kind}:{found[0].number}\n    {found[0].message[:200]!r}"
        )
    return "\n".join(lines)


def failures(ends: list[End]) -> dict[tuple[str, str], list[End]]:
    """The cases that ended badly, by how and where; the most frequent first."""
    found: dict[tuple[str, str], list[End]] = {}
    for end in ends:
        if end.end not in GOOD:
            found.setdefault((end.end, end.place if end.place else end.kind), []).append(end)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def replay(kind: str, number: int, seed: int) -> End:
    """One case again, its output shown and its files kept."""
    folder = Path(tempfile.mkdtemp(prefix=f"nerf-fuzz-{kind}-{number}-"))
    written(kind, folder / kind)
    (end,) = run_cases([(kind, number)], seed, folder, show=True)
    print(f"{folder / 'case'}: {end}", file=sys.stderr)
    return end


def main() -> int:
    """Run what the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2700)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS), help="comma between them")
    parser.add_argument("--first", type=int, default=0, help="number of the first case of each kind")
    parser.add_argument("--replay", metavar="KIND:NUMBER")
    parser.add_argument("--out", type=Path, help="JSON with all failures")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.replay:
        kind, _, number = args.replay.partition(":")
        return int(replay(kind, int(number), args.seed).end not in GOOD)
    started, ends = time.time(), []
    kinds = args.kinds.split(",")
    if unknown := set(kinds) - set(KINDS):
        parser.error(f"unknown kinds {', '.join(unknown)}; there are {', '.join(KINDS)}")
    for stop in (signal.SIGINT, signal.SIGTERM):  # what was found by then is told, also where a shell ignores Ctrl-C
        signal.signal(stop, signal.default_int_handler)
    try:
        for end in campaign(kinds, args.cases, args.seed, args.first):
            ends.append(end)
            if len(ends) % 500 == 0:
                print(f"{len(ends)} of {args.cases}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    print(table(ends))
    bad = [end for found in failures(ends).values() for end in found]
    if args.out is not None:
        content: dict[str, Any] = {"machine": machine(), "seed": args.seed, "cases": len(ends)}
        content |= {"seconds": round(time.time() - started, 1), "ends": Counter(end.end for end in ends)}
        content["kinds"] = {kind: Counter(e.end for e in ends if e.kind == kind) for kind in kinds}
        content["failures"] = [end._asdict() for end in bad]
        args.out.write_text(json.dumps(content, indent=1) + "\n")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
