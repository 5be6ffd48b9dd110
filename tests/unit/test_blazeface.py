"""BlazeFace's anchors, decoding and weighted non-maximum suppression, against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest

from facesdk.annotation.annotator import Annotator, same_face
from facesdk.annotation.blazeface import BlazeFace, Detection, anchor_centres, box_iou, weighted_nms
from facesdk.annotation.region import Region, letterbox
from facesdk.image import read_image
from tests.bundles import DATA


def random_rows(rng: np.random.Generator, count: int) -> np.ndarray:
    """Boxes in clusters, so that many overlap, with twelve further columns."""
    centre = rng.uniform(0, 1, (4, 2))[rng.integers(0, 4, count)] + rng.normal(0, 0.05, (count, 2))
    half = rng.uniform(0.05, 0.2, (count, 2))
    return np.hstack([centre - half, centre + half, rng.uniform(0, 1, (count, 12))])


def slow_iou(a: np.ndarray, b: np.ndarray) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inner = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inner
    return inner / union if union > 0 else 0.0


def slow_nms(rows: np.ndarray, scores: np.ndarray, iou: float) -> list[tuple[np.ndarray, float]]:
    waiting, merged = sorted(range(len(rows)), key=lambda i: -scores[i]), []
    while waiting:
        best = waiting[0]
        group = [i for i in waiting if slow_iou(rows[best], rows[i]) > iou]
        total = sum(scores[i] for i in group)
        merged.append((sum(rows[i] * scores[i] for i in group) / total, scores[best]))
        waiting = [i for i in waiting if i not in group]
    return merged


# -- anchors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "count"), [(128, 896), (192, 2304)])
def test_count_and_range_of_anchors(size: int, count: int) -> None:
    anchors = anchor_centres(size)
    assert anchors.shape == (count, 2)
    assert anchors.dtype == np.float32
    assert (anchors > 0).all()
    assert (anchors < 1).all()


def test_positions_of_short_range_anchors() -> None:
    """Two per cell of 16 x 16, then six per cell of 8 x 8, x first."""
    anchors = anchor_centres(128) * 128
    np.testing.assert_allclose(anchors[:4], [[4, 4], [4, 4], [12, 4], [12, 4]])
    np.testing.assert_allclose(anchors[2 * 16], [4, 12])
    np.testing.assert_allclose(anchors[512:519], [[8, 8]] * 6 + [[24, 8]])
    np.testing.assert_allclose(anchors[-1], [120, 120])
    assert len(np.unique(anchors[:512], axis=0)) == 256
    assert len(np.unique(anchors[512:], axis=0)) == 64


def test_positions_of_full_range_anchors() -> None:
    anchors = anchor_centres(192) * 192
    np.testing.assert_allclose(anchors[[0, 1, 48, -1]], [[2, 2], [6, 2], [2, 6], [190, 190]])
    assert len(np.unique(anchors, axis=0)) == 48 * 48


# -- decoding -------------------------------------------------------------------------------------------------


@pytest.fixture
def detector(annotator_478: Annotator) -> BlazeFace:
    return annotator_478.detectors["detector_short"]


def logit(score: float) -> float:
    return math.log(score / (1 - score))


def test_decoding_of_hand_made_outputs(detector: BlazeFace) -> None:
    """Anchor 33 stands on (4, 12) of 128 pixels; offsets are in pixels."""
    regressors, logits = np.zeros((896, 16), np.float32), np.full((896, 1), -20, np.float32)
    regressors[33] = [10, 20, 40, 60, *range(12)]
    logits[33] = logit(0.75)
    rows, scores = detector.decode(regressors, logits, 0.5)
    centre = np.array([4 + 10, 12 + 20])
    want = [*np.subtract(centre, (20, 30)), *np.add(centre, (20, 30))]
    want += [v + a for v, a in zip(range(12), [4, 12] * 6, strict=True)]
    np.testing.assert_allclose(rows * 128, [want], rtol=1e-6)
    np.testing.assert_allclose(scores, [0.75], rtol=1e-6)


def test_decoding_nothing(detector: BlazeFace) -> None:
    rows, scores = detector.decode(np.zeros((896, 16), np.float32), np.full((896, 1), -20, np.float32), 0.5)
    assert rows.shape == (0, 16)
    assert scores.shape == (0,)


def test_boxes_turned_inside_out_are_dropped(detector: BlazeFace) -> None:
    regressors, logits = np.zeros((896, 16), np.float32), np.full((896, 1), 3, np.float32)
    regressors[:, 2:4] = [-5, 5]
    assert len(detector.decode(regressors, logits, 0.5)[0]) == 0


def test_extreme_logits(detector: BlazeFace) -> None:
    regressors, logits = np.ones((896, 16), np.float32), np.full((896, 1), -1e30, np.float32)
    logits[5] = 1e30
    _, scores = detector.decode(regressors, logits, 0.5)
    np.testing.assert_allclose(scores, [1.0])


@pytest.mark.parametrize("least", [0.01, 0.3, 0.5, 0.731058, 0.99])
def test_the_threshold_is_exact(detector: BlazeFace, least: float) -> None:
    logits = np.random.default_rng(0).normal(0, 3, (896, 1)).astype(np.float32)
    logits[0] = 1.0
    regressors = np.ones((896, 16), np.float32)
    scores = 1 / (1 + np.exp(-logits[:, 0].astype(np.float64)))
    _, found = detector.decode(regressors, logits, least)
    np.testing.assert_array_equal(np.sort(found), np.sort(scores[scores >= least]))


# -- overlap and suppression ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_iou_is_brute_forces(seed: int) -> None:
    rows = random_rows(np.random.default_rng(seed), 40)
    want = [[slow_iou(a, b) for b in rows] for a in rows]
    np.testing.assert_allclose([box_iou(row, rows) for row in rows], want, atol=1e-12)


def test_iou_of_degenerate_boxes() -> None:
    """Nothing is divided by nothing: 0, not NaN."""
    point, line, box = np.array([1.0, 1, 1, 1]), np.array([0.0, 1, 4, 1]), np.array([0.0, 0, 4, 4])
    boxes = np.stack([point, line, box])
    np.testing.assert_array_equal(box_iou(point, boxes), [0, 0, 0])
    np.testing.assert_array_equal(box_iou(box, boxes), [0, 0, 1])
    np.testing.assert_array_equal(box_iou(box, boxes + 4), [0, 0, 0])  # touching at a corner
    assert box_iou(box, np.empty((0, 4))).shape == (0,)


@pytest.mark.parametrize("iou", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("seed", range(5))
def test_weighted_suppression_is_brute_forces(seed: int, iou: float) -> None:
    rng = np.random.default_rng(seed)
    rows, scores = random_rows(rng, 50), rng.uniform(0.5, 1, 50)
    got, want = weighted_nms(rows, scores, iou), slow_nms(rows, scores, iou)
    assert len(got) == len(want) > 1
    for (row, score), (slow_row, slow_score) in zip(got, want, strict=True):
        np.testing.assert_allclose(row, slow_row, rtol=1e-9)
        assert score == slow_score
    assert [score for _, score in got] == sorted((score for _, score in got), reverse=True)


def test_merging_weighs_by_score() -> None:
    rows = np.array([[0.0, 0, 1, 1], [0.1, 0, 1.1, 1]])
    ((row, score),) = weighted_nms(rows, np.array([0.9, 0.6]), 0.5)
    np.testing.assert_allclose(row, [0.04, 0, 1.04, 1])
    assert score == 0.9


def test_boxes_without_area_do_not_hide_the_others() -> None:
    rows = np.array([[0.5, 0.5, 0.5, 0.5], [0.0, 0, 1, 1], [0.2, 0.2, 0.2, 0.9]])
    ((row, score),) = weighted_nms(rows, np.array([0.9, 0.8, 0.7]), 0.5)
    np.testing.assert_array_equal(row, rows[1])
    assert score == 0.8


def test_suppressing_nothing() -> None:
    assert weighted_nms(np.empty((0, 16)), np.empty(0), 0.5) == []


# -- detections -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("angle", [0.0, 0.3, math.pi / 2, 2.5, -1.0])
def test_the_box_surrounds_the_turned_region(angle: float) -> None:
    region = Region(50, 40, 30, 20, angle)
    corners = region.to_image(np.array([[0, 0], [1, 0], [0, 1], [1, 1]], np.float64))
    box = Detection(region, np.zeros((6, 2)), 0.9).box
    np.testing.assert_allclose(box, [*corners.min(axis=0), *corners.max(axis=0)], atol=1e-9)


@pytest.mark.parametrize("square", [True, False])
@pytest.mark.parametrize("angle", [0.0, 0.5, 3.0, -2.0])
def test_the_face_region_has_level_eyes(angle: float, square: bool) -> None:
    direction = np.array([math.cos(angle), math.sin(angle)])
    eyes = np.array([50, 40]) + np.array([[-8], [8]]) * direction
    detection = Detection(Region(50, 40, 30, 20), np.vstack([eyes, np.zeros((4, 2))]), 0.9)
    region = detection.face_region(1.5, square=square)
    assert region.angle == pytest.approx(angle)
    assert (region.width, region.height) == ((45, 45) if square else (45, 30))


def test_the_nearest_miss_is_told_where_nothing_is_found(detector: BlazeFace) -> None:
    picture = read_image(DATA / "no_face.png")
    view = letterbox(picture.shape[1], picture.shape[0])
    found, miss = detector(picture, view, 0.97, 0.5)
    assert found == []
    assert miss is not None
    assert 0 < miss.score < 0.97
    lower, nothing = detector(picture, view, miss.score, 0.5)
    assert nothing is None
    assert lower[0].score == pytest.approx(miss.score)


def test_a_turned_view_finds_the_turned_face(detector: BlazeFace) -> None:
    """The picture seen in a view turned by 90 degrees is the turned picture seen upright."""
    picture = read_image(DATA / "astronaut.png")
    turned = np.ascontiguousarray(np.rot90(picture, -1))  # clockwise
    upright = detector(picture, letterbox(512, 512), 0.5, 0.5)[0][0]
    lying = detector(turned, Region(256, 256, 512, 512, math.pi / 2), 0.5, 0.5)[0][0]
    assert lying.score == pytest.approx(upright.score, abs=0.02)
    x, y = upright.key_points.T
    np.testing.assert_allclose(lying.key_points, np.stack([512 - y, x], axis=-1), atol=4)  # one pixel of the view


# -- one face or two ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ((0, 0, 10, 10), (1, 1, 11, 11), True),
        ((0, 0, 10, 10), (0, 0, 4, 4), True),  # a part of it
        ((0, 0, 10, 10), (20, 0, 30, 10), False),
        ((0, 0, 10, 10), (8, 0, 18, 10), False),
        ((0, 0, 10, 10), (10, 10, 20, 20), False),
    ],
)
def test_same_face(a: tuple[float, ...], b: tuple[float, ...], same: bool) -> None:
    first, second = np.array(a, float), np.array(b, float)
    assert same_face(first, second) is same_face(second, first) is same
