"""The SDK inside Triton: the bundles of a pipeline's folder, whose engines are the server's other models."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from facesdk.bundle import Bundle
from facesdk.card import Card
from facesdk.engine import Device, Engine, StepCallback
from facesdk.errors import EmbeddingSpaceMismatch, FaceSDKError, ImageError, NoFaceFound, UsageError
from facesdk.facade import FaceSDK
from facesdk.graph import Graph
from facesdk.store import Store

from .backend import TritonBackend

#: in a pipeline's folder: which bundles lie there, for what, and which models are their engines
INDEX = "pipeline.json"
Models = Mapping[str, tuple[str, int]]
#: makes output name -> array of an SDK, input name -> array or text, and whom to tell of steps
Answer = Callable[[FaceSDK, Mapping[str, Any], StepCallback], Mapping[str, Any]]

# what the one who asks can change
_THEIRS = (UsageError, ImageError, NoFaceFound, EmbeddingSpaceMismatch)


class TritonBundle(Bundle):
    """A bundle whose engines the server runs, whatever device is asked for; its ONNX files are outlines.

    models  engine -> name of the server's model, and rows of one call at most.
    """

    def __init__(self, folder: Path, pb_utils: Any, models: Models, gpu: int | None) -> None:
        super().__init__(folder)
        self._pb, self._models, self._gpu = pb_utils, models, gpu

    def forms(self, engine: str) -> dict[str, Path]:
        """The one form that is here; raises BundleError."""
        return {"default": super().forms(engine)["default"]}

    def open(self, engine: str, device: Device = "auto", **_: Any) -> Engine:
        """One of the bundle's engines; raises BundleError where it has none of that name."""
        path = self.forms(engine)["default"]
        backend = TritonBackend(self._pb, *self._models[engine], Graph.read(path), self._gpu)
        return Engine(backend, Card.read(path), path, "Triton serves it")


class TritonStore(Store):
    """The bundles of a pipeline's folder."""

    def __init__(self, folder: Path, pb_utils: Any, models: Mapping[str, Models], gpu: int | None) -> None:
        super().__init__(folder, models={})
        self._pb, self._served, self._gpu = pb_utils, models, gpu

    def open(self, name_or_path: str | Path) -> Bundle:
        """See Store.open."""
        found = super().open(name_or_path)
        return TritonBundle(found.folder, self._pb, self._served[found.name], self._gpu)


class Server:
    """A pipeline: what its `model.py` is made of.

    folder  of this version of the model.   args  of Triton's `initialize`.
    """

    def __init__(self, pb_utils: Any, folder: Path, args: Mapping[str, str]) -> None:
        """Opens nothing: requests are allowed from the first call of `answer` on."""
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        gpu = int(args["model_instance_device_id"]) if "GPU" in args["model_instance_kind"] else None
        store = TritonStore(folder, pb_utils, index["models"], gpu)
        bundles = {part: folder / "bundles" / name for part, name in index["bundles"].items()}
        self._pb, self._sdk = pb_utils, FaceSDK("cpu", store=store, **bundles)

    def answer(self, request: Any, answer: Answer) -> Any:
        """Triton's response to a request: what `answer` makes of it, or an error."""
        try:
            made = answer(self._sdk, _given(request), _watch(request))
        except FaceSDKError as error:
            code = self._pb.TritonError.INVALID_ARG if isinstance(error, _THEIRS) else self._pb.TritonError.INTERNAL
            return self._refused(f"{error}\n  [{error.code}]", code)
        except _Cancelled:
            return self._refused("the request was cancelled", self._pb.TritonError.CANCELLED)
        tensors = [self._pb.Tensor(name, _array(value)) for name, value in made.items()]
        return self._pb.InferenceResponse(output_tensors=tensors)

    def close(self) -> None:
        """Let go of the engines; the server keeps its models."""
        self._sdk.close()

    def _refused(self, words: str, code: Any) -> Any:
        return self._pb.InferenceResponse(output_tensors=[], error=self._pb.TritonError(words, code))


class _Cancelled(Exception):
    """The client has gone."""


def _watch(request: Any) -> StepCallback:
    """Ends the work on a request that its client has given up."""

    def on_step(step: int, steps: int) -> None:
        if request.is_cancelled():
            raise _Cancelled

    return on_step


def _given(request: Any) -> dict[str, Any]:
    """Input name -> array, or text; inputs that were left out are absent.  Raises UsageError."""
    return {tensor.name(): _read(tensor.name(), tensor.as_numpy()) for tensor in request.inputs()}


def _read(name: str, values: Any) -> Any:
    if values.dtype != np.object_:
        return values
    if values.size == 1:
        with contextlib.suppress(UnicodeDecodeError):
            return bytes(values.reshape(-1)[0]).decode()
    raise UsageError(f"{name} is no text", remedy="give one text, in UTF-8")


def _array(value: Any) -> Any:
    """An array as Triton takes it: text as bytes, and at least one axis."""
    array = np.array([value.encode()], np.object_) if isinstance(value, str) else np.asarray(value, order="C")
    return array.reshape(1) if not array.ndim else array
