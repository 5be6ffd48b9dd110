"""Which sampler is asked for: names and knobs of diffusers' schedulers, defaults of Stable Diffusion 1.4's."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, get_args

from ...errors import UsageError, one_of
from ..schedule import check_whole

SchedulerName = Literal["ddim", "euler", "euler-ancestral", "dpm++", "dpm++-single", "plms", "lcm"]
SpacingName = Literal["auto", "leading", "linspace", "trailing", "ldm"]
Prediction = Literal["epsilon", "v_prediction", "sample"]
SolverType = Literal["midpoint", "heun"]
FinalSigma = Literal["zero", "sigma_min"]

_DPM = ("dpm++", "dpm++-single")
_THREE = ("auto", "leading", "linspace", "trailing")
_SPACINGS: dict[str, tuple[str, ...]] = {
    "ddim": (*_THREE, "ldm"), "euler": _THREE, "euler-ancestral": _THREE, "dpm++": _THREE,
    "dpm++-single": ("auto", "linspace"), "plms": _THREE, "lcm": ("auto",),
}  # fmt: skip
_PREDICTIONS = {"plms": ("epsilon", "v_prediction")}
#: knob -> schedulers that have it; on the others only the default is accepted
_KNOBS = {
    "eta": ("ddim",),
    "order": _DPM,
    "solver_type": _DPM,
    "lower_order_final": _DPM,
    "karras_sigmas": ("euler", *_DPM),
    "final_sigma": ("euler", *_DPM),
    "set_alpha_to_one": ("ddim", "plms"),
    "original_steps": ("lcm",),
}


@dataclasses.dataclass(frozen=True)
class SamplerOptions:
    """A scheduler and its knobs, checked.  Defaults are what diffusers makes of Stable Diffusion 1.4's scheduler file.

    spacing    "auto": "leading" for ddim and plms, "linspace" for the rest, lcm's own; "ldm": `ldm_timesteps`.
    eta        ddim: 0 deterministic, 1 as much fresh noise as DDPM.     order  dpm++: 1 to 3.
    begin      first of the timesteps that is run (image to image); what multistep solvers remember starts empty there.
    The others are diffusers' settings; final_sigma, karras_sigmas and original_steps are its final_sigmas_type,
    use_karras_sigmas and original_inference_steps.
    """

    scheduler: SchedulerName = "euler-ancestral"
    steps: int = 30
    spacing: SpacingName = "auto"
    eta: float = 0.0
    order: int = 2
    prediction: Prediction = "epsilon"
    begin: int = 0
    steps_offset: int = 1
    set_alpha_to_one: bool = False
    solver_type: SolverType = "midpoint"
    lower_order_final: bool = True
    final_sigma: FinalSigma = "zero"
    karras_sigmas: bool = False
    original_steps: int = 50

    def __post_init__(self) -> None:
        if self.scheduler not in get_args(SchedulerName):
            raise one_of("the scheduler", self.scheduler, get_args(SchedulerName))
        self._check_choices()
        self._check_numbers()
        self._check_knobs()

    def _check_choices(self) -> None:
        choices = {
            "spacing": _SPACINGS[self.scheduler],
            "prediction": _PREDICTIONS.get(self.scheduler, get_args(Prediction)),
            "solver_type": get_args(SolverType),
            "final_sigma": get_args(FinalSigma),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise one_of(f"{name} of {self.scheduler}", getattr(self, name), allowed)

    def _check_numbers(self) -> None:
        for name, least in (("steps", 1), ("order", 1), ("begin", 0), ("steps_offset", 0), ("original_steps", 1)):
            check_whole(name, getattr(self, name), least)
        if self.order > 3:
            raise UsageError(f"order is {self.order}", remedy="give 1, 2 or 3")
        if not (math.isfinite(self.eta) and 0 <= self.eta <= 1):
            raise UsageError(f"eta is {self.eta}", remedy="give 0 (no fresh noise) to 1 (as much as DDPM)")

    def _check_knobs(self) -> None:
        for field in dataclasses.fields(self):
            holders = _KNOBS.get(field.name, (self.scheduler,))
            if self.scheduler not in holders and getattr(self, field.name) != field.default:
                raise UsageError(
                    f"{field.name} is {getattr(self, field.name)!r}, which {self.scheduler} does not know",
                    remedy=f"leave it out, or choose the scheduler {' or '.join(holders)}",
                )
