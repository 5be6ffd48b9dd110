"""Several vectors of one identity."""

from __future__ import annotations

import numpy as np
import pytest

from facesdk.errors import UsageError
from facesdk.synthesis.perturbation import PRESETS, Perturbation, perturb


def vectors(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (rows, 512)).astype(np.float32)


def cosines(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    return (rows * others).sum(axis=1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(others, axis=1)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("scale", [1e-6, 1, 1e3])
def test_lengths_stay(preset: str, scale: float) -> None:
    rows = vectors(12) * scale * np.arange(1, 13)[:, None]
    got = perturb(rows, PRESETS[preset], np.random.default_rng(1))
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), np.linalg.norm(rows, axis=1), rtol=1e-6)
    assert got.dtype == np.float32


def test_the_published_presets() -> None:
    assert PRESETS["image"] == Perturbation((0.3, 0.5, 0.7), (0.4, 0.4, 0.2), True)
    assert PRESETS["pose"] == Perturbation((0.7,), (1.0,), False)
    assert PRESETS["reference"] == Perturbation((0.2,), (1.0,), True)


def test_none_changes_nothing_and_no_input_is_written_to() -> None:
    rows = vectors(7)
    before = rows.copy()
    np.testing.assert_array_equal(perturb(rows, PRESETS["none"], np.random.default_rng(1)), before)
    perturb(rows, PRESETS["image"], np.random.default_rng(1))
    np.testing.assert_array_equal(rows, before)
    wide = rows.astype(np.float64)
    perturb(wide, PRESETS["image"], np.random.default_rng(1))
    np.testing.assert_array_equal(wide, before)


def test_a_random_state_draws_as_numpys_global_generator_does() -> None:
    rows, rng = vectors(10), np.random.RandomState(5)
    noise = np.concatenate([rng.normal(0, sigma, (count, 512)) for sigma, count in ((0.3, 4), (0.5, 4), (0.7, 2))])
    rng.shuffle(noise)
    expected = rows + noise
    expected *= np.linalg.norm(rows, axis=1, keepdims=True) / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(perturb(rows, PRESETS["image"], np.random.RandomState(5)), expected, atol=1e-6)


@pytest.mark.parametrize("shuffle", [False, True])
def test_groups_get_their_sigmas(shuffle: bool) -> None:
    rows = vectors(100)
    got = cosines(perturb(rows, Perturbation((0.3, 0.7), (0.4, 0.6), shuffle), np.random.default_rng(1)), rows)
    # noise is all but orthogonal to the row: 1 / sqrt(1 + sigma^2), here between 0.958 and 0.819
    little = got > 0.9
    assert little.sum() == 40
    assert little[:40].all() != shuffle
    np.testing.assert_allclose(got[little], 1 / np.sqrt(1 + 0.3**2), atol=0.02)
    np.testing.assert_allclose(got[~little], 1 / np.sqrt(1 + 0.7**2), atol=0.06)


@pytest.mark.parametrize(
    ("rows", "counts"), [(0, (0, 0, 0)), (1, (0, 0, 1)), (3, (1, 1, 1)), (5, (2, 2, 1)), (50, (20, 20, 10))]
)
def test_the_last_group_takes_what_is_left(rows: int, counts: tuple[int, ...]) -> None:
    assert PRESETS["image"].counts(rows) == counts
    assert perturb(vectors(rows), PRESETS["image"], np.random.default_rng(1)).shape == (rows, 512)


def test_shares_that_add_up_to_1_but_for_rounding_are_taken() -> None:
    assert sum(Perturbation((0.1,) * 10, (0.1,) * 10, True).counts(1009)) == 1009


def test_a_row_of_zeros_stays() -> None:
    assert not perturb(np.zeros((2, 512)), PRESETS["image"], np.random.default_rng(1)).any()
    assert not perturb(np.zeros((2, 512)), PRESETS["none"], np.random.default_rng(1)).any()


@pytest.mark.parametrize(
    ("sigmas", "shares", "message"),
    [
        ((), (), "0 sigmas"),
        ((0.3, 0.5), (1.0,), "2 sigmas and 1 shares"),
        ((-0.3,), (1.0,), "-0.3"),
        ((float("nan"),), (1.0,), "nan"),
        ((float("inf"),), (1.0,), "inf"),
        ((0.3, 0.5), (0.4, 0.4), "add up to 1"),
        ((0.3, 0.5), (1.5, -0.5), "add up to 1"),
    ],
)
def test_groups_that_make_no_sense_are_refused(
    sigmas: tuple[float, ...], shares: tuple[float, ...], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        Perturbation(sigmas, shares, True)
