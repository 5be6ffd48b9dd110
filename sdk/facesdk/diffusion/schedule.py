"""The noise schedule a network was trained with, in steps and in continuous time, and the timesteps taken of it."""

from __future__ import annotations

import dataclasses
import math
import operator
from functools import cached_property
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from ..errors import UsageError, one_of

Floats = npt.NDArray[np.float64]
Spacing = Literal["leading", "linspace", "trailing"]
Curve = Literal["scaled_linear", "linear"]


class Level(NamedTuple):
    """A noise level: latent = signal * clean latent + noise * N(0, 1)."""

    signal: float
    noise: float

    @property
    def sigma(self) -> float:
        """Noise per signal."""
        return self.noise / self.signal

    @property
    def half_log_snr(self) -> float:
        """Lambda of the DPM-Solver papers; infinite without noise."""
        return math.log(self.signal / self.noise) if self.noise else math.inf


#: a latent without noise
CLEAN = Level(1.0, 0.0)


@dataclasses.dataclass(frozen=True)
class NoiseSchedule:
    """Variance-preserving noise in `steps` training steps, all float64.  Defaults: Stable Diffusion 1.x."""

    steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    kind: Curve = "scaled_linear"

    def __post_init__(self) -> None:
        if self.kind not in get_args(Curve):
            raise one_of("the kind of noise schedule", self.kind, get_args(Curve))
        check_whole("the number of training steps", self.steps, 2)
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise UsageError(
                f"the betas go from {self.beta_start} to {self.beta_end}",
                remedy="give 0 < beta_start <= beta_end < 1, as in training",
            )

    @cached_property
    def betas(self) -> Floats:
        """Variance added by each step, (steps,)."""
        if self.kind == "linear":
            return np.linspace(self.beta_start, self.beta_end, self.steps)
        roots = np.linspace(math.sqrt(self.beta_start), math.sqrt(self.beta_end), self.steps)
        return np.asarray(roots**2, np.float64)

    @cached_property
    def alphas_cumprod(self) -> Floats:
        """Share of the clean latent's variance left after each step, (steps,)."""
        return np.asarray(np.cumprod(1 - self.betas), np.float64)

    @cached_property
    def sigmas(self) -> Floats:
        """Noise per signal after each step, (steps,), ascending."""
        return np.sqrt((1 - self.alphas_cumprod) / self.alphas_cumprod)

    def level(self, timestep: float) -> Level:
        """The level after a whole training step, 0 .. steps - 1."""
        kept = float(self.alphas_cumprod[int(timestep)])
        return Level(math.sqrt(kept), math.sqrt(1 - kept))

    # -- continuous time, 0 < t <= 1: step n of training is at t = (n + 1) / steps (DPM-Solver, arXiv 2206.00927) --

    def log_alpha(self, t: npt.ArrayLike) -> Floats:
        """Logarithm of the signal: straight lines between the training steps, the outer ones prolonged."""
        return _along_lines(t, *self._nodes)

    def sigma(self, t: npt.ArrayLike) -> Floats:
        """The noise beside that signal, sqrt(1 - alpha^2)."""
        return np.asarray(np.sqrt(-np.expm1(2 * self.log_alpha(t))))

    def half_log_snr(self, t: npt.ArrayLike) -> Floats:
        """Lambda, log(alpha / sigma), which falls as t grows."""
        return np.asarray(self.log_alpha(t) - np.log(self.sigma(t)))

    def inverse(self, half_log_snr: npt.ArrayLike) -> Floats:
        """The time t of a lambda."""
        times, values = self._nodes
        log_alpha = -np.logaddexp(0, -2 * np.asarray(half_log_snr, np.float64)) / 2
        return _along_lines(log_alpha, values[::-1], times[::-1])

    @cached_property
    def _nodes(self) -> tuple[Floats, Floats]:
        return np.arange(1, self.steps + 1) / self.steps, np.cumsum(np.log(1 - self.betas)) / 2

    # -- what training and sampling in the latent diffusion repository take of it (ldm/models/diffusion) --

    @property
    def posterior_variance(self) -> Floats:
        """Variance of a step backwards where the clean latent is known, (steps,); 0 at the first."""
        before = np.concatenate([[1.0], self.alphas_cumprod[:-1]])
        return np.asarray(self.betas * (1 - before) / (1 - self.alphas_cumprod))

    @property
    def lvlb_weights(self) -> Floats:
        """Weight of each step's noise error in the variational bound, (steps,); the first is given the second's."""
        betas, variance = self.betas[1:], self.posterior_variance[1:]
        weights = betas**2 / (2 * variance * (1 - betas) * (1 - self.alphas_cumprod[1:]))
        return np.concatenate([weights[:1], weights])

    def ldm_timesteps(self, n: int) -> npt.NDArray[np.int64]:
        """Ascending DDIM timesteps for n steps; where n does not divide the schedule there are more than n."""
        _check_steps(n, self.steps)
        timesteps = np.arange(0, self.steps, self.steps // n) + 1
        _check_range(timesteps, n, self.steps)
        return timesteps.astype(np.int64)


def spaced(
    schedule: NoiseSchedule, steps: int, spacing: Spacing, offset: int = 0, *, fractional: bool = False
) -> Floats:
    """`steps` descending timesteps, as diffusers' schedulers space them; table 2 of arXiv 2305.08891 names the three.

    offset  added to "leading" ones (`steps_offset`).   fractional  leaves "linspace" ones unrounded.
    Raises UsageError where the schedule has not that many.
    """
    total = schedule.steps
    _check_steps(steps, total)
    if spacing == "leading":
        timesteps = np.arange(steps)[::-1] * (total // steps) + float(offset)
    elif spacing == "linspace":
        timesteps = np.linspace(0, total - 1, steps)[::-1]
        timesteps = timesteps if fractional else timesteps.round()
    elif spacing == "trailing":
        # rounding makes arange end one late for some counts, on a timestep of -1
        timesteps = np.arange(total, 0, -total / steps)[:steps].round() - 1
    else:
        raise one_of("the spacing", spacing, ("leading", "linspace", "trailing"))
    found = np.asarray(timesteps, np.float64)
    _check_range(found, steps, total)
    return found


def check_whole(name: str, value: object, least: int) -> None:
    """Raises UsageError unless the value is a whole number, `least` or more."""
    try:
        whole = not isinstance(value, bool) and operator.index(value) >= least  # type: ignore[arg-type]
    except TypeError:
        whole = False
    if not whole:
        raise UsageError(f"{name} is {value!r}", remedy=f"give a whole number, {least} or more")


def _check_steps(steps: int, total: int) -> None:
    check_whole("steps", steps, 1)
    if steps > total:
        raise UsageError(f"{steps} steps of a noise schedule of {total}", remedy=f"give 1 to {total} steps")


def _check_range(timesteps: npt.NDArray[np.int64] | Floats, steps: int, total: int) -> None:
    if not 0 <= timesteps.min() <= timesteps.max() < total:
        raise UsageError(
            f"{steps} steps spaced this way reach timestep {timesteps.max():g} of a noise schedule of {total}",
            cause=f"the network was trained on 0 to {total - 1}",
            remedy="give another number of steps, spacing, or offset",
        )


def _along_lines(x: npt.ArrayLike, xs: Floats, ys: Floats) -> Floats:
    """Linear interpolation between ascending nodes, going on straight beyond the outer ones."""
    x = np.asarray(x, np.float64)
    right = np.clip(np.searchsorted(xs, x), 1, len(xs) - 1)
    slope = (ys[right] - ys[right - 1]) / (xs[right] - xs[right - 1])
    return np.asarray(ys[right - 1] + slope * (x - xs[right - 1]))
