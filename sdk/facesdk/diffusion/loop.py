"""The denoising loop: the step engine scanned over a sampler's rows, all on the device."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ..engine import StepCallback
from .conditioning import Conditioning, cuts
from .networks import DiffusionNetworks
from .samplers import Sampler

Floats = npt.NDArray[np.float32]
#: called with the steps done, the latents (n, 4, h, w) and the clean latents that the last step predicts
OnLatents = Callable[[int, Floats, Floats], None]


@dataclasses.dataclass(frozen=True, eq=False)
class Blend:
    """What inpainting puts back before each step.

    known  (n, 4, h, w) clean latents.   mask  (1, h, w) or (n, 1, h, w), 1 where the network draws.
    noise  (steps, n, 4, h, w) that goes with them, or one row for all steps.
    """

    known: Floats
    mask: Floats
    noise: Floats


def denoise(
    networks: DiffusionNetworks,
    sampler: Sampler,
    conditioning: Conditioning,
    start: Floats,
    noise: Floats | None = None,
    blend: Blend | None = None,
    *,
    times: Floats | None = None,
    on_step: StepCallback = lambda step, steps: None,
    on_latents: OnLatents | None = None,
    every: int = 0,
) -> Floats:
    """(n, 4, h, w) latents after all of the sampler's steps.

    start       (n, 4, h, w) at the level of the first step.   noise  (steps, n, 4, h, w) unit normal; None: zeros.
    times       the networks' time_rows of the sampler, where they were computed before.
    on_step     see Engine.scan.   on_latents  after every `every` steps and after the last.
    """
    steps, watched = len(sampler.timesteps), on_latents is not None and every > 0
    matrices = _with_clean(sampler) if watched else sampler.matrices
    times = networks.time_rows(sampler.timesteps) if times is None else times
    series = _series(sampler, times, matrices, noise, blend)
    constants = {"weights": conditioning.weights, **_constants(start, noise, blend)}
    bank = np.zeros((len(start), matrices.shape[1], *start.shape[1:]), np.float32)
    bank[:, 0] = start
    with networks.stage("step"):
        for first, end in cuts(conditioning, steps, every if watched else 0):
            rows = {name: values[first:end] for name, values in series.items()}
            done = _counted(on_step, first, steps)
            given = {**constants, **conditioning.at(first)}
            bank = networks.scan({"bank": bank}, rows, given, done)["bank"]
            if on_latents is not None and watched:
                on_latents(end, bank[:, 0], bank[:, -1])
    return np.ascontiguousarray(bank[:, 0])


def _counted(on_step: StepCallback, first: int, steps: int) -> StepCallback:
    return lambda step, _: on_step(first + step, steps)


def _with_clean(sampler: Sampler) -> npt.NDArray[np.float64]:
    """The matrices with one more row in the bank: the clean latent that each step predicts, which none reads."""
    count, rows, columns = sampler.matrices.shape
    wide = np.zeros((count, rows + 1, columns + 1))
    old = [*range(rows), rows + 1, rows + 2]
    wide[:, :rows, old] = sampler.matrices
    wide[:, rows, old] = sampler.clean
    return wide


def _series(
    sampler: Sampler,
    times: Floats,
    matrices: npt.NDArray[np.float64],
    noise: Floats | None,
    blend: Blend | None,
) -> dict[str, Any]:
    """Inputs of the step that differ from step to step."""
    series = {
        "scale": sampler.scales[:, None].astype(np.float32),
        "time": times,
        "matrix": matrices.astype(np.float32),
    }
    if noise is not None:
        series["noise"] = noise
    if blend is not None:
        series["level"] = sampler.levels[:-1].astype(np.float32)
        if len(blend.noise) > 1:
            series["blend_noise"] = blend.noise
    return series


def _constants(start: Floats, noise: Floats | None, blend: Blend | None) -> dict[str, Any]:
    """Inputs of the step that stay, but for the conditions."""
    none = np.zeros_like(start)
    mask = np.ones((len(start), 1, *start.shape[2:]), np.float32)
    constants = {} if noise is not None else {"noise": none}
    if blend is None:
        return {**constants, "known": none, "blend_noise": none, "mask": mask, "level": np.zeros(2, np.float32)}
    constants |= {"known": blend.known, "mask": mask * blend.mask}
    return constants if len(blend.noise) > 1 else {**constants, "blend_noise": blend.noise[0]}
