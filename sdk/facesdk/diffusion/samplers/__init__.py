"""Samplers as matrices: every scheduler as numbers computed before the loop, so that one step engine serves all."""

from .build import sampler
from .dpm import fast_blocks, single_step_fast
from .matrices import Sampler, run, walk
from .options import Prediction, SamplerOptions, SchedulerName

__all__ = [
    "Prediction",
    "Sampler",
    "SamplerOptions",
    "SchedulerName",
    "fast_blocks",
    "run",
    "sampler",
    "single_step_fast",
    "walk",
]
