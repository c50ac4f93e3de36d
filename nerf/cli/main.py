"""The command `nerf`: finds the verb, imports what it needs and nothing else, and turns mistakes into one sentence.

Each verb's arguments are a dataclass beside the function that does the work. The overview below is written by hand, so
that `nerf --help` imports neither torch nor tyro.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from nerf import __version__
from nerf.errors import UserError, brief, printable, warn
from nerf.io.interrupts import Stopped, stoppable
from nerf.io.streams import keep_writable

# verb -> (dataclass of its arguments, what it does); its module is nerf.cli.VERB with a function main that takes one
VERBS = {
    "reconstruct": ("ReconstructArgs", "photos in; model, numbers, video, mesh, report out"),
    "poses": ("PosesArgs", "photos or a video without poses; a data set with poses out"),
    "check": ("CheckArgs", "ask photos whether they fit their poses, lenses and masks"),
    "train": ("TrainArgs", "train a model on posed photos"),
    "eval": ("EvalArgs", "measure a model on views that were held out"),
    "render": ("RenderArgs", "render new views to a video or to pictures"),
    "view": ("ViewArgs", "walk through a model in the browser: look, edit, film, export"),
    "mesh": ("MeshArgs", "extract a mesh in the frame of the photos"),
    "map": ("MapArgs", "write an orthophoto and a height map of a georeferenced scene (GeoTIFF)"),
    "export-page": ("ExportPageArgs", "write one HTML file that shows a scene in any browser, offline"),
    "evalmesh": ("EvalMeshArgs", "measure a mesh against the true one"),
    "export-cameras": ("ExportArgs", "write cameras for other programs: transforms.json or COLMAP"),
    "fit": ("FitVerbs", "fit a field to an image, sound, video, shape, ct or set"),
    "sample": ("SampleArgs", "give a fitted signal out at any resolution or rate"),
    "pack": ("PackArgs", "write a fitted signal as a small file"),
    "doctor": ("DoctorArgs", "say what this machine has and what is missing"),
}

# No bug of ours: no access, no room, a file larger than may be, a disk that may only be read, fails or is gone, a name
# that no disk takes.
MACHINE_SAYS_NO = (
    *(errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ENAMETOOLONG),
)

_HELP = """\
usage: nerf VERB ... | nerf VERB --help | nerf --version

Photos or a video in; a radiance field, new views and a mesh out, on the machine that is there.

{verbs}

