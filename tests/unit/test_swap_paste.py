"""Masks, colour match and paste-back: what changes, what must not, and how near the result comes."""

from __future__ import annotations

import dataclasses
import tracemalloc

import cv2
import numpy as np
import pytest
from swap_scenes import around, face_at, psnr, turned

from facesdk.annotation import labels
from facesdk.errors import EngineError, EngineInputError, ImageArrayError, UsageError
from facesdk.image import read_image
from facesdk.swap import masks
from facesdk.swap.colour import MOST_CONTRAST, match_colour, statistics, tones
from facesdk.swap.crop import cut_crop
from facesdk.swap.paste import MASKS, PasteOptions, Swapped, agreement, paste, paste_all, paste_mask
from facesdk.swap.warp import inverse, similarity_matrix, transform, warp
from tests.bundles import DATA

SIZE = 64
PLAIN = PasteOptions(colour=0)


@pytest.fixture(scope="module")
def portrait() -> np.ndarray:
    return read_image(DATA / "astronaut.png")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def disc(size: int = SIZE, radius: float = 0.3) -> np.ndarray:
    """A soft disc in the middle."""
    y, x = (np.mgrid[:size, :size] + 0.5) / size - 0.5
    return np.clip((radius - np.hypot(x, y)) * size / 3, 0, 1).astype(np.float32)


