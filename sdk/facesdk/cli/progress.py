"""One style of progress bar: on standard error, only on a terminal, only for what takes over a second."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from tqdm import tqdm

Item = TypeVar("Item")


def progress(items: Iterable[Item], unit: str, total: int | None = None) -> Iterator[Item]:
    """The items, with a bar that counts them; `total` where they have no length."""
    from tqdm import tqdm

    yield from tqdm(items, unit=unit, total=total, delay=1.0, disable=not sys.stderr.isatty(), file=sys.stderr)


@contextlib.contextmanager
def stages(aside: str) -> Iterator[Callable[[str, int, int], None]]:
    """A function (what, how many, of how many) that shows one bar for each `what`, with its rate and the time left.

    What is called `aside` is told beside the bar: it says that something moves where a count takes long to grow.
    """
    from tqdm import tqdm

    bars: dict[str, tqdm[None]] = {}
    with contextlib.ExitStack() as stack:

        def bar_of(unit: str) -> tqdm[None]:
            if unit not in bars:
                bar = tqdm(unit=unit, delay=1.0, disable=not sys.stderr.isatty(), file=sys.stderr)
                bars[unit] = stack.enter_context(bar)
            return bars[unit]

        def show(what: str, done: int, total: int) -> None:
            if what == aside:
                bar_of("image").set_postfix_str(f"{done} of at most {total} {aside}s", refresh=False)
                bar_of("image").update(0)
                return
            bar = bar_of(what)
            bar.total = total
            bar.update(done - bar.n)

        yield show
