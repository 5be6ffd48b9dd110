"""One style of progress bar: on standard error, only on a terminal, only for what takes over a second."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def progress(items: Iterable[Item], unit: str, total: int | None = None) -> Iterator[Item]:
    """The items, with a bar that counts them; `total` where they have no length."""
    from tqdm import tqdm

    yield from tqdm(items, unit=unit, total=total, delay=1.0, disable=not sys.stderr.isatty(), file=sys.stderr)
