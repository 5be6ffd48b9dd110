"""Every variant of the kernels on this GPU against float64: fresh inputs, poisoned outputs, guards around all."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import math
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from facesdk.kernels import load
from facesdk.kernels.launch import arguments_of
from facesdk.kernels.library import Arguments
from facesdk.kernels.operands import Operands, sizes_of
from facesdk.kernels.reference import attend, error_bound

from . import placement
from .device import Device, open_device
from .problems import Problem, published, variants, wide

# Of adding 16 products to a sum in a tensor core: each of the 17 terms is cut off at the last bit of the largest, one
# of 24 bits; after Fasi, Higham, Mikaitis, Pranesh: Numerical behavior of NVIDIA tensor cores, PeerJ CS 7:e330, 2021.
TENSOR_CORE_STEP = 17 * 2.0**-23
# query rows of a large problem that are compared; all are checked for being written
_ROWS = 96


class Kernels(Protocol):
    def check(self, arguments: Arguments) -> None: ...
    def forward(self, arguments: Arguments, stream: int = 0) -> None: ...


@dataclasses.dataclass(frozen=True)
class Outcome:
    """error: norm of the difference over norm of the reference.  share: largest difference over its bound."""

    problem: Problem
    error: float
    share: float
    wrong: str

    def row(self) -> dict[str, Any]:
        """For the CSV."""
        facts = dataclasses.asdict(self.problem) | {"options": " ".join(self.problem.options)}
        return facts | {"error": f"{self.error:.3e}", "share_of_bound": f"{self.share:.3f}", "wrong": self.wrong}


def examine(device: Device, kernels: Kernels, problem: Problem, rng: np.random.Generator) -> Outcome:
    """What two runs of a problem on fresh inputs gave."""
    images = placement.draw(problem, rng)
    scale = float(problem.dim**-0.5 if rng.random() < 0.5 else 0.2)
    out = placement.blank(problem, problem.queries)
    first, second = (run(device, kernels, images, out, scale) for _ in range(2))
    device.free()
    got, wrong = out.floats(first).astype(np.float64), []
    if not np.isfinite(got).all():
        wrong.append(f"{int((~np.isfinite(got)).sum())} of {got.size} not finite")
    if not out.untouched(first):
        wrong.append("written outside the output")
    if not np.array_equal(first, second):
        wrong.append("two runs differ")
    error, share = compare(placement.operands(images), got, scale, problem, rng)
    if not share <= 1:
        wrong.append(f"beyond the error bound: {share:.2f}")
    return Outcome(problem, error, share, "; ".join(wrong))


def examine_all(
    device: Device, kernels: Kernels, problems: Iterable[Problem], rng: np.random.Generator
) -> list[Outcome]:
    """Up to the first that the device or the library fails on: after that CUDA answers every call with the error."""
    outcomes: list[Outcome] = []
    try:
        for problem in problems:
            outcomes.append(examine(device, kernels, problem, rng))
    except RuntimeError as error:
        outcomes.append(Outcome(problem, math.nan, math.nan, f"failed, and the rest was not run: {error}"))
    return outcomes


def run(
    device: Device, kernels: Kernels, images: dict[str, placement.Image], out: placement.Image, scale: float
) -> np.ndarray[Any, Any]:
    """The bytes of a poisoned output after one launch."""
    views = {name: image.view(device.upload(image.data)) for name, image in images.items()}
    target = device.upload(out.data)
    views["out"] = out.view(target)
    arguments = arguments_of(views, sizes_of({name: seen.shape for name, seen in views.items()}), scale)
    kernels.check(arguments)
    kernels.forward(arguments, device.stream)
    device.synchronize()
    return device.download(target, out.data.nbytes)


def compare(
    x: Operands[Any], got: np.ndarray[Any, Any], scale: float, problem: Problem, rng: np.random.Generator
) -> tuple[float, float]:
    """Relative error, and the largest share of the bound, over all query rows or a random choice of many."""
    rows = np.arange(problem.queries)
    if problem.queries * (problem.keys + problem.keys2) > 1 << 18:
        rows = np.sort(rng.choice(problem.queries, _ROWS, replace=False))
    region = None if x.region is None else x.region[:, rows]
    part, scale = dataclasses.replace(x, q=x.q[:, rows], region=region), float(np.float32(scale))
    want, bound = attend(part, scale), error_bound(part, scale, problem.element, TENSOR_CORE_STEP)  # type: ignore[arg-type]
    difference = np.abs(got[:, rows] - want)
    size = float(np.linalg.norm(want))
    return float(np.linalg.norm(difference)) / (size or 1.0), float(np.max(difference / bound))


def chosen(few: bool) -> Iterator[Problem]:
    """All variants, then the published shapes once each; `few`: a dozen small ones for slow tools."""
    if not few:
        yield from variants()
        yield from wide()
        yield from published(2)
        return
    yield from (dataclasses.replace(p, queries=520, keys=33) for p in wide() if (p.dim, p.name) == (40, "wide all"))
    for index, problem in enumerate(variants(1)):
        if index % 10 == 0:
            yield dataclasses.replace(problem, batch=1, heads=1, queries=min(problem.queries, 130))


def summary(outcomes: Iterable[Outcome]) -> str:
    """A line per head dim and dtype."""
    groups: dict[tuple[int, str], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.problem.dim, outcome.problem.element), []).append(outcome)
    lines = ["  dim dtype    n  worst error  of bound  wrong"]
    for (dim, element), group in sorted(groups.items()):
        error, share = max(o.error for o in group), max(o.share for o in group)
        wrong = sum(bool(o.wrong) for o in group)
        lines.append(f"{dim:5d} {element:5s} {len(group):4d}  {error:11.2e}  {share:8.2f}  {wrong:5d}")
    return "\n".join(lines)


def main(words: list[str] | None = None, device: Device | None = None, kernels: Kernels | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--few", action="store_true", help="a dozen small problems")
    parser.add_argument("--device", default="torch,bindings,cudart", help="ways to the GPU, the first that works")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32, help="of the inputs; a new one by default")
    parser.add_argument("-o", "--output", type=Path, help="a CSV with a line per problem")
    arguments = parser.parse_args(words)
    device, kernels = device or open_device(arguments.device), kernels or load()
    rng = np.random.default_rng(arguments.seed)
    outcomes = examine_all(device, kernels, chosen(arguments.few), rng)
    print(summary(outcomes))
    if arguments.output:
        with arguments.output.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(outcomes[0].row()), lineterminator="\n")
            writer.writeheader()
            writer.writerows(outcome.row() for outcome in outcomes)
    failed = [outcome for outcome in outcomes if outcome.wrong]
    for outcome in failed[:20]:
        print(f"WRONG {outcome.problem}: {outcome.wrong}")
    print(f"{len(outcomes) - len(failed)} of {len(outcomes)} problems right on {device.name} by {device.kind}, "
          f"seed {arguments.seed}")  # fmt: skip
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
