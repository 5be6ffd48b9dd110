"""`sampler`: options to matrices."""

from __future__ import annotations

from collections.abc import Callable

from ...errors import UsageError
from ..schedule import NoiseSchedule
from .dpm import multistep, single_step
from .first_order import ddim, euler, lcm
from .matrices import Sampler
from .options import SamplerOptions, SchedulerName
from .plms import plms

_FAMILIES: dict[SchedulerName, Callable[[SamplerOptions, NoiseSchedule], Sampler]] = {
    "ddim": ddim,
    "euler": euler,
    "euler-ancestral": euler,
    "dpm++": multistep,
    "dpm++-single": single_step,
    "plms": plms,
    "lcm": lcm,
}


def sampler(options: SamplerOptions = SamplerOptions(), schedule: NoiseSchedule = NoiseSchedule()) -> Sampler:
    """The scheduler as matrices, equal to diffusers' of the same name and settings.

    Raises UsageError where the noise schedule has not that many steps, or none is left from `begin` on.
    """
    evaluations = options.steps + (options.scheduler == "plms" and options.steps > 1)
    if options.spacing == "ldm":
        evaluations = len(schedule.ldm_timesteps(options.steps))
    if options.begin >= evaluations:
        raise UsageError(
            f"begin is {options.begin} of {evaluations} network evaluations",
            remedy=f"give 0 to {evaluations - 1}, or more steps",
        )
    return _FAMILIES[options.scheduler](options, schedule)
