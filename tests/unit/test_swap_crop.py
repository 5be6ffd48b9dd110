"""Crops of a swap: where they lie, their pixels, the way back, and pixel boost."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
import pytest
from PIL import Image
from swap_scenes import EYES, MOUTH, around, face_at, psnr, turned

from facesdk.annotation.alignment import arcface_template
from facesdk.errors import ImageArrayError, UsageError
from facesdk.image import read_image
from facesdk.swap import boost
from facesdk.swap.crop import TEMPLATES, CropTemplate, crop_matrix, cut_crop
from facesdk.swap.warp import inverse, pixel_matrix, scale, similarity_matrix, transform, warp
from tests.bundles import DATA


@pytest.fixture(scope="module")
def portrait() -> np.ndarray:
    return read_image(DATA / "astronaut.png")


# -- matrices -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_the_inverse_is_exact_and_positions_come_back(seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = similarity_matrix(turned(rng.uniform(0, 360), 10 ** rng.uniform(-3, 3)), complex(*rng.normal(0, 1e3, 2)))
    points = rng.normal(0, 1e3, (20, 2))
    np.testing.assert_allclose(transform(inverse(matrix), transform(matrix, points)), points, atol=1e-6)
    assert scale(matrix) * scale(inverse(matrix)) == pytest.approx(1)


@pytest.mark.parametrize(
    "matrix", [np.zeros((2, 3)), np.full((2, 3), np.nan), np.eye(3), [[1, 2, 0], [2, 4, 0]], np.full((2, 3), np.inf)]
)
def test_a_matrix_without_inverse_is_refused(matrix: np.ndarray) -> None:
    with pytest.raises(UsageError, match="cannot be inverted"):
        inverse(np.asarray(matrix))


@pytest.mark.parametrize("degrees", [0, 33, 90, 180, -120])
@pytest.mark.parametrize("size", [64, 256, 512])
def test_the_ffhq_rule(degrees: float, size: int) -> None:
    """Eyes a quarter of the side apart, their middle 0.1 |m| above the crop's, the mouth 0.9 |m| below it."""
    matrix = crop_matrix(face_at(turned(degrees, 60), 320 + 240j), size)
    # the side is 2 * max(2 |e|, 1.8 |m|) = 4 eye distances, |m| = 1.1
    expected = (np.vstack([EYES, MOUTH]) - [0, 0.11]) / 4 * size + size / 2
    place = np.vstack([EYES, MOUTH]) @ [1, 1j] * turned(degrees, 60) + 320 + 240j
    np.testing.assert_allclose(transform(matrix, np.column_stack([place.real, place.imag])), expected, atol=1e-4)


def test_a_long_face_is_measured_by_its_length() -> None:
    face = face_at(60, 320 + 240j)
    face.landmarks[[61, 291], 1] += 100
    eyes_to_mouth = 1.1 * 60 + 100
    assert scale(crop_matrix(face, 256)) == pytest.approx(256 / (2 * 1.8 * eyes_to_mouth), rel=1e-5)


@pytest.mark.parametrize("name", [name for name, template in TEMPLATES.items() if template.points])
def test_five_points_on_a_template_are_cut_as_published(name: str) -> None:
    """Published templates count pixel centres as whole numbers: half a pixel more in positions."""
    points = np.array(TEMPLATES[name].points) * 200
    face = dataclasses.replace(face_at(60, 0j), five_points=(points + 0.5).astype(np.float32))
    np.testing.assert_allclose(pixel_matrix(crop_matrix(face, 200, name)), [[1, 0, 0], [0, 1, 0]], atol=1e-4)


@pytest.mark.parametrize(
    ("name", "size"), [("arcface", 112), ("arcface", 224), ("arcface-128", 128), ("arcface-128", 256)]
)
def test_arcface_templates_are_those_of_insightface(name: str, size: int) -> None:
    np.testing.assert_allclose(np.array(TEMPLATES[name].points) * size, arcface_template(size))


def test_templates_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TEMPLATES["ffhq"].name = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        TEMPLATES["other"] = TEMPLATES["ffhq"]  # type: ignore[index]


