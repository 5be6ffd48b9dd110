"""DPM-Solver++ (arXiv 2211.01095): multistep, single-step as diffusers runs it, and its authors' "fast" single-step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from ...errors import UsageError, one_of
from ..schedule import Floats, Level, NoiseSchedule, check_whole
from .grids import dpm_grid
from .matrices import Sampler, Step, assembled, columns, predicted_clean
from .options import Prediction, SamplerOptions, SolverType

#: below this many steps diffusers takes the last ones at lower order
_FEW = 15
#: a level, and the clean latent predicted there
Node = tuple[Level, Floats]


def multistep(options: SamplerOptions, schedule: NoiseSchedule) -> Sampler:
    """Orders 1 to 3, from the clean latents that the last steps predicted."""
    grid = dpm_grid(options, schedule)
    levels = _levels(grid.sigmas)
    return assembled(_multisteps(options, grid.timesteps, levels))


def _levels(sigmas: Floats) -> list[Level]:
    return [Level(1 / math.hypot(1, sigma), sigma / math.hypot(1, sigma)) for sigma in sigmas.tolist()]


def _multisteps(options: SamplerOptions, timesteps: Floats, levels: Sequence[Level]) -> Iterator[Step]:
    latent, past, output, _ = columns(options.order - 1)
    for i in range(options.begin, len(timesteps)):
        clean = predicted_clean(options.prediction, latent, output, levels[i])
        order = min(options.order, i - options.begin + 1, _order_limit(options, len(timesteps) - i, len(timesteps)))
        nodes = list(zip(levels[i::-1], (clean, *past), strict=False))[:order]
        solver = "multistep" if order == 3 else options.solver_type
        step = integrated(latent, nodes, levels[i + 1], solver)
        yield Step(timesteps[i], levels[i], levels[i + 1], clean, (step, clean, *past)[: options.order])


def _order_limit(options: SamplerOptions, left: int, steps: int) -> int:
    lowered = options.lower_order_final and steps < _FEW
    if left == 1 and (lowered or options.final_sigma == "zero"):
        return 1
    return 2 if left == 2 and lowered else 3


def single_step(options: SamplerOptions, schedule: NoiseSchedule) -> Sampler:
    """Blocks of up to `order` evaluations, each of which starts again from the latent at the block's start."""
    grid = dpm_grid(options, schedule)
    levels = _levels(grid.sigmas)
    orders = [(order, options.solver_type) for order in _orders(options)]
    steps = _single_steps(options.prediction, grid.timesteps, levels, orders, options.order, options.begin)
    return assembled(steps)


def _orders(options: SamplerOptions) -> list[int]:
    """The order of every step; a last sigma of 0 admits no more than 1."""
    to_zero, uneven = options.final_sigma == "zero", options.steps % options.order != 0
    if not (options.lower_order_final or to_zero or uneven):
        return [*range(1, options.order + 1)] * (options.steps // options.order)
    orders = [order for block in fast_blocks(options.steps, options.order) for order in range(1, block + 1)]
    return [*orders[:-1], 1] if to_zero or options.order == 2 else orders


def single_step_fast(
    steps: int,
    order: int = 3,
    schedule: NoiseSchedule = NoiseSchedule(),
    *,
    t_start: float = 1.0,
    t_end: float = 0.001,
    prediction: Prediction = "epsilon",
) -> Sampler:
    """The authors' `singlestep_fast` on `steps` equal parts of continuous time: FeedFace's solver.

    The intermediate times of a block are those of the grid; its second latent is of the exact (here "heun") form.
    """
    check_whole("steps", steps, 1)
    if order not in (1, 2, 3):
        raise one_of("order", order, ("1", "2", "3"))
    if not 0 < t_end < t_start <= 1 or schedule.log_alpha(t_end) >= 0:
        raise UsageError(
            f"time goes from {t_start} to {t_end}", remedy=f"give 1 or less, down to {1 / schedule.steps:g} or more"
        )
    times = np.linspace(t_start, t_end, steps + 1)
    levels = [Level(math.exp(schedule.log_alpha(t)), float(schedule.sigma(t))) for t in times]
    orders: list[tuple[int, SolverType]] = [
        (place, "heun" if (place, block) == (2, 3) else "midpoint")
        for block in fast_blocks(steps, order)
        for place in range(1, block + 1)
    ]
    return assembled(_single_steps(prediction, schedule.steps * times[:-1], levels, orders, order))


def fast_blocks(steps: int, order: int) -> list[int]:
    """Orders of the blocks that use exactly `steps` evaluations and end low; a block of order n evaluates n times."""
    if order == 3 and steps % 3 == 0:
        return [3] * (steps // 3 - 1) + [2, 1]
    return [order] * (steps // order) + [steps % order] * (steps % order > 0)


def _single_steps(
    prediction: Prediction,
    timesteps: Floats,
    levels: Sequence[Level],
    orders: Sequence[tuple[int, SolverType]],
    highest: int,
    begin: int = 0,
) -> Iterator[Step]:
    latent, (start, *past), output, _ = columns(highest)
    for i in range(begin, len(timesteps)):
        order, solver = min(orders[i][0], i - begin + 1), orders[i][1]
        clean = predicted_clean(prediction, latent, output, levels[i])
        source = latent if order == 1 else start
        nodes = list(zip(levels[i::-1], (clean, *past), strict=False))[:order][::-1]
        step = integrated(source, nodes, levels[i + 1], solver)
        yield Step(timesteps[i], levels[i], levels[i + 1], clean, (step, source, clean, *past)[: highest + 1])


def integrated(source: Floats, nodes: Sequence[Node], end: Level, solver: str) -> Floats:
    """The latent at `end`, from `source` at the level of nodes[0]; the clean latent is a polynomial in lambda.

    nodes   the source's own first; the other one or two anywhere, with three the newest (single-step) last.
    solver  "heun": exact integral; "midpoint": the authors' shorter forms; "multistep": third order with the half of
            the second derivative, as diffusers has it.
    """
    (start, clean), *others = nodes
    decay = end.sigma / start.sigma - 1
    first_order = end.noise / start.noise * source - end.signal * decay * clean
    if not others:
        return first_order
    h = end.half_log_snr - start.half_log_snr
    decay = math.expm1(-h)
    places = [(level.half_log_snr - start.half_log_snr) / h for level, _ in others]
    slopes = [(each - clean) / place for (_, each), place in zip(others, places, strict=True)]
    linear = decay / h + 1
    if len(others) == 1:
        return first_order + end.signal * (-decay / 2 if solver == "midpoint" else linear) * slopes[0]
    if solver == "midpoint":
        return first_order + end.signal * linear * slopes[1]
    bend = (slopes[1] - slopes[0]) / (places[1] - places[0])
    slope = slopes[0] - places[0] * bend
    second = bend if solver == "multistep" else 2 * bend
    return first_order + end.signal * (linear * slope - ((decay + h) / h**2 - 0.5) * second)