Begin with:
  nerf reconstruct DATA -o OUT     all of it; open OUT/report.html at the end
  nerf doctor                      what is there, what is missing, what to do
{formats}
"""


def main(argv: list[str] | None = None) -> None:
    """Entry point of the command; exits with 0; 2 after a user's mistake, 1 after ours, 128 + N after signal N."""
    keep_writable()
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: list[str]) -> int:
    """Run one command line and return its exit status."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(overview(), end="")
        return 0 if argv else 2
    if argv[0] in ("-V", "--version", "version"):
        print(f"nerf {__version__}")
        return 0
    verb, args = argv[0], None
    if verb not in VERBS:
        warn(f"nerf: {unknown_verb(verb)}")
        return 2
    _make_libraries_plain()
    try:
        if verb != "train" and os.environ.get("RANK") and os.environ.get("WORLD_SIZE") not in (None, "", "1"):
            raise UserError(f"nerf {verb} is one process: start it without torchrun, which is for nerf train")
        from nerf.cli.usage import parse

        module = import_module(f"nerf.cli.{verb.replace('-', '_')}")
        args = parse(getattr(module, VERBS[verb][0]), argv[1:], f"nerf {verb}")
        with stoppable():
            module.main(args)
        sys.stdout.flush()
    except UserError as error:
        warn(f"nerf: {error}")
        return 2
    except KeyboardInterrupt as stop:
        by = stop.by if isinstance(stop, Stopped) else signal.SIGINT
        name = "Ctrl-C" if by == signal.SIGINT else by.name
        warn("")
        warn(f"nerf: stopped by {name}{how_to_go_on(verb, args)}")
        return 128 + by
    except OSError as error:
        if error.errno not in MACHINE_SAYS_NO:
            return _defect(error)
        warn(f"nerf: {error.filename or 'a file'}: {error.strerror}")
        return 2
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "nerf":
            return _defect(error)
        warn(f"nerf: the package {error.name} is missing: pip install {error.name}")
        return 2
    except (RuntimeError, MemoryError) as error:
        said = _of_the_machine(error)
        if said is None:
            return _defect(error)
        warn(f"nerf: {said}")
        return 2
    except Exception as error:
        return _defect(error)
    return 0


def _defect(error: Exception) -> int:
    """What nobody foresaw: one sentence, and all that is known about it in a file. Returns the exit status."""
    import shlex
    import tempfile
    import traceback

    # not the whole environment, which may hold what is nobody's business
    about = f"nerf {__version__}, Python {sys.version}, {sys.platform}\n{shlex.join(sys.argv)}\n\n"
    where = ""
    try:
        descriptor, name = tempfile.mkstemp(prefix="nerf-error-", suffix=".txt")
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(about + "".join(traceback.format_exception(error)))
        where = f" with {name}, which holds the traceback,"
    except OSError:
        traceback.print_exception(error)
    warn(
        f"nerf: this should not happen: {type(error).__name__}: {brief(error)}; please report it{where} and what you "
        "gave it"
    )
    return 1


def how_to_go_on(verb: str, args: Any) -> str:
    """What is added where a verb was interrupted: how it continues, if it has left something to go on from."""
    from nerf.io.folders import resumable

    if verb == "poses":
        return "; the same command again continues"
    if verb not in ("train", "reconstruct", "fit") or args is None:
        return ""
    if not resumable(args.out):
        return "; nothing was saved yet"
    return f"; the same command with --resume{' instead of --overwrite' * args.overwrite} continues"


def _make_libraries_plain() -> None:
    """What libraries say by `warnings` and `logging` may quote files too: as plain text as our own messages are."""
    import logging
    import warnings

    class Plain(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            record.exc_info = record.exc_text = None  # what it means for the user, an error of ours says
            return printable(super().format(record))

    if logging.lastResort is not None:
        logging.lastResort.setFormatter(Plain())

    def one_line(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        return printable(f"{Path(filename).name}:{lineno}: {category.__name__}: {message}") + "\n"

    warnings.formatwarning = one_line


def _of_the_machine(error: RuntimeError | MemoryError) -> str | None:
    """One sentence about what a GPU or a full memory can do to any operation, None for every other error."""
    torch = sys.modules.get("torch")
    first = str(error).split("\n")[0].split(". ")[0]
    if isinstance(error, getattr(torch, "OutOfMemoryError", ())):
        return f"the GPU's memory is full ({first}): close what else uses it, or run with --backend cpu"
    if isinstance(error, MemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error):
        return f"the memory is full ({brief(error)[-80:]}): ask for less or smaller, or close what else takes it"
    if isinstance(error, getattr(torch, "AcceleratorError", ())):
        return f"the GPU failed ({first}): run again with --backend cpu, and report this line"
    return None


def overview() -> str:
    """What `nerf --help` prints."""
    from textwrap import fill

    from nerf.datasets.readers import programs

    formats = f"DATA is a folder of photos, a video, or photos with poses: {programs()}."
    verbs = "\n".join(f"  {verb:<16}{what}" for verb, (_, what) in VERBS.items())
    return _HELP.format(verbs=verbs, formats=fill(formats, 118))


def unknown_verb(verb: str) -> str:
    """One sentence: what was typed, what was probably meant, what there is."""
    from difflib import get_close_matches

    close = get_close_matches(verb.lower(), VERBS, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"the verbs are {', '.join(VERBS)}"
    return f"there is no verb {verb!r}; {hint} (nerf --help lists them)"


if __name__ == "__main__":
    main()
