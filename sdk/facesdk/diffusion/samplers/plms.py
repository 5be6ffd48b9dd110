"""PLMS: DDIM's transfer with a noise prediction extrapolated from the last four, PNDM arXiv 2202.09778."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ..schedule import CLEAN, Floats, Level, NoiseSchedule, spaced
from .grids import spacing_of
from .matrices import Sampler, Step, assembled, columns
from .options import SamplerOptions

#: weights of the newest outputs, newest first, by how many there are (Adams-Bashforth)
_WEIGHTS = {1: (1.0,), 2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12), 4: (55 / 24, -59 / 24, 37 / 24, -9 / 24)}


def plms(options: SamplerOptions, schedule: NoiseSchedule) -> Sampler:
    """PLMS without Runge-Kutta steps (`skip_prk_steps`); one evaluation more than steps, the second timestep twice.

    `begin` cuts the list of evaluations, as diffusers' image-to-image does; the second of those left still repeats
    the first, so that for begin > 0 the network is told timesteps that are one step off the latent's.
    """
    timesteps = spaced(schedule, options.steps, spacing_of(options), options.steps_offset)
    timesteps = np.concatenate([timesteps[:2], timesteps[1:]])[options.begin :]
    final = CLEAN if options.set_alpha_to_one else schedule.level(0)
    stride = schedule.steps // options.steps

    def level(timestep: float) -> Level:
        return schedule.level(timestep) if timestep >= 0 else final

    return assembled(_steps(options, timesteps, stride, level))


def _steps(options: SamplerOptions, timesteps: Floats, stride: int, level: Callable[[float], Level]) -> Iterator[Step]:
    latent, (start, *past), output, _ = columns(4)
    for count, timestep in enumerate(timesteps):
        if count == 1:
            # the first step once more, with the mean of the outputs at both of its ends
            source, before, after = start, level(timestep + stride), level(timestep)
            combined, memory = (output + past[0]) / 2, (start, *past)
        else:
            source, before, after = latent, level(timestep), level(timestep - stride)
            outputs, weights = (output, *past), _WEIGHTS[min(max(count, 1), 4)]
            combined = np.tensordot(weights, outputs[: len(weights)], 1)
            memory = (latent, output, *past[:2])
        eps = combined if options.prediction == "epsilon" else before.signal * combined + before.noise * source
        clean = (source - before.noise * eps) / before.signal
        step = after.signal * clean + after.noise * eps
        yield Step(timestep, level(timestep), after, clean, (step, *memory))
