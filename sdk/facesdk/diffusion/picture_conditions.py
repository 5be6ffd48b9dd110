"""Pictures as conditions: what image to image starts from, what inpainting keeps, and how it is kept to the pixel."""

from __future__ import annotations

import dataclasses
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ..errors import UsageError
from ..image import Picture, check_picture
from .settings import DiffusionSettings

Floats = npt.NDArray[np.float32]

LEAST_CELLS = 8  # of a side
_MOST_PX = 8192
_MASK = "give one of the picture's size: bool, floats 0..1 or uint8 0..255, high where it is to change"


@dataclasses.dataclass(frozen=True, eq=False)
class PictureCondition:
    """A photo in the size of the result.

    picture  (H, W, 3).   mask  (H, W) 0..1, 1 where it is to change; None: everywhere.   cell  see DiffusionSettings.
    """

    picture: Picture
    mask: Floats | None
    cell: int

    def encoded(self) -> Picture:
        """The picture with its sides grown to multiples of the cell, by reflection."""
        return np.asarray(self._grown(self.picture))

    def latent_mask(self) -> Floats:
        """(1, h, w): mean of the mask over each cell; ones where there is none."""
        mask = np.ones(self.picture.shape[:2], np.float32) if self.mask is None else self.mask
        grown = self._grown(mask)
        height, width = (side // self.cell for side in grown.shape)
        means = grown.reshape(height, self.cell, width, self.cell).mean(axis=(1, 3), dtype=np.float64)
        return np.asarray(means[None], np.float32)

    def finished(self, picture: Picture) -> Picture:
        """The generated picture in this one's size, with this one's pixels wherever `paste_weight` is 0."""
        height, width = self.picture.shape[:2]
        made = picture[:height, :width]
        if self.mask is None:
            return made
        weight = paste_weight(self.mask, self.cell)[..., None]
        mixed = self.picture + weight * (made.astype(np.float32) - self.picture)
        return np.asarray(np.where(weight > 0, np.rint(mixed), self.picture), np.uint8)

    def _grown(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        missing = [(0, -side % self.cell) for side in array.shape[:2]]
        return np.pad(array, missing + [(0, 0)] * (array.ndim - 2), mode="reflect")


def paste_weight(mask: Floats, cell: int) -> Floats:
    """(H, W) share of the new picture: 1 in the mask, fading out over a cell's width; 0, exactly, beyond that.

    It fades outwards, as the cells on the border of the mask change as wholes.
    """
    side = 2 * (cell // 2) + 1
    wide = cv2.dilate(mask, np.ones((side, side), np.uint8))
    return np.asarray(np.clip(cv2.GaussianBlur(wide, (side, side), 0, borderType=cv2.BORDER_REPLICATE), 0, 1))


def picture_condition(
    image: Picture, mask: npt.NDArray[Any] | None, width: int | None, height: int | None, cell: int
) -> PictureCondition:
    """A photo, and what of it is to change, in the size that is asked for, or its own.

    Where one side is asked for, the other follows.  Raises ImageError (picture), UsageError (mask, size).
    """
    picture = check_picture(np.asarray(image))
    share = None if mask is None else _checked(np.asarray(mask), picture.shape[:2])
    if width is None and height is None:
        _check_limits(picture.shape[1], picture.shape[0], cell, "the image's ")
        return PictureCondition(picture, share, cell)
    size = _sides(width, height, picture.shape[1] / picture.shape[0], cell)
    if size == picture.shape[1::-1]:
        return PictureCondition(picture, share, cell)
    shrinks = size[0] * size[1] < picture.shape[0] * picture.shape[1]
    resized = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    if share is not None:  # linear where it grows: cubic would leave 0..1
        scaled = cv2.resize(share, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        share = np.asarray(np.clip(scaled, 0, 1), np.float32)  # areas sum to a little more
    return PictureCondition(np.asarray(resized, np.uint8), share, cell)


def asked_size(width: int | None, height: int | None, settings: DiffusionSettings) -> tuple[int, int]:
    """Width and height, the bundle's where they are not asked for; raises UsageError as `check_size`."""
    width = settings.size if width is None else width
    height = settings.size if height is None else height
    check_size(width, height, settings.cell)
    return width, height


def check_size(width: int, height: int, cell: int) -> None:
    """Raise UsageError unless a picture of that size can be generated."""
    _check_limits(width, height, cell)
    for name, side in (("width", width), ("height", height)):
        if side % cell:
            near = sorted({max(side // cell, LEAST_CELLS) * cell, (side // cell + 1) * cell})
            raise UsageError(
                f"{name} is {side}", cause=f"a latent value stands for {cell} px", remedy=_either(name, near)
            )


def _either(name: str, values: list[int]) -> str:
    return f"give a {name} of {' or '.join(map(str, values))}"


def _check_limits(width: int, height: int, cell: int, whose: str = "") -> None:
    least = LEAST_CELLS * cell
    for name, side in (("width", width), ("height", height)):
        if not least <= side <= _MOST_PX:
            raise UsageError(
                f"{whose}{name} is {side} px",
                remedy=f"give a {name} of {least} to {_MOST_PX}; 512 is what most bundles know",
            )


def _sides(width: int | None, height: int | None, aspect: float, cell: int) -> tuple[int, int]:
    width = round((height or 0) * aspect / cell) * cell if width is None else width
    height = round(width / aspect / cell) * cell if height is None else height
    check_size(width, height, cell)
    return width, height


def _checked(mask: npt.NDArray[Any], size: tuple[int, ...]) -> Floats:
    """The mask as (H, W) floats 0..1."""
    if mask.shape != size:
        raise UsageError(
            f"the mask is {_size(mask.shape)}, the picture {_size(size)}",
            remedy="resize the mask to the picture"
            if mask.ndim == 2
            else f"{_MASK}; of a file: read_image(path)[..., 0]",
        )
    if mask.dtype == np.uint8:
        if mask.max() == 1:
            raise UsageError("the mask is uint8 with nothing above 1", remedy="give uint8 0..255, or bool")
        share = mask / np.float32(255)
    elif mask.dtype.kind in "bf":
        share = mask.astype(np.float32)
    else:
        raise UsageError(f"the mask is {mask.dtype}", remedy=_MASK)
    if not (np.isfinite(share).all() and share.min() >= 0 and share.max() <= 1):
        raise UsageError("the mask holds values that are not 0..1", remedy=_MASK)
    if not share.any():
        raise UsageError("the mask is 0 everywhere", cause="nothing would change", remedy=_MASK)
    return np.asarray(share, np.float32)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}" if len(shape) == 2 else f"of shape {shape}"
