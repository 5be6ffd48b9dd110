"""BlazeFace, short and full range: anchors, decoding of the network's outputs, weighted non-maximum suppression."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ..engine import Engine
from ..finite import checked
from ..image import Picture
from .region import Region, angle_between, cut

Floats = npt.NDArray[np.float32] | npt.NDArray[np.float64]

#: (stride, anchors per cell) of the anchor layers, by input size; three equal strides of the short range are merged
ANCHOR_LAYERS = {128: ((8, 2), (16, 6)), 192: ((4, 1),)}
#: order of the key points; the subject's own sides
KEY_POINTS = ("right_eye", "left_eye", "nose_tip", "mouth_centre", "right_ear", "left_ear")


@dataclasses.dataclass(frozen=True)
class Detection:
    """One detected face: an upright box in its view, turned with the view, in pixels of the picture."""

    region: Region
    key_points: npt.NDArray[np.float64]  # (6, 2) pixels
    score: float

    @property
    def box(self) -> npt.NDArray[np.float64]:
        """(4,) x0 y0 x1 y1 around the region; may leave the picture."""
        if self.region.angle == 0:
            half = self.region.width / 2, self.region.height / 2
        else:
            c, s = abs(math.cos(self.region.angle)), abs(math.sin(self.region.angle))
            w, h = self.region.width, self.region.height
            half = (c * w + s * h) / 2, (s * w + c * h) / 2
        x, y = self.region.centre_x, self.region.centre_y
        return np.array([x - half[0], y - half[1], x + half[0], y + half[1]])

    def face_region(self, scale: float, *, square: bool) -> Region:
        """Where the landmark network looks: the box grown by `scale`, turned so that the eyes are level."""
        angle = angle_between(self.key_points[0], self.key_points[1])
        return dataclasses.replace(self.region, angle=angle).scaled(scale, square=square)


class BlazeFace:
    """A detector over one square view at a time.

    The engine takes `image`, uint8 (n, size, size, 3) RGB, and gives `regressors` (n, anchors, 16) and `logits`
    (n, anchors, 1).
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.size = int(engine.inputs[0].shape[1] or 0)
        self._anchors = anchor_centres(self.size)

    def __call__(
        self, picture: Picture, view: Region, min_score: float, iou: float
    ) -> tuple[list[Detection], Detection | None]:
        """Faces that score `min_score` or more in a view, best first; where there are none, the nearest miss."""
        outputs = checked(self.engine, image=cut(picture, view, self.size, zero_border=True)[None])
        regressors, logits = outputs["regressors"][0], outputs["logits"][0].reshape(-1)
        rows, scores = self.decode(regressors, logits, min_score)
        if len(rows):
            return [_detection(row, score, view) for row, score in weighted_nms(rows, scores, iou)], None
        best = int(logits.argmax())
        row, score = self.decode(regressors, logits, sigmoid(logits[best : best + 1])[0])
        return [], _detection(row[0], float(score[0]), view) if len(row) else None

    def decode(
        self, regressors: npt.NDArray[Any], logits: npt.NDArray[Any], min_score: float
    ) -> tuple[Floats, npt.NDArray[np.float64]]:
        """Rows (n, 16) and scores (n,) from `min_score`: box corners and key points in the unit square."""
        logits = logits.reshape(-1)
        likely = logits >= _logit(min_score)
        values, anchors = regressors[likely] / np.float32(self.size), self._anchors[likely]
        scores = sigmoid(logits[likely])
        centre, extent = values[:, :2] + anchors, values[:, 2:4]
        points = (values[:, 4:].reshape(-1, 6, 2) + anchors[:, None]).reshape(-1, 12)
        rows = np.concatenate([centre - extent / 2, centre + extent / 2, points], axis=1)
        valid = (extent >= 0).all(axis=1) & (scores >= min_score)
        return rows[valid], scores[valid]


def weighted_nms(rows: Floats, scores: npt.NDArray[np.float64], iou: float) -> list[tuple[Floats, float]]:
    """Overlapping rows merged into their score-weighted mean, with the best score of each group, best first.

    `rows` begin with x0 y0 x1 y1.  Rows that overlap the best one by more than `iou` join it and are gone.
    """
    order = np.argsort(-scores, kind="stable")
    rows, scores = rows[order], scores[order]
    merged = []
    while len(rows):
        group = box_iou(rows[0], rows) > iou
        if not group[0]:  # a box without area overlaps nothing, not even itself
            rows, scores = rows[1:], scores[1:]
            continue
        weights = scores[group]
        merged.append(((rows[group] * weights[:, None]).sum(axis=0) / weights.sum(), float(scores[0])))
        rows, scores = rows[~group], scores[~group]
    return merged


def box_iou(box: Floats, boxes: Floats) -> Floats:
    """(n,) intersection over union of one x0 y0 x1 y1 row with many; 0 where both have no area."""
    inner: Floats = np.clip(np.minimum(box[2:4], boxes[:, 2:4]) - np.maximum(box[:2], boxes[:, :2]), 0, None).prod(
        axis=1
    )
    areas = (boxes[:, 2:4] - boxes[:, :2]).prod(axis=1)
    union = areas + (box[2:4] - box[:2]).prod() - inner
    overlap: Floats = np.divide(inner, union, out=np.zeros_like(inner), where=union > 0)
    return overlap


@functools.lru_cache(maxsize=4)
def anchor_centres(size: int) -> npt.NDArray[np.float32]:
    """(n, 2) x, y of the anchors in the unit square, row by row; every anchor has size 1."""
    centres = []
    for stride, per_cell in ANCHOR_LAYERS[size]:
        cells = -(-size // stride)
        y, x = np.mgrid[:cells, :cells]
        centres.append(np.repeat((np.stack([x, y], axis=-1).reshape(-1, 2) + 0.5) / cells, per_cell, axis=0))
    return np.concatenate(centres).astype(np.float32)


def _detection(row: Floats, score: float, view: Region) -> Detection:
    points = view.to_image(row.reshape(-1, 2))
    centre = (points[0] + points[1]) / 2
    extent = (row[2:4] - row[:2]) * [view.width, view.height]
    return Detection(Region(centre[0], centre[1], extent[0], extent[1], view.angle), points[2:], score)


def sigmoid(logits: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Certainties 0..1 of logits, in float64, without overflow."""
    return np.asarray(1 / (1 + np.exp(-np.clip(logits.astype(np.float64), -100, 100))))


def _logit(score: float) -> float:
    # a little below: the exact comparison is made on the score
    return math.log(score / (1 - score)) - 1e-3 if 0 < score < 1 else -math.inf
