"""Token masks and their law, and the random streams they are drawn from."""

from __future__ import annotations

import math

import numpy as np
import pytest

from facesdk.errors import UsageError
from facesdk.synthesis.masks import POSITIONS, MaskLaw, Masks, drop_mask, token_masks
from facesdk.synthesis.seeds import random

LAWS = [MaskLaw(), MaskLaw(0.5, 1.0, 0.75, 0.25), MaskLaw(0.8, 0.9, 0.85, 0.05), MaskLaw(0.5, 1, -0.5, 0.1)]


def noise(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((rows, POSITIONS))


@pytest.mark.parametrize("law", LAWS)
def test_the_quantile_inverts_the_integral_of_the_cut_normal_density(law: MaskLaw) -> None:
    shares = np.linspace(law.minimum, law.maximum, 400_001)
    # the exponent's own maximum taken out, or the far tail is all zeros
    exponents = -(((shares - law.mu) / law.std) ** 2) / 2
    density = np.exp(exponents - exponents.max())
    integral = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    for q in (0.01, 0.2, 0.5, 0.8, 0.99):
        assert law.quantile(q) == pytest.approx(np.interp(q, integral / integral[-1], shares), abs=1e-7)
    assert (law.quantile(0), law.quantile(1)) == pytest.approx((law.minimum, law.maximum))


def test_quantiles_stay_in_the_range_far_from_mu() -> None:
    for law in (MaskLaw(0.3, 1, 0, 0.01), MaskLaw(0, 0.7, 1, 0.01)):
        quantiles = [law.quantile(q) for q in np.linspace(0, 1, 101)]
        assert law.minimum <= min(quantiles)
        assert max(quantiles) <= law.maximum
        assert (np.diff(quantiles) >= 0).all()
        assert len(set(quantiles)) > 90


def test_a_range_of_one_number_is_that_number() -> None:
    assert MaskLaw(0.3, 0.3, 50, 0.1).quantile(0.7) == 0.3


def test_a_rate_is_the_quantile_of_one_uniform_draw() -> None:
    for stream in (np.random.RandomState, np.random.default_rng):
        draws = stream(7).random(3)
        rng = stream(7)
        assert [MaskLaw().rate(rng) for _ in range(3)] == [MaskLaw().quantile(q) for q in draws]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.5, 0.4), "from 0.5 to 0.4"),
        ((-0.1, 1), "from -0.1"),
        ((0.1, 1.1), "to 1.1"),
        ((math.nan, 1), "nan"),
        ((0.1, 1, 0.15, 0), "std 0"),
        ((0.1, 1, math.inf, 1), "mu inf"),
        ((0.1, 1, 9, 0.1), "never gives"),
    ],
)
def test_a_law_that_makes_no_sense_is_refused(arguments: tuple[float, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        MaskLaw(*arguments)


def test_a_quantile_outside_0_to_1_is_refused() -> None:
    for q in (-0.1, 1.1, math.nan):
        with pytest.raises(UsageError, match="quantile"):
            MaskLaw().quantile(q)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("q", [0, 0.3, 1])
def test_masks_are_those_of_the_smallest_noise(law: MaskLaw, q: float) -> None:
    given, rate = noise(8), law.quantile(q)
    masks = token_masks(given, rate, law)
    for row, keep, masked in zip(given, masks.keep, masks.masked, strict=True):
        order = 1 + np.argsort(row)
        assert set(np.flatnonzero(masked)) == set(order[: math.ceil(49 * rate)])
        assert keep.tolist() == sorted({0, *order[law.dropped :]})
    assert masks.keep.dtype == np.int64
    assert masks.keep.shape == (8, 50 - math.ceil(49 * law.minimum))


def test_the_scripts_law_keeps_45_tokens() -> None:
    assert MaskLaw().dropped == 5
    assert token_masks(noise(1), 0.1).keep.shape == (1, 45)


def test_dropped_tokens_are_masked_ones_and_never_the_first() -> None:
    masks = token_masks(noise(50), np.linspace(0.1, 1, 50))
    dropped = drop_mask(masks)
    assert dropped.sum(axis=1).tolist() == [5] * 50
    assert not (dropped & ~masks.masked).any()
    assert not masks.masked[:, 0].any()


def test_each_row_has_its_own_rate() -> None:
    rates = np.array([0.1, 0.5, 1.0])
    together = token_masks(noise(3), rates)
    for row, rate in enumerate(rates):
        alone = token_masks(noise(3)[row : row + 1], float(rate))
        np.testing.assert_array_equal(together[row : row + 1].masked, alone.masked)
        np.testing.assert_array_equal(together[[row]].keep, alone.keep)
    assert together.masked.sum(axis=1).tolist() == [5, 25, 49]


def test_of_equal_noise_the_earlier_position_goes_first() -> None:
    masks = token_masks(np.zeros((1, POSITIONS)), 0.5)
    assert np.flatnonzero(masks.masked[0]).tolist() == list(range(1, 26))
    assert masks.keep[0].tolist() == [0, *range(6, 50)]
    for given, masked in zip(coarse := np.floor(3 * noise(50)), token_masks(coarse, 0.5).masked, strict=True):
        order = sorted(range(POSITIONS), key=lambda position: (given[position], position))
        assert set(np.flatnonzero(masked) - 1) == set(order[:25])


def test_stacking_undoes_indexing() -> None:
    masks = token_masks(noise(5), 0.4)
    parts = [masks[:2], masks[2:2], masks[np.array([2, 3, 4])]]
    assert [len(part) for part in parts] == [2, 0, 3]
    back = Masks.stacked(parts)
    np.testing.assert_array_equal(back.keep, masks.keep)
    np.testing.assert_array_equal(back.masked, masks.masked)


@pytest.mark.parametrize(
    ("given", "rates", "message"),
    [
        (noise(2)[:, :48], 0.5, r"\(2, 48\)"),
        (noise(2)[0], 0.5, r"\(49,\)"),
        (noise(2), np.full(3, 0.5), r"\(3,\) mask shares for 2 rows"),
        (noise(2), 0.08, "at least 5 of 49"),
        (noise(2), 1.01, "1.01"),
        (noise(2), np.array([0.5, np.nan]), "nan"),
    ],
)
def test_noise_and_rates_that_do_not_fit_are_refused(given: np.ndarray, rates: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        token_masks(given, rates)  # type: ignore[arg-type]


# -- streams ------------------------------------------------------------------------------------------------


def test_a_stream_is_a_function_of_its_name() -> None:
    assert random(3, "mask", 1, 2).random() == random(3, "mask", 1, 2).random()
    # what a seed means does not change from version to version
    assert random(3, "mask", 1, 2).integers(0, 1 << 32, 3).tolist() == [3896769047, 2544134776, 3399499675]


def test_streams_differ_in_seed_purpose_and_numbers() -> None:
    names = [(0, "a"), (1, "a"), (0, "b"), (0, "a", 0), (0, "a", 0, 0), (0, "a", 0, 1), (0, "a", 1, 0), (1 << 32, "a")]
    assert len({random(*name).random() for name in names}) == len(names)


@pytest.mark.parametrize("name", [(-1, "a"), (1 << 128, "a"), (0, "a", -1), (0, "a", 1 << 32)])
def test_numbers_that_a_stream_cannot_have_are_refused(name: tuple[int, str]) -> None:
    with pytest.raises(UsageError, match="give"):
        random(*name)
