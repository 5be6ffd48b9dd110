"""The buffers of a scan in ONNX Runtime: a carry that swings between two places, bound once for each direction."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort

from ..engine import NEXT, Array, Arrays
from .onnxruntime_binding import Rows, upload

#: input -> shape and dtype
Form = dict[str, tuple[tuple[int, ...], str]]


def form_of(*groups: Arrays) -> Form:
    """What two scans must share to run in the same buffers."""
    return {name: (array.shape, array.dtype.str) for arrays in groups for name, array in arrays.items()}


class Loop:
    """One scan at a time, and with `fixed` one after the other in the same buffers.

    Every run ends with the device synchronised, as ONNX Runtime does by itself: `on_step` may then say that the step
    is done, and two threads in one session, whose runs may get different streams, stay apart.
    """

    def __init__(
        self, session: Any, memory: str, carry: Arrays, xs: Arrays, constants: Arrays, *, fixed: bool = False
    ) -> None:
        self.form, self._session, self._names = form_of(carry, xs, constants), session, list(carry)
        # copies: in host memory an OrtValue is the array itself, and these are written to
        self._front = {name: upload(_copy(array), memory) for name, array in carry.items()}
        self._back = {name: _empty(array, memory) for name, array in carry.items()}
        self._constants = {name: upload(_copy(array) if fixed else array, memory) for name, array in constants.items()}
        self._rows = {name: Rows(series, memory, fixed=fixed) for name, series in xs.items()}
        self._bindings = self._bound(self._back), self._bound(self._front)

    def replace(self, carry: Arrays, xs: Arrays, constants: Arrays) -> None:
        """Begin another scan of the same form, in the same buffers."""
        for values, arrays in ((self._front, carry), (self._constants, constants)):
            for name, array in arrays.items():
                values[name].update_inplace(np.asarray(array, order="C"))
        for name, series in xs.items():
            self._rows[name].replace(series)
        for binding in self._bindings:
            _bind(binding, self._constants)

    def step(self, step: int, options: Any = None) -> None:
        """Run step `step`; even steps go from the front to the back."""
        binding, source = self._bindings[step % 2], (self._front, self._back)[step % 2]
        _bind(binding, source)
        for name, rows in self._rows.items():
            rows.bind(binding, name, step)
        self._session.run_with_iobinding(binding, options)

    def carry(self, steps: int) -> dict[str, Array]:
        """The carry after so many steps."""
        return dict(zip(self._names, self._bindings[(steps - 1) % 2].copy_outputs_to_cpu(), strict=True))

    def _bound(self, target: dict[str, Any]) -> Any:
        binding = self._session.io_binding()
        _bind(binding, self._constants)
        for name, value in target.items():
            binding.bind_ortvalue_output(NEXT + name, value)
        return binding


def _bind(binding: Any, values: dict[str, Any]) -> None:
    """Bind inputs, anew whenever values changed: what an operator on the processor reads is copied there by this."""
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)


def _copy(array: Array) -> Array:
    return np.array(array, order="C")


def _empty(like: Array, memory: str) -> Any:
    return ort.OrtValue.ortvalue_from_shape_and_type(like.shape, like.dtype, memory, 0)
