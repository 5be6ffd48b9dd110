"""Five-point alignment: the least-squares similarity, templates and crops."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from facesdk.annotation.alignment import ARCFACE_112, align, arcface_template, similarity
from facesdk.errors import UsageError


def by_lstsq(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The matrix of x' = a x - b y + c, y' = b x + a y + d."""
    x, y = source.T
    zero, one = np.zeros_like(x), np.ones_like(x)
    rows = np.vstack([np.column_stack([x, -y, one, zero]), np.column_stack([y, x, zero, one])])
    a, b, c, d = np.linalg.lstsq(rows, np.concatenate([target[:, 0], target[:, 1]]), rcond=None)[0]
    return np.array([[a, -b, c], [b, a, d]])


@pytest.mark.parametrize("count", [2, 5, 30])
@pytest.mark.parametrize("seed", range(6))
def test_the_fit_is_least_squares(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    source, target = rng.uniform(0, 500, (2, count, 2))
    np.testing.assert_allclose(similarity(source, target), by_lstsq(source, target), atol=1e-8)


@pytest.mark.parametrize("seed", range(6))
def test_opencv_finds_the_same_similarity(seed: int) -> None:
    """Without outliers RANSAC and its refinement come to the same matrix."""
    rng = np.random.default_rng(seed)
    angle, scale, shift = rng.uniform(-math.pi, math.pi), rng.uniform(0.2, 3), rng.uniform(-50, 50, 2)
    matrix = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    source = rng.uniform(0, 300, (8, 2))
    target = source @ matrix.T + shift
    got = similarity(source, target)
    np.testing.assert_allclose(got, np.hstack([matrix, shift[:, None]]), atol=1e-9)
    np.testing.assert_allclose(got, cv2.estimateAffinePartial2D(source, target)[0], atol=1e-4)


def test_a_mirrored_target_gives_no_reflection() -> None:
    matrix = similarity(ARCFACE_112, ARCFACE_112 * [-1, 1])
    assert np.linalg.det(matrix[:, :2]) > 0


def test_single_precision_points_are_fitted_in_double() -> None:
    points = ARCFACE_112.astype(np.float32)
    np.testing.assert_array_equal(similarity(points, ARCFACE_112), similarity(points.astype(np.float64), ARCFACE_112))


@pytest.mark.parametrize("size", [112, 224, 448, 896, 112 * 8 * 2])
def test_multiples_of_112_scale_the_template(size: int) -> None:
    """896 and 1792 are multiples of 128 too: the rule for 112 comes first."""
    np.testing.assert_allclose(arcface_template(size), ARCFACE_112 * size / 112)


@pytest.mark.parametrize("size", [128, 256, 512, 1024])
def test_multiples_of_128_move_the_face_to_the_middle(size: int) -> None:
    template = arcface_template(size)
    np.testing.assert_allclose(template, ARCFACE_112 * size / 128 + [size / 16, 0])
    assert template[:, 0].mean() == pytest.approx(size / 2, abs=0.01 * size)


@pytest.mark.parametrize("size", [0, -112, 100, 113, 300])
def test_other_sizes(size: int) -> None:
    with pytest.raises(UsageError, match="112 or of 128") as caught:
        arcface_template(size)
    assert str(size) in caught.value.fact


def test_points_on_the_template_give_the_picture_itself() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8)
    crop, matrix = align(picture, arcface_template(112), 112)
    np.testing.assert_allclose(matrix, [[1, 0, 0], [0, 1, 0]], atol=1e-12)
    np.testing.assert_array_equal(crop, picture)


@pytest.mark.parametrize("size", [112, 256])
@pytest.mark.parametrize("layout", ["contiguous", "reversed channels", "read-only"])
def test_five_points_land_on_the_template(layout: str, size: int) -> None:
    """Coloured spots around the points of a turned, scaled face are found where the template has them."""
    spots = [(255, 40, 40), (40, 255, 40), (40, 40, 255), (255, 255, 40), (40, 255, 255)]
    angle, scale = 0.6, 2.5
    turn = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    points = ARCFACE_112 @ turn.T + [260, 120]
    picture = np.zeros((500, 500, 3), np.uint8)
    for (x, y), colour in zip(points, spots, strict=True):
        cv2.circle(picture, (round(x), round(y)), 12, colour, cv2.FILLED)
    if layout == "reversed channels":
        picture = np.ascontiguousarray(picture[..., ::-1])[..., ::-1]
    picture.flags.writeable = layout != "read-only"
    crop, matrix = align(picture, points, size)
    assert crop.shape == (size, size, 3)
    np.testing.assert_allclose(points @ matrix[:, :2].T + matrix[:, 2], arcface_template(size), atol=1e-6)
    for (x, y), colour in zip(arcface_template(size), spots, strict=True):
        np.testing.assert_array_equal(crop[round(y), round(x)], colour)


def test_beyond_the_picture_is_black() -> None:
    picture = np.full((60, 60, 3), 200, np.uint8)
    crop, _ = align(picture, ARCFACE_112 - [40, 0], 112)
    assert (crop[:58, 41:99] == 200).all()
    assert not crop[:, :39].any()
    assert not crop[62:].any()
