"""A browser without a screen: speaks to the viewer as its page does, moves the camera, and notes what it is sent.

    python scripts/benchmarks/looker.py ADDRESS SECONDS MOVES_A_SECOND

prints JSON: seconds until the first picture and the finer ones, and from a move to its picture; pictures and bytes.
"""

from __future__ import annotations

import json
import math
import sys
import time
from typing import Any

import msgspec.msgpack
import viser
import zstandard
from websockets.sync.client import connect

WINDOW = (1280, 720)


class Looker:
    """One connection to a viewer at an address that `nerf view` prints. window: of its canvas, pixels."""

    def __init__(self, address: str, window: tuple[int, int] = WINDOW) -> None:
        self.window = window
        self.bytes = self.pictures = 0
        self.began = time.perf_counter()
        protocol: Any = [f"viser-v{viser.__version__}"]
        self.line = connect(address.replace("http", "ws", 1), subprotocols=protocol, max_size=1 << 28, compression=None)

    def close(self) -> None:
        self.line.close()

    def send(self, message: Any) -> None:
        self.line.send(msgspec.msgpack.encode(message))

    def look_from(self, azimuth: float, distance: float = 2.6) -> None:
        """Stand so far from the middle of the page, a little above it, and look there."""
        x, y, z = distance * math.cos(azimuth), distance * math.sin(azimuth), 0.35 * distance
        length = math.sqrt(x * x + y * y + z * z)
        ahead = (-x / length, -y / length, -z / length)
        flat = math.hypot(x, y)
        right = (-y / flat, x / flat, 0.0)
        down = tuple(
            ahead[(k + 1) % 3] * right[(k + 2) % 3] - ahead[(k + 2) % 3] * right[(k + 1) % 3] for k in range(3)
        )
        camera = {"wxyz": quaternion(right, down, ahead), "position": (x, y, z), "fov": 0.8, "near": 0.01, "far": 1e3}
        camera |= {"image_width": self.window[0], "image_height": self.window[1]}
        camera |= {"look_at": (0.0, 0.0, 0.0), "up_direction": (0.0, 0.0, 1.0)}
        self.send({"type": "ViewerCameraMessage"} | camera)

    def read(self, seconds: float) -> bool:
        """Take what comes next, at most so long; whether a picture of the scene was among it."""
        try:
            raw = self.line.recv(timeout=max(seconds, 0.0))
        except TimeoutError:
            return False
        assert isinstance(raw, bytes)
        self.bytes += len(raw)
        inner = zstandard.ZstdDecompressor().decompress(raw[16 : 16 + int.from_bytes(raw[8:16], "little")])
        messages = msgspec.msgpack.decode(inner)["messages"]
        found = sum(m["type"] == "BackgroundImageMessage" and m["rgb_data"] is not None for m in messages)
        self.pictures += found
        return found > 0

    def picture(self, seconds: float = 60.0) -> float:
        """Wait for a picture; seconds that it took."""
        began = time.perf_counter()
        while not self.read(began + seconds - time.perf_counter()):
            if time.perf_counter() > began + seconds:
                raise TimeoutError("no picture has come")
        return time.perf_counter() - began


def quaternion(x: Any, y: Any, z: Any) -> tuple[float, float, float, float]:
    """(w, x, y, z) of the rotation whose columns these are (Shepperd)."""
    m = [[x[i], y[i], z[i]] for i in range(3)]
    four = [1 + sum(s[k] * m[k][k] for k in range(3)) for s in ((1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1))]
    k = max(range(4), key=four.__getitem__)
    a, b, c = m[2][1] - m[1][2], m[0][2] - m[2][0], m[1][0] - m[0][1]
    d, e, f = m[1][0] + m[0][1], m[0][2] + m[2][0], m[2][1] + m[1][2]
    rows = ((four[0], a, b, c), (a, four[1], d, e), (b, d, four[2], f), (c, e, f, four[3]))
    w, i, j, n = (v / (2 * math.sqrt(four[k])) for v in rows[k])
    return w, i, j, n


def look(address: str, seconds: float, moves_a_second: float) -> dict[str, Any]:
    """Connect, then move so often for so long; 0: never."""
    looker = Looker(address)
    looker.look_from(0.0)
    asked = time.perf_counter()
    looker.picture()
    first, since_asked = time.perf_counter() - looker.began, time.perf_counter() - asked
    at_rest = [since_asked]
    began, n, waits = time.perf_counter(), 0, []
    while (now := time.perf_counter()) < began + seconds:
        if moves_a_second:
            n += 1
            looker.look_from(2 * math.pi * n / 400)
            moved, due = time.perf_counter(), began + n / moves_a_second
            seen = False
            while (now := time.perf_counter()) < due:
                if looker.read(due - now) and not seen:
                    seen = True
                    waits.append(time.perf_counter() - moved)
        elif looker.read(began + seconds - now):
            at_rest.append(time.perf_counter() - asked)
    looker.close()
    waits.sort()
    return {
        "first_seconds": first,
        "first_since_asked": since_asked,
        "move_median": waits[len(waits) // 2] if waits else None,
        "at_rest": at_rest,
        "moves": n,
        "pictures": looker.pictures,
        "bytes": looker.bytes,
    }


if __name__ == "__main__":
    print(json.dumps(look(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]))))
