"""How the worker tells its parent how far it is: lines of JSON on standard output."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

T = TypeVar("T")


def say(**event: Any) -> None:
    """One line for the parent."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def counted(items: Iterable[T], stage: str, total: int) -> Iterator[T]:
    """The items again, while the parent is told how many are done."""
    say(stage=stage, total=total)
    for k, item in enumerate(items, 1):
        yield item
        say(done=k)


def in_order(pool: Executor, function: Any, items: list[Any], ahead: int) -> Iterator[Any]:
    """pool.map that never holds more than `ahead` results."""
    waiting: list[Future[Any]] = []
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) >= ahead:
            yield waiting.pop(0).result()
    while waiting:
        yield waiting.pop(0).result()
