"""The viewer as browsers reach it, without one: what they are sent, and what comes of it when they send nonsense."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import AnalyticModel, ball, ring_cameras

from nerf.geometry.space import Similarity
from nerf.views.viewer.subject import Subject

viser = pytest.importorskip("viser", reason="the viewer's page needs viser")
msgpack = pytest.importorskip("msgspec.msgpack")

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

from benchmarks.looker import Looker, look  # noqa: E402
from websockets.exceptions import ConnectionClosed  # noqa: E402

from nerf.views.viewer.server import Viewer  # noqa: E402

WINDOW = (64, 48)


@pytest.fixture
def viewer(tmp_path: Path) -> Iterator[Viewer]:
    to_scene = Similarity.around([0.0, 0.0, 0.0], 1.5)
    model = AnalyticModel(ball(0.7), scene_from_world=to_scene, cameras=ring_cameras(6, 32))
    serving = Viewer(Subject("ball", model, folder=tmp_path), port=0)
    yield serving
    serving.close()


def until(true: Callable[[], Any], patience: float = 30.0) -> None:
    end = time.monotonic() + patience
    while not true():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.01)


def looking(viewer: Viewer) -> Looker:
    """A browser that has seen something."""
    looker = Looker(viewer.address, WINDOW)
    looker.look_from(0.0)
    looker.picture()
    return looker


def test_browsers_come_see_and_go(viewer: Viewer) -> None:
    first, second = looking(viewer), looking(viewer)
    for k in range(3):
        first.look_from(0.3 * (k + 1))
        assert first.picture() < 30
    assert viewer.loop.n_sources == 2
    first.close()
    until(lambda: viewer.loop.n_sources == 1 and len(viewer.clients) == 1)
    second.look_from(2.0)
    second.picture()
    second.close()
    until(lambda: viewer.loop.n_sources == 0)
    seen = look(viewer.address, seconds=0.5, moves_a_second=20)
    assert seen["pictures"] >= 1 and seen["bytes"] > 1000 and json.dumps(seen)


def nonsense(random: random.Random) -> Any:
    """A value that no control of the page has."""
    kinds: list[Any] = [math.nan, math.inf, -1e308, 1 << 62, "", "x" * 300, "Depth", None, True, b"\0" * 20, 0.5, -1]
    value = random.choice(kinds)
    return random.choice([value, [value] * random.randrange(5), {"a": value}])


def controls(looker: Looker) -> list[str]:
    """Ids of those that a browser was told of, but for those that make files."""
    found = []
    import zstandard

    while True:
        try:
            raw = looker.line.recv(timeout=0.2)
        except TimeoutError:
            return found
        inner = zstandard.ZstdDecompressor().decompress(raw[16 : 16 + int.from_bytes(raw[8:16], "little")])
        for message in msgpack.decode(inner)["messages"]:
            label = str((message.get("props") or {}).get("label"))
            if message["type"].startswith("Gui") and "uuid" in message and not label.startswith(("Save", "Make")):
                found.append(message["uuid"])


def test_who_sends_nonsense_ends_no_more_than_its_own_connection(
    viewer: Viewer, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    chance, good = random.Random(0), looking(viewer)
    types = {c.__name__: c for c in sys.modules["viser._messages"].Message.get_subclasses()}
    with caplog.at_level(logging.ERROR):
        for k in range(15):
            bad = Looker(viewer.address, WINDOW)
            try:
                if k % 3 == 0:  # no message at all
                    bad.line.send(chance.choice([b"\xc1" * 40, "text", b"", msgpack.encode(nonsense(chance))]))
                elif k % 3 == 1:  # before there is a page
                    name = chance.choice(sorted(types))
                    fields = {f.name: nonsense(chance) for f in dataclasses.fields(types[name])}
                    bad.send({"type": name} | fields)
                else:  # a page whose controls hold anything
                    bad.look_from(0.0)
                    ids = controls(bad)
                    for _ in range(40):
                        updates = {chance.choice(["value", "value", "value", "label", "nothing"]): nonsense(chance)}
                        bad.send({"type": "GuiUpdateMessage", "uuid": chance.choice(ids), "updates": updates})
                    time.sleep(0.05)
                bad.line.socket.close()  # without a word
            except ConnectionClosed:
                pass
        good.look_from(1.0)
        assert good.picture() < 30
    until(lambda: len(viewer.clients) == 1)
    assert not [record for record in caplog.records if record.name != "websockets.client"]
    said = capsys.readouterr().err
    assert said.count("what no page of ours sends") == 1 and "Traceback" not in said
    assert len(said.splitlines()) < 100
    good.close()
