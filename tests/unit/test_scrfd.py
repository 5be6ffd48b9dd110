"""SCRFD: preparation and decoding against brute force, for every form of network output."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np
import pytest

from facesdk.annotation.scrfd import ScrfdOptions, decode, prepare

SMALL = ScrfdOptions(size=64)
FIVE = ScrfdOptions(size=128, strides=(8, 16, 32, 64, 128), anchors_per_cell=1)
IMAGE_SIZE = (200, 150)


def made_up(options: ScrfdOptions, seed: int, *, points: bool = True, high: float = 0.9) -> list[np.ndarray]:
    """Outputs without a batch axis: scores, distances, point offsets per stride; few scores pass."""
    rng = np.random.default_rng(seed)
    counts = [(options.size // stride) ** 2 * options.anchors_per_cell for stride in options.strides]
    scores = [rng.uniform(0, 1, (n, 1)) ** 4 * high / 0.9 for n in counts]
    distances = [rng.uniform(0.5, 3, (n, 4)) for n in counts]
    offsets = [rng.uniform(-2, 2, (n, 10)) for n in counts]
    return [array.astype(np.float32) for array in scores + distances + (offsets if points else [])]


def slow_iou(a: Sequence[float], b: Sequence[float]) -> float:
    """As insightface counts: a side from 2 to 4 is 3 long."""
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    inner = max(width, 0) * max(height, 0)
    area = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    return inner / (sum(area) - inner)


def slow_decode(
    outputs: list[np.ndarray], scale: float, image_size: tuple[int, int], options: ScrfdOptions
) -> tuple[np.ndarray, np.ndarray]:
    levels, found = len(options.strides), []
    for level, stride in enumerate(options.strides):
        cells, anchor = options.size // stride, 0
        for row in range(cells):
            for column in range(cells):
                for _ in range(options.anchors_per_cell):
                    score = float(outputs[level][anchor, 0])
                    if score >= options.min_score:
                        x, y = column * stride, row * stride
                        left, top, right, bottom = outputs[level + levels][anchor] * stride
                        box = np.array([x - left, y - top, x + right, y + bottom]) / scale
                        points = np.zeros((5, 2))
                        if len(outputs) > 2 * levels:
                            offsets = outputs[level + 2 * levels][anchor] * stride
                            points = (np.array([x, y]) + offsets.reshape(5, 2)) / scale
                        found.append((score, box, points))
                    anchor += 1
    found.sort(key=lambda entry: -entry[0])
    kept: list[tuple[float, np.ndarray, np.ndarray]] = []
    for entry in found:
        if all(slow_iou(entry[1], other[1]) <= options.iou for other in kept):
            kept.append(entry)
    if 0 < options.max_faces < len(kept):
        kept.sort(key=lambda entry: -slow_value(entry[1], image_size, options))
        kept = kept[: options.max_faces]
    boxes = np.array([[*box, score] for score, box, _ in kept]).reshape(-1, 5)
    return boxes, np.array([points for _, _, points in kept]).reshape(-1, 5, 2)


def slow_value(box: np.ndarray, image_size: tuple[int, int], options: ScrfdOptions) -> float:
    area = (box[2] - box[0]) * (box[3] - box[1])
    if options.metric == "max":
        return float(area)
    x, y = (box[0] + box[2]) / 2 - image_size[0] // 2, (box[1] + box[3]) / 2 - image_size[1] // 2
    return float(area - 2 * (x * x + y * y))


@pytest.mark.parametrize(
    "options",
    [
        SMALL,
        FIVE,
        dataclasses.replace(SMALL, max_faces=3),
        dataclasses.replace(SMALL, max_faces=3, metric="max"),
        dataclasses.replace(FIVE, max_faces=1),
        dataclasses.replace(SMALL, min_score=0.1, iou=0.2),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_decoding_is_brute_forces(options: ScrfdOptions, seed: int) -> None:
    outputs = made_up(options, seed)
    boxes, points = decode(outputs, 0.4, IMAGE_SIZE, options)
    want_boxes, want_points = slow_decode(outputs, 0.4, IMAGE_SIZE, options)
    assert len(want_boxes) >= 1
    np.testing.assert_allclose(boxes, want_boxes, rtol=1e-4, atol=1e-3)
    assert points is not None
    np.testing.assert_allclose(points, want_points, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("options", [SMALL, FIVE])
def test_a_batch_axis_changes_nothing(options: ScrfdOptions) -> None:
    outputs = made_up(options, 0)
    want = decode(outputs, 1.0, IMAGE_SIZE, options)
    got = decode([output[None] for output in outputs], 1.0, IMAGE_SIZE, options)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


def test_networks_without_points() -> None:
    outputs = made_up(SMALL, 1)
    boxes, points = decode(outputs[:6], 1.0, IMAGE_SIZE, SMALL)
    assert points is None
    np.testing.assert_array_equal(boxes, decode(outputs, 1.0, IMAGE_SIZE, SMALL)[0])


@pytest.mark.parametrize("max_faces", [0, 2])
@pytest.mark.parametrize("batch", [True, False])
def test_no_detection_has_the_shapes_of_many(batch: bool, max_faces: int) -> None:
    options = dataclasses.replace(SMALL, max_faces=max_faces)
    outputs = [output[None] if batch else output for output in made_up(options, 0, high=0.3)]
    boxes, points = decode(outputs, 1.0, IMAGE_SIZE, options)
    assert boxes.shape == (0, 5)
    assert points is not None
    assert points.shape == (0, 5, 2)


def test_best_first_and_never_more_than_asked() -> None:
    for max_faces in range(1, 6):
        options = dataclasses.replace(SMALL, max_faces=max_faces, min_score=0.2)
        assert len(decode(made_up(SMALL, 2), 1.0, IMAGE_SIZE, options)[0]) == max_faces
    boxes = decode(made_up(SMALL, 2), 1.0, IMAGE_SIZE, dataclasses.replace(SMALL, min_score=0.2))[0]
    assert (np.diff(boxes[:, 4]) <= 0).all()


def one_box_each(boxes: list[tuple[float, float, float, float]], size: int = 640) -> list[np.ndarray]:
    """Outputs of one stride of 32 with one anchor, a box per cell, best score first."""
    cells = (size // 32) ** 2
    scores, distances = np.zeros((cells, 1), np.float32), np.zeros((cells, 4), np.float32)
    for anchor, (x0, y0, x1, y1) in enumerate(boxes):
        x, y = anchor % (size // 32) * 32, anchor // (size // 32) * 32
        scores[anchor] = 0.9 - 0.01 * anchor
        distances[anchor] = np.array([x - x0, y - y0, x1 - x, y1 - y]) / 32
    return [scores, distances]


@pytest.mark.parametrize(("metric", "first"), [("max", [0, 0, 200, 200]), ("default", [270, 270, 370, 370])])
def test_the_largest_or_the_most_central_face(metric: str, first: list[int]) -> None:
    options = ScrfdOptions(strides=(32,), anchors_per_cell=1, max_faces=1, metric=metric)  # type: ignore[arg-type]
    outputs = one_box_each([(500, 500, 560, 560), (0, 0, 200, 200), (270, 270, 370, 370)])
    boxes, _ = decode(outputs, 1.0, (640, 640), options)
    np.testing.assert_allclose(boxes[:, :4], [first], atol=1e-3)


# -- preparation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(200, 150), (150, 200), (64, 64), (640, 480), (31, 17)])
def test_the_picture_is_scaled_to_fit_at_the_top_left(width: int, height: int) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    blob, scale = prepare(picture, SMALL)
    assert blob.shape == (1, 3, 64, 64)
    assert blob.dtype == np.float32
    fitted = int(64 * min(1, width / height)), int(64 * min(1, height / width))
    assert scale == fitted[1] / height
    pixels = (blob[0].transpose(1, 2, 0) * 128 + 127.5).round().astype(np.uint8)
    np.testing.assert_array_equal(pixels[: fitted[1], : fitted[0]], cv2.resize(picture, fitted))
    assert not pixels[fitted[1] :].any()
    assert not pixels[:, fitted[0] :].any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (1, 30000)])
def test_pictures_of_extreme_proportions(shape: tuple[int, int]) -> None:
    blob, scale = prepare(np.full((*shape, 3), 255, np.uint8), SMALL)
    assert blob.max() == np.float32(127.5 / 128)
    assert scale > 0


def test_points_come_back_to_the_picture() -> None:
    """A box decoded from the prepared frame is where it was in the picture."""
    picture = np.zeros((300, 400, 3), np.uint8)
    options = ScrfdOptions(size=640, strides=(32,), anchors_per_cell=1)
    _, scale = prepare(picture, options)
    assert scale == 1.6
    boxes, _ = decode(one_box_each([(160, 320, 320, 480)]), scale, (400, 300), options)
    np.testing.assert_allclose(boxes[0, :4], [100, 200, 200, 300], atol=1e-3)