def scene(picture: np.ndarray, matrix: np.ndarray, size: int = SIZE) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(seen, result, mask): a crop, and the same recoloured inside a disc, as a network with a mask would."""
    seen, validity = cut_crop(picture, matrix, size)
    model = disc(size)
    result = seen + model[..., None] * (0.8 * seen[..., ::-1] + 0.15 - seen)
    return seen, result.astype(np.float32), masks.combine(model, validity)


# -- what must not change -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_pixels_of_weight_zero_are_the_same_bits(portrait: np.ndarray, seed: int) -> None:
    """Anywhere, at any scale and angle, also partly beyond the picture; and something did change."""
    rng = np.random.default_rng(seed)
    matrix = around(turned(rng.uniform(0, 360), 10 ** rng.uniform(-0.9, 0.9)), complex(*rng.uniform(0, 512, 2)), SIZE)
    seen, result, mask = scene(portrait, matrix)
    before = portrait.copy()
    pasted = paste(portrait, result, seen, mask, matrix)
    np.testing.assert_array_equal(portrait, before)
    weight = pasted.mask_full()
    assert weight.shape == portrait.shape[:2]
    assert weight.min() >= 0
    assert weight.max() <= 1
    np.testing.assert_array_equal(pasted.picture[weight == 0], portrait[weight == 0])
    outside = np.ones(portrait.shape[:2], bool)
    outside[pasted.box[1] : pasted.box[3], pasted.box[0] : pasted.box[2]] = False
    assert not weight[outside].any()
    if (weight > 0.5).sum() > 50:
        assert (pasted.picture != portrait)[weight > 0.5].mean() > 0.5


@pytest.mark.parametrize("options", [PasteOptions(), PLAIN])
@pytest.mark.parametrize("enlarged", [0.2, 0.7, 1, 3])
def test_a_network_that_changes_nothing_changes_nothing(
    portrait: np.ndarray, enlarged: float, options: PasteOptions
) -> None:
    """The residual is 0: a paste of the crop itself would have blurred the face."""
    matrix = around(turned(20, enlarged), 224 + 128j, SIZE)
    seen, _, mask = scene(portrait, matrix)
    np.testing.assert_array_equal(paste(portrait, seen, seen, mask, matrix, options).picture, portrait)


def test_an_empty_mask_changes_nothing(portrait: np.ndarray) -> None:
    matrix = around(1, 224 + 128j, SIZE)
    seen, result, mask = scene(portrait, matrix)
    pasted = paste(portrait, result, seen, np.zeros_like(mask), matrix)
    np.testing.assert_array_equal(pasted.picture, portrait)
    assert pasted.picture is not portrait
    assert pasted.box == (0, 0, 0, 0)
    assert not pasted.mask_full().any()
    np.testing.assert_array_equal(paste_all(portrait, []).picture, portrait)


def test_a_mask_beyond_the_picture_changes_nothing(portrait: np.ndarray) -> None:
    matrix = around(1, -20 + 200j, SIZE)
    seen, result, _ = scene(portrait, matrix)
    mask = np.zeros((SIZE, SIZE), np.float32)
    mask[20:40, 5:30] = 1
    np.testing.assert_array_equal(paste(portrait, result, seen, mask, matrix).picture, portrait)


@pytest.mark.parametrize("side", [10, 4000])
def test_tiny_and_huge_faces(side: int, rng: np.random.Generator) -> None:
    """10 px and 4000 px of face in a crop of 256; memory stays that of the face."""
    small = rng.integers(40, 216, (24, 24, 3), np.uint8)
    picture = cv2.resize(small, (64, 64) if side < 64 else (4400, 4200), interpolation=cv2.INTER_CUBIC)
    middle = complex(picture.shape[1], picture.shape[0]) / 2
    matrix = around(turned(10, 256 / side), middle, 256)
    tracemalloc.start()
    try:
        seen, result, mask = scene(picture, matrix, 256)
        pasted = paste(picture, result, seen, mask, matrix, PLAIN)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    weight = pasted.mask_full()
    assert weight.sum() == pytest.approx(np.pi * (0.3 * side) ** 2, rel=0.2)
    np.testing.assert_array_equal(pasted.picture[weight == 0], picture[weight == 0])
    inside = weight > 0.99
    wanted = 0.8 * picture[..., ::-1].astype(np.float64) + 0.15 * 255
    assert np.abs(pasted.picture - wanted)[inside].mean() < 4
    assert peak < picture.nbytes + 4 * picture.shape[0] * picture.shape[1] * 4 + 3e8 * (side > 64) + 2e7


def test_work_is_that_of_the_face_not_of_the_picture(portrait: np.ndarray) -> None:
    """In 20 megapixels, beside the new picture itself, a face of 200 px costs under 20 MB."""
    picture = np.tile(portrait, (8, 10, 1))
    matrix = around(256 / 200, 2224 + 2128j, 256)
    seen, result, mask = scene(picture, matrix, 256)
    tracemalloc.start()
    try:
        paste(picture, result, seen, mask, matrix)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak - picture.nbytes < 20e6


# -- how near the result comes --------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [0, 35, 90, 180])
@pytest.mark.parametrize("enlarged", [0.3, 1, 2.5])
def test_detail_too_fine_for_the_crop_is_kept(portrait: np.ndarray, degrees: float, enlarged: float) -> None:
    """The whole picture recoloured is known: the paste of a crop comes nearer than a paste without its detail."""
    size = int(200 * enlarged)
    matrix = around(turned(degrees, enlarged), 224 + 128j, size)
    wanted = np.rint(portrait * np.float32(0.8) + 30).astype(np.uint8)
    seen, validity = cut_crop(portrait, matrix, size)
    mask = masks.combine(None, validity)
    inside = warp(mask, inverse(matrix), (512, 512), border="zero", cubic=False) > 0.999
    new, without = (
        paste(portrait, cut_crop(wanted, matrix, size)[0], seen, mask, matrix, PasteOptions(colour=0, keep_detail=keep))
        for keep in (1, 0)
    )
    good, plain = (psnr(pasted.picture[inside], wanted[inside]) for pasted in (new, without))
    assert good > 41
    assert good >= plain


def test_no_detail_of_the_old_face_stays_in_another_one(portrait: np.ndarray) -> None:
    """Where the network drew something else, the old face's detail would be a ghost."""
    matrix = around(0.3, 224 + 128j, SIZE)
    seen, validity = cut_crop(portrait, matrix, SIZE)
    other, _ = cut_crop(np.ascontiguousarray(portrait[::-1, ::-1]), matrix, SIZE)
    assert agreement(other, seen)[16:48, 16:48].mean() < 0.35
    np.testing.assert_allclose(agreement(seen, seen), 1, atol=1e-5)
    mask = masks.combine(None, validity)
    pasted, bare = (
        paste(portrait, other, seen, mask, matrix, PasteOptions(colour=0, keep_detail=keep)).picture for keep in (1, 0)
    )
    ghost = np.abs(pasted.astype(int) - bare)[100:160, 190:260].mean()
    assert ghost < 0.5 * np.abs(portrait - 255 * warp(seen, inverse(matrix), (512, 512)))[100:160, 190:260].mean()


