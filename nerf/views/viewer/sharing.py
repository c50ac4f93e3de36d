"""Training and looking share one machine: pictures are rendered between steps, on the training's own thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nerf.views.viewer.loop import RenderLoop

SHARE = (
    0.18  # of the time, at most, that goes into pictures; with what else looking costs (a browser, caches that other
)
# work has filled, threads that wait for one another) training takes at most a third longer
MOST_SAVED = 0.25  # seconds of pictures that may have been saved up while nobody wanted any


class SharedTraining:
    """Called between the steps of a training (`train(..., between=...)`); renders what is wanted as far as the share
    allows, holds the training while it is paused, ends it when it is asked to.

    watched: called after each look, with the trainer, to show how far it is.
    """

    def __init__(self, loop: RenderLoop, watched: Callable[[Any], None] | None = None, share: float = SHARE) -> None:
        self.loop, self.watched = loop, watched
        self.paused = self.stopping = False
        self.trainer: Any = None
        self._ratio = share / (1 - share)  # seconds of pictures for a second of training
        self._credit = 0.0
        self._left_at: float | None = None
        self.seconds = {"training": 0.0, "pictures": 0.0, "paused": 0.0}

    def __call__(self, trainer: Any) -> bool:
        """Whether training is to go on."""
        clock = self.loop.clock
        self.trainer = trainer
        now = clock()
        if self._left_at is not None:
            self.seconds["training"] += now - self._left_at
            self._credit = min(self._credit + self._ratio * (now - self._left_at), MOST_SAVED)
        if self.watched is not None:
            self.watched(trainer)
        while self.paused and not self.stopping:
            started = clock()
            if not self.loop.step():
                self.loop.rest()
            self.seconds["paused"] += clock() - started
        while self._credit > 0:
            started = clock()
            if not self.loop.step(patient=False):
                break
            spent = clock() - started
            self._credit -= spent
            self.seconds["pictures"] += spent
        self._left_at = clock()
        return not self.stopping

    def pause(self, on: bool) -> None:
        self.paused = on
        self.loop.wake()

    def stop(self) -> None:
        """End the training after the step that is under way; it is saved as at its end."""
        self.stopping = True
        self.loop.wake()