def test_an_own_template_is_taken() -> None:
    template = CropTemplate("own", ((0.2, 0.2), (0.8, 0.2), (0.5, 0.5), (0.3, 0.8), (0.7, 0.8)))
    face = dataclasses.replace(face_at(60, 0j), five_points=np.float32(template.points) * 100)
    np.testing.assert_allclose(crop_matrix(face, 100, template), [[1, 0, 0.5], [0, 1, 0.5]], atol=1e-4)


@pytest.mark.parametrize("template", list(TEMPLATES))
@pytest.mark.parametrize("value", [7.0, np.nan])
def test_points_that_coincide_or_are_none_are_refused(template: str, value: float) -> None:
    face = face_at(60, 320 + 240j)
    face.landmarks[:], face.five_points[:] = value, value
    with pytest.raises(UsageError, match="coincide"):
        crop_matrix(face, 256, template)


def test_unknown_templates_and_sizes_are_refused() -> None:
    face = face_at(60, 320 + 240j)
    with pytest.raises(UsageError, match="ffhq, arcface"):
        crop_matrix(face, 256, "dlib")
    with pytest.raises(UsageError, match="size is 0"):
        crop_matrix(face, 0)
    with pytest.raises(UsageError, match="crop_matrix"):
        TEMPLATES["ffhq"].fit(face.five_points, 256)


# -- pixels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quarter", range(4))
def test_whole_pixels_and_quarter_turns_are_exact(quarter: int, portrait: np.ndarray) -> None:
    matrix = around(1j**quarter, 200 + 100j, 64)
    crop, validity = cut_crop(portrait, matrix, 64)
    expected = np.rot90(portrait[100 - 32 : 100 + 32, 200 - 32 : 200 + 32], -quarter)
    np.testing.assert_array_equal(np.rint(crop * 255), expected)
    assert crop.dtype == validity.dtype == np.float32
    assert validity.all()


@pytest.mark.parametrize("degrees", [0, 17, 90, 180, 233])
@pytest.mark.parametrize(("enlarged", "least"), [(1.3, 45), (2, 44), (4, 42), (1, 39), (0.5, 30)])
def test_a_crop_put_back_is_the_picture(portrait: np.ndarray, degrees: float, enlarged: float, least: float) -> None:
    """Plain bilinear warps reach 36 dB enlarged twice, 29 dB shrunk to a half."""
    size = int(160 * enlarged)
    matrix = around(turned(degrees, enlarged), 224 + 128j, size)
    back = 255 * warp(cut_crop(portrait, matrix, size)[0], inverse(matrix), (512, 512))
    assert psnr(back[78:178, 174:274], portrait[78:178, 174:274]) > least


@pytest.mark.parametrize(("size", "least"), [(340, 40), (256, 43), (180, 41), (128, 39), (60, 36), (20, 33)])
def test_shrinking_is_antialiased(portrait: np.ndarray, size: int, least: float) -> None:
    """As near to Pillow's Lanczos as one comes without its kernel; bilinear alone is 6 to 15 dB off."""
    matrix = np.array([[size / 512, 0, 0], [0, size / 512, 0]])
    reference = np.asarray(Image.fromarray(portrait).resize((size, size), Image.Resampling.LANCZOS))
    ours, plain = (np.clip(warp(portrait, matrix, (size, size), antialias=flag), 0, 255) for flag in (True, False))
    assert psnr(ours, reference) > least
    assert psnr(ours, reference) > psnr(plain, reference) + 2


def test_noise_does_not_alias() -> None:
    """Stripes of one pixel, nine to a pixel of the crop, come out grey."""
    stripes = np.zeros((900, 900, 3), np.uint8)
    stripes[:, ::2] = 255
    crop, _ = cut_crop(stripes, around(turned(3, 1 / 9), 450 + 450j, 64), 64)
    assert np.abs(crop - 0.5).max() < 0.02


