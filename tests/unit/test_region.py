"""Regions and cutting: against a slow reference, at the borders, far away, of any memory layout."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from facesdk.annotation.region import Region, angle_between, cut, letterbox
from facesdk.image import Picture

RNG = np.random.default_rng(0)


def smooth(height: int, width: int) -> Picture:
    """A picture whose bilinear samples a reference can be compared with: neighbours differ by a few levels."""
    noise = RNG.integers(0, 256, (height // 12 + 2, width // 12 + 2, 3), np.uint8)
    return np.asarray(cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


PHOTO = smooth(90, 140)


def random_region(rng: np.random.Generator, *, turned: bool) -> Region:
    x, y = rng.uniform(-40, 180), rng.uniform(-40, 130)
    width, height = rng.uniform(5, 150, 2)
    return Region(x, y, width, height, rng.uniform(-math.pi, math.pi) if turned else 0.0)


def reference_cut(picture: Picture, region: Region, size: int, *, zero_border: bool) -> np.ndarray:
    """Float bilinear samples, one pixel at a time."""
    height, width = picture.shape[:2]

    def pixel(x: int, y: int) -> np.ndarray:
        if zero_border and not (0 <= x < width and 0 <= y < height):
            return np.zeros(3)
        return picture[min(max(y, 0), height - 1), min(max(x, 0), width - 1)].astype(float)

    out = np.empty((size, size, 3))
    c, s = math.cos(region.angle), math.sin(region.angle)
    for v in range(size):
        for u in range(size):
            across, down = (u / size - 0.5) * region.width, (v / size - 0.5) * region.height
            x, y = region.centre_x + c * across - s * down, region.centre_y + s * across + c * down
            left, top = math.floor(x), math.floor(y)
            fx, fy = x - left, y - top
            upper = (1 - fx) * pixel(left, top) + fx * pixel(left + 1, top)
            lower = (1 - fx) * pixel(left, top + 1) + fx * pixel(left + 1, top + 1)
            out[v, u] = (1 - fy) * upper + fy * lower
    return out


# -- geometry -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_matrix_and_its_inverse(seed: int) -> None:
    rng = np.random.default_rng(seed)
    region = random_region(rng, turned=True)
    points = rng.uniform(-2, 3, (7, 5, 2))
    pixels = region.to_image(points)
    inverse = np.linalg.inv(np.vstack([region.matrix(), [0, 0, 1]]))
    back = pixels @ inverse[:2, :2].T + inverse[:2, 2]
    np.testing.assert_allclose(back, points, atol=1e-9)
    assert pixels.shape == points.shape
    np.testing.assert_allclose(region.to_image(np.array([0.5, 0.5])), [region.centre_x, region.centre_y])


def test_the_angle_turns_x_towards_y() -> None:
    region = Region(10, 20, 4, 2, math.pi / 2)
    np.testing.assert_allclose(region.to_image(np.array([[1.0, 0.5], [0.5, 1.0]])), [[10, 22], [9, 20]])


@pytest.mark.parametrize("turn", range(-12, 13))
def test_angle_between(turn: int) -> None:
    angle = turn * math.pi / 6
    found = angle_between(np.zeros(2), np.array([math.cos(angle), math.sin(angle)]))
    assert -math.pi <= found < math.pi
    assert math.remainder(found - angle, 2 * math.pi) == pytest.approx(0, abs=1e-9)


def test_scaled() -> None:
    region = Region(1, 2, 30, 10, 0.5)
    assert region.scaled(2) == Region(1, 2, 60, 20, 0.5)
    assert region.scaled(1.5, square=True) == Region(1, 2, 45, 45, 0.5)


@pytest.mark.parametrize(("width", "height"), [(640, 360), (360, 640), (1, 1), (7, 32766)])
def test_the_letterbox_is_the_smallest_square_around_the_picture(width: int, height: int) -> None:
    view = letterbox(width, height)
    low, high = view.to_image(np.array([[0.0, 0.0], [1.0, 1.0]]))
    assert (low <= 0).all()
    assert (high >= [width, height]).all()
    assert view.width == view.height == max(width, height)
    np.testing.assert_allclose((low + high) / 2, [width / 2, height / 2])


# -- cutting --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zero_border", [True, False])
@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_a_cut_is_what_the_slow_reference_finds(seed: int, turned: bool, zero_border: bool) -> None:
    """Positions are rounded to 1/32 px: on a smooth picture that is at most one or two grey levels."""
    region = random_region(np.random.default_rng(seed), turned=turned)
    got = cut(PHOTO, region, 33, zero_border=zero_border)
    want = reference_cut(PHOTO, region, 33, zero_border=zero_border)
    error = np.abs(got - want)
    # a black border is a step of up to 255 levels, of which 1/64 px shifts 4
    assert error.max() <= (5 if zero_border else 2)
    assert error.mean() < 0.5


@pytest.mark.parametrize("zero_border", [True, False])
@pytest.mark.parametrize(("left", "top"), [(0, 0), (20, 13), (109, 59), (-16, -7), (130, 80)])
def test_whole_pixels_are_exact(left: int, top: int, zero_border: bool) -> None:
    noise = RNG.integers(0, 256, (90, 140, 3), np.uint8)
    padded = np.pad(noise, ((32, 32), (32, 32), (0, 0)), mode="constant" if zero_border else "edge")
    got = cut(noise, Region(left + 16, top + 16, 32, 32), 32, zero_border=zero_border)
    np.testing.assert_array_equal(got, padded[top + 32 : top + 64, left + 32 : left + 64])


@pytest.mark.parametrize("size", [64, 65, 128, 192])
def test_whole_pixels_are_exact_beyond_one_block(size: int) -> None:
    noise = RNG.integers(0, 256, (200, 200, 3), np.uint8)
    got = cut(noise, Region(size / 2 + 3, size / 2 + 5, size, size), size, zero_border=False)
    np.testing.assert_array_equal(got, noise[5 : 5 + size, 3 : 3 + size])


@pytest.mark.parametrize("quarters", [1, 2, 3, -1])
def test_quarter_turns_are_exact(quarters: int) -> None:
    """Corners map to corners: patch pixel (u, v) of a turned region lies on the pixel one further at the far side."""
    noise = RNG.integers(0, 256, (80, 80, 3), np.uint8)
    got = cut(noise, Region(40, 40, 32, 32, quarters * math.pi / 2), 32, zero_border=False)
    window = noise[24:57, 24:57]  # 33 pixels: both edges of the region
    np.testing.assert_array_equal(got, np.rot90(window, quarters)[:32, :32])


@pytest.mark.parametrize("angle", [0.3, -2.0, 3.0])
def test_a_full_turn_changes_nothing(angle: float) -> None:
    region = Region(70, 45, 50, 60, angle)
    full = Region(70, 45, 50, 60, angle + 2 * math.pi)
    difference = np.abs(cut(PHOTO, region, 48, zero_border=True).astype(int) - cut(PHOTO, full, 48, zero_border=True))
    assert difference.max() <= 2  # a position on the edge between two 32nds may fall on the other


def test_an_angle_of_360_degrees_is_the_upright_region() -> None:
    upright, turned = Region(70, 45, 50, 60), Region(70, 45, 50, 60, 2 * math.pi)
    difference = np.abs(
        cut(PHOTO, upright, 48, zero_border=False).astype(int) - cut(PHOTO, turned, 48, zero_border=False)
    )
    assert difference.max() <= 2


@pytest.mark.parametrize("angle", [0.0, 0.7])
@pytest.mark.parametrize(
    ("x", "y"), [(-500, 45), (700, 45), (70, -500), (70, 700), (900, 900), (-9e4, 2e5), (3e9, -1e9)]
)
def test_wholly_outside(x: float, y: float, angle: float) -> None:
    """Black, or the nearest edge of the picture."""
    region = Region(x, y, 60, 60, angle)
    assert not cut(PHOTO, region, 24, zero_border=True).any()
    edge = cut(PHOTO, region, 24, zero_border=False)
    if (x < 0 or x > 140) and (y < 0 or y > 90):
        corner = PHOTO[0 if y < 0 else -1, 0 if x < 0 else -1]
        assert (edge == corner).all()
    else:
        want = reference_cut(PHOTO, region, 24, zero_border=False)
        assert np.abs(edge - want).max() <= 2


@pytest.mark.parametrize("angle", [0.0, 0.4])
def test_far_corner_of_the_largest_picture(angle: float) -> None:
    """Coordinates near the limit of OpenCV's 16-bit maps."""
    strip = np.broadcast_to(smooth(40, 40), (40, 40, 3))
    large = np.zeros((40, 32766, 3), np.uint8)
    large[:, -40:] = strip
    far = cut(large, Region(32766 - 20, 20, 20, 20, angle), 20, zero_border=False)
    near = cut(np.ascontiguousarray(strip), Region(20, 20, 20, 20, angle), 20, zero_border=False)
    assert np.abs(far.astype(int) - near).max() <= 2


