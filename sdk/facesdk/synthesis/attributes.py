"""AttrOP: vectors are moved until their pictures have the identity, quality and pose that are asked for."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from ..errors import UsageError, one_of
from .masks import Masks
from .networks import ANGLES, Floats, Pictures, Step, SynthesisNetworks

Rule = Literal["row", "batch"]
OnStep = Callable[[int], None]

_IDENTITY_WEIGHT = 100.0  # Vec2Face gen_image: loss = 100 * id + q + p
# field -> least and greatest value
_RANGES = {
    "quality": (0.0, 1000.0),
    "yaw": (0.0, 90.0),
    "pitch": (-90.0, 90.0),
    "roll": (-90.0, 90.0),
    "identity_limit": (0.0, 2.0),
    "quality_limit": (0.0, 1000.0),
    "angle_limit": (0.0, 180.0),
    "steps": (1, 10_000),
    "learning_rate": (1e-6, 10.0),
}


@dataclasses.dataclass(frozen=True)
class AttributeOptions:
    """What the pictures shall have, and when to stop."""

    quality: float | None = dataclasses.field(
        default=27.0, metadata={"help": "least norm of the quality vector, 22 to 30 in practice; none: not controlled"}
    )
    yaw: float | None = dataclasses.field(
        default=None, metadata={"help": "degrees that the head is turned, 0 to 90, to either side"}
    )
    pitch: float | None = dataclasses.field(default=None, metadata={"help": "degrees of pitch, -90 to 90"})
    roll: float | None = dataclasses.field(default=None, metadata={"help": "degrees of roll, -90 to 90"})
    identity_limit: float = dataclasses.field(
        default=0.3, metadata={"help": "greatest 1 - cosine between the picture's identity and the reference"}
    )
    quality_limit: float = dataclasses.field(
        default=1.0, metadata={"help": "how far the quality may stay below its target"}
    )
    angle_limit: float = dataclasses.field(
        default=5.0, metadata={"help": "how many degrees each angle may be off its target"}
    )
    steps: int = dataclasses.field(default=30, metadata={"help": "most steps that a picture may take"})
    learning_rate: float = dataclasses.field(default=0.1, metadata={"help": "of Adam, in units of the vector"})
    rule: Rule = dataclasses.field(
        default="row",
        metadata={"help": "who must pass: each row by itself, or the mean of its batch as in the published code"},
    )

    def __post_init__(self) -> None:
        for name, (least, greatest) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= greatest:
                raise UsageError(f"{name} is {value}", remedy=f"give {least:g} to {greatest:g}")
        if self.steps != int(self.steps):
            raise UsageError(f"steps is {self.steps}", remedy="give a whole number")
        if self.rule not in get_args(Rule):
            raise one_of("rule", self.rule, get_args(Rule))


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """A vector to optimise.

    vector, reference  (width,): where it starts, and the identity that it is held to.
    masks              of its step i = 0, 1, ..., one row each: a pure function, so that its path is its own.
    """

    key: Any
    vector: Floats
    reference: Floats
    masks: Callable[[int], Masks]


@dataclasses.dataclass(frozen=True, eq=False)
class Reached:
    """What became of a row.

    vector, picture  with rule "row" those that were tested; with "batch" one Adam step later and on fresh masks.
    steps            pictures that were tested.
    values           term -> cosine, norm or degrees of the tested picture.   failed  the constraints not met.
    """

    key: Any
    vector: Floats
    picture: Pictures
    steps: int
    values: dict[str, float]
    failed: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.failed


class Adam:
    """Adam without decay (Kingma and Ba 2015, algorithm 1).  A row with an instance of its own has its own count."""

    def __init__(
        self, learning_rate: float = 0.1, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        self._rate, self._betas, self._eps = learning_rate, betas, eps
        self._count = 0
        self._mean: npt.NDArray[np.float64] | float = 0.0
        self._square: npt.NDArray[np.float64] | float = 0.0

    def __call__(self, vectors: Floats, gradients: Floats) -> Floats:
        """The vectors after one more step; every call has the shape of the first."""
        gradient = gradients.astype(np.float64)
        first, second = self._betas
        self._count += 1
        self._mean = first * self._mean + (1 - first) * gradient
        self._square = second * self._square + (1 - second) * gradient**2
        spread = np.sqrt(self._square / (1 - second**self._count)) + self._eps
        moved = vectors - self._rate / (1 - first**self._count) * self._mean / spread
        return np.asarray(moved, np.float32)


def optimise(
    networks: SynthesisNetworks,
    rows: Iterable[Row],
    options: AttributeOptions,
    batch: int = 32,
    on_step: OnStep | None = None,
) -> Iterator[Reached]:
    """What becomes of each row, as it is finished; rows are read when there is room for them.

    batch    most rows in a call of the engine.   on_step  called after each with the number of rows in it.
    Rule "row": a row's result depends on nothing but the row and the options, up to the rounding of the engine's
    kernels; a row that never passes is reported with its best try.  Raises UsageError, EngineError.
    """
    if batch < 1:
        raise UsageError(f"batch is {batch}", remedy="give 1 or more")
    goal = _goal(networks, options)
    checked = (_checked(row, networks.width) for row in rows)
    run = _by_row if options.rule == "row" else _by_batch
    return run(networks, checked, goal, batch, on_step or (lambda rows: None))


@dataclasses.dataclass(frozen=True, eq=False)
class _Goal:
    """Options as columns (K,); a term that is not asked for has weight 0 and an infinite limit."""

    options: AttributeOptions
    terms: tuple[str, ...]
    targets: Floats
    weights: Floats
    limits: Floats

    def step(self, networks: SynthesisNetworks, vectors: Floats, rows: list[Row], masks: list[Masks]) -> Step:
        columns = ([values] * len(rows) for values in (self.targets, self.weights))
        references = np.stack([row.reference for row in rows])
        return networks.step(vectors, references, Masks.stacked(masks), *map(np.stack, columns))

    def failed(self, losses: Floats) -> tuple[str, ...]:
        """The terms whose loss (K,) is over its limit."""
        return tuple(itertools.compress(self.terms, losses > self.limits))

    def excess(self, losses: Floats) -> float:
        """How much the losses (K,) are over their limits, weighted as they are optimised."""
        return float(self.weights @ np.maximum(losses - self.limits, 0))

    def named(self, values: Floats) -> dict[str, float]:
        return dict(zip(self.terms, map(float, values), strict=True))


def _goal(networks: SynthesisNetworks, options: AttributeOptions) -> _Goal:
    wanted = {"identity": 0.0, "quality": options.quality, **{name: getattr(options, name) for name in ANGLES}}
    unknown = [name for name, target in wanted.items() if target is not None and name not in networks.terms]
    if unknown:
        raise UsageError(
            f"{networks.bundle.name} cannot control {', '.join(unknown)}",
            cause="it was exported without a head-pose network",
            remedy="export it again with --headpose 6DRepNet_300W_LP_AFLW2000.pth, or leave the angle out",
        )
    limits = {"identity": options.identity_limit, "quality": options.quality_limit}
    columns = [
        (0.0, 0.0, math.inf)
        if (target := wanted.get(term)) is None
        else (target, _IDENTITY_WEIGHT if term == "identity" else 1.0, limits.get(term, options.angle_limit))
        for term in networks.terms
    ]
    return _Goal(options, networks.terms, *np.array(columns, np.float32).T)


def _checked(row: Row, width: int) -> Row:
    for name in ("vector", "reference"):
        values = np.asarray(getattr(row, name))
        if values.shape != (width,) or values.dtype.kind != "f" or not np.isfinite(values).all():
            raise UsageError(
                f"the {name} of row {row.key} is no vector of {width} finite numbers",
                cause=f"it is {values.dtype}{list(values.shape)}",
                remedy="look at it where it was made",
            )
    return row


# -- rule "row" -------------------------------------------------------------------------------------------


class _Path:
    """A row under way: where it is now, and the best that it has been."""

    def __init__(self, row: Row, goal: _Goal) -> None:
        self.row, self.vector, self._goal = row, np.asarray(row.vector, np.float32), goal
        self.tested = 0
        self._adam = Adam(goal.options.learning_rate)
        self._least = math.inf
        self._best: Reached | None = None

    def advance(self, step: Step, index: int) -> Reached | None:
        """The result where this step finishes the row; otherwise None, and the vector has moved."""
        losses = step.losses[index]
        self.tested += 1
        excess = self._goal.excess(losses)
        if excess < self._least:
            self._least, self._best = excess, self._reached(step, index)
        if not self._goal.failed(losses):
            return self._reached(step, index)
        if self.tested >= self._goal.options.steps and self._best:
            return dataclasses.replace(self._best, steps=self.tested)
        self.vector = self._adam(self.vector, step.gradient[index])
        return None

    def _reached(self, step: Step, index: int) -> Reached:
        values, failed = self._goal.named(step.values[index]), self._goal.failed(step.losses[index])
        return Reached(self.row.key, self.vector, step.pictures[index].copy(), self.tested, values, failed)


def _by_row(
    networks: SynthesisNetworks, rows: Iterator[Row], goal: _Goal, batch: int, on_step: OnStep
) -> Iterator[Reached]:
    paths: list[_Path] = []
    while True:
        paths += [_Path(row, goal) for row in itertools.islice(rows, batch - len(paths))]
        if not paths:
            return
        vectors = np.stack([path.vector for path in paths])
        step = goal.step(
            networks, vectors, [path.row for path in paths], [path.row.masks(path.tested) for path in paths]
        )
        on_step(len(paths))
        results = [path.advance(step, index) for index, path in enumerate(paths)]
        paths = [path for path, result in zip(paths, results, strict=True) if result is None]
        yield from filter(None, results)


# -- rule "batch" -----------------------------------------------------------------------------------------


def _by_batch(
    networks: SynthesisNetworks, rows: Iterator[Row], goal: _Goal, batch: int, on_step: OnStep
) -> Iterator[Reached]:
    """Vec2Face gen_image, but for the limit on steps that it has not."""
    while group := list(itertools.islice(rows, batch)):
        vectors, adam = np.stack([row.vector for row in group]), Adam(goal.options.learning_rate)
        failed, tested = goal.terms, 0
        while failed and tested < goal.options.steps:
            step = goal.step(networks, vectors, group, [row.masks(tested) for row in group])
            on_step(len(group))
            # the step is taken in the iteration that passes as well: the vector moves once after its test
            vectors = adam(vectors, step.gradient / np.float32(len(group)))
            failed, tested = goal.failed(step.losses.mean(axis=0)), tested + 1
        pictures = networks.pictures(vectors, Masks.stacked([row.masks(tested) for row in group]))
        for index, row in enumerate(group):
            yield Reached(row.key, vectors[index], pictures[index], tested, goal.named(step.values[index]), failed)
