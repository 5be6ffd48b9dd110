"""`AlignedFace`: one face in its crop, and what Dense-Face's data derives from its landmarks."""

from __future__ import annotations

import dataclasses
import math

import cv2
import numpy as np
import numpy.typing as npt

from ..annotation import labels
from ..annotation.geometry import HeadPose
from ..face import Face
from ..image import Picture
from .crop import Points, crop, crop_landmarks, crop_pose

LABEL_SIZE, MASK_SIZE = 256, 32  # px; the data's label maps, the latents of 256 px pictures


@dataclasses.dataclass(frozen=True, eq=False)
class AlignedFace:
    """A face in its crop.

    picture (size, size, 3) RGB.   matrix (3, 3): photo -> crop pixels.   pose: of the crop, degrees.
    landmarks (n, 3): fractions of the crop's side, which points near its border may leave.
    """

    picture: Picture
    matrix: npt.NDArray[np.float64]
    landmarks: npt.NDArray[np.float64]
    pose: HeadPose
    triangles: npt.NDArray[np.int64] = dataclasses.field(repr=False)

    @classmethod
    def cut(cls, picture: Picture, face: Face, *, padding: float = 0.0) -> AlignedFace:
        """The crop of one face with its landmarks and pose carried along; raises as `crop` does."""
        aligned, matrix = crop(picture, face, padding=padding)
        landmarks = crop_landmarks(face.landmarks, matrix, len(aligned))
        return cls(aligned, matrix, landmarks, crop_pose(face.pose, matrix), face.triangles)

    @property
    def size(self) -> int:
        """Side of the crop, px."""
        return len(self.picture)

    @property
    def depth_range(self) -> tuple[float, float]:
        """Nearest and farthest z of the landmarks, in crop sides."""
        return float(self.landmarks[:, 2].min()), float(self.landmarks[:, 2].max())

    def region_labels(self, size: int = LABEL_SIZE) -> labels.Labels:
        """(size, size) labels 0..9 of the crop (`labels.NAMES`)."""
        return labels.region_labels(self.landmarks[:, :2] * size, size, size, self.triangles)

    def mask_01(self, size: int = MASK_SIZE) -> npt.NDArray[np.float32]:
        """(size, size) float32, 1 on the face, with the border cells' share of it between.

        The notebook leaves the parser's mouth interior out, but then works on a grid of 16 cells, on which all but
        a gaping mouth closes again: here it belongs to the face, lest old teeth stay between new lips.
        """
        face = (self.region_labels() > labels.NAMES.index("background")).astype(np.float32)
        return np.asarray(cv2.resize(face, (size, size), interpolation=cv2.INTER_AREA), np.float32)

    def keep_mask(self, size: int = MASK_SIZE) -> npt.NDArray[np.uint8]:
        """(size, size) uint8 as Dense-Face's inference reads it: 0 = generate the face, 255 = keep the base image."""
        return np.rint(255 * (1 - self.mask_01(size))).astype(np.uint8)


def face_box(
    landmarks: Points, *, centre: int = 195, step: float = 0.02, cover: float = 0.97
) -> npt.NDArray[np.float64]:
    """(4,) x0 y0 x1 y1: the smallest square on landmark `centre` whose side is a multiple of `step` and holds `cover`.

    landmarks (n, 2+) in fractions of the crop; the box may leave it.  Rule and defaults recovered from the data.
    """
    middle = landmarks[centre, :2].astype(np.float64)
    reach = np.sort(np.abs(landmarks[:, :2] - middle).max(axis=1))
    needed = math.ceil(round(cover * len(reach), 9))
    # rounded first: a side that is a multiple already must not grow by floating point noise
    half = math.ceil(round(2 * float(reach[needed - 1]) / step, 9)) * step / 2
    return np.concatenate([middle - half, middle + half])
