"""Measurements of the viewer, with browsers without a screen (`looker`) in processes of their own."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nerf import datasets
from nerf.training.config import TrainConfig
from nerf.training.loop import train
from nerf.views.viewer.server import Viewer
from nerf.views.viewer.subject import Subject, open_subject

LOOKER = Path(__file__).with_name("looker.py")
WARM_UP = 200  # steps before the clock starts
# of a training: without a viewer; with one that nobody looks at; with somebody who moves, or has come to rest
PHASES = ("plain", "nobody", "plain", "moving", "plain", "resting")


def start_looker(address: str, seconds: float, moves_a_second: float) -> subprocess.Popen[str]:
    """A browser that looks for so long; it prints what `looker.look` returns."""
    command = [sys.executable, str(LOOKER), address, str(seconds), str(moves_a_second)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def looked(looker: subprocess.Popen[str]) -> dict[str, Any]:
    said, _ = looker.communicate()
    found: dict[str, Any] = json.loads(said)
    return found


def first_picture(model: str, browsers: int = 9) -> dict[str, Any]:
    """Seconds (medians) from where a page says that it is there to its first picture and to finer ones, and from a move
    to the next."""
    viewer = Viewer(open_subject(Path(model)), port=0)
    try:
        visits = [looked(start_looker(viewer.address, 3, 3)) for _ in range(browsers)]
        resting = [looked(start_looker(viewer.address, 3, 0))["at_rest"] for _ in range(3)]
    finally:
        viewer.close()
    seconds = [visit["first_since_asked"] for visit in visits]
    moves = [visit["move_median"] for visit in visits]
    result = {"first_picture": statistics.median(seconds), "worst": max(seconds)}
    result |= {"second_picture": statistics.median(at[1] for at in resting)}
    result |= {"largest_picture": statistics.median(at[-1] for at in resting)}
    return result | {"after_a_move": statistics.median(moves), "browsers": browsers}


class Phases:
    """Called between the steps of a training: goes through PHASES again and again, and measures each."""

    def __init__(self, viewer: Viewer, seconds: float, cycles: int) -> None:
        self.viewer, self.seconds, self.cycles = viewer, seconds, cycles
        # steps of each phase a second, and a second that the thread of the training had a core for itself: the latter
        # does not know of other jobs of the machine
        self.rates: dict[str, list[float]] = {"wall": [], "core": []}
        self.pictures = 0  # while somebody moved
        self.k, self.began, self.core, self.at = -1, 0.0, 0.0, 0
        self.looker: subprocess.Popen[str] | None = None

    def __call__(self, trainer: Any) -> bool:
        assert self.viewer.sharing is not None
        if trainer.step < WARM_UP:
            return self.viewer.sharing(trainer)
        now, phase = time.perf_counter(), PHASES[self.k % len(PHASES)]
        if self.k < 0 or now - self.began >= self.seconds:
            if self.k >= 0:
                self.rates["wall"].append((trainer.step - self.at) / (now - self.began))
                self.rates["core"].append((trainer.step - self.at) / (time.thread_time() - self.core))
                if phase == "moving":
                    self.pictures += sum(client.viewport.pictures for client in self.viewer.clients)
            if not self._next(trainer):
                return False
            phase = PHASES[self.k % len(PHASES)]
        return True if phase == "plain" else self.viewer.sharing(trainer)

    def _next(self, trainer: Any) -> bool:
        """Begin the next phase, with a browser that sees something where there is to be one."""
        if self.looker is not None:
            self.looker.kill()
            self.looker.communicate()
            self.looker = None
            while self.viewer.loop.n_sources:
                time.sleep(0.01)
        self.k += 1
        if self.k > self.cycles * len(PHASES):  # the last one is plain
            return False
        phase = PHASES[self.k % len(PHASES)]
        if phase in ("moving", "resting"):
            self.looker = start_looker(self.viewer.address, 10 * self.seconds, 30 if phase == "moving" else 0)
            while not self.viewer.loop.n_sources:
                time.sleep(0.01)
        self.began, self.core, self.at = time.perf_counter(), time.thread_time(), trainer.step
        return True


def watched_training(scene: str, seconds: float = 6.0, cycles: int = 4) -> dict[str, Any]:
    """By how many percent a step of a training takes longer while nobody looks, while somebody moves without rest, and
    while somebody looks who has come to rest: medians over phases, each against the plain ones before and after it. In
    seconds that the training's thread had a core for itself, which do not know of other jobs, and by the clock."""
    with TemporaryDirectory() as folder:
        viewer = Viewer(Subject("run"), port=0, training=True)
        phases = Phases(viewer, seconds, cycles)
        try:
            viewer.subject.folder = Path(folder)
            viewer.training_begins(loaded := datasets.load(scene, quiet=True))
            train(loaded, TrainConfig(steps=1_000_000), Path(folder) / "run", progress=False, between=phases)
        finally:
            viewer.close()
    result: dict[str, Any] = {
        "seconds_of_a_phase": seconds,
        "pictures_per_second": phases.pictures / (seconds * cycles),
    }
    for by, name in (("core", "longer_percent"), ("wall", "longer_percent_of_wall")):
        each = longer_by(phases.rates[by])
        result |= {name: {phase: statistics.median(values) for phase, values in each.items()}, f"{name}_each": each}
    return result


def longer_by(rates: list[float]) -> dict[str, list[float]]:
    """By how many percent a step took longer in each phase than in the plain ones before and after it."""
    longer: dict[str, list[float]] = {}
    for k in range(1, len(rates), 2):
        plain = (rates[k - 1] + rates[k + 1]) / 2
        longer.setdefault(PHASES[k % len(PHASES)], []).append(round(100 * (plain / rates[k] - 1), 1))
    return longer


def long_look(model: str, minutes: float = 5.0, visits_every: float = 5.0) -> dict[str, Any]:
    """Memory of the process, and what it sends, while one browser moves without rest and others come and go."""
    viewer = Viewer(open_subject(Path(model)), port=0)
    ended = threading.Event()
    n_visits = 0

    def come_and_go() -> None:
        nonlocal n_visits
        while not ended.wait(visits_every):
            looked(start_looker(viewer.address, 1.0, 5))
            n_visits += 1

    visitors = threading.Thread(target=come_and_go)
    memory: list[tuple[float, int]] = []
    try:
        looked(start_looker(viewer.address, 3, 30))  # what is loaded once
        began = time.perf_counter()
        looker = start_looker(viewer.address, 60 * minutes, 30)
        visitors.start()
        while looker.poll() is None:
            memory.append((time.perf_counter() - began, resident()))
            time.sleep(1.0)
        saw = looked(looker)
    finally:
        ended.set()
        visitors.join()
        viewer.close()
    tenths = [part[1] for part in memory[:: max(1, len(memory) // 10)]]
    growth = (tenths[-1] - tenths[len(tenths) // 2]) / (30 * minutes)  # since the middle: bytes a second
    result = {"start_bytes": memory[0][1], "middle_bytes": memory[len(memory) // 2][1], "end_bytes": memory[-1][1]}
    result |= {"grown_bytes_an_hour": 3600 * growth, "bytes_an_hour": 3600 * saw["bytes"] / (60 * minutes)}
    result["tenths_bytes"] = tenths
    return result | {"pictures": saw["pictures"], "visits": n_visits, "threads": threading.active_count()}


def resident() -> int:
    """Memory of this process, bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
