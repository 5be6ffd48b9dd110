"""HifiFace's training pictures: face masks from parsing pictures, and the resizing of both.

Source: maum-ai/hififace `datasets/`; parsing colours of PSFR-GAN's face parser.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import PIL.Image as Pillow
from numpy.typing import NDArray

from facesdk.image import Picture

SIZE_PX = 256
#: RGB of the parts that are face: nose, eyes, skin, brows, upper lip, mouth, lower lip, ears; not glasses, hair, neck
FACE_COLOURS = np.array(
    [
        (76, 153, 0), (204, 0, 204), (51, 51, 255), (204, 0, 0), (255, 204, 204), (0, 255, 255),
        (255, 255, 0), (102, 204, 0), (0, 0, 153), (255, 0, 0), (102, 51, 0),
    ],
    np.uint8,
)  # fmt: skip


def face_mask(parsing: Picture, face_colours: NDArray[np.uint8] = FACE_COLOURS) -> NDArray[np.float32]:
    """(h, w) 1 where the parsing picture (h, w, 3) has exactly one of the colours, else 0."""
    wanted = _packed(face_colours)
    return np.isin(_packed(parsing), wanted).astype(np.float32)


def _packed(colours: NDArray[np.uint8]) -> NDArray[np.int64]:
    return np.asarray(colours, np.int64) @ (1 << 16, 1 << 8, 1)


def resized_mask(mask: NDArray[np.float32], size: int = SIZE_PX) -> NDArray[np.float32]:
    """(1, size, size) in [0, 1], bilinear with antialiasing."""
    return np.asarray(_resized(Pillow.fromarray(mask), (size, size)), np.float32)[None]


def square_picture(picture: Picture, size: int = SIZE_PX) -> NDArray[np.uint8]:
    """(3, size, size) of a picture (h, w, 3), whatever its shape, as in training."""
    return _channels_first(_resized(Pillow.fromarray(picture), (size, size)))


def short_side_picture(picture: Picture, size: int = SIZE_PX) -> NDArray[np.uint8]:
    """(3, h, w) with the shorter side at `size` and the longer rounded down, as the command-line tool had it."""
    height, width = picture.shape[:2]
    shorter = min(height, width)
    return _channels_first(_resized(Pillow.fromarray(picture), (size * width // shorter, size * height // shorter)))


def _resized(picture: Pillow.Image, size: tuple[int, int]) -> Pillow.Image:
    return picture.resize(size, Pillow.Resampling.BILINEAR)


def _channels_first(picture: Pillow.Image) -> NDArray[Any]:
    return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))
