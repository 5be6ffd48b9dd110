"""Paste-back: the change that a network made to a crop, brought into the picture."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from ..errors import EngineError, EngineInputError, UsageError, one_of
from ..image import Picture, check_picture
from .colour import match_colour
from .masks import combine
from .warp import Matrix, Pixels, Window, inverse, outline, scale, warp

MaskChoice = Literal["model", "region", "both", "box"]
MASKS: tuple[MaskChoice, ...] = ("model", "region", "both", "box")
# high band and its window, px of the crop; chosen among 1 to 1.5 and 2 to 5 by benchmarks/paste_quality.py
_BAND, _WINDOW = 1.0, 2.0
_FLAT = (1 / 255) ** 2  # detail of one grey level counts as none
_STRIP = 1 << 20  # pixels of the picture in work at once


@dataclasses.dataclass(frozen=True)
class PasteOptions:
    """How a result is pasted."""

    mask: MaskChoice = dataclasses.field(
        default="model",
        metadata={"help": "model: the network's own mask; region: the target's face mesh; both; box: the whole crop"},
    )
    feather: float = dataclasses.field(default=0.08, metadata={"help": "soft edge, as a share of the crop's side"})
    colour: float = dataclasses.field(
        default=1.0, metadata={"help": "share of the target's mean colour and contrast that the result takes on, 0..1"}
    )
    keep_detail: float = dataclasses.field(
        default=1.0,
        metadata={"help": "share kept of the detail too fine for the crop, where the result shows the same, 0..1"},
    )

    def __post_init__(self) -> None:
        if self.mask not in MASKS:
            raise one_of("mask", self.mask, MASKS)
        for name, most in (("feather", 0.5), ("colour", 1), ("keep_detail", 1)):
            if not 0 <= getattr(self, name) <= most:
                raise UsageError(f"{name} is {getattr(self, name)}", remedy=f"give 0 to {most}")


@dataclasses.dataclass(frozen=True, eq=False)
class Swapped:
    """One crop to paste: `seen` (size, size, 3) by the network and its `result`, 0..1, their `matrix` and `mask`.

    matrix (2, 3): picture -> crop (`crop_matrix`).   mask (size, size): weight of the paste (`paste_mask`).
    model_mask (size, size): by which the network composited its result, where it did; colours are matched by it.
    Values of `result` beyond 0..1 are clipped.
    Raises EngineInputError (shapes), EngineError (not finite), UsageError (matrix).
    """

    result: Pixels
    seen: Pixels
    mask: Pixels
    matrix: Matrix
    model_mask: Pixels | None = None

    def __post_init__(self) -> None:
        inverse(self.matrix)  # refuses what has none
        size = self.mask.shape[:1]
        masks = [self.mask] if self.model_mask is None else [self.mask, self.model_mask]
        crops = [self.result, self.seen]
        if (
            any(m.shape != size * 2 for m in masks)
            or any(c.shape != (*size * 2, 3) for c in crops)
            or not all(size or (0,))
        ):
            raise EngineInputError(
                f"crops {[c.shape for c in crops]} and masks {[m.shape for m in masks]} do not fit",
                remedy="give two (size, size, 3) crops and (size, size) masks",
            )
        for name in ("result", "seen", "mask", "model_mask"):
            array = getattr(self, name)
            if array is not None and array.dtype.kind != "f":
                raise EngineInputError(f"the {name} is {array.dtype}, not float", remedy="give floats in 0..1")
            if array is not None and not np.isfinite(array).all():
                raise EngineError(
                    f"the {name} holds NaN or infinite values",
                    cause="the network's output is broken: half precision that overflowed, or a damaged checkpoint",
                    remedy="run the fp32 engine on the CPU (device='cpu'), and facesdk models verify",
                )


@dataclasses.dataclass(frozen=True, eq=False)
class Pasted:
    """The new picture, and the weight (h, w) of the paste in its `box` x0 y0 x1 y1 (of all pastes, the greatest).

    Outside the box, and where the weight is 0, the picture is the old one, bit for bit.
    """

    picture: Picture
    mask: Pixels
    box: tuple[int, int, int, int]

    def mask_full(self) -> Pixels:
        """(H, W) weight over the whole picture."""
        full = np.zeros(self.picture.shape[:2], np.float32)
        x0, y0, x1, y1 = self.box
        full[y0:y1, x0:x1] = self.mask
        return full


def paste_mask(
    options: PasteOptions,
    validity: Pixels,
    *,
    model_mask: Pixels | None = None,
    region_mask: Pixels | None = None,
    occluder_mask: Pixels | None = None,
) -> Pixels:
    """(size, size) weight of the paste by the options' choice of masks.  Raises UsageError where one is missing."""
    wants_model, wants_region = options.mask in ("model", "both"), options.mask in ("region", "both")
    if (wants_model and model_mask is None) or (wants_region and region_mask is None):
        raise UsageError(f"mask={options.mask!r} lacks a mask", remedy="give it, or choose mask='box'")
    return combine(
        model_mask if wants_model else None,
        validity,
        region_mask if wants_region else None,
        occluder_mask,
        radius_share=options.feather,
    )


def paste(
    picture: Picture,
    crop_result: Pixels,
    crop_seen: Pixels,
    mask: Pixels,
    matrix: Matrix,
    options: PasteOptions | None = None,
    *,
    model_mask: Pixels | None = None,
) -> Pasted:
    """A new picture with one crop pasted; see `Swapped` and `paste_all`."""
    return paste_all(picture, [Swapped(crop_result, crop_seen, mask, matrix, model_mask)], options)


