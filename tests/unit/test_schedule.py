"""The noise schedule in steps and in continuous time, and timesteps spaced on it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from facesdk.diffusion.schedule import CLEAN, NoiseSchedule, spaced
from facesdk.errors import UsageError

SCHEDULES = [NoiseSchedule(), NoiseSchedule(100, 0.001, 0.2), NoiseSchedule(500, 1e-4, 0.02, "linear")]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_betas_go_from_end_to_end_and_use_up_the_signal(schedule: NoiseSchedule) -> None:
    assert schedule.betas[[0, -1]] == pytest.approx([schedule.beta_start, schedule.beta_end])
    assert schedule.alphas_cumprod[1] == pytest.approx((1 - schedule.betas[0]) * (1 - schedule.betas[1]))
    assert (np.diff(schedule.sigmas) > 0).all()
    for timestep in (0, schedule.steps - 1):
        signal, noise = level = schedule.level(timestep)
        assert signal**2 + noise**2 == pytest.approx(1)
        assert level.sigma == pytest.approx(schedule.sigmas[timestep])
    assert CLEAN.sigma == 0
    assert CLEAN.half_log_snr == math.inf


def test_the_kinds_differ_in_what_is_linear() -> None:
    for kind, roots in (("linear", 1), ("scaled_linear", 2)):
        betas = NoiseSchedule(50, 0.01, 0.09, kind).betas
        np.testing.assert_allclose(np.diff(betas ** (1 / roots), 2), 0, atol=1e-15)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_continuous_time_meets_every_training_step(schedule: NoiseSchedule) -> None:
    times = (np.arange(schedule.steps) + 1) / schedule.steps
    kept = np.sqrt(schedule.alphas_cumprod)
    np.testing.assert_allclose(np.exp(schedule.log_alpha(times)), kept, rtol=1e-12)
    np.testing.assert_allclose(schedule.sigma(times), np.sqrt(1 - kept**2), rtol=1e-9)
    np.testing.assert_allclose(schedule.half_log_snr(times), -np.log(schedule.sigmas), rtol=1e-9, atol=1e-9)
    between = np.random.default_rng(0).uniform(0.5 / schedule.steps, 1, 50)
    np.testing.assert_allclose(schedule.inverse(schedule.half_log_snr(between)), between, rtol=1e-9)


def test_log_alpha_goes_straight_between_and_beyond_the_training_steps() -> None:
    schedule = NoiseSchedule(10, 0.01, 0.2)
    first, second = schedule.log_alpha([0.1, 0.2])
    assert schedule.log_alpha(0.15) == pytest.approx((first + second) / 2)
    assert schedule.log_alpha(0.05) == pytest.approx(first - (second - first) / 2)


def test_the_posterior_is_that_of_two_gaussians() -> None:
    """Variance of the step before, given the step after and the clean latent: precisions add up."""
    schedule = NoiseSchedule()
    betas, before = schedule.betas[1:], schedule.alphas_cumprod[:-1]
    precision = (1 - betas) / betas + 1 / (1 - before)
    np.testing.assert_allclose(schedule.posterior_variance[1:], 1 / precision, rtol=1e-10)
    assert schedule.posterior_variance[0] == 0
    weights = schedule.lvlb_weights
    assert weights[0] == weights[1]
    half_precision = betas**2 / (2 / precision)
    np.testing.assert_allclose(
        weights[1:], half_precision / ((1 - betas) * (1 - schedule.alphas_cumprod[1:])), rtol=1e-9
    )


def test_the_three_spacings() -> None:
    schedule = NoiseSchedule()
    assert spaced(schedule, 4, "leading", 1).tolist() == [751, 501, 251, 1]
    assert spaced(schedule, 4, "trailing").tolist() == [999, 749, 499, 249]
    assert spaced(schedule, 4, "linspace").tolist() == [999, 666, 333, 0]
    assert spaced(schedule, 3, "linspace", fractional=True).tolist() == [999, 499.5, 0]
    assert spaced(schedule, 1, "trailing").tolist() == [999]


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_every_number_of_steps_gives_as_many_descending_timesteps(spacing: str) -> None:
    schedule = NoiseSchedule()
    for steps in range(1, 1001):
        timesteps = spaced(schedule, steps, spacing)
        assert len(timesteps) == steps
        assert (np.diff(timesteps) < 0).all()
        assert 0 <= timesteps[-1] <= timesteps[0] < 1000
        assert (timesteps % 1 == 0).all()


def test_ldm_timesteps_may_be_more_than_asked_for() -> None:
    schedule = NoiseSchedule()
    assert schedule.ldm_timesteps(4).tolist() == [1, 251, 501, 751]
    assert len(schedule.ldm_timesteps(30)) == 31
    with pytest.raises(UsageError, match="reach timestep 1000"):
        schedule.ldm_timesteps(3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 1}, {"steps": 10.5}, {"beta_start": 0.0}, {"beta_start": 0.02}, {"beta_end": 1.0},
        {"beta_end": math.nan}, {"kind": "cosine"},
    ],
)  # fmt: skip
def test_schedules_that_no_network_was_trained_with_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="remedy"):
        NoiseSchedule(**wrong)


@pytest.mark.parametrize(
    "arguments", [(0, "leading"), (1001, "trailing"), (10, "log"), (1000, "leading", 1), (2.5, "leading")]
)
def test_spacings_that_do_not_fit_are_refused(arguments: tuple[object, ...]) -> None:
    with pytest.raises(UsageError, match="remedy"):
        spaced(NoiseSchedule(), *arguments)
