"""Ten-class region labels drawn from the landmark mesh, as Dense-Face's data has them."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.uint8]

#: index = label; left and right are the subject's own
NAMES = ("background", "skin", "nose", "left_eye", "right_eye", "left_brow", "right_brow", "mouth_interior",
         "upper_lip", "lower_lip")  # fmt: skip
#: RGB of the labels in the data's PNG files (matplotlib's "Paired")
PALETTE = np.array(
    [(166, 206, 227), (31, 120, 180), (178, 223, 138), (51, 160, 44), (251, 154, 153), (227, 26, 28), (253, 191, 111),
     (255, 127, 0), (202, 178, 214), (106, 61, 154)], np.uint8,
)  # fmt: skip

_OUTER_UPPER_LIP = [61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291]
_OUTER_LOWER_LIP = [61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291]
_INNER_UPPER_LIP = [78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308]
_INNER_LOWER_LIP = [78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308]

#: label -> ring of landmarks, painted in this order: later ones cover earlier ones (recovered from the published data)
POLYGONS: tuple[tuple[str, list[int]], ...] = (
    ("nose", [168, 193, 245, 188, 174, 236, 134, 131, 48, 235, 240, 97, 2, 326, 460, 455, 278, 360, 363, 456, 399, 412,
              465, 417]),
    ("left_eye", [263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466]),
    ("right_eye", [33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246]),
    ("left_brow", [300, 293, 334, 296, 336, 285, 295, 282, 283, 276]),
    ("right_brow", [70, 63, 105, 66, 107, 55, 65, 52, 53, 46]),
    ("upper_lip", _OUTER_UPPER_LIP + _INNER_UPPER_LIP[::-1]),
    ("lower_lip", _OUTER_LOWER_LIP + _INNER_LOWER_LIP[::-1]),
    ("mouth_interior", _INNER_LOWER_LIP + _INNER_UPPER_LIP[-2:0:-1]),
)  # fmt: skip


def region_labels(points_px: Array, width: int, height: int, triangles: npt.NDArray[np.int64]) -> Labels:
    """(height, width) labels of one face.

    points_px  (>= 468, 2+): landmarks in pixels of the label map.
    triangles  (n, 3): the mesh; skin is the union of all of them, not the face oval, which differs on turned heads.
    """
    pixels = np.rint(points_px[:, :2] - 0.5).astype(np.int32)
    labels = np.zeros((height, width), np.uint8)
    for triangle in pixels[triangles]:
        cv2.fillConvexPoly(labels, triangle, NAMES.index("skin"))
    for name, ring in POLYGONS:
        cv2.fillPoly(labels, [pixels[ring]], NAMES.index(name))
    return labels


def to_colours(labels: Labels) -> npt.NDArray[np.uint8]:
    """(H, W, 3) RGB picture of a label map."""
    return np.asarray(PALETTE[labels])


def from_colours(picture: npt.NDArray[np.uint8]) -> Labels:
    """(H, W) labels of a picture in the palette's colours, by the nearest one."""
    distance = np.abs(picture[..., None, :3].astype(np.int16) - PALETTE.astype(np.int16)).sum(axis=-1)
    return np.asarray(distance.argmin(axis=-1), np.uint8)
