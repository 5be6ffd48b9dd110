"""An fp16 graph on a processor, every fp16 value rounded: how far its outputs are from the float32 ones, and why."""

from __future__ import annotations

import dataclasses
import itertools
import math
import tempfile
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import onnx
from onnx import helper

from facesdk.engine import Array, Arrays
from facesdk.verify import Deviation, deviation

from .precision_graph import FLOAT, HALF, halved, prepared, types_of
from .precision_islands import Islands
from .processor import run
from .range_audit import audited, far_values
from .weights import load_graph, write

Outputs = Mapping[str, Array]


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a run of nodes, in the graph's order, costs by being fp16 where all others are float32.

    first, last  of the nodes, by name or output.    operators  how many of each.
    max_in_std   the worst output's largest error in its standard deviations.
    """

    first: str
    last: str
    operators: Mapping[str, int]
    max_in_std: float


def deviations(model: onnx.ModelProto, folder: Path, arrays: Arrays, expected: Outputs) -> tuple[Deviation, ...]:
    """How far each output of an fp16 graph is from what is expected; sums inside a node are float32."""
    found = run(rounding(model), folder, arrays)
    return tuple(deviation(name, values, found[name]) for name, values in expected.items())


def simulate(path: Path, arrays: Arrays, islands: Islands | None = None) -> tuple[Deviation, ...]:
    """The deviations of the fp16 form of the engine at `path`, one per output; nothing is kept of that form.

    Raises what `to_fp16` raises.
    """
    trial = _Trial(path, arrays, Islands() if islands is None else islands)
    return trial.deviations(trial.kept)


def costliest(path: Path, arrays: Arrays, islands: Islands | None = None, *, runs: int = 25) -> tuple[Cost, ...]:
    """Runs of nodes by what their fp16 costs, the worst first: all nodes, time and again the worst run cut in half.

    runs: how many fp16 forms are simulated at most; each takes as long as deriving one.  Raises what `to_fp16` raises.
    """
    trial = _Trial(path, arrays, Islands() if islands is None else islands)
    order = itertools.count()  # among equals the first found
    queue = [(-(whole := trial.cost(trial.chosen)).max_in_std, next(order), trial.chosen, whole)]
    for _ in range((runs - 1) // 2):
        divisible = [entry for entry in queue if len(entry[2]) > 1]
        if not divisible:
            break
        queue.remove(worst := min(divisible))
        middle = len(worst[2]) // 2
        for half in (worst[2][:middle], worst[2][middle:]):
            found = trial.cost(half)
            queue.append((-found.max_in_std, next(order), half, found))
    return tuple(entry[3] for entry in sorted(queue))


class _Trial:
    """An engine and what it makes of `arrays`, for fp16 forms of it to be held against."""

    def __init__(self, path: Path, arrays: Arrays, islands: Islands) -> None:
        self._model, self._folder = prepared(load_graph(path)), path.parent
        self._arrays, self._islands = arrays, islands
        self._expected, ranges = audited(self._model, self._folder, arrays, islands)
        types = types_of(self._model)
        self.kept = islands.of(self._model.graph, types, far_values(path.name, ranges))
        #: indices of the nodes that compute in fp16
        self.chosen = [
            index for index, node in enumerate(self._model.graph.node)
            if index not in self.kept and any(types.get(name) == FLOAT for name in node.output)
        ]  # fmt: skip

    def deviations(self, stays: Collection[int]) -> tuple[Deviation, ...]:
        """Of the form whose nodes `stays` stay float32."""
        half = halved(self._model, stays, self._islands.operators)
        with tempfile.TemporaryDirectory() as scratch:
            write([half], self._folder, Path(scratch) / "weights")
            return deviations(half.model, Path(scratch), self._arrays, self._expected)

    def cost(self, span: Sequence[int]) -> Cost:
        """Of the nodes of these indices, the others being float32."""
        every = self._model.graph.node
        found = self.deviations(frozenset(range(len(every))).difference(span))
        operators = Counter(every[index].op_type for index in span)
        worst = max(math.inf if each.nan + each.infinite else each.max_in_std for each in found)
        first, last = (every[index].name or every[index].output[0] for index in (span[0], span[-1]))
        return Cost(first, last, operators, worst)


def rounding(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph for a processor, where ONNX Runtime would keep what lies between two fp16 nodes in fp32."""
    copy, kinds = onnx.ModelProto(), types_of(model)
    copy.CopyFrom(model)
    del copy.graph.node[:]
    for original in model.graph.node:
        node = copy.graph.node.add()
        node.CopyFrom(original)
        for index, name in enumerate(original.output):
            if kinds.get(name) == HALF:
                # a processor has Max in fp16, so the value has to be there in fp16; one alone would run in fp32 too
                stages = [f"{name}/0", f"{name}/1", name]
                node.output[index] = stages[0]
                copy.graph.node.extend(helper.make_node("Max", [a, a], [b]) for a, b in itertools.pairwise(stages))
    return copy
