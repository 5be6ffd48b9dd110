"""Random numbers on the device, of which every launch takes its operands from another place."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from facesdk.cuda import bfloat16
from facesdk.cuda.memory import STORAGE
from facesdk.cuda.views import View

from .device import Device
from .problems import Problem

# several times the second-level cache of any GPU: what is read again has been pushed out
BYTES = 1 << 29
# drawn once and repeated: operands of one launch never lie at the same phase of it
_DRAWN = 3 << 20


class Pool:
    """Two rings of memory for one dtype: normal numbers to read, and as much to write."""

    def __init__(self, device: Device, element: str, nbytes: int = BYTES) -> None:
        values = np.random.default_rng().normal(size=min(_DRAWN, nbytes // 2)).astype(np.float32)
        stored = bfloat16.to_bits(values) if element == "bf16" else values.astype(STORAGE[element])
        self.element, self.nbytes = element, nbytes
        self.inputs = device.upload(np.resize(stored, nbytes // 2))
        self.outputs = device.upload(np.zeros(nbytes, np.uint8))
        self._next = {self.inputs: 0, self.outputs: 0}

    def sets(self, problem: Problem, count: int) -> Iterator[dict[str, View]]:
        """Operands and output of `count` launches; places come round again once a ring is used up."""
        rows = {"q": problem.queries, "k": problem.keys, "v": problem.keys}
        if problem.keys2:
            rows |= {"k2": problem.keys2, "v2": problem.keys2}
        for _ in range(count):
            taken = {name: self._take(self.inputs, problem, number) for name, number in rows.items()}
            yield taken | {"out": self._take(self.outputs, problem, problem.queries)}

    def _take(self, ring: int, problem: Problem, rows: int) -> View:
        shape = (problem.batch, rows, problem.heads, problem.dim)
        size = -(-2 * math.prod(shape) // 256) * 256
        start = self._next[ring] if self._next[ring] + size <= self.nbytes else 0
        self._next[ring] = start + size
        strides = (rows * problem.heads * problem.dim, problem.heads * problem.dim, problem.dim, 1)
        return View(ring + start, shape, strides, self.element, ring)