LAYOUTS = {
    "bgr reversed": lambda p: np.ascontiguousarray(p[..., ::-1])[..., ::-1],
    "mirrored view": lambda p: np.ascontiguousarray(p[:, ::-1])[:, ::-1],
    "upside-down view": lambda p: np.ascontiguousarray(p[::-1])[::-1],
    "every second": lambda p: np.repeat(np.repeat(p, 2, axis=0), 2, axis=1)[::2, ::2],
    "part of a larger": lambda p: np.pad(p, ((3, 4), (5, 6), (0, 0)))[3:-4, 5:-6],
    "channels of four": lambda p: np.dstack([p, p[..., :1]])[..., :3],
    "transposed": lambda p: np.ascontiguousarray(p.transpose(1, 0, 2)).transpose(1, 0, 2),
    "Fortran": np.asfortranarray,
    "planar": lambda p: np.ascontiguousarray(p.transpose(2, 0, 1)).transpose(1, 2, 0),
}


@pytest.mark.parametrize("angle", [0.0, 0.5])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layout_does_not_matter(layout: str, angle: float) -> None:
    view = LAYOUTS[layout](PHOTO)
    assert np.array_equal(view, PHOTO)
    region = Region(60, 50, 70, 50, angle)
    want = cut(PHOTO, region, 40, zero_border=False)
    np.testing.assert_array_equal(cut(view, region, 40, zero_border=False), want)
    view = view.copy(order="K")
    view.flags.writeable = False
    np.testing.assert_array_equal(cut(view, region, 40, zero_border=False), want)


@pytest.mark.parametrize("angle", [0.0, 0.5])
def test_the_picture_is_not_changed(angle: float) -> None:
    before = PHOTO.copy()
    patch = cut(PHOTO, Region(60, 50, 70, 50, angle), 40, zero_border=True)
    patch[:] = 0
    np.testing.assert_array_equal(PHOTO, before)
    assert cut(PHOTO, Region(60, 50, 70, 50, angle), 40, zero_border=True).any()


@pytest.mark.parametrize("angle", [0.0, 1.0])
def test_one_pixel_is_everywhere(angle: float) -> None:
    pixel = np.full((1, 1, 3), 77, np.uint8)
    assert (cut(pixel, Region(0.5, 0.5, 3, 3, angle), 8, zero_border=False) == 77).all()