def test_results_are_rounded_not_truncated() -> None:
    picture = np.full((96, 96, 3), 100, np.uint8)
    matrix = around(1, 48 + 48j, SIZE)
    seen, validity = cut_crop(picture, matrix, SIZE)
    result = seen + np.float32(0.7 / 255)
    pasted = paste(picture, result, seen, masks.combine(None, validity), matrix, PLAIN).picture
    assert (pasted[40:56, 40:56] == 101).all()


def test_values_beyond_the_range_are_clipped(portrait: np.ndarray) -> None:
    matrix = around(1, 224 + 128j, SIZE)
    seen, _, mask = scene(portrait, matrix)
    for value, grey in ((3.0, 255), (-3.0, 0)):
        pasted = paste(portrait, np.full_like(seen, value), seen, mask, matrix, PasteOptions(colour=0, keep_detail=0))
        assert (pasted.picture[pasted.mask_full() > 0.999] == grey).all()


def test_a_face_at_the_edge_is_swapped_up_to_the_edge(portrait: np.ndarray) -> None:
    matrix = around(1, 6 + 256j, SIZE)
    seen, validity = cut_crop(portrait, matrix, SIZE)
    pasted = paste(
        portrait, 1 - seen, seen, masks.combine(None, validity), matrix, PasteOptions(colour=0, keep_detail=0)
    )
    weight = pasted.mask_full()
    assert weight[256, :6].min() > 0.999
    np.testing.assert_allclose(pasted.picture[252:260, :6], 255 - portrait[252:260, :6], atol=1)


@pytest.mark.parametrize("layout", ["Fortran", "float64", "float16", "read-only"])
def test_layouts_and_floats(portrait: np.ndarray, layout: str) -> None:
    matrix = around(turned(15, 0.8), 224 + 128j, SIZE)
    arrays = scene(portrait, matrix)
    expected = paste(portrait, arrays[1], arrays[0], arrays[2], matrix).picture
    change = {"Fortran": np.asfortranarray, "float64": np.float64, "float16": np.float16, "read-only": np.copy}[layout]
    seen, result, mask = (change(array) for array in arrays)
    for array in (seen, result, mask):
        array.flags.writeable = layout != "read-only"
    got = paste(np.asfortranarray(portrait), result, seen, mask, matrix).picture
    assert np.abs(got.astype(int) - expected).max() <= (0 if layout in ("Fortran", "read-only") else 2)


# -- several faces --------------------------------------------------------------------------------------------


def test_of_overlapping_faces_the_largest_is_on_top(portrait: np.ndarray) -> None:
    small, large = around(1, 200 + 128j, SIZE), around(0.5, 240 + 128j, SIZE)
    options = PasteOptions(colour=0, keep_detail=0)
    crops = []
    for matrix, value in ((large, 0.1), (small, 0.9)):
        seen, validity = cut_crop(portrait, matrix, SIZE)
        crops.append(Swapped(np.full_like(seen, value), seen, masks.combine(None, validity), matrix))
    both = paste_all(portrait, crops, options)
    np.testing.assert_array_equal(both.picture, paste_all(portrait, crops[::-1], options).picture)
    alone = [paste_all(portrait, [crop], options) for crop in crops]
    on_top = alone[0].mask_full() > 0.999
    np.testing.assert_allclose(both.picture[on_top], alone[0].picture[on_top], atol=1)
    np.testing.assert_array_equal(both.mask_full(), np.maximum(*(one.mask_full() for one in alone)))
    neither = both.mask_full() == 0
    np.testing.assert_array_equal(both.picture[neither], portrait[neither])


