"""Where the samplers of the sigma family stand: timesteps, and noise per signal at and after them."""

from __future__ import annotations

from typing import NamedTuple, cast

import numpy as np

from ...errors import UsageError
from ..schedule import Floats, NoiseSchedule, Spacing, spaced
from .options import SamplerOptions


class Grid(NamedTuple):
    """Descending: timesteps (N,), sigmas (N + 1,)."""

    timesteps: Floats
    sigmas: Floats


def spacing_of(options: SamplerOptions) -> Spacing:
    """The spacing asked for; "auto" is the default of diffusers' class, as Stable Diffusion 1.4's file names none."""
    if options.spacing == "auto":
        return "leading" if options.scheduler in ("ddim", "plms") else "linspace"
    return cast(Spacing, options.spacing)


def euler_grid(options: SamplerOptions, schedule: NoiseSchedule) -> Grid:
    """Between training steps where they fall there; Karras' sigmas cover the range of the spacing."""
    timesteps = spaced(schedule, options.steps, spacing_of(options), options.steps_offset, fractional=True)
    sigmas = np.interp(timesteps, np.arange(schedule.steps), schedule.sigmas)
    if options.karras_sigmas:
        sigmas = karras(sigmas[0], sigmas[-1], options.steps)
        timesteps = timesteps_of(schedule, sigmas)
    return Grid(timesteps, _ended(sigmas, options, schedule))


def dpm_grid(options: SamplerOptions, schedule: NoiseSchedule) -> Grid:
    """On training steps, without the last of one more than asked; Karras' sigmas cover the whole schedule."""
    spacing, offset = spacing_of(options), options.steps_offset
    if options.steps >= schedule.steps:
        raise UsageError(
            f"{options.steps} steps of {options.scheduler} on a noise schedule of {schedule.steps}",
            remedy=f"give 1 to {schedule.steps - 1} steps",
        )
    if options.karras_sigmas:
        sigmas = karras(schedule.sigmas[-1], schedule.sigmas[0], options.steps)
        return Grid(timesteps_of(schedule, sigmas).round(), _ended(sigmas, options, schedule))
    if spacing == "trailing":
        timesteps = spaced(schedule, options.steps, spacing)
    else:
        timesteps = spaced(schedule, options.steps + 1, spacing, offset)[:-1]
    return Grid(timesteps, _ended(schedule.sigmas[timesteps.astype(int)], options, schedule))


def karras(highest: float, lowest: float, steps: int, rho: float = 7.0) -> Floats:
    """Descending sigmas, equally spaced in sigma^(1 / rho): EDM, arXiv 2206.00364, equation 5."""
    return np.linspace(highest ** (1 / rho), lowest ** (1 / rho), steps) ** rho


def timesteps_of(schedule: NoiseSchedule, sigmas: Floats) -> Floats:
    """Fractional timesteps of sigmas, on straight lines in log sigma."""
    return np.interp(np.log(sigmas), np.log(schedule.sigmas), np.arange(schedule.steps))


def _ended(sigmas: Floats, options: SamplerOptions, schedule: NoiseSchedule) -> Floats:
    return np.append(sigmas, 0.0 if options.final_sigma == "zero" else schedule.sigmas[0])
