"""A process that looks at photos: requests in lines of JSON on standard input, what was seen on standard output.

pycolmap's SIFT holds the interpreter's lock, so threads would not do. An answer is a line of JSON, the types and shapes
of the arrays of a `Look`, and their bytes; or the reason why there is none. It ends with its standard input.
"""

from __future__ import annotations

import json
import sys

import numpy as np

from nerf.checks.looks import NAMES, Request, look_at_photo
from nerf.errors import brief


def main() -> None:
    """Answer until standard input ends."""
    for line in sys.stdin.buffer:
        try:
            look = look_at_photo(Request.from_json(json.loads(line)))
        except Exception as error:  # whatever a damaged picture makes Pillow or ffmpeg raise
            _say({"error": brief(error)}, [])
            continue
        arrays = [np.ascontiguousarray(getattr(look, name)) for name in NAMES]
        _say({"arrays": [(a.dtype.str, a.shape) for a in arrays]}, arrays)


def _say(header: dict[str, object], arrays: list[np.ndarray]) -> None:
    sys.stdout.buffer.write(json.dumps(header).encode() + b"\n")
    for array in arrays:
        sys.stdout.buffer.write(array.tobytes())
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
