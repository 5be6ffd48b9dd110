"""SCRFD: pre-processing and decoding of insightface's detectors, for engines that a user brings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt

from ..image import Picture

Array = npt.NDArray[np.floating[Any]]
Metric = Literal["default", "max"]


@dataclasses.dataclass(frozen=True)
class ScrfdOptions:
    """Constants of insightface's SCRFD.

    metric  what ranks faces when `max_faces` (0: all) cuts: "default" area - 2 x squared distance of the centre to
            the picture's middle, "max" area.
    """

    size: int = 640
    min_score: float = 0.5
    iou: float = 0.4
    max_faces: int = 0
    metric: Metric = "default"
    strides: tuple[int, ...] = (8, 16, 32)
    anchors_per_cell: int = 2
    mean: float = 127.5
    std: float = 128.0


def prepare(picture: Picture, options: ScrfdOptions) -> tuple[npt.NDArray[np.float32], float]:
    """The network input (1, 3, size, size) and the factor picture -> input: scaled to fit, top left on black."""
    height, width = picture.shape[:2]
    size = options.size
    fitted = (int(size * width / height), size) if height > width else (size, int(size * height / width))
    fitted = max(1, fitted[0]), max(1, fitted[1])  # a picture of extreme proportions keeps one row or column
    canvas = np.zeros((size, size, 3), np.uint8)
    canvas[: fitted[1], : fitted[0]] = cv2.resize(picture, fitted)
    blob = (canvas.transpose(2, 0, 1)[None].astype(np.float32) - options.mean) / np.float32(options.std)
    return blob.astype(np.float32), fitted[1] / height


def decode(
    outputs: Sequence[Array], scale: float, image_size: tuple[int, int], options: ScrfdOptions
) -> tuple[Array, Array | None]:
    """Boxes with score (n, 5) x0 y0 x1 y1 score and points (n, 5, 2) or None, in pixels of the picture, best first.

    outputs     scores, box distances and, where the network has them, point offsets, each for every stride; with or
                without a batch axis.
    image_size  (width, height) of the picture.
    """
    flat = [np.asarray(output).reshape(-1, np.shape(output)[-1]) for output in outputs]
    levels = len(options.strides)
    rows, points = [], []
    for level, stride in enumerate(options.strides):
        scores, distances = flat[level][:, 0], flat[level + levels] * stride
        keep = np.flatnonzero(scores >= options.min_score)
        centres = _centres(options, stride)[keep]
        corners = np.hstack([centres - distances[keep, :2], centres + distances[keep, 2:]])
        rows.append(np.hstack([corners / scale, scores[keep, None]]))
        if len(flat) > 2 * levels:
            offsets = flat[level + 2 * levels][keep].reshape(-1, 5, 2) * stride
            points.append((centres[:, None] + offsets) / scale)
    boxes = np.vstack(rows)
    order = np.argsort(-boxes[:, 4], kind="stable")
    order = order[_nms(boxes[order], options.iou)]
    order = order[_ranked(boxes[order], image_size, options)]
    return boxes[order], np.concatenate(points)[order] if points else None


def _centres(options: ScrfdOptions, stride: int) -> npt.NDArray[np.float32]:
    """Anchors stand on the top left corner of their cell, several on the same spot."""
    cells = options.size // stride
    y, x = np.mgrid[:cells, :cells]
    grid = np.stack([x, y], axis=-1).reshape(-1, 2).astype(np.float32) * stride
    return np.repeat(grid, options.anchors_per_cell, axis=0)


def _nms(boxes: Array, iou: float) -> list[int]:
    """Indices kept by greedy suppression of sorted boxes; sides count a pixel more, as in the original."""
    areas = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
    waiting, kept = np.arange(len(boxes)), []
    while len(waiting):
        best, rest = waiting[0], waiting[1:]
        kept.append(int(best))
        low = np.maximum(boxes[best, :2], boxes[rest, :2])
        high = np.minimum(boxes[best, 2:4], boxes[rest, 2:4])
        inner = np.clip(high - low + 1, 0, None).prod(axis=1)
        waiting = rest[inner / (areas[best] + areas[rest] - inner) <= iou]
    return kept


def _ranked(boxes: Array, image_size: tuple[int, int], options: ScrfdOptions) -> npt.NDArray[np.int64]:
    """Indices of the `max_faces` largest or most central boxes; all, in order, where the limit does not cut."""
    if not 0 < options.max_faces < len(boxes):
        return np.arange(len(boxes))
    value = (boxes[:, 2:4] - boxes[:, :2]).prod(axis=1)
    if options.metric == "default":
        middle = np.array([image_size[0] // 2, image_size[1] // 2])
        offset = (boxes[:, :2] + boxes[:, 2:4]) / 2 - middle
        value = value - 2 * (offset**2).sum(axis=1)
    return np.argsort(-value, kind="stable")[: options.max_faces]
