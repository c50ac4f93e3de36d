"""A verb that a launcher such as torchrun has started as several processes: who speaks, who writes, how it goes on."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nerf.errors import UserError, note
from nerf.io.files import write_file
from nerf.io.json_text import parse_json
from nerf.io.outputs import OutputFolder

if TYPE_CHECKING:
    from nerf.training.distributed import Ranks

RANKS_FILE = "ranks.json"  # of a run that several ranks train
HERE = ("data", "masks", "host", "port")  # options that may differ: copies of the data lie elsewhere on each machine


@contextmanager
def joined(args: Any) -> Iterator[Ranks]:
    """The ranks of this launch, of which the first alone speaks; `ALONE` without a launcher. What ends one rank alone
    is said by it, with its number."""
    from nerf.training import distributed

    if distributed.launched() is None:
        yield distributed.ALONE
        return
    distributed.take_gpu()
    if args.view:
        raise UserError("--view is not there for several ranks yet: look at the run with `nerf view` while they train")
    rank = int(os.environ["RANK"])
    streams = sys.stdout, sys.stderr
    if rank > 0:
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the process ends
    ranks = distributed.ALONE
    try:
        ranks = distributed.join()
        given = {f"option --{name.replace('_', '-')}": v for name, v in vars(args).items() if name not in HERE}
        ranks.check_same(given)
        note(f"{ranks.size} ranks train together")
        yield ranks
    except distributed.SaidByRank0:
        raise
    except UserError as error:
        sys.stdout, sys.stderr = streams
        raise UserError(f"rank {rank}: {error}" if rank else str(error)) from None
    except Exception:
        sys.stdout, sys.stderr = streams
        raise
    finally:
        ranks.close()


def is_restart(out: Path) -> bool:
    """Whether torchrun (--max-restarts) has started this run anew, after it had begun to train in this folder: it goes
    on from its last checkpoint then. Of a folder that the launch never began to write to, nothing is continued."""
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        return False
    try:
        return bool(parse_json((out / RANKS_FILE).read_bytes())["launch"] == _launch())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_ranks(out: OutputFolder, ranks: Ranks) -> None:
    """Note in the folder which launch trains there."""
    if ranks.size > 1 and ranks.is_first:
        out.claim(RANKS_FILE)
        write_file(out.path / RANKS_FILE, json.dumps({"ranks": ranks.size, "launch": _launch()}, indent=1) + "\n")


def _launch() -> str:
    """What the processes of a launch keep when they are started anew: torchrun's own process and name for it."""
    run = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return f"{socket.gethostname()} {os.getppid()} {run}"
