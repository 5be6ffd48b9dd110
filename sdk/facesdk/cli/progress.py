"""One style of progress bar: on standard error, only on a terminal, only for what takes over a second."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def progress(items: Collection[Item], unit: str) -> Iterator[Item]:
    """The items, with a bar that counts them."""
    from tqdm import tqdm

    yield from tqdm(items, unit=unit, delay=1.0, disable=not sys.stderr.isatty(), file=sys.stderr)
