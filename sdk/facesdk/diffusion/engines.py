"""The engines of a diffusion bundle: freed when their stage is over, and run again in fp32 where fp16 fails."""

from __future__ import annotations

import collections
import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import numpy.typing as npt

from ..bundle import Bundle
from ..engine import GPUS, Arrays, Device, Engine, Precision, StepCallback
from ..engine_set import EngineSet
from ..errors import BundleError
from ..finite import not_finite
from .settings import remedy_of
from .signatures import Signature, differences

log = logging.getLogger("facesdk")


class Engines(EngineSet):
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
        halves = {name for name in bundle.engine_names if "fp16" in bundle.forms(name)} if precision == "fp16" else ()
        super().__init__(bundle, device, threads, dict.fromkeys({"step", *halves}, precision))
        self.resident, self._signatures = resident, signatures
        self._replaced: dict[str, Engine] = {}
        self._users: collections.Counter[str] = collections.Counter()

    def file_mb(self, name: str) -> float:
        """Megabytes of an engine's file and of the weights beside it, in its precision and for the device."""
        forms, half = self.bundle.forms(name), self.precision_of(name) == "fp16"
        file = forms["fp16"] if half and "fp16" in forms else forms["default"]
        weights = [file.with_name(f"{file.name}.data")]
        if "cpu" in forms and self.precision_of(name) == "fp32" and self.device not in GPUS:
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
                self._free([name for name in names if not self._users[name]])

    def run(self, name: str, **arrays: npt.NDArray[Any]) -> dict[str, Any]:
        """The outputs of one engine by name; raises EngineError where they are not finite."""
        with self.stage(name):
            return super().run(name, **arrays)

    def run_again(self, name: str, **arrays: npt.NDArray[Any]) -> dict[str, Any]:
        """The outputs of one engine by name, in fp32 where they are not finite in fp16.

        That is logged, and the engine stays in fp32.  Raises EngineError where they are not finite then either.
        """
        with self.stage(name):
            if self.precision_of(name) == "fp16":
                outputs = self[name](**arrays)
                broken = not_finite(outputs)
                if not broken:
                    return outputs
                self._widen(name, broken)
            return self.run(name, **arrays)

    def scan(self, name: str, carry: Arrays, xs: Arrays, constants: Arrays, on_step: StepCallback) -> dict[str, Any]:
        """See Engine.scan; raises EngineError where the carry is not finite."""
        with self.stage(name):
            return self._checked(name, lambda engine: engine.scan(carry, xs, constants, on_step))

    def _widen(self, name: str, broken: list[str]) -> None:
        """Replace an engine by its fp32 form; calls of other threads may be under way in the old one."""
        with self._lock:
            if self.precision_of(name) == "fp16":
                log.warning(
                    "engine %s of %s gave NaN or infinite values in %s in fp16: it runs again, and stays, in fp32",
                    name, self.bundle.name, ", ".join(broken),
                )  # fmt: skip
                self._precisions[name] = "fp32"
                self._replaced[name] = self._engines.pop(name)

    def _free(self, idle: list[str]) -> None:
        for engines in (self._replaced, {} if self.resident else self._engines):
            for engine in filter(None, (engines.pop(name, None) for name in idle)):
                engine.close()

    def _opened(self, name: str) -> Engine:
        # the step is as fast on ONNX Runtime, in two thirds of the memory; and to find out it would be loaded twice
        engine = self.bundle.open(
            name, self.device, precision=self.precision_of(name), threads=self.threads, openvino=name != "step"
        )
        wrong = differences(engine, *self._signatures[name])
        if wrong:
            engine.close()
            fact = f"engine {name} of {self.bundle.name} does not fit the bundle: {', '.join(wrong)}"
            raise BundleError(fact, remedy=remedy_of(self.bundle))
        return engine
