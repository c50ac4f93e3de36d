"""One progress bar for everything that takes long: count, share, time gone and time left, on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

T = TypeVar("T")


def progress(items: Iterable[T], label: str, show: bool = True) -> Iterator[T]:
    """The items again, with a bar that moves as they are taken (one line at the end where there is no terminal)."""
    if not show:
        yield from items
        return
    total = len(items) if isinstance(items, Sized) else None
    with bar(label, total) as done:
        for k, item in enumerate(items, 1):
            yield item
            done(k)


@contextmanager
def bar(label: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar for what is counted elsewhere: call what it gives with the number that is done."""
    from rich.progress import MofNCompleteColumn

    with timed_bar(MofNCompleteColumn()) as shown:
        task = shown.add_task(label, total=total)
        yield lambda done: shown.update(task, completed=done)


def timed_bar(counted: ProgressColumn) -> Progress:
    """A bar on standard error, not yet started: its label, the share done, `counted`, time gone and time left."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        counted,
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


class Display:
    """A progress bar with words of its own and the time left; nothing where it is not wanted."""

    def __init__(self, shown: bool, label: str = "training") -> None:
        self.bar = None
        if not shown:
            return
        from rich.progress import TextColumn

        self.bar = timed_bar(TextColumn("{task.completed}/{task.total} {task.fields[words]}"))
        self.task = self.bar.add_task(label, total=None, words="")
        self.bar.start()

    def update(self, step: int, total: int | None, psnr: float, rays_per_second: float) -> None:
        self.show(step, total, f"PSNR {psnr:.1f} dB  {rays_per_second / 1e3:.0f} k rays/s")

    def show(self, step: int, total: int | None, words: str) -> None:
        if self.bar is not None:
            self.bar.update(self.task, completed=step, total=total, words=words)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
