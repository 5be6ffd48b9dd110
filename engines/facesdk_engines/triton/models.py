"""An engine as one of Triton's models: its tensors there, whether Triton may batch it, what it is warmed up with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from facesdk.card import Card
from facesdk.errors import BundleError
from facesdk.graph import Graph, Value
from facesdk.plans.key import Key
from facesdk.plans.profiles import Profile, Shape

from .config import TYPES, Message, Word, parameters, strings


@dataclasses.dataclass(frozen=True)
class Plan:
    """A TensorRT plan that Triton is to load.  `file`: its name in the model's folder."""

    path: Path
    key: Key
    file: str

    @property
    def gpus(self) -> str:
        """Compute capability of the GPUs that it runs on."""
        return "8.0 and later" if self.key.hardware == "ampere" else ", ".join(self.key.capabilities)


@dataclasses.dataclass(frozen=True)
class Model:
    """An engine as Triton serves it.

    name   in Triton.   onnx  the file that is served, or that the plans were built of.
    files  name -> sha256 of `onnx` and of the files that hold its weights.
    plans  empty: ONNX Runtime serves it, and `note` says why, where there were some.
    batch  rows of one call at most; 0: Triton leaves the batch to the graph.
    """

    name: str
    engine: str
    precision: str
    onnx: Path
    files: Mapping[str, str]
    plans: tuple[Plan, ...]
    note: str
    batch: int
    profile: Profile

    @property
    def graph(self) -> Graph:
        """The inputs and outputs of the file."""
        return Graph.read(self.onnx)


def batched(graph: Graph) -> bool:
    """Whether Triton's batcher may join requests: one free axis, the first of every input and output, and no other."""
    values = (*graph.inputs, *graph.outputs)
    first = values[0].shape[:1]
    named = bool(first) and isinstance(first[0], str)
    return named and all(value.shape[:1] == first and _fixed(value.shape[1:]) for value in values)


def most_rows(plans: Sequence[Plan], profile: Profile) -> int:
    """Rows that every plan, and the profile of a graph that is served itself, takes in one call; 0: nobody says."""
    profiles = [plan.key.profile for plan in plans] or [profile]
    largest = [three[2][0] for shapes in profiles for three in shapes.values()]
    return min(largest, default=0)


def config(model: Model, instances: int, cpu: bool) -> Message:
    """The model's configuration."""
    graph, card = model.graph, Card.read(model.onnx)
    message: dict[str, Any] = {
        "name": model.name,
        "backend": "tensorrt" if model.plans else "onnxruntime",
        "max_batch_size": model.batch,
        "input": [tensor(value, model.batch) for value in graph.inputs],
        "output": [tensor(value, model.batch) for value in graph.outputs],
        "instance_group": [instance_group(instances, cpu)],
        "version_policy": {"latest": {"num_versions": 1}},
    }
    if model.plans:
        message["default_model_filename"] = "model.plan"
        message["cc_model_filenames"] = strings(
            {plan.key.capabilities[0]: plan.file for plan in model.plans if plan.file != "model.plan"}
        )
    best = _best(model, graph, card)
    if model.batch > 1:
        message["dynamic_batching"] = {"preferred_batch_size": sorted({_rows(best, model.batch), model.batch})}
    if best.keys() == {value.name for value in graph.inputs}:
        message["model_warmup"] = [_warm_up(graph, best, model.batch)]
    versions = {plan.key.version: "" for plan in model.plans}
    facts = {"facesdk.tensorrt": ", ".join(versions)} if versions else {}
    message["parameters"] = parameters({**card.to_properties(), **facts})
    return {field: value for field, value in message.items() if value != []}


def tensor(value: Value, batch: int) -> Message:
    """An input or output.

    Triton knows no tensor without axes: a lone number is one of length 1, which its ONNX Runtime backend undoes, and a
    number a row is reshaped.  https://github.com/triton-inference-server/onnxruntime_backend/pull/213
    """
    if value.type not in TYPES:
        raise BundleError(f"Triton has no type for {value}", remedy="export the engine with tensors of plain types")
    dims = [size if isinstance(size, int) else -1 for size in (value.shape[1:] if batch else value.shape)]
    message: dict[str, Any] = {"name": value.name, "data_type": Word(TYPES[value.type]), "dims": dims or [1]}
    return {**message, "reshape": {"shape": []}} if batch and not dims else message


def instance_group(count: int, cpu: bool) -> Message:
    """So many instances: on every GPU, or on the processor."""
    return {"count": count, "kind": Word("KIND_CPU" if cpu else "KIND_GPU")}


def _warm_up(graph: Graph, best: Mapping[str, Shape], batch: int) -> Message:
    """A call before the model counts as ready.

    Of zeros: Triton's random data are random bytes, NaN among the floats and indices beyond any table.  A sample of
    batch size 0 is skipped, so that graphs with their own batch axis say 1 as well.
    """
    shapes = {value.name: best[value.name][1 if batch else 0 :] for value in graph.inputs}
    inputs = [
        {
            "key": value.name,
            "value": {
                "data_type": Word(TYPES[value.type]), "dims": list(shapes[value.name]) or [1], "zero_data": True
            },
        }
        for value in graph.inputs
    ]  # fmt: skip
    return {"name": "example", "batch_size": _rows(best, batch) if batch else 1, "inputs": inputs}


def _best(model: Model, graph: Graph, card: Card) -> dict[str, Shape]:
    """The shapes that the first plan is best at, else those of the profile or of the card's example, where known."""
    shapes: Mapping[str, Sequence[Sequence[int]]] = model.plans[0].key.profile if model.plans else model.profile
    known: dict[str, Shape] = {value.name: value.shape for value in graph.inputs if _fixed(value.shape)}  # type: ignore[misc]
    known |= {name: shape for name, shape in card.example_shapes.items() if not model.plans}
    known |= {name: tuple(three[1]) for name, three in shapes.items()}
    return {value.name: known[value.name] for value in graph.inputs if value.name in known}


def _rows(best: Mapping[str, Shape], batch: int) -> int:
    return min([batch, *(shape[0] for shape in best.values())])


def _fixed(shape: Sequence[int | str | None]) -> bool:
    return all(isinstance(size, int) for size in shape)
