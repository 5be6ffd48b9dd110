"""The attention problems that are checked and timed on a GPU: sizes and options only, no arrays."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np

from facesdk.kernels.library import HEAD_DIMS

LAYOUTS = ("rows", "heads", "fused", "padded")
# name -> what is added to plain attention; a second set is given its size by the problem
OPTIONS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "second": ("second",),
    "weighted": ("second", "weight2"),
    "region": ("region",),
    "region second": ("second", "region"),
    "bias": ("bias",),
    "all": ("second", "weight2", "region", "bias"),
}
# around every size of a tile, and the published sequences
_QUERIES = (1, 7, 16, 45, 63, 64, 65, 127, 128, 130, 197, 257)
_KEYS = (1, 5, 16, 31, 32, 33, 45, 63, 64, 65, 77, 129, 250)
_KEYS2 = (1, 4, 16, 33, 64, 77)


@dataclasses.dataclass(frozen=True)
class Problem:
    """One call.  `spread`: standard deviation of its inputs.  `layout`: how rows lie in memory, see `placement`."""

    name: str
    dim: int
    heads: int
    queries: int
    keys: int
    keys2: int = 0
    batch: int = 2
    element: str = "fp16"
    options: tuple[str, ...] = ()
    layout: str = "rows"
    spread: float = 1.0

    def __str__(self) -> str:
        keys = f"{self.keys}+{self.keys2}" if self.keys2 else str(self.keys)
        return f"{self.name} {self.element} {self.batch}x{self.heads}x{self.dim} {self.queries}q {keys}k {self.layout}"

    @property
    def flops(self) -> int:
        """Of both products."""
        return 4 * self.batch * self.heads * self.queries * (self.keys + self.keys2) * self.dim

    @property
    def bytes(self) -> int:
        """Every input read once, the output written once."""
        rows = 2 * self.queries + 2 * (self.keys + self.keys2)
        return 2 * self.batch * self.heads * self.dim * rows

    def floor_seconds(self, flops_per_second: float, bytes_per_second: float) -> float:
        """Below this no kernel gets: the products at the measured rate, or the memory at the measured bandwidth."""
        return max(self.flops / flops_per_second, self.bytes / bytes_per_second)


def variants(draws: int = 4, seed: int = 0) -> Iterator[Problem]:
    """Every head dim, dtype and set of options, each `draws` times with lengths, layout and spread at random."""
    rng = np.random.default_rng(seed)
    for dim, element, (name, options), turn in itertools.product(
        HEAD_DIMS, ("fp16", "bf16"), OPTIONS.items(), range(draws)
    ):
        yield Problem(
            name, dim, int(rng.integers(1, 4)), int(rng.choice(_QUERIES)), int(rng.choice(_KEYS)),
            int(rng.choice(_KEYS2)) if "second" in options else 0, int(rng.integers(1, 4)), element, options,
            LAYOUTS[turn % len(LAYOUTS)], float(rng.choice((0.3, 1.0, 3.0))),
        )  # fmt: skip


def wide(seed: int = 1) -> Iterator[Problem]:
    """Grids large enough for thread blocks of 128 queries, which head dims up to 64 have."""
    rng = np.random.default_rng(seed)
    dims = (dim for dim in HEAD_DIMS if dim <= 64)
    for dim, element, (name, options) in itertools.product(dims, ("fp16", "bf16"), OPTIONS.items()):
        yield Problem(
            f"wide {name}", dim, 20, int(rng.choice((520, 640, 701))), int(rng.choice(_KEYS)),
            int(rng.choice(_KEYS2)) if "second" in options else 0, 3, element, options, str(rng.choice(LAYOUTS)),
        )  # fmt: skip


def published(batch: int) -> Iterator[Problem]:
    """The attentions of the systems' networks, with and without an identity branch of 4 or 16 keys."""
    for pixels in (256, 512):  # a latent of an eighth; the UNet attends at 1, 1/2, 1/4 and 1/8 of it
        for level, dim in enumerate((40, 80, 160, 160)):
            tokens = (pixels // 8 >> level) ** 2
            name = f"SD-1.x {pixels} px"
            yield Problem(f"{name} self", dim, 8, tokens, tokens, batch=batch)
            yield Problem(f"{name} text", dim, 8, tokens, 77, batch=batch)
            for identity in (4, 16):
                yield Problem(f"{name} text+identity", dim, 8, tokens, 77, identity, batch, options=("second",))
    yield Problem("U-ViT", 64, 24, 1105, 1105, batch=batch)
    yield Problem("FeedFace adapter self", 24, 64, 1024, 1024, batch=batch)
    for context in (50, 100, 250):  # 50 tokens a face
        yield Problem("FeedFace adapter faces", 24, 64, 1024, context, batch=batch)
    yield Problem("Vec2Face encoder", 64, 12, 45, 45, batch=batch)
    yield Problem("Vec2Face decoder", 48, 16, 50, 50, batch=batch)
    yield Problem("MSID", 32, 12, 197, 197, batch=batch)


def timed() -> Iterator[Problem]:
    """What is timed: batches of 2 and 8 in fp16, the self-attentions of batch 2 in bf16 as well."""
    yield from published(2)
    yield from published(8)
    yield from (dataclasses.replace(p, element="bf16") for p in published(2) if p.keys == p.queries)
