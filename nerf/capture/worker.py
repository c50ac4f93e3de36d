"""The process in which pycolmap runs: `python -m nerf.capture.worker JOB.json`.

It is a process of its own so that Ctrl-C ends it at once and a crash inside the library is one sentence. It says how
far it is in lines of JSON on standard output, and ends when its parent does.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import traceback
from pathlib import Path

from nerf.capture.protocol import say

NO_ROOM = 1 << 20  # bytes


def main(path: str) -> int:
    """Features, matches, mapping, as far as they are not there; the result is left in the job's folder."""
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    try:
        import pycolmap
        import torch

        torch.set_num_threads(1)  # pools of threads over photos and pairs are what uses the cores
        pycolmap.logging.minloglevel = 1  # warnings; to standard error, which is the log
        pycolmap.set_random_seed(0)
        from nerf.capture import features, mapping, verifying

        statistics = features.extract(job)
        counts = verifying.match_pairs(job, statistics)
        result = mapping.reconstruct(job) | counts
        result["n_usable"] = features.usable(statistics)
    except OSError as error:
        say(error=f"{error.filename or job['folder']}: {error.strerror or error}")
    except MemoryError:
        say(error="not enough memory")
    except Exception as error:
        text = " ".join(str(error).split())
        if "disk is full" in text or shutil.disk_usage(job["folder"]).free < NO_ROOM:  # SQLite has many words for it
            say(error=f"{job['folder']}: the disk is full")
        else:
            say(error=f"{type(error).__name__}: {text[:200]}")
            traceback.print_exc()  # into the log
    else:
        say(result=result)
        return 0
    return 1


def _end_with_the_parent() -> None:
    """Standard input is a pipe that the parent never writes to: it ends when the parent does, however that was."""
    while os.read(0, 1024):
        pass
    if os.getpgrp() == os.getpid():  # started by nerf.capture.child: the processes it started are to end too
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    status = main(sys.argv[1])
    sys.stderr.flush()
    os._exit(status)  # nothing is left to do, and tearing three large libraries down takes its time
