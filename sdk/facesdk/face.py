"""`Face`: one annotated face, always in pixels of the original picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .annotation import labels
from .annotation.alignment import align
from .annotation.geometry import HeadPose
from .annotation.region import Region
from .image import Picture


@dataclasses.dataclass(frozen=True, eq=False)
class Face:
    """One face of a picture.

    box (4,) x0 y0 x1 y1, score 0..1, key_points (6, 2): the detector's (may leave the picture).
    landmarks (n, 3): x, y, z px, z = 0 at the face's centre, nearer is smaller; n = 478 with irises, else 468.
    five_points (5, 2): image-left eye, image-right eye, nose tip, image-left, image-right mouth corner.
    presence 0..1: the landmark network's own certainty.   blendshapes: name -> 0..1, None without that network.
    transform (4, 4): canonical face -> camera, cm.   pose: degrees, marked approximate.   region: where it was cut.
    """

    box: npt.NDArray[np.float32]
    score: float
    key_points: npt.NDArray[np.float32]
    landmarks: npt.NDArray[np.float32]
    presence: float
    five_points: npt.NDArray[np.float32]
    transform: npt.NDArray[np.float32]
    pose: HeadPose
    blendshapes: Mapping[str, float] | None
    region: Region
    image_size: tuple[int, int]
    triangles: npt.NDArray[np.int64] = dataclasses.field(repr=False)
    track_id: int | None = None

    def region_labels(self, size: tuple[int, int] | None = None) -> labels.Labels:
        """(height, width) uint8 labels 0..9 (`labels.NAMES`) of the picture, scaled to `size` (width, height)."""
        width, height = size or self.image_size
        scale = np.array([width / self.image_size[0], height / self.image_size[1]])
        return labels.region_labels(self.landmarks[:, :2] * scale, width, height, self.triangles)

    def mask(self, size: tuple[int, int] | None = None) -> npt.NDArray[np.float32]:
        """(height, width) float32, 1 on the face."""
        return (self.region_labels(size) > 0).astype(np.float32)

    def aligned(self, picture: Picture, size: int = 112) -> Picture:
        """(size, size, 3) crop aligned by the five points to the ArcFace template."""
        return align(picture, self.five_points, size)[0]

    def normalised_landmarks(self) -> npt.NDArray[np.float64]:
        """(n, 3) as MediaPipe gives them: x by the picture's width, y by its height, z by its width."""
        width, height = self.image_size
        return self.landmarks.astype(np.float64) / [width, height, width]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready values; arrays as lists, pixels rounded to 1/1000."""
        return {
            "box": _rounded(self.box),
            "score": round(self.score, 6),
            "presence": round(self.presence, 6),
            "track_id": self.track_id,
            "pose": dataclasses.asdict(self.pose),
            "five_points": _rounded(self.five_points),
            "key_points": _rounded(self.key_points),
            "landmarks": _rounded(self.landmarks),
            "blendshapes": None if self.blendshapes is None else {k: round(v, 6) for k, v in self.blendshapes.items()},
            "transform": _rounded(self.transform, 6),
        }


def _rounded(array: npt.NDArray[np.float32], digits: int = 3) -> Any:
    return np.round(array.astype(np.float64), digits).tolist()
