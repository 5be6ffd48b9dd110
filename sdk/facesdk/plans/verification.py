"""A plan against the fp32 engine, once on every GPU that it runs on: one that is too far from it is not used."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..bench import Shape, example_inputs, example_shapes
from ..card import Card
from ..engine import Array, Backend, Engine, Tensor
from ..errors import EngineError, ToleranceExceeded
from ..records import keep, recall
from ..verify import Deviation, deviation
from .find import Found

_TABLE = "plan-verifications"
#: over what was seen elsewhere: the deviation in the engine's card, from another processor and on other inputs
MARGIN = 5
#: largest error, in the output's unit, of a plan in fp32: what an export may differ from torch by
FP32 = 1e-3
#: of one in fp16, or with products in TF32, which keeps as many digits: MARGIN times 2.1e-2, the largest deviation in
#: docs/precision.md
FP16 = 0.1
#: least cosine, as an fp16 engine has to have when it is derived
COSINE = 0.999
# a plain run, one that becomes a CUDA graph, and one of that graph, as all later ones are
_RUNS = 3
# below this a half has lost digits: outputs as small are compared with zero
_SMALLEST = float(np.finfo(np.float16).tiny)

log = logging.getLogger("facesdk")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One output of a plan against the fp32 engine's.

    error  the largest difference over `unit`: the reference's standard deviation, or a tenth of its largest value
           where that is more, as in outputs of few or nearly equal numbers.
    """

    deviation: Deviation
    unit: float
    limit: float

    @property
    def error(self) -> float:
        return self.deviation.max_abs / self.unit

    @property
    def broken(self) -> bool:
        found = self.deviation
        apart = found.cosine < COSINE and self.unit > _SMALLEST
        return found.nan + found.infinite > 0 or not self.error <= self.limit or apart

    def __str__(self) -> str:
        found = self.deviation
        figures = f"largest difference {found.max_abs:.3g}, mean {found.mean_abs:.3g}, cosine {found.cosine:.6f}"
        return f"{found.output}: {figures}, {found.nan} NaN, {found.infinite} infinite; {self.error:.2g} of its unit"


def verify(backend: Backend, found: Found, reference: Path) -> None:
    """Raise ToleranceExceeded where a plan is too far from the fp32 engine at `reference`, run on the processor.

    What came out is kept, by plan, GPU and library: the next time nothing is run.
    Raises what opening and running either of them raises.
    """
    verdicts = _recalled(found)
    if verdicts is None:
        log.info("%s is held against fp32 on %s, once: this takes a while", found.plan.name, found.gpu.name)
        start = time.perf_counter()
        verdicts = judged(backend, found, reference)
        log.info("%s was held against fp32 in %.1f s", found.plan.name, time.perf_counter() - start)
        lost = f"{found.plan.name} is held against fp32 at every start"
        keep(_TABLE, _name(found), [dataclasses.asdict(each) for each in verdicts], lost=lost)
    _refuse(found, [each for each in verdicts if each.broken])


def judged(backend: Backend, found: Found, reference: Path) -> list[Verdict]:
    """The verdict on every output, on seeded inputs of the shapes of the engine's card."""
    card = Card.read(found.graph)
    with Engine.open(reference, "cpu") as engine:
        shapes = verified_shapes(engine.inputs, card.example_shapes, found.key.profile)
        arrays = example_inputs(engine.inputs, shapes)
        expected = engine(**arrays)
        recorded = _larger(engine.card.deviation, card.deviation)
    for _ in range(_RUNS):
        actual = backend.run(arrays)
    if missing := expected.keys() - actual.keys():
        raise EngineError(
            f"{found.plan.name} has no output {', '.join(sorted(missing))}", remedy=f"{found.key.command} --force"
        )
    floor = FP16 if found.key.precision == "fp16" or "TF32" in found.key.flags else FP32
    return [
        Verdict(deviation(name, values, actual[name]), _unit(values), max(floor, MARGIN * recorded.get(name, 0.0)))
        for name, values in expected.items()
    ]


def verified_shapes(
    inputs: Sequence[Tensor], typical: Mapping[str, Shape], profile: Mapping[str, Sequence[Sequence[int]]]
) -> dict[str, Shape]:
    """The typical shapes as near as a plan's profile comes to them; where one is not known, all that it is best for."""
    known = all(name in typical for name in profile)
    chosen = {
        name: tuple(np.clip(typical[name], three[0], three[2]).tolist()) if known else tuple(three[1])
        for name, three in profile.items()
    }
    return example_shapes(inputs, {**typical, **chosen})


def _larger(*tables: Mapping[str, float]) -> dict[str, float]:
    return {name: max(table.get(name, 0.0) for table in tables) for table in tables for name in table}


def _unit(values: Array) -> float:
    finite = np.asarray(values, np.float64)[np.isfinite(values)]
    if not finite.size:
        return _SMALLEST
    return max(float(finite.std()), float(np.abs(finite).max()) / 10, _SMALLEST)


def _refuse(found: Found, broken: Sequence[Verdict]) -> None:
    if not broken:
        return
    worst = max(broken, key=lambda each: (each.deviation.nan + each.deviation.infinite, each.error))
    key = found.key
    remedy = f"build it again: {key.command} --force; or ask for device cuda"
    if key.precision == "fp16":
        remedy = f"use precision fp32: {key.command.replace('--precision fp16', '--precision fp32')}; or device cuda"
    raise ToleranceExceeded(
        f"{found.plan.name} differs from the fp32 engine in {', '.join(each.deviation.output for each in broken)}",
        cause=f"{worst}; the limit is {worst.limit:g}, the least cosine {COSINE}",
        remedy=remedy,
    )


def _recalled(found: Found) -> list[Verdict] | None:
    kept = recall(_TABLE, _name(found))
    try:
        return [Verdict(Deviation(**each["deviation"]), each["unit"], each["limit"]) for each in kept] or None
    except (TypeError, KeyError):
        return None


def _name(found: Found) -> str:
    facts = (found.key.plan_sha256, found.gpu.name, found.key.builder, found.version, MARGIN, FP32, FP16)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
