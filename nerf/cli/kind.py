"""The option --kind, with the formats that there are in its help."""

from __future__ import annotations

from typing import Annotated

import tyro

from nerf.datasets.readers import kinds

Kind = Annotated[
    str | None,
    tyro.conf.arg(help=f"read the folder as this format, where it could be several: {', '.join(kinds())}"),
]
