"""The engines of one bundle: each opened when it is first needed, watched for NaN, closed together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy.typing as npt

from .bundle import Bundle
from .encoder import Encoder
from .engine import Device, Engine, Precision
from .errors import EngineClosed
from .finite import check_finite

Set = TypeVar("Set", bound="EngineSet")


class EngineSet:
    """Engines by name, each opened when it is first needed.  Safe to use from several threads.

    precisions  engine -> its own, where that is not fp32.
    """

    def __init__(
        self, bundle: Bundle, device: Device, threads: int | None, precisions: Mapping[str, Precision]
    ) -> None:
        self.bundle, self.device, self.threads = bundle, device, threads
        self._precisions = dict(precisions)
        self._engines: dict[str, Engine] = {}
        self._encoder: Encoder | None = None
        self._lock, self._closed = threading.RLock(), False

    def __getitem__(self, name: str) -> Engine:
        """The engine, opened; raises what opening it raises, EngineClosed after `close`."""
        with self._lock:
            self.check_open()
            if name not in self._engines:
                self._engines[name] = self._opened(name)
            return self._engines[name]

    def precision_of(self, name: str) -> Precision:
        """The precision in which an engine is opened."""
        return self._precisions.get(name, "fp32")

    @property
    def encoder(self) -> Encoder:
        """The bundle's own encoder, whose vectors its other networks understand."""
        with self._lock:
            self.check_open()
            if self._encoder is None:
                self._encoder = Encoder(self.bundle, self.device, self.threads)
            return self._encoder

    def run(self, name: str, **arrays: npt.NDArray[Any]) -> dict[str, Any]:
        """The outputs of one engine by name; raises EngineError where they are not finite."""
        return self._checked(name, lambda engine: engine(**arrays))

    def close(self) -> None:
        """Free all engines; later calls raise EngineClosed."""
        with self._lock:
            self._closed = True
            for engine in self._engines.values():
                engine.close()
            if self._encoder is not None:
                self._encoder.close()

    def check_open(self) -> None:
        """Raise EngineClosed after `close`."""
        if self._closed:
            raise EngineClosed(f"the networks of {self.bundle.name} were closed", remedy="make new ones")

    def __enter__(self: Set) -> Set:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _opened(self, name: str) -> Engine:
        return self.bundle.open(name, self.device, precision=self.precision_of(name), threads=self.threads)

    def _checked(self, name: str, call: Callable[[Engine], dict[str, Any]]) -> dict[str, Any]:
        engine, precision = self[name], self.precision_of(name)
        outputs = call(engine)
        check_finite(f"engine {name} of {self.bundle.name}", engine, outputs, precision)
        return outputs
