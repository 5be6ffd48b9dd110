"""The engines of one bundle: opened when first needed, freed when their stage is over, watched for NaN."""

from __future__ import annotations

import collections
import contextlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ..bundle import Bundle
from ..engine import Arrays, Device, Engine, Precision, StepCallback
from ..errors import BundleError, EngineClosed, EngineError
from .settings import remedy_of
from .signatures import Signature, differences


class Engines:
    """Engines by name, each opened when it is first needed.  Safe to use from several threads.

    precision  "fp16": of all engines that have such a form, `step` at least; "bf16": of `step`.
    resident   False frees every engine when the last `stage` that needs it is over.
    """

    def __init__(
        self,
        bundle: Bundle,
        signatures: Mapping[str, Signature],
        device: Device,
        threads: int | None,
        precision: Precision,
        resident: bool,
    ) -> None:
        self.bundle, self.precision, self.resident = bundle, precision, resident
        self._signatures, self._device, self._threads = signatures, device, threads
        self._open: dict[str, Engine] = {}
        self._users: collections.Counter[str] = collections.Counter()
        self._lock, self._closed = threading.RLock(), False

    def __getitem__(self, name: str) -> Engine:
        """The engine, opened; raises BundleError where it is not what the bundle says."""
        with self._lock:
            self.check_open()
            if name not in self._open:
                self._open[name] = self._opened(name)
            return self._open[name]

    @property
    def opened(self) -> tuple[str, ...]:
        """Names of the engines that are open."""
        return tuple(self._open)

    def precision_of(self, name: str) -> Precision:
        """The precision in which an engine is opened."""
        if name == "step" or (self.precision == "fp16" and "fp16" in self.bundle.forms(name)):
            return self.precision
        return "fp32"

    def file_mb(self, name: str) -> float:
        """Megabytes of an engine's file and of the weights beside it, in its precision and for the device."""
        forms, half = self.bundle.forms(name), self.precision_of(name) == "fp16"
        file = forms["fp16"] if half and "fp16" in forms else forms["default"]
        weights = [file.with_name(f"{file.name}.data")]
        if "cpu" in forms and self.precision_of(name) == "fp32" and self._device != "cuda":
            weights.append(file.with_name(f"{name}.winograd.data"))
        return sum(part.stat().st_size for part in (file, *weights) if part.is_file()) / 1e6

    @contextlib.contextmanager
    def stage(self, *names: str) -> Iterator[None]:
        """Keep these engines, once open, in the block; then, unless resident, free those that nobody else uses."""
        with self._lock:
            self._users.update(names)
        try:
            yield
        finally:
            with self._lock:
                self._users.subtract(names)
                idle = [name for name in names if not self.resident and not self._users[name]]
                for engine in filter(None, (self._open.pop(name, None) for name in idle)):
                    engine.close()

    def run(self, name: str, **arrays: npt.NDArray[Any]) -> dict[str, Any]:
        """The outputs of one engine by name; raises EngineError where they are not finite."""
        with self.stage(name):
            outputs = self[name](**arrays)
        self._check_finite(name, outputs)
        return outputs

    def scan(self, name: str, carry: Arrays, xs: Arrays, constants: Arrays, on_step: StepCallback) -> dict[str, Any]:
        """See Engine.scan; raises EngineError where the carry is not finite."""
        with self.stage(name):
            outputs = self[name].scan(carry, xs, constants, on_step)
        self._check_finite(name, outputs)
        return outputs

    def close(self) -> None:
        """Free all engines; later calls raise EngineClosed."""
        with self._lock:
            self._closed = True
            for engine in self._open.values():
                engine.close()

    def check_open(self) -> None:
        """Raise EngineClosed after `close`."""
        if self._closed:
            raise EngineClosed(f"the networks of {self.bundle.name} were closed", remedy="make new ones")

    def _opened(self, name: str) -> Engine:
        # the step is as fast on ONNX Runtime, in two thirds of the memory; and to find out it would be loaded twice
        engine = self.bundle.open(
            name, self._device, precision=self.precision_of(name), threads=self._threads, openvino=name != "step"
        )
        wrong = differences(engine, *self._signatures[name])
        if wrong:
            engine.close()
            fact = f"engine {name} of {self.bundle.name} does not fit the bundle: {', '.join(wrong)}"
            raise BundleError(fact, remedy=remedy_of(self.bundle))
        return engine

    def _check_finite(self, name: str, outputs: Mapping[str, Any]) -> None:
        broken = [key for key, values in outputs.items() if not np.isfinite(values).all()]
        if broken:
            raise EngineError(
                f"engine {name} of {self.bundle.name} gave NaN or infinite values in {', '.join(broken)}",
                cause="half precision that overflowed, a guidance far too great, or a damaged file",
                remedy="run it in fp32 on the CPU (device='cpu'); if it fails there too, export it again",
            )
