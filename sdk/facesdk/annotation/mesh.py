"""Landmark and blendshape networks: a region of a picture -> points in pixels, presence, expression scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..bundle import Bundle
from ..engine import GPUS, Device, Engine
from ..finite import checked
from ..image import Picture
from .blazeface import sigmoid
from .geometry import CanonicalFace
from .region import Region, angle_between, cut

_OUTER_EYE_CORNERS = (33, 263)


class FaceMesh:
    """The landmark networks of a bundle, with what is known of its mesh: triangles, canonical face, five points.

    Engine `landmarks`: `image` uint8 (n, size, size, 3) RGB -> `landmarks` (n, ..., 3 points) in patch pixels,
    `presence` (n, ...) logit.  Engine `blendshapes`, where the bundle has it: `points` (1, k, 2) px ->
    `scores` (names,).
    """

    def __init__(self, bundle: Bundle, device: Device, threads: int) -> None:
        self._engine = bundle.open("landmarks", device, threads=threads)
        self._size = int(self._engine.inputs[0].shape[1] or 0)
        constants, arrays = bundle.constants["landmarks"], bundle.arrays("mesh")
        self.region_scale, self.square = float(constants["region_scale"]), bool(constants["region_square"])
        self._five: list[list[int]] = constants["five_points"]
        self.triangles: npt.NDArray[np.int64] = arrays["triangles"]
        self.canonical = CanonicalFace(
            arrays["anchor_index"],
            arrays["anchor_position"].astype(np.float64),
            arrays["anchor_weight"].astype(np.float64),
        )
        self._blend: Engine | None = None
        if "blendshapes" in bundle.engine_names:
            self._blend = bundle.open("blendshapes", device, threads=threads)
            self._blend_names: list[str] = bundle.constants["blendshapes"]["names"]
            self._blend_index = arrays["blendshape_landmarks"]

    def landmarks(self, picture: Picture, regions: Sequence[Region]) -> list[tuple[npt.NDArray[np.float32], float]]:
        """(landmarks (points, 3) px, presence 0..1) of each region.

        One region at a time on processors, where a batch is no faster (8 in 20.5 ms, one in 2.45 ms: facesdk bench
        with and without --batch 8); on GPUs as many as the engine takes.
        """
        size = self._engine.at_most(max(1, len(regions)), "image") if self._engine.device in GPUS else 1
        found = []
        for start in range(0, len(regions), size):
            part = regions[start : start + size]
            patches = np.stack([cut(picture, region, self._size, zero_border=False) for region in part])
            outputs = checked(self._engine, image=patches)
            found += [
                (self._to_picture(raw, region, picture), float(certainty))
                for raw, certainty, region in zip(
                    outputs["landmarks"], sigmoid(outputs["presence"].reshape(-1)), part, strict=True
                )
            ]
        return found

    def region_of(self, landmarks_px: npt.NDArray[np.float32]) -> Region:
        """Where to look for the same face again: the square around its landmarks, eyes level (MediaPipe's tracking)."""
        points = landmarks_px[:, :2]
        low, high = points.min(axis=0), points.max(axis=0)
        (x, y), (width, height) = ((low + high) / 2).tolist(), (high - low).tolist()
        angle = angle_between(*points[list(_OUTER_EYE_CORNERS)])
        return Region(x, y, width, height, angle).scaled(self.region_scale, square=True)

    def blendshapes(self, landmarks_px: npt.NDArray[np.float32]) -> dict[str, float] | None:
        """Score 0..1 by name; None where the bundle has no such network."""
        if self._blend is None:
            return None
        scores = checked(self._blend, points=landmarks_px[self._blend_index, :2][None])["scores"]
        return dict(zip(self._blend_names, scores.reshape(-1).tolist(), strict=True))

    def five_points(self, landmarks_px: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(5, 2) px: each the mean of the mesh points that the bundle names."""
        return np.stack([landmarks_px[index, :2].mean(axis=0) for index in self._five])

    def close(self) -> None:
        self._engine.close()
        if self._blend is not None:
            self._blend.close()

    def _to_picture(self, raw: npt.NDArray[Any], region: Region, picture: Picture) -> npt.NDArray[np.float32]:
        height, width = picture.shape[:2]
        points = raw.reshape(-1, 3).astype(np.float64) / self._size
        matrix = region.matrix()
        # z is in units of the patch's width as it appears in normalised coordinates (MediaPipe's rule)
        z = points[:, 2:] * (np.hypot(matrix[0, 0] / width, matrix[1, 0] / height) * width)
        return np.hstack([region.to_image(points[:, :2]), z]).astype(np.float32)