def test_beyond_the_picture_is_its_reflection_and_not_valid(portrait: np.ndarray) -> None:
    matrix = around(1, 10 + 256j, 128)
    crop, validity = cut_crop(portrait, matrix, 128)
    np.testing.assert_array_equal(validity, np.broadcast_to(np.arange(128) >= 54, (128, 128)))
    np.testing.assert_array_equal(np.rint(crop[:, 54:] * 255), portrait[192:320, :74])
    plain = warp(portrait, matrix, (128, 128)) / 255
    np.testing.assert_array_equal(np.rint(plain[:, :54] * 255), portrait[192:320, 54:0:-1])
    median = np.median(crop[:, 54:], axis=(0, 1))
    far, near = (np.abs(crop[:, columns] - median).mean() for columns in (slice(0, 12), slice(42, 54)))
    assert far < 0.3 * near
    assert np.abs(crop[:, 53] - plain[:, 53]).mean() < 0.02


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (3, 5)])
def test_a_crop_larger_than_the_picture(shape: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    crop, validity = cut_crop(picture, around(1, complex(shape[1] // 2, shape[0] // 2), 64), 64)
    assert np.isfinite(crop).all()
    assert validity.sum() == shape[0] * shape[1]
    np.testing.assert_allclose(crop[validity > 0], picture.reshape(-1, 3) / np.float32(255), atol=1e-6)


@pytest.mark.parametrize("place", [-300 + 256j, 256 - 300j, 900 + 256j, 256 + 900j])
def test_a_crop_beside_the_picture_is_refused(portrait: np.ndarray, place: complex) -> None:
    with pytest.raises(UsageError, match="outside the picture"):
        cut_crop(portrait, around(turned(20), place, 64), 64)


def test_a_crop_that_covers_too_much_is_refused(portrait: np.ndarray) -> None:
    with pytest.raises(UsageError, match="covers"):
        cut_crop(portrait, around(5e-3, 256 + 256j, 64), 64)


def test_what_is_no_picture_is_refused() -> None:
    with pytest.raises(ImageArrayError):
        cut_crop(np.zeros((8, 8, 3), np.float32), np.eye(2, 3), 8)  # type: ignore[arg-type]


@pytest.mark.parametrize("degrees", [0, 40])
def test_memory_layout_does_not_matter(portrait: np.ndarray, degrees: float) -> None:
    matrix = around(turned(degrees, 0.4), 60 + 60j, 100)
    turned_channels = np.ascontiguousarray(portrait[..., ::-1])[..., ::-1]
    every_second = np.repeat(np.repeat(portrait, 2, axis=0), 2, axis=1)[::2, ::2]
    columns_first = np.asfortranarray(portrait)
    read_only = portrait.copy()
    read_only.flags.writeable = False
    expected = cut_crop(portrait, matrix, 100)[0]
    for view in (turned_channels, every_second, columns_first, read_only):
        np.testing.assert_array_equal(cut_crop(view, matrix, 100)[0], expected)


@pytest.mark.parametrize("seed", range(8))
def test_only_the_window_is_read(seed: int) -> None:
    """A crop of a picture is the crop of any larger part of it."""
    rng = np.random.default_rng(seed)
    picture = cv2.GaussianBlur(rng.integers(0, 256, (400, 500, 3), np.uint8), (0, 0), 1)
    turn = turned(rng.uniform(0, 360), rng.uniform(0.6, 3))
    whole = warp(picture, around(turn, 250 + 200j, 80), (80, 80))
    part = warp(picture[60:340, 110:390], around(turn, 140 + 140j, 80), (80, 80))
    np.testing.assert_allclose(whole, part, atol=0.5)


# -- pixel boost ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1, 2, 4])
@pytest.mark.parametrize("rest", [(), (3,)])
def test_joining_undoes_splitting(factor: int, rest: tuple[int, ...]) -> None:
    crop = np.random.default_rng(0).random((16, 16, *rest), np.float32)
    parts = boost.split(crop, factor)
    assert parts.shape == (factor**2, 16 // factor, 16 // factor, *rest)
    np.testing.assert_array_equal(boost.join(parts), crop)
    for index, part in enumerate(parts):
        y, x = divmod(index, factor)
        np.testing.assert_array_equal(part, crop[y::factor, x::factor])


@pytest.mark.parametrize(
    ("shape", "factor"), [((16, 16, 3), 3), ((16, 12, 3), 2), ((16,), 2), ((0, 0, 3), 1), ((4, 4), 0)]
)
def test_crops_without_sub_grids_are_refused(shape: tuple[int, ...], factor: int) -> None:
    with pytest.raises(UsageError, match="sub-grids"):
        boost.split(np.zeros(shape), factor)


@pytest.mark.parametrize("shape", [(3, 8, 8, 3), (4, 8, 6, 3), (4, 8), (0, 8, 8)])
def test_parts_that_do_not_join_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="join"):
        boost.join(np.zeros(shape))
