"""`nerf view`: a model or a mesh on a page of this machine; and what `--view` of other verbs opens."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from nerf.errors import Range, UserError, check_numbers, note, say

if TYPE_CHECKING:
    from nerf.views.viewer.server import Viewer

PORT = Range(0, 65535, whole=True)


@dataclass
class ViewArgs:
    """Walk through a trained model or a mesh in the browser: look, compare with the photos, edit, film, export."""

    model: tyro.conf.Positional[Path]
    """the folder that `nerf train` or `nerf reconstruct` wrote, a checkpoint file in it, or a mesh file"""
    port: int = 8080
    """where the page is served (0: any free one); the next free one where it is taken"""
    host: str = "127.0.0.1"
    """127.0.0.1 keeps it on this machine; 0.0.0.0 lets other machines in that have the token which is printed"""
    data: Path | None = None
    """the scene's folder, where it has moved since training"""


def main(args: ViewArgs) -> None:
    """`nerf view`: prints the address, and serves until Ctrl-C."""
    check_numbers({"port": args.port}, {"port": PORT}, "--")
    if args.data is not None and not args.data.exists():
        raise UserError(f"--data {args.data}: there is no such folder")
    from nerf.views.viewer.server import Viewer, import_viser
    from nerf.views.viewer.subject import open_subject

    import_viser()  # before the work
    subject = open_subject(args.model)
    viewer = Viewer(subject, args.host, args.port)
    try:
        say_where(viewer)
        threading.Thread(target=subject.load_photos, args=(args.data,), name="nerf-viewer-photos", daemon=True).start()
        serve(viewer)
    finally:
        viewer.close()


def say_where(viewer: Viewer) -> None:
    """Tell the address, and how to end it."""
    say(viewer.address)
    note("open this address in a browser; Ctrl-C ends the viewer")


def serve(viewer: Viewer) -> None:
    """Until Ctrl-C, which here is how it is meant to end."""
    if viewer.sharing is not None:
        note(f"the page stays open at {viewer.address} until Ctrl-C")
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        note("the viewer has ended")


@contextmanager
def watching(wanted: bool, host: str, port: int, folder: Path) -> Iterator[Viewer | None]:
    """A viewer beside a training in the folder, until the end of the block; None where none is wanted."""
    if not wanted:
        yield None
        return
    from nerf.views.viewer.server import Viewer
    from nerf.views.viewer.subject import Subject

    viewer = Viewer(Subject(folder.resolve().name), host, port, training=True)
    viewer.subject.folder = folder
    try:
        say_where(viewer)
        yield viewer
    finally:
        viewer.close()
