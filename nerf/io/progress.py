"""How far long work is, on standard error: a bar on a terminal or in a notebook, elsewhere a line every ten seconds."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import AbstractContextManager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from nerf.errors import encodable, printable

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")

LINE_SECONDS = 10.0  # between lines of a log: often enough to show life, few enough to read
NOTEBOOK_SECONDS = 1.0
_BAR = 30  # characters


def _nothing() -> None:
    pass


class Progress(AbstractContextManager["Progress"]):
    """Shows label, share, count, words of one's own, time gone and time left, from its making until `close`.

    total: None while it is not known; start: how many were done before (of a run that is resumed); shown: False prints
    nothing. The last state is printed at the end, and every `line_seconds` even when no `update` comes in between.

    >>> with Progress("views", total=2, shown=False) as shown:
    ...     shown.update(1, words="PSNR 30.1 dB")
    """

    def __init__(
        self,
        label: str,
        total: int | None = None,
        shown: bool = True,
        start: int = 0,
        line_seconds: float = LINE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.label, self.total, self.done, self.words = printable(label), total, start, ""
        self._start, self._clock, self._begin = start, clock, clock()
        self._changed: Callable[[], object] = _nothing
        self._stop: Callable[[], object] = _nothing
        if shown:
            from rich.console import Console

            console = Console(stderr=True)
            if console.is_interactive:
                self._open_bar(console)
            else:
                self._open_lines(console.is_jupyter, line_seconds)

    def update(self, done: int, total: int | None = None, words: str = "") -> None:
        """`done` of `total` (None: as before) are done."""
        self.done, self.total, self.words = done, self.total if total is None else total, printable(words)
        self._changed()

    def close(self) -> None:
        """Print the last state; nothing more is shown."""
        self._stop()
        self._stop = self._changed = _nothing

    def __exit__(self, *error: object) -> None:
        self.close()

    def state(self) -> str:
        """How many of how many, and the words of one's own."""
        count = f"{self.done}/{self.total}" if self.total else str(self.done or "")
        return f"{count} {self.words}".strip()

    def line(self) -> str:
        """All in one line: label, share, state, time gone and time left."""
        gone = self._clock() - self._begin
        share = f"{100 * self.done // self.total} % " if self.total else ""
        text = f"{self.label} {share}{self.state()}  {timedelta(seconds=int(gone))}"
        if self.total and self.done > self._start:
            left = gone * max(0, self.total - self.done) / (self.done - self._start)
            text += f", {timedelta(seconds=round(left))} left"
        return text

    def _open_lines(self, notebook: bool, seconds: float) -> None:
        """A thread prints, for a single step may take minutes; in a notebook always into the same line."""
        ended = threading.Event()

        def show() -> None:
            with suppress(OSError, ValueError):  # nobody reads on, or the stream is closed
                show_line()

        def show_line() -> None:
            filled = _BAR * self.done // self.total if self.total else 0
            bar = f"\r{'█' * filled}{'░' * (_BAR - filled)} {self.line()}  "
            text = encodable(bar if notebook else self.line(), sys.stderr)
            print(text, end="" if notebook else "\n", file=sys.stderr, flush=True)

        def repeat() -> None:
            while not ended.wait(NOTEBOOK_SECONDS if notebook else seconds):
                show()

        thread = threading.Thread(target=repeat, daemon=True)
        thread.start()

        def stop() -> None:
            ended.set()
            thread.join()
            show()
            if notebook:
                with suppress(OSError, ValueError):
                    print(file=sys.stderr)

        self._stop = stop

    def _open_bar(self, console: Console) -> None:
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        texts = (TextColumn(f"{{task.{what}}}", markup=False) for what in ("description", "fields[state]"))
        columns = (next(texts), BarColumn(), next(texts), *times)
        bar = Bar(*columns, console=console)
        task = bar.add_task(self.label, total=self.total, completed=self.done, state=self.state())
        bar.start()
        self._stop = bar.stop
        self._changed = lambda: bar.update(task, total=self.total, completed=self.done, state=self.state())


def progress(items: Iterable[T], label: str, show: bool = True) -> Iterator[T]:
    """The items again, with their progress shown as they are taken.

    >>> [2 * x for x in progress([1, 2], "doubling", show=False)]
    [2, 4]
    """
    with Progress(label, len(items) if isinstance(items, Sized) else None, show) as shown:
        for k, item in enumerate(items, 1):
            yield item
            shown.update(k)
