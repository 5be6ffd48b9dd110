"""DDIM, Euler, Euler ancestral and LCM: samplers that remember nothing.

The first three are one step, x' = signal' * clean + kept noise' * eps + fresh noise: DDIM writes it for latents of
variance 1, Euler for latents of signal 1, and the ancestral one has eta 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np

from ...errors import UsageError
from ..schedule import CLEAN, Level, NoiseSchedule, spaced
from .grids import euler_grid, spacing_of
from .matrices import Sampler, Step, assembled, columns, predicted_clean
from .options import SamplerOptions

#: timestep, level before the step, level after it
Transition = tuple[float, Level, Level]


def ddim(options: SamplerOptions, schedule: NoiseSchedule) -> Sampler:
    """DDIM, arXiv 2010.02502, equations 12 and 16."""
    final = CLEAN if options.set_alpha_to_one else schedule.level(0)
    if options.spacing == "ldm":
        timesteps = schedule.ldm_timesteps(options.steps)[::-1].astype(float)
        after = [*map(schedule.level, timesteps[1:]), final]
    else:
        timesteps = spaced(schedule, options.steps, spacing_of(options), options.steps_offset)
        # diffusers always steps by this much, also where the spacing is wider
        stride = schedule.steps // options.steps
        after = [schedule.level(t - stride) if t >= stride else final for t in timesteps]
    transitions = list(zip(timesteps, map(schedule.level, timesteps), after, strict=True))[options.begin :]
    return assembled(_steps(options, options.eta, transitions))


def euler(options: SamplerOptions, schedule: NoiseSchedule) -> Sampler:
    """Euler's method, deterministic or ancestral: EDM, arXiv 2206.00364, and k-diffusion's `sample_euler_ancestral`."""
    grid = euler_grid(options, schedule)
    levels = [Level(1.0, sigma) for sigma in grid.sigmas.tolist()]
    transitions = list(zip(grid.timesteps, levels, levels[1:], strict=False))[options.begin :]
    highest = max(grid.sigmas.tolist())
    initial = math.hypot(highest, 1) if spacing_of(options) == "leading" else highest
    eta = float(options.scheduler == "euler-ancestral")
    return assembled(_steps(options, eta, transitions), initial=initial, scaled=True)


def _steps(options: SamplerOptions, eta: float, transitions: Iterable[Transition]) -> Iterator[Step]:
    latent, _, output, noise = columns(0)
    for timestep, before, after in transitions:
        clean = predicted_clean(options.prediction, latent, output, before)
        eps = (latent - before.signal * clean) / before.noise
        lost = max(0.0, 1 - (after.sigma / before.sigma) ** 2)
        kept, fresh = math.sqrt(1 - eta**2 * lost), eta * math.sqrt(lost)
        step = after.signal * clean + after.noise * (kept * eps + fresh * noise)
        yield Step(timestep, before, after, clean, (step,))


def lcm(options: SamplerOptions, schedule: NoiseSchedule) -> Sampler:
    """Latent consistency models, arXiv 2310.04378, in several steps: to the clean latent, and fresh noise upon it."""
    timesteps = lcm_timesteps(schedule, options.steps, options.original_steps)[options.begin :]
    return assembled(_consistency_steps(options, schedule, timesteps))


def lcm_timesteps(schedule: NoiseSchedule, steps: int, original_steps: int) -> list[int]:
    """Descending, of the `original_steps` timesteps that the network was distilled on."""
    if not steps <= original_steps <= schedule.steps:
        raise UsageError(
            f"{steps} steps of lcm, distilled on {original_steps} of {schedule.steps}",
            remedy=f"give 1 to {min(original_steps, schedule.steps)} steps",
        )
    distilled = np.arange(original_steps, 0, -1) * (schedule.steps // original_steps) - 1
    places = np.floor(np.linspace(0, original_steps, steps, endpoint=False)).astype(int)
    return [int(timestep) for timestep in distilled[places]]


def _consistency_steps(options: SamplerOptions, schedule: NoiseSchedule, timesteps: list[int]) -> Iterator[Step]:
    latent, _, output, noise = columns(0)
    for timestep, following in zip(timesteps, [*timesteps[1:], None], strict=True):
        before = schedule.level(timestep)
        after = CLEAN if following is None else schedule.level(following)
        clean = predicted_clean(options.prediction, latent, output, before)
        # c_skip and c_out at diffusers' sigma_data 0.5 and timestep_scaling 10
        skip, out = 0.5 / math.hypot(10 * timestep, 0.5), 10 * timestep / math.hypot(10 * timestep, 0.5)
        clean = skip**2 * latent + out * clean
        yield Step(timestep, before, after, clean, (after.signal * clean + after.noise * noise,))