def paste_all(picture: Picture, crops: Sequence[Swapped], options: PasteOptions | None = None) -> Pasted:
    """A new picture with all crops pasted, the largest face last and so on top.

    picture' = picture + weight (change + keep picture - picture), change = result - keep seen, warped as one: with
    keep = 1 the plain residual, which leaves the picture alone where the network did.  Rounded, not truncated.
    """
    check_picture(picture)
    options = options or PasteOptions()
    canvas = picture.copy()
    pieces = []
    for crop in sorted(crops, key=lambda crop: len(crop.mask) / scale(crop.matrix)):
        window = _reach(crop, picture)
        if window is not None:
            pieces.append((window, _paste_into(canvas, picture, crop, window, options)))
    return Pasted(canvas, *_united(pieces))


def _reach(crop: Swapped, picture: Picture) -> Window | None:
    """The part of the picture under the crop's mask, one crop pixel of interpolation included."""
    rows, columns = (np.flatnonzero(crop.mask.any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        return None
    box = (columns[0] - 1.0, rows[0] - 1.0, columns[-1] + 2.0, rows[-1] + 2.0)
    low, high = outline(inverse(crop.matrix), box)
    height, width = picture.shape[:2]
    left, top = (math.floor(max(v, 0)) for v in low - 1)
    right, bottom = (math.ceil(min(v, most)) for v, most in zip(high + 1, (width, height), strict=True))
    return Window(left, top, right, bottom) if left < right and top < bottom else None


def _paste_into(canvas: Picture, picture: Picture, crop: Swapped, window: Window, options: PasteOptions) -> Pixels:
    """The weight in the window, after its pixels of the canvas were changed; strip by strip, to bound memory."""
    result, seen, mask = (array.astype(np.float32, copy=False) for array in (crop.result, crop.seen, crop.mask))
    share = None if crop.model_mask is None else np.clip(crop.model_mask, 0, 1).astype(np.float32)
    result = match_colour(np.clip(result, 0, 1), seen, mask, options.colour, share)
    keep = options.keep_detail * agreement(result, seen)
    change = np.dstack([255 * (result - keep[..., None] * seen), keep]).astype(np.float32)
    back = inverse(crop.matrix)
    weight = np.zeros((window.bottom - window.top, window.right - window.left), np.float32)
    rows = max(1, _STRIP // weight.shape[1])
    for top in range(window.top, window.bottom, rows):
        bottom = min(top + rows, window.bottom)
        to_strip, size = _moved(back, -window.left, -top), (weight.shape[1], bottom - top)
        part = weight[top - window.top : bottom - window.top]
        part[:] = np.clip(warp(mask, to_strip, size, border="zero", cubic=False), 0, 1)
        strip = np.s_[top:bottom, window.left : window.right]
        _blend(canvas[strip], picture[strip], warp(change, to_strip, size), part)
    return weight


def _blend(canvas: Picture, picture: Picture, change: Pixels, weight: Pixels) -> None:
    new = change[..., :3] + change[..., 3:] * picture
    blended = canvas + weight[..., None] * (new - canvas)
    np.copyto(canvas, np.rint(np.clip(blended, 0, 255)).astype(np.uint8), where=weight[..., None] > 0)


def agreement(result: Pixels, seen: Pixels) -> Pixels:
    """(size, size) 0..1: the share of the picture's finest detail that belongs to the result; 1 where neither has any.

    How the crops' high bands predict each other: slope of the regression times correlation.  Detail too fine for the
    crop follows it; where the network drew something else, detail would be a ghost of the old face.
    """
    first, second = (_high_band(crop) for crop in (result, seen))
    both = _blurred(first * second, _WINDOW) + _FLAT
    of_result, of_seen = (_blurred(band**2, _WINDOW) + _FLAT for band in (first, second))
    slope, correlation = both / of_seen, both / np.sqrt(of_result * of_seen)
    return np.asarray(np.clip(slope * np.clip(correlation, 0, 1), 0, 1), np.float32)


def _high_band(crop: Pixels) -> Pixels:
    grey = np.asarray(cv2.cvtColor(crop.astype(np.float32, copy=False), cv2.COLOR_RGB2GRAY), np.float32)
    return np.asarray(grey - _blurred(grey, _BAND), np.float32)


def _blurred(values: Pixels, sigma: float) -> Pixels:
    return np.asarray(cv2.GaussianBlur(values, (0, 0), sigma), np.float32)


def _moved(matrix: Matrix, x: float, y: float) -> Matrix:
    return np.column_stack([matrix[:, :2], matrix[:, 2] + [x, y]])


def _united(pieces: Sequence[tuple[Window, Pixels]]) -> tuple[npt.NDArray[Any], tuple[int, int, int, int]]:
    """The greatest weight of all pieces, in the box around them."""
    if not pieces:
        return np.zeros((0, 0), np.float32), (0, 0, 0, 0)
    corners = np.array([window for window, _ in pieces])
    x0, y0, x1, y1 = (int(v) for v in (*corners[:, :2].min(axis=0), *corners[:, 2:].max(axis=0)))
    united = np.zeros((y1 - y0, x1 - x0), np.float32)
    for (left, top, right, bottom), weight in pieces:
        part = united[top - y0 : bottom - y0, left - x0 : right - x0]
        np.maximum(part, weight, out=part)
    return united, (x0, y0, x1, y1)
