"""The autoencoder on the host: latents to bytes and back, one picture at a time, whole or in tiles."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from ..errors import UsageError

Floats = npt.NDArray[np.float32]
Pictures = npt.NDArray[np.uint8]
Window = tuple[slice, slice]

LEAST_CELLS = 8  # of a tile's side
_OVERLAP = 4  # neighbouring tiles share a quarter of their side


def decode(network: Callable[[Floats], Floats], latent: Floats, cell: int, tile: int | None = None) -> Pictures:
    """(H, W, 3) RGB of a latent (c, h, w); `network` gives (3, H, W) in -1..1, which is clipped and rounded.

    tile  px of a side: overlapping tiles are decoded one by one and blended linearly.  An approximation: the network's
          normalisations and its attention see the tile alone.
    """

    def decoded(window: Window) -> Floats:
        rows, columns = window
        return network(np.ascontiguousarray(latent[:, rows, columns]))

    image = _tiled(decoded, latent.shape[1:], cell, cell, tile).transpose(1, 2, 0)
    return np.asarray(np.rint(np.clip(image / 2 + 0.5, 0, 1) * 255), np.uint8)


def moments(
    network: Callable[[Pictures], Floats], picture: Pictures, cell: int, tile: int | None = None
) -> tuple[Floats, Floats]:
    """Mean and log variance (c, h, w) of the latent of a picture (H, W, 3), whose sides are multiples of `cell`.

    network  gives both as one (2c, h, w).   tile  see `decode`.
    """

    def encoded(window: Window) -> Floats:
        rows, columns = (slice(part.start * cell, part.stop * cell) for part in window)
        return network(np.ascontiguousarray(picture[rows, columns]))

    height, width = picture.shape[0] // cell, picture.shape[1] // cell
    mean, logvar = np.split(_tiled(encoded, (height, width), cell, 1, tile), 2)
    return mean, logvar


def sample(mean: Floats, logvar: Floats, noise: Floats, scaling_factor: float) -> Floats:
    """A latent drawn of its mean and log variance by unit normal noise, as the denoising network knows it."""
    return np.asarray(scaling_factor * (mean + np.exp(logvar / 2) * noise), np.float32)


def check_tile(tile: int | None, cell: int) -> None:
    """Raise UsageError unless it is None or a side that tiles can have."""
    least = LEAST_CELLS * cell
    if tile is not None and (tile < least or tile % cell):
        raise UsageError(f"tile is {tile} px", remedy=f"give a multiple of {cell}, {least} or more, or leave it out")


def _tiled(
    network: Callable[[Window], Floats], shape: tuple[int, ...], cell: int, factor: int, tile: int | None
) -> Floats:
    """What the network makes of all cells, `factor` values to each; at once where they fit into one tile."""
    height, width = shape
    side = max(height, width) if tile is None else tile // cell
    if max(height, width) <= side:
        return np.asarray(network((slice(0, height), slice(0, width))))
    total, weights = np.zeros(()), np.zeros((height * factor, width * factor), np.float32)
    for window in _windows(height, width, side):
        part = network(window)
        if not total.ndim:
            total = np.zeros((len(part), *weights.shape), np.float32)
        ramp = np.outer(*(_ramp(len(range(axis.start, axis.stop)), side, factor) for axis in window))
        rows, columns = (slice(axis.start * factor, axis.stop * factor) for axis in window)
        total[:, rows, columns] += ramp * part
        weights[rows, columns] += ramp
    return np.asarray(total / weights, np.float32)


def _windows(height: int, width: int, side: int) -> Iterator[Window]:
    for top in _starts(height, side):
        for left in _starts(width, side):
            yield slice(top, min(top + side, height)), slice(left, min(left + side, width))


def _starts(length: int, side: int) -> list[int]:
    """Evenly spread starts of tiles that cover the length, each two sharing at least a quarter of a side."""
    if length <= side:
        return [0]
    overlap = side // _OVERLAP
    count = math.ceil((length - overlap) / (side - overlap))
    return [round(start) for start in np.linspace(0, length - side, count)]


def _ramp(length: int, side: int, factor: int) -> Floats:
    """Weights along one axis of a tile: rising over the overlap, one, falling."""
    place = np.arange(length * factor) + 0.5
    rise = (side // _OVERLAP) * factor
    return np.asarray(np.minimum(1, np.minimum(place, place[::-1]) / rise), np.float32)
