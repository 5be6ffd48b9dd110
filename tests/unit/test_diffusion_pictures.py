"""Image to image and inpainting: foretold latents, masks, sizes, and what is kept to the pixel."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from facesdk.bundle import Bundle
from facesdk.diffusion import seeds
from facesdk.diffusion.generate import generate
from facesdk.diffusion.networks import DiffusionNetworks
from facesdk.diffusion.options import GenerateOptions, course
from facesdk.diffusion.picture_conditions import paste_weight, picture_condition
from facesdk.errors import ImageArrayError, UsageError
from tests.diffusion_bundle import (
    LOGVAR,
    SCALING,
    answer,
    embedded,
    hidden,
    read,
    tokens_of,
    told,
    write_diffusion_bundle,
)

PROMPT = "a man eating"
SHAPE = (4, 8, 8)


@pytest.fixture(scope="module")
def networks(diffusion_bundle: Bundle) -> Iterator[DiffusionNetworks]:
    with DiffusionNetworks(diffusion_bundle, "cpu") as opened:
        yield opened


def photo(height: int = 64, width: int = 64, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def known(picture: np.ndarray, seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """The latent that a seed draws of a photo."""
    return SCALING * (read(picture) + np.exp(LOGVAR / 2) * seeds.posterior(seed, shape))


def foretold(
    networks: DiffusionNetworks,
    options: GenerateOptions,
    picture: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    seed: int = 0,
) -> np.ndarray:
    """The last latent, by a loop of its own; mask (8, 8) of the latent."""
    way = course(options, networks.settings, None, picture=True, mask=mask is not None).sampler
    clean, steps = known(picture, seed), len(way)
    start, noise = seeds.start(seed, SHAPE), seeds.step_noise(seed, steps, SHAPE)
    blend = seeds.blend_noise(seed, steps if options.fresh_blend else 1, SHAPE)
    rows = [told(hidden(embedded(networks.tokenizer.encode(text))))[0] for text in ("", PROMPT)]
    bank = np.zeros((way.matrices.shape[1], *SHAPE))
    bank[0] = way.levels[0, 0] * clean + way.levels[0, 1] * start
    for step in range(steps):
        if mask is not None:
            signal, spread = way.levels[step]
            noised = signal * clean + spread * blend[step if options.fresh_blend else 0]
            bank[0] = mask * bank[0] + (1 - mask) * noised
        negative, positive = (answer(way.scales[step] * bank[0], way.timesteps[step], row) for row in rows)
        eps = negative + 3 * (positive - negative)
        bank = np.tensordot(way.matrices[step], np.stack([*bank, eps, noise[step]]), 1)
    return bank[0]


# -- image to image -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["ddim", "euler-ancestral", "dpm++", "plms"])
@pytest.mark.parametrize("denoise", [0.3, 0.75, 1.0])
def test_a_photo_is_where_the_loop_starts(networks: DiffusionNetworks, scheduler: Any, denoise: float) -> None:
    picture = photo()
    options = GenerateOptions(scheduler=scheduler, steps=10, denoise=denoise, seed=2, images=2)
    made = generate(networks, PROMPT, options=options, image=picture)
    for number in range(2):
        expected = foretold(networks, options, picture, seed=2 + number)
        np.testing.assert_allclose(made.latents[number], expected, rtol=1e-3, atol=1e-4)
    assert set(made.timings_ms) == {"text", "encode", "denoise", "decode"}
    assert made.steps == 10


def test_the_share_of_the_steps_is_diffusers(networks: DiffusionNetworks) -> None:
    def begin(denoise: float | None, steps: int = 10, mask: bool = False) -> int:
        options = GenerateOptions(denoise=denoise, steps=steps)
        return course(options, networks.settings, None, picture=True, mask=mask).begin

    assert [begin(share) for share in (0.1, 0.25, 0.5, 0.99, 1.0)] == [9, 8, 5, 1, 0]
    assert (begin(None), begin(None, mask=True)) == (3, 0)
    with pytest.raises(UsageError, match=r"denoise 0\.05 of 10 steps is less than one") as caught:
        begin(0.05)
    assert "0.1 or more" in caught.value.remedy
    assert begin(0.1) == 9
    assert begin(0.334, steps=3) == 2


def test_the_delay_counts_the_steps_that_are_skipped(networks: DiffusionNetworks) -> None:
    faces = {"f": tokens_of(networks, 1)}

    def made(delay: int) -> np.ndarray:
        options = GenerateOptions(steps=10, denoise=0.5, delay=delay)
        return generate(networks, "f l eating", faces, options, image=photo()).latents

    np.testing.assert_array_equal(made(5), made(0))
    assert (made(6) != made(0)).any()


def test_given_latents_are_the_noise_of_the_start(networks: DiffusionNetworks) -> None:
    options = GenerateOptions(steps=4, denoise=0.5, scheduler="ddim")
    own = generate(networks, PROMPT, options=options, image=photo())
    latents = seeds.start(0, SHAPE)[None]
    same = generate(networks, PROMPT, options=options, image=photo(), latents=latents)
    np.testing.assert_array_equal(own.latents, same.latents)


# -- sizes ----------------------------------------------------------------------------------------------------


def test_a_photo_of_any_size_keeps_it(networks: DiffusionNetworks) -> None:
    made = generate(networks, PROMPT, options=GenerateOptions(steps=2), image=photo(67, 93))
    assert made.images.shape == (1, 67, 93, 3)
    assert made.latents.shape == (1, 4, 9, 12)
    grown = picture_condition(photo(67, 93), None, None, None, 8).encoded()
    assert grown.shape == (72, 96, 3)
    np.testing.assert_array_equal(grown[67:], grown[61:66][::-1])  # reflected: no dark edge for the network to see


@pytest.mark.parametrize(
    ("asked", "size"),
    [({"width": 96, "height": 64}, (64, 96)), ({"width": 128}, (64, 128)), ({"height": 128}, (128, 256)),
     ({"width": 200, "height": 104}, (104, 200))],
)  # fmt: skip
def test_a_photo_is_resized_where_a_size_is_asked_for(
    networks: DiffusionNetworks, asked: dict[str, int], size: tuple[int, int]
) -> None:
    mask = np.zeros((70, 140), bool)
    mask[20:40, 30:90] = True
    options = GenerateOptions(steps=1, **asked)
    made = generate(networks, PROMPT, options=options, image=photo(70, 140), mask=mask)
    assert made.images.shape == (1, *size, 3)
    condition = picture_condition(photo(70, 140), mask, options.width, options.height, 8)
    assert condition.mask is not None
    assert condition.mask.shape == condition.picture.shape[:2] == size
    assert condition.mask.mean() == pytest.approx(mask.mean(), abs=0.03)
    assert 0 <= condition.mask.min() <= condition.mask.max() <= 1


def test_sizes_that_cannot_be() -> None:
    for asked, words in (((100, None), "width of 96 or 104"), ((64, 20), "height is 20"), ((1 << 14, 64), "8192")):
        with pytest.raises(UsageError, match=words):
            picture_condition(photo(), None, *asked, 8)
    with pytest.raises(UsageError, match=r"the image's width is 40 px\n  remedy: give a width of 64"):
        picture_condition(photo(80, 40), None, None, None, 8)
    with pytest.raises(ImageArrayError):
        picture_condition(np.zeros((64, 64, 3)), None, None, None, 8)


# -- inpainting -----------------------------------------------------------------------------------------------


def square(height: int = 64, width: int = 64) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[20:44, 12:36] = True
    return mask


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("scheduler", ["ddim", "euler-ancestral", "dpm++", "plms"])
@pytest.mark.parametrize("denoise", [None, 0.5])
def test_what_is_kept_is_put_back_before_every_step(
    networks: DiffusionNetworks, scheduler: Any, fresh: bool, denoise: float | None
) -> None:
    picture, mask = photo(), square()
    options = GenerateOptions(scheduler=scheduler, steps=6, fresh_blend=fresh, seed=7, denoise=denoise)
    made = generate(networks, PROMPT, options=options, image=picture, mask=mask)
    cells = mask.reshape(8, 8, 8, 8).mean(axis=(1, 3))
    assert {0.0, 0.25, 0.5, 1.0} == set(cells.ravel().tolist())
    expected = foretold(networks, options, picture, cells, seed=7)
    np.testing.assert_allclose(made.latents[0], expected, rtol=1e-3, atol=1e-4)


def test_pixels_away_from_the_mask_are_the_photos_own(networks: DiffusionNetworks) -> None:
    picture, mask = photo(70, 93), square(70, 93)
    made = generate(networks, PROMPT, options=GenerateOptions(images=2, steps=4), image=picture, mask=mask)
    near = np.zeros_like(mask)
    near[20 - 8 : 44 + 8, 12 - 8 : 36 + 8] = True  # a cell around it
    for each in made.images:
        np.testing.assert_array_equal(each[~near], picture[~near])
        assert (each[mask] != picture[mask]).any(axis=-1).mean() > 0.9


def test_the_inside_of_the_mask_is_what_the_network_made(networks: DiffusionNetworks) -> None:
    picture, mask = photo(), square()
    made = generate(networks, PROMPT, options=GenerateOptions(steps=4), image=picture, mask=mask)
    decoded = networks.decode(made.latents)[0]
    np.testing.assert_array_equal(made.images[0][mask], decoded[mask])
    edge = made.images[0][24:40, 38]  # halfway into the fade, between the two
    low, high = np.minimum(picture, decoded)[24:40, 38], np.maximum(picture, decoded)[24:40, 38]
    assert ((low <= edge) & (edge <= high)).all()


@pytest.mark.parametrize("kind", ["bool", "uint8", "float32", "float64"])
def test_masks_of_every_kind(networks: DiffusionNetworks, kind: str) -> None:
    mask = square()
    given = mask * np.uint8(255) if kind == "uint8" else mask.astype(kind)
    condition = picture_condition(photo(), given, None, None, 8)
    np.testing.assert_array_equal(condition.mask, mask.astype(np.float32))


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.zeros((64, 72), bool), "the mask is 72 x 64, the picture 64 x 64"),
        (np.zeros((64, 64, 3), np.uint8), r"of shape \(64, 64, 3\)"),
        ("mask.png", r"read_image\(path\)\[\.\.\., 0\]"),
        (np.zeros((64, 64)), "0 everywhere"),
        (np.full((64, 64), 1.5), "not 0..1"),
        (np.full((64, 64), -0.5), "not 0..1"),
        (np.full((64, 64), np.nan), "not 0..1"),
        (np.ones((64, 64), np.uint8), "nothing above 1"),
        (np.ones((64, 64), np.int64), "the mask is int64"),
    ],
)
def test_masks_that_cannot_be(networks: DiffusionNetworks, mask: np.ndarray, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        generate(networks, PROMPT, image=photo(), mask=mask)


def test_a_mask_needs_an_image_and_an_image_an_encoder(networks: DiffusionNetworks, tmp_path: Any) -> None:
    with pytest.raises(UsageError, match="mask without an image"):
        generate(networks, PROMPT, mask=square())
    bundle = Bundle(write_diffusion_bundle(tmp_path / "text-only", leave_out=["vae_encoder"]))
    with DiffusionNetworks(bundle, "cpu") as text_only:
        assert generate(text_only, PROMPT).images.any()
        with pytest.raises(UsageError, match="cannot start from an image"):
            generate(text_only, PROMPT, image=photo())


def test_the_paste_fades_out_within_a_cell() -> None:
    mask = np.zeros((60, 60), np.float32)
    mask[20:40, 20:40] = 1
    weight = paste_weight(mask, 8)
    assert (weight[20:40, 20:40] > 0.999999).all()
    assert 0 < weight[30, 15] < weight[30, 17] < 1
    assert not weight[30, :12].any()
    assert not weight[:12].any()
    thin = np.zeros((60, 60), np.float32)
    thin[:, 30] = 1
    assert paste_weight(thin, 8)[:, 30].min() > 0.999999
    soft = np.full((60, 60), 0.4, np.float32)
    np.testing.assert_allclose(paste_weight(soft, 8), 0.4, rtol=1e-6)


def test_a_soft_mask_mixes_to_its_share(networks: DiffusionNetworks) -> None:
    picture = photo()
    half = picture_condition(picture, np.full((64, 64), 0.5), None, None, 8)
    mixed = half.finished(np.zeros_like(picture)).astype(float)
    assert np.abs(mixed - picture / 2).max() <= 0.5
    assert dataclasses.replace(half, mask=None).finished(picture).tobytes() == picture.tobytes()