def test_a_face_does_not_take_up_detail_of_one_below(portrait: np.ndarray) -> None:
    """Detail comes from the picture as it was, not from what another face left there."""
    below, above = around(1, 224 + 128j, SIZE), around(0.5, 224 + 128j, SIZE)
    seen, validity = cut_crop(portrait, above, SIZE)
    top = Swapped(seen, seen, masks.combine(None, validity), above)
    crop, validity = cut_crop(portrait, below, SIZE)
    noise = np.random.default_rng(0).random(crop.shape, np.float32)
    under = Swapped(noise, crop, masks.combine(None, validity), below)
    both = paste_all(portrait, [under, top], PLAIN).picture
    inside = paste_all(portrait, [top], PLAIN).mask_full() > 0.9999
    np.testing.assert_array_equal(both[inside], portrait[inside])


# -- bad input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["result", "seen", "mask", "model_mask"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_is_refused(portrait: np.ndarray, which: str, value: float) -> None:
    matrix = around(1, 224 + 128j, SIZE)
    seen, result, mask = scene(portrait, matrix)
    arrays = {"result": result, "seen": seen, "mask": mask, "model_mask": disc()}
    arrays[which].flat[77] = value
    with pytest.raises(EngineError, match=f"{which} holds NaN"):
        Swapped(**arrays, matrix=matrix)


