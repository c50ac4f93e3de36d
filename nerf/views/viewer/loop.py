"""Whose tile is rendered next: one at a time, in turn among clients, so that each sees something soon; what has time
(a film) gets what they leave."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Protocol

from nerf.errors import brief, note

IDLE = 0.5  # seconds after which a loop without work looks again


class Source(Protocol):
    """Somebody who wants pictures."""

    def begin(self, now: float) -> Iterator[None] | None:
        """What renders the next picture, a tile each step; None: nothing is wanted now."""

    def wait(self, now: float) -> float | None:
        """Seconds until something will be wanted; None: not by itself."""


class RenderLoop:
    """Renders for any number of sources, on the thread that calls `step`: that of the training, or its own.

    >>> class Two:
    ...     left = 1
    ...     def begin(self, now):
    ...         self.left -= 1
    ...         return iter([None, None]) if self.left >= 0 else None
    ...     def wait(self, now):
    ...         return None
    >>> loop = RenderLoop()
    >>> loop.add(Two())
    >>> loop.step(), loop.step(), loop.step(), loop.step()
    (True, True, True, False)
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self._sources: dict[Source, Iterator[None] | None] = {}
        self._patient: list[Iterator[None]] = []
        self._turns: list[Source] = []
        self._changed = threading.Condition()
        self._woken = False
        self._thread: threading.Thread | None = None
        self._closed = False
        self.failed: Callable[[Source, Exception], None] | None = None  # told where a picture could not be made

    def add(self, source: Source) -> None:
        with self._changed:
            self._sources[source] = None
            self._turns.append(source)
        self.wake()

    def remove(self, source: Source) -> None:
        """It gets nothing any more; what is under way for it ends with its tile."""
        with self._changed:
            self._sources.pop(source, None)
            if source in self._turns:
                self._turns.remove(source)

    def add_patient(self, work: Iterator[None]) -> None:
        """Something long, done a step at a time when nobody waits for a picture."""
        with self._changed:
            self._patient.append(work)
        self.wake()

    @property
    def n_sources(self) -> int:
        return len(self._sources)

    def wake(self) -> None:
        """Somebody may want something now."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def step(self, patient: bool = True) -> bool:
        """One tile; False where there is nothing to do. Only ever on one thread at a time. patient: whether long work
        may be done too."""
        now = self.clock()
        with self._changed:
            order = list(self._turns)
        for source in order:
            work = self._sources.get(source)
            try:
                if work is None:
                    work = source.begin(now)
                    if work is None:
                        continue
                try:
                    next(work)
                except StopIteration:
                    work = None
            except Exception as error:  # one client's picture must not end the others', or a training
                work = None
                self._fail(source, error)
            with self._changed:
                if source in self._sources:
                    self._sources[source] = work
                    self._turns.remove(source)
                    self._turns.append(source)
            return True
        return patient and self._patient_step()

    def _patient_step(self) -> bool:
        with self._changed:
            work = self._patient[0] if self._patient else None
        if work is None:
            return False
        try:
            next(work)
        except StopIteration:
            self._patient.remove(work)
        except Exception as error:
            self._patient.remove(work)
            note(f"viewer: {brief(error)}")
        return True

    def _fail(self, source: Source, error: Exception) -> None:
        note(f"viewer: a picture could not be made: {type(error).__name__}: {brief(error)}")
        if self.failed is not None:
            with suppress(Exception):
                self.failed(source, error)

    def rest(self, longest: float = IDLE) -> None:
        """Wait until there may be something to do, at most so long."""
        now = self.clock()
        waits = [w for source in list(self._sources) if (w := source.wait(now)) is not None]
        with self._changed:
            if not self._woken:
                self._changed.wait(max(0.001, min([longest, *waits])))
            self._woken = False

    # ---- on a thread of its own, where no training lends its own

    def start(self) -> None:
        if self._thread is None:
            self._closed = False
            self._thread = threading.Thread(target=self._run, name="nerf-viewer", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """The thread ends with the tile that it is rendering."""
        if self._thread is not None:
            self._closed = True
            self.wake()
            self._thread.join(timeout=60)
            self._thread = None

    def _run(self) -> None:
        while not self._closed:
            if not self.step():
                self.rest()
