"""The state of one conversion: which TFLite tensor is which ONNX value, in which of three layouts.

A tensor may exist as `native` (as TFLite has it: NHWC for images), as `nchw`, and as `rows` (all axes but the last one
merged).  Spatial operators read and write `nchw`, matrix products `rows`; element-wise ones keep the layout that their
inputs have; all others work on `native`.  A Transpose or Reshape appears only where a layout is asked for that is not
there yet.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from facesdk.errors import ConversionError, UnsupportedOperator

from .model import Model, Operator
from .network import Network

Layout = Literal["native", "nchw", "rows"]

TO_NCHW, TO_NATIVE = (0, 3, 1, 2), (0, 2, 3, 1)


@dataclasses.dataclass
class Translation:
    """`free`: the first axis of every computed tensor is a batch of any size."""

    model: Model
    free: bool
    network: Network = dataclasses.field(default_factory=Network)
    folded: dict[int, npt.NDArray[Any]] = dataclasses.field(default_factory=dict)
    values: dict[tuple[int, Layout], str] = dataclasses.field(default_factory=dict)

    def shape(self, index: int) -> tuple[int, ...]:
        """The shape of a tensor in TFLite's layout."""
        return self.model.tensors[index].shape

    def array(self, index: int) -> npt.NDArray[Any] | None:
        """The value of a constant (half precision widened to float32), None for a computed tensor."""
        value = self.folded.get(index, self.model.tensors[index].data)
        return value.astype(np.float32) if value is not None and value.dtype == np.float16 else value

    def constant(self, op: Operator, position: int) -> npt.NDArray[Any]:
        """An input that has to be a constant; UnsupportedOperator where it is computed."""
        value = self.array(op.inputs[position])
        if value is None:
            raise self.unsupported(op, f"input {position} is computed at run time, it has to be a constant")
        return value

    def weights(self, op: Operator, position: int) -> npt.NDArray[np.float32]:
        """A constant input of floats; UnsupportedOperator for integers."""
        value = self.constant(op, position)
        if value.dtype != np.float32:
            raise self.unsupported(op, f"input {position} is {value.dtype}, only float weights are translated")
        return value

    def layout(self, index: int) -> Layout | None:
        """The layout that a computed tensor has already, None for a constant."""
        if self.array(index) is not None:
            return None
        return "nchw" if (index, "nchw") in self.values else "native"

    def value(self, index: int, layout: Layout) -> str:
        """The ONNX name of a tensor in a layout; LookupError where an operator runs before its input is there."""
        key = (index, layout)
        if key not in self.values:
            constant = self.array(index)
            self.values[key] = self._computed(index, layout) if constant is None else self._constant(constant, layout)
        return self.values[key]

    def _constant(self, value: npt.NDArray[Any], layout: Layout) -> str:
        if layout == "nchw":
            value = np.transpose(value.reshape((1,) * (4 - value.ndim) + value.shape), TO_NCHW)
        return self.network.constant(value, value.dtype)

    def _computed(self, index: int, layout: Layout) -> str:
        if layout == "nchw":
            return self.network.add("Transpose", self.value(index, "native"), perm=TO_NCHW)
        if layout == "rows":
            return self.reshaped(self.value(index, "native"), [-1, self.shape(index)[-1]])
        if (index, "nchw") in self.values:
            return self.network.add("Transpose", self.values[index, "nchw"], perm=TO_NATIVE)
        return self.reshaped(
            self.values[index, "rows"], [-1 if self.free else self.shape(index)[0], *self.shape(index)[1:]]
        )

    def reshaped(self, name: str, shape: list[int]) -> str:
        """A value in another shape."""
        return self.network.add("Reshape", name, self.network.constant(shape, np.int64, "shape"))

    def emit(self, op: Operator, layout: Layout, name: str) -> None:
        """Declare an ONNX value to be the operator's output."""
        self.values[op.outputs[0], layout] = name

    def keep_batch(self, op: Operator, kept: bool) -> None:
        """Raise ConversionError where a free batch is asked for and this operator does not keep the first axis."""
        if self.free and not kept:
            raise ConversionError(
                f"{self.model.source} fixes the batch: {self._label(op)} does not keep its first axis",
                cause="the graph was exported for one size of batch",
                remedy='convert it with batch="fixed"',
            )

    def unsupported(self, op: Operator, why: str) -> UnsupportedOperator:
        """The error for a form of an operator that is not translated, ready to be raised."""
        return UnsupportedOperator(
            f"{self.model.source}: {self._label(op)} cannot be translated",
            cause=why,
            remedy="use a float32 or float16 export of the model that avoids this form",
        )

    def _label(self, op: Operator) -> str:
        names = [self.model.tensors[index].name for index in op.outputs]
        return f"operator {op.kind} (tensor {', '.join(names)!r})"
