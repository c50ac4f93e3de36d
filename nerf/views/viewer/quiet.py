"""What a browser that sends nonsense leaves in the terminal: one sentence, and not what the server's libraries say."""

from __future__ import annotations

import logging
import warnings

from nerf.errors import note

LOGGERS = ("websockets.server", "asyncio")  # told of connections that broke, and of messages that could not be handled
MOST_TOLD = 5  # mistakes of one browser


class Quiet(logging.Filter):
    """Drops what is logged of the viewer's connections, from its making until `close`."""

    def __init__(self) -> None:
        super().__init__()
        self.told = False
        warnings.filterwarnings("ignore", module=r"viser\.")  # also of what is sent to a browser that has just gone
        for name in LOGGERS:
            logging.getLogger(name).addFilter(self)

    def close(self) -> None:
        for name in LOGGERS:
            logging.getLogger(name).removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is of something else."""
        if record.name == "asyncio" and "viser" not in record.getMessage():
            return True
        if not self.told and record.levelno >= logging.ERROR:
            self.told = True
            note("viewer: a browser sent what no page of ours sends; that goes no further than its own connection")
        return False
