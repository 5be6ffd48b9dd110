"""Ways of the sampling cases: schedules and whole trajectories of the SDK's samplers on the recorded stand-ins."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from facesdk.diffusion.samplers import SamplerOptions, fast_blocks, run, sampler, single_step_fast, walk
from facesdk.diffusion.schedule import NoiseSchedule

from .vec2face import Wrong, wrong

Network = Callable[[np.ndarray, float], np.ndarray]
_NUMBER = r"(-?\d+\.?\d*(?:e-?\d+)?)"
_SCHEDULERS = {
    "DDIM": "ddim", "EulerDiscrete": "euler", "EulerAncestralDiscrete": "euler-ancestral", "PNDM": "plms",
    "DPMSolverMultistep": "dpm++", "DPMSolverSinglestep": "dpm++-single", "LCM": "lcm",
}  # fmt: skip


def numbers(formula: str, template: str) -> list[float]:
    """The numbers of a recorded formula, which must read like the template with # in their place."""
    match = re.match(re.escape(template).replace(r"\#", _NUMBER), formula)
    assert match, f"the stand-in reads {formula!r}, not {template!r}"
    return [float(number) for number in match.groups()]


# -- face2diffusion ----------------------------------------------------------------------------------------


def scheduler(case: Any) -> Wrong:
    scalars = case.scalars
    schedule = NoiseSchedule(
        scalars["num_train_timesteps"], scalars["beta_start"], scalars["beta_end"], scalars["beta_schedule"]
    )
    offset = scalars.get("unused_pndm_values", {}).get("steps_offset", 0)

    def options(steps: int) -> SamplerOptions:
        return SamplerOptions(
            _SCHEDULERS[scalars["scheduler"]], steps, scalars["timestep_spacing"],
            prediction=scalars["prediction_type"], steps_offset=scalars.get("steps_offset", offset),
        )  # fmt: skip

    got = {"alphas_cumprod": schedule.alphas_cumprod}
    for steps in scalars["step_counts"]:
        made = sampler(options(steps), schedule)
        got |= {f"timesteps_{steps}": made.timesteps, f"init_sigma_{steps}": np.array(made.initial)}
        got[f"sigmas_{steps}"] = made.levels[:, 1] / made.levels[:, 0]
    sigmas = schedule.sigmas[case.inputs["add_t"]].reshape(-1, *[1] * (case.inputs["add_x"].ndim - 1))
    got["add_out"] = case.inputs["add_x"] + sigmas * case.inputs["add_noise"]
    return wrong(case, got | _trajectory(case, options(scalars["traj_steps"]), schedule))


def _trajectory(case: Any, options: SamplerOptions, schedule: NoiseSchedule) -> dict[str, np.ndarray]:
    outer, inner, shift = numbers(case.scalars["stand_in"], "eps = #*tanh(#*scaled + #)")
    seen: list[np.ndarray] = []

    def network(scaled: np.ndarray, timestep: float) -> np.ndarray:
        seen.append(scaled)
        return outer * np.tanh(inner * scaled + shift)

    assert case.scalars["traj_start"] == "traj[0]"
    start = case.arrays["traj"][0]
    latents, cleans = zip(*walk(sampler(options, schedule), network, start, case.inputs["noise"]), strict=True)
    return {"traj": np.stack([start, *latents]), "pred_x0": np.stack(cleans), "scaled": np.stack(seen)}


# -- dense_face --------------------------------------------------------------------------------------------


def schedule(case: Any) -> Wrong:
    scalars = case.scalars
    assert scalars["parameterization"] == "eps"
    noise = NoiseSchedule(scalars["timesteps"], scalars["linear_start"], scalars["linear_end"])
    names = ("betas", "alphas_cumprod", "lvlb_weights", "posterior_variance")
    got = {name: getattr(noise, name) for name in names}
    for asked, actual in zip(scalars["step_counts"], scalars["actual_steps"], strict=True):
        options = SamplerOptions("ddim", asked, "ldm", eta=scalars["eta"])
        made = sampler(options, noise)
        assert len(made) == actual
        got |= {
            f"t_{asked}": noise.ldm_timesteps(asked),
            f"alpha_{asked}": made.levels[:-1, 0][::-1] ** 2,
            f"alpha_prev_{asked}": made.levels[1:, 0][::-1] ** 2,
        }
        fresh = (name for name in case.facts["outputs"] if re.fullmatch(f"sigma_eta.*_{asked}", name))
        got |= dict.fromkeys(fresh, made.matrices[::-1, 0, -1])
    return wrong(case, got)


# -- feedface ----------------------------------------------------------------------------------------------


def solver(case: Any) -> Wrong:
    scalars, probe = case.scalars, case.inputs["probe_t"].astype(np.float64)
    assert scalars["skip_type"] == "time_uniform"
    noise = NoiseSchedule(scalars["timesteps"], scalars["linear_start"], scalars["linear_end"])
    got = {
        "betas_f64": noise.betas, "probe_log_alpha": noise.log_alpha(probe), "probe_sigma": noise.sigma(probe),
        "probe_lambda": noise.half_log_snr(probe), "probe_inverse": noise.inverse(noise.half_log_snr(probe)),
    }  # fmt: skip
    for steps in scalars["steps"]:
        made = single_step_fast(steps, scalars["order"], noise, t_start=scalars["t_start"], t_end=scalars["t_end"])
        states, exact = (run(made, _analytic(case, dtype), case.inputs["x"].astype(dtype)) for dtype in "fd")
        got |= {
            f"s{steps}.result": states[-1], f"s{steps}.result_f64": exact[-1], f"s{steps}.nfe_t": made.timesteps,
            f"s{steps}.orders": np.array(fast_blocks(steps, scalars["order"])),
            f"s{steps}.x_at_nfe": states[:-1][:: scalars["x_at_nfe_stride"][str(steps)]],
        }  # fmt: skip
    return wrong(case, got)


def _analytic(case: Any, dtype: str) -> Network:
    linear, per, nonlinear, wave, period = numbers(case.scalars["eps"], "# x t / # + # tanh(x @ M) + # cos(t / #)")
    matrix = case.inputs["M"].astype(dtype)
    return lambda x, t: linear * x * t / per + nonlinear * np.tanh(x @ matrix) + wave * np.cos(t / period)


FACE2DIFFUSION = {"scheduler": {"sdk": scheduler}}
DENSE_FACE = {"schedule": {"sdk": schedule}}
FEEDFACE = {"solver": {"sdk": solver}}
