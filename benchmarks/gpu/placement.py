"""Arrays laid out in host images of device memory: values where they belong, poison everywhere else."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from facesdk.cuda import bfloat16
from facesdk.cuda.memory import STORAGE
from facesdk.cuda.views import View
from facesdk.kernels.operands import ELEMENTS, Operands

from .problems import Problem

Array = np.ndarray[Any, Any]
# every byte of it: NaN in fp16, bf16 and fp32, and a region code that no query has
POISON = 255
_GUARD = 4096


@dataclasses.dataclass(frozen=True, eq=False)
class Image:
    """Bytes as they go to the device.  The array in them begins at `start`, `strides` are in elements."""

    data: Array
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    element: str

    def values(self, data: Array | None = None) -> Array:
        """The array's storage in these bytes, or in the ones given; writable."""
        dtype = np.dtype(STORAGE[self.element])
        flat = (self.data if data is None else data)[self.start :]
        flat = flat[: len(flat) // dtype.itemsize * dtype.itemsize].view(dtype)
        return np.lib.stride_tricks.as_strided(flat, self.shape, [step * dtype.itemsize for step in self.strides])

    def floats(self, data: Array | None = None) -> Array:
        """The array's values: bf16 in float32, everything else as it is."""
        values = self.values(data)
        return bfloat16.from_bits(values) if self.element == "bf16" else values.copy()

    def untouched(self, data: Array) -> bool:
        """Whether these bytes hold nothing but poison outside the array."""
        rest, poison = data.copy(), np.full(8, POISON, np.uint8)
        values = self.values(rest)
        values[...] = poison[: values.itemsize].view(values.dtype)[0]
        return bool((rest == POISON).all())

    def view(self, pointer: int) -> View:
        """Where the array lies once the bytes are at `pointer` on the device."""
        return View(pointer + self.start, self.shape, self.strides, self.element, None)


def layout(problem: Problem, rows: int) -> tuple[tuple[int, int, int, int], int]:
    """Strides in elements of (batch, rows, heads, dim), and how many elements they span."""
    batch, heads, dim = problem.batch, problem.heads, problem.dim
    if problem.layout == "heads":
        return (heads * rows * dim, dim, rows * dim, 1), batch * heads * rows * dim
    if problem.layout == "fused":  # one of three in the output of one linear layer
        pitch = 3 * heads * dim
        return (rows * pitch, pitch, dim, 1), batch * rows * pitch
    if problem.layout == "padded":
        head = dim + 8
        pitch = heads * head + 16
        return ((rows + 3) * pitch, pitch, head, 1), batch * (rows + 3) * pitch
    return (rows * heads * dim, heads * dim, dim, 1), batch * rows * heads * dim


def blank(problem: Problem, rows: int) -> Image:
    """Poison, with room for (batch, rows, heads, dim) at an address that is a multiple of 16 and not of 32."""
    strides, span = layout(problem, rows)
    data = np.full(2 * _GUARD + 2 * span, POISON, np.uint8)
    return Image(data, _GUARD // 2 + 16, (problem.batch, rows, problem.heads, problem.dim), strides, problem.element)


def packed(values: Array, element: str) -> Image:
    """A contiguous array between guards, no better aligned than it must be."""
    size = np.dtype(STORAGE[element]).itemsize
    start = _GUARD // 2 + (size if size != 2 else 16)
    steps = np.cumprod((1, *values.shape[:0:-1]))[::-1]
    data = np.full(_GUARD + size * values.size, POISON, np.uint8)
    image = Image(data, start, values.shape, tuple(map(int, steps)), element)
    image.values()[...] = bfloat16.to_bits(values) if element == "bf16" else values
    return image


def draw(problem: Problem, rng: np.random.Generator) -> dict[str, Image]:
    """Name -> image of every input, with fresh random values."""
    p, images = problem, {}
    for name, rows in {"q": p.queries, "k": p.keys, "v": p.keys, "k2": p.keys2, "v2": p.keys2}.items():
        if rows:
            image = images[name] = blank(p, rows)
            values = rng.normal(0, p.spread, image.shape).astype(np.float32)
            image.values()[...] = bfloat16.to_bits(values) if p.element == "bf16" else values
    small: dict[str, Array] = {}
    if "bias" in p.options:
        small["query_bias"] = rng.normal(0, p.spread, (p.heads, p.dim)).astype(np.float32)
    if "weight2" in p.options:
        small["weight2"] = rng.normal(0, 1, p.batch).astype(np.float32)
    if "region" in p.options:
        small["region"] = rng.integers(0, 4, (p.batch, p.queries), np.uint8)
        small["subject"] = rng.integers(0, 4, (p.batch, p.keys), np.uint8)
        if p.keys2:
            small["subject2"] = rng.integers(1, 4, (p.batch, p.keys2), np.uint8)
    return images | {name: packed(values, ELEMENTS.get(name, p.element)) for name, values in small.items()}


def operands(images: dict[str, Image]) -> Operands[Array]:
    """The values that the device will see, for the reference."""
    return Operands(**{name: image.floats() for name, image in images.items()})
