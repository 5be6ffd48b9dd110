"""The attention kernel as images that a plan can hold: one file of PTX for each dtype, head dim and tile of queries."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from facesdk.errors import MissingDependency
from facesdk.kernels import library

# those whose two stages of keys stay within 48 KB, see kernels/plugin/image.cuh
HEAD_DIMS = tuple(dim for dim in library.HEAD_DIMS if dim != 96)
#: of a thread block
THREADS = 128


@dataclasses.dataclass(frozen=True)
class Image:
    """One kernel.  `queries`: rows that a thread block computes."""

    dtype: str
    dim: int
    queries: int

    @property
    def entry(self) -> str:
        """The kernel's name, and its file's."""
        return f"facesdk_attention_{self.dtype}_{self.dim}_{self.queries}"

    @property
    def shared_bytes(self) -> int:
        """Of a thread block: two stages of keys and values, and the two stages' region codes."""
        keys = 32 if self.dim > 96 else 64
        return 2 * (2 * keys * self.dim * 2 + keys * 2)

    def read(self) -> str:
        """The PTX; raises MissingDependency where it is not built."""
        return (folder() / f"{self.entry}.ptx").read_text(encoding="ascii")


def tiles(dim: int) -> tuple[int, ...]:
    """The tiles of queries that a head dim has kernels for."""
    return (64, 128) if dim <= 64 else (64,)


def folder() -> Path:
    """Where all images lie, beside the kernel library; raises MissingDependency."""
    path = library.find().with_name("images")
    wanted = (Image(dtype, dim, tile) for dtype in library.DTYPES for dim in HEAD_DIMS for tile in tiles(dim))
    if missing := [each.entry for each in wanted if not (path / f"{each.entry}.ptx").is_file()]:
        raise MissingDependency(
            "the attention kernel's images are not built",
            cause=f"{path} has no {missing[0]}.ptx",
            remedy=f"in a checkout of FaceSDK: {library.BUILD}",
        )
    return path