@pytest.mark.parametrize(
    "shapes",
    [
        ((8, 8, 3), (8, 8, 3), (9, 9), None), ((8, 8, 3), (9, 9, 3), (8, 8), None), ((8, 8), (8, 8), (8, 8), None),
        ((8, 9, 3), (8, 9, 3), (8, 9), None), ((3, 8, 8), (3, 8, 8), (8, 8), None),
        ((0, 0, 3), (0, 0, 3), (0, 0), None), ((8, 8, 3), (8, 8, 3), (8, 8), (4, 4)), ((3,), (3,), (), None),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit_are_refused(shapes: tuple[tuple[int, ...] | None, ...]) -> None:
    result, seen, mask, model = (None if shape is None else np.zeros(shape, np.float32) for shape in shapes)
    with pytest.raises(EngineInputError, match="do not fit"):
        Swapped(result, seen, mask, np.eye(2, 3), model)


def test_bytes_for_floats_are_refused() -> None:
    with pytest.raises(EngineInputError, match="result is uint8"):
        Swapped(np.zeros((8, 8, 3), np.uint8), *(np.zeros(s, np.float32) for s in ((8, 8, 3), (8, 8))), np.eye(2, 3))


def test_bad_pictures_and_matrices_are_refused(portrait: np.ndarray) -> None:
    matrix = around(1, 224 + 128j, SIZE)
    seen, result, mask = scene(portrait, matrix)
    with pytest.raises(ImageArrayError):
        paste(portrait.astype(np.float32), result, seen, mask, matrix)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="inverted"):
        paste(portrait, result, seen, mask, np.zeros((2, 3)))


@pytest.mark.parametrize(
    "wrong", [{"mask": "face"}, {"feather": 0.6}, {"feather": -0.1}, {"colour": 1.1}, {"keep_detail": float("nan")}]
)
def test_options_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        PasteOptions(**wrong)  # type: ignore[arg-type]


def test_options_are_frozen_and_explain_themselves() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PasteOptions().mask = "box"  # type: ignore[misc]
    assert all(field.metadata["help"] for field in dataclasses.fields(PasteOptions))


# -- masks ----------------------------------------------------------------------------------------------------


def by_definition(mask: np.ndarray, size: int, threshold: float, iterations: int) -> tuple[np.ndarray, np.ndarray]:
    """SoftErosion pixel by pixel."""
    half = size // 2
    cone = [[np.hypot(half, half) - np.hypot(y - half, x - half) for x in range(size)] for y in range(size)]
    cone = np.array(cone) / np.sum(cone)

    def filtered(values: np.ndarray) -> np.ndarray:
        framed = np.pad(values, half)
        return np.array([[(framed[y : y + size, x : x + size] * cone).sum() for x in range(values.shape[1])]
                         for y in range(values.shape[0])])  # fmt: skip

    for _ in range(iterations - 1):
        mask = np.minimum(mask, filtered(mask))
    mask = filtered(mask)
    whole = mask >= threshold
    return np.where(whole, 1, mask / (mask[~whole].max() + 1e-7)), whole


@pytest.mark.parametrize(("size", "threshold", "iterations"), [(3, 0.9, 1), (5, 0.7, 3), (7, 0.9, 7)])
def test_soft_erosion(size: int, threshold: float, iterations: int, rng: np.random.Generator) -> None:
    mask = (cv2.GaussianBlur(rng.random((24, 30), np.float32), (0, 0), 4) > 0.5).astype(np.float32)
    soft, hard = masks.soft_erosion(mask, kernel_size=size, threshold=threshold, iterations=iterations)
    expected, whole = by_definition(mask.astype(np.float64), size, threshold, iterations)
    np.testing.assert_allclose(soft, expected, atol=1e-5)
    np.testing.assert_array_equal(hard, whole)


def test_soft_erosion_of_everything_and_nothing() -> None:
    for value in (0, 1):
        soft, hard = masks.soft_erosion(np.full((9, 9), value, np.float32), kernel_size=3, threshold=0.5)
        assert soft[4, 4] == hard[4, 4] == value
    unchanged, _ = masks.soft_erosion(np.eye(5, dtype=np.float32), kernel_size=1, threshold=0.5)
    np.testing.assert_array_equal(unchanged, np.eye(5))


@pytest.mark.parametrize(("kernel_size", "iterations"), [(4, 1), (0, 1), (3, 0)])
def test_soft_erosion_refuses(kernel_size: int, iterations: int) -> None:
    with pytest.raises(UsageError):
        masks.soft_erosion(np.ones((8, 8), np.float32), kernel_size=kernel_size, iterations=iterations)


def test_box_mask_pads_every_side_by_its_own_share() -> None:
    mask = masks.box_mask(100, blur=0, padding=(10, 20, 30, 40))
    expected = np.zeros((100, 100))
    expected[10:70, 40:80] = 1
    np.testing.assert_array_equal(mask, expected)
    assert masks.box_mask(100, blur=0).sum() == 98**2


@pytest.mark.parametrize("share", [0.02, 0.08, 0.2])
def test_feather_fades_inwards_only(share: float) -> None:
    mask = np.zeros((200, 200), np.float32)
    mask[60:, :] = 1
    soft = masks.feather(mask, share)
    assert (soft <= mask).all()
    along = soft[:, 100]
    assert along[60] < 0.3
    assert (np.diff(along[60:110]) >= -1e-6).all()
    assert along[60 + int(200 * share) + 1] > 0.9
    assert soft[199, 100] < 0.3  # the border of the crop is an edge


def test_feather_scales_with_the_crop() -> None:
    """The same mask at twice the size fades over twice the pixels."""
    mask = np.round(disc(100, 0.4))
    small, large = masks.feather(mask, 0.1), masks.feather(np.repeat(np.repeat(mask, 2, axis=0), 2, axis=1), 0.1)
    assert np.abs(cv2.resize(large, (100, 100), interpolation=cv2.INTER_AREA) - small).max() < 0.05


def test_feather_of_nothing_is_the_mask() -> None:
    np.testing.assert_array_equal(masks.feather(disc(), 0), disc())
    with pytest.raises(UsageError, match="feather"):
        masks.feather(disc(), 0.7)


@pytest.mark.parametrize("seed", range(5))
def test_combined_masks_are_no_greater_than_each_and_end_at_the_border(seed: int) -> None:
    rng = np.random.default_rng(seed)
    model, region, occluder = (
        cv2.GaussianBlur(rng.normal(0, 3, (SIZE, SIZE)).astype(np.float32), (0, 0), 3) for _ in "abc"
    )
    weight = masks.combine(model, np.ones((SIZE, SIZE), np.float32), region, occluder)
    assert weight.dtype == np.float32
    assert weight.min() >= 0
    assert weight.max() <= 1
    assert not weight[model <= masks.NOISE].any()
    assert (weight <= np.clip(region, 0, 1) + 1e-6).all()
    assert (weight <= 1 - np.clip(occluder, 0, 1) + 1e-6).all()
    assert not np.concatenate([weight[0], weight[-1], weight[:, 0], weight[:, -1]]).any()


def test_a_half_mask_of_the_model_is_not_halved_again() -> None:
    """Its result is half the old face already."""
    weight = masks.combine(np.full((SIZE, SIZE), 0.5, np.float32), np.ones((SIZE, SIZE), np.float32))
    assert weight[32, 32] == pytest.approx(1)


def test_padded_pixels_have_no_weight() -> None:
    validity = np.ones((SIZE, SIZE), np.float32)
    validity[:, :20] = 0
    weight = masks.combine(None, validity)
    assert not weight[:, :19].any()
    assert weight[32, 20] > 0.99


@pytest.mark.parametrize("which", ["model_mask", "region_mask", "occluder_mask"])
def test_masks_that_do_not_fit_are_refused(which: str) -> None:
    validity, wrong = np.ones((8, 8), np.float32), np.full((8, 8), np.nan, np.float32)
    for mask in (np.ones((9, 9), np.float32), wrong):
        with pytest.raises(EngineInputError, match=which.split("_")[0]):
            masks.combine(**{"model_mask": None, "validity": validity, which: mask})


def test_the_choice_of_masks() -> None:
    validity, model, region = (np.ones((SIZE, SIZE), np.float32) for _ in range(3))
    model[:, 32:], region[:32] = 0, 0
    given = {"model_mask": model, "region_mask": region}
    full = {choice: paste_mask(PasteOptions(mask=choice), validity, **given) > 0.9 for choice in MASKS}
    assert full["model"][:, :31].sum() > 1000
    assert not full["model"][:, 32:].any()
    assert not full["region"][:32].any()
    np.testing.assert_array_equal(full["both"], full["model"] & full["region"])
    assert full["box"].sum() > full["model"].sum()
    for choice in ("model", "region", "both"):
        with pytest.raises(UsageError, match=choice):
            paste_mask(PasteOptions(mask=choice), validity)


def test_regions_are_drawn_in_the_crop() -> None:
    face, matrix = face_at(turned(25, 60), 320 + 240j), similarity_matrix(turned(-25, 0.5), 10 + 90j)
    mask = masks.region_mask(face, matrix, 256, ("left_eye",))
    ring = face.landmarks[dict(labels.POLYGONS)["left_eye"], :2]
    x, y = transform(matrix, ring.mean(axis=0)[None])[0]
    rows, columns = np.nonzero(mask)
    assert (columns.mean() + 0.5, rows.mean() + 0.5) == pytest.approx((x, y), abs=0.6)
    assert mask.sum() == pytest.approx(np.pi * 3**2, rel=0.5)
    assert (masks.region_mask(face, matrix, 256) >= mask).all()
    with pytest.raises(UsageError, match="ear"):
        masks.region_mask(face, matrix, 256, ("ear",))


# -- colour ---------------------------------------------------------------------------------------------------


def soft_picture(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 1, (SIZE, SIZE, 3)).astype(np.float32)
    return np.clip(0.5 + cv2.GaussianBlur(noise, (0, 0), 2), 0.3, 0.7)


def test_mean_and_contrast_become_those_of_the_reference() -> None:
    reference = soft_picture(1)
    crop = np.clip(reference[::-1, ::-1] * [0.9, 0.8, 0.75] + [0.08, 0.05, 0.02], 0, 1).astype(np.float32)
    mask = np.ones((SIZE, SIZE), np.float32)
    matched = match_colour(crop, reference, mask)
    for got, wanted in zip(statistics(tones(matched), mask), statistics(tones(reference), mask), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0.03, atol=0.005)


def test_strength_is_a_share_and_the_outside_stays() -> None:
    crop, reference, mask = soft_picture(1), soft_picture(2) * np.float32(0.7), disc()
    assert match_colour(crop, reference, mask, 0) is crop
    whole, half = (match_colour(crop, reference, mask, strength) for strength in (1, 0.5))
    np.testing.assert_allclose(half - crop, (whole - crop) / 2, atol=1e-6)
    np.testing.assert_array_equal(whole[mask == 0], crop[mask == 0])
    assert np.abs(whole - crop)[mask == 1].mean() > 0.05
    share = 0.25 * mask
    np.testing.assert_allclose(match_colour(crop, reference, mask, 1, share) - crop, (whole - crop) / 4, atol=1e-6)


def test_pixels_out_of_the_mask_do_not_count() -> None:
    crop, reference, mask = soft_picture(1), soft_picture(2), disc()
    spoilt = [
        np.where(mask[..., None] > 0, image, value).astype(np.float32) for image, value in ((crop, 1), (reference, 0))
    ]
    np.testing.assert_array_equal(match_colour(*spoilt, mask)[mask > 0], match_colour(crop, reference, mask)[mask > 0])


def test_a_flat_crop_is_not_blown_up() -> None:
    flat = np.full((SIZE, SIZE, 3), 0.5, np.float32) + soft_picture(3) * np.float32(0.01)
    mask = np.ones((SIZE, SIZE), np.float32)
    spread = statistics(tones(match_colour(flat, soft_picture(2), mask)), mask)[1]
    assert (spread <= 1.1 * MOST_CONTRAST * statistics(tones(flat), mask)[1] + 1e-3).all()


@pytest.mark.parametrize(
    "mask", [np.zeros((SIZE, SIZE), np.float32), np.eye(SIZE, dtype=np.float32) * (np.arange(SIZE) < 9)]
)
def test_too_little_mask_for_statistics_changes_nothing(mask: np.ndarray) -> None:
    crop = soft_picture(1)
    assert match_colour(crop, soft_picture(2), mask.astype(np.float32)) is crop


def test_colour_refuses_what_does_not_fit() -> None:
    crop = soft_picture(1)
    with pytest.raises(UsageError, match="do not fit"):
        match_colour(crop, crop[:32], disc())
    with pytest.raises(UsageError, match="strength"):
        match_colour(crop, crop, disc(), 1.5)


def test_dark_hair_does_not_turn_blue_where_skin_was_too_warm() -> None:
    """A cast that is a factor is taken out of dark and light alike."""
    reference = soft_picture(1)
    reference[:24] *= np.float32(0.2)
    crop = reference * np.float32([1.2, 1, 0.8])
    matched = match_colour(crop, reference, np.ones((SIZE, SIZE), np.float32))
    for part in (np.s_[:24], np.s_[24:]):
        assert np.abs(matched - reference)[part].mean() < 0.6 * np.abs(crop - reference)[part].mean()


def test_a_cast_of_the_network_is_taken_out(portrait: np.ndarray) -> None:
    matrix = around(0.6, 224 + 128j, 128)
    seen, validity = cut_crop(portrait, matrix, 128)
    model = disc(128)
    result = seen + np.float32([0.08, -0.02, -0.06]) * model[..., None]
    mask = masks.combine(model, validity)
    errors = []
    for colour in (0, 0.5, 1):
        pasted = paste(portrait, result, seen, mask, matrix, PasteOptions(colour=colour), model_mask=model).picture
        errors.append(np.abs(pasted - portrait.astype(int)).mean())
    assert errors[2] < 0.25 * errors[0]
    assert errors[2] < errors[1] < errors[0]
