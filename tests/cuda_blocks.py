"""Host memory that poses as a GPU's: poisoned, between guard zones, every access checked against what is alive."""

from __future__ import annotations

import dataclasses
import enum
import math
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

ALIGNMENT = GUARD = 256
POISON, GUARDED = 0xFF, 0xA5


class Refused(Exception):
    """A call answers with `name`, less its "cudaError"; `fault`: what the caller did that is never right."""

    def __init__(self, name: str, fault: str = "") -> None:
        self.name, self.fault = name, fault
        super().__init__(f"{name}: {fault}")


class Kind(enum.Enum):
    DEVICE = "device"
    PINNED = "pinned"


@dataclasses.dataclass
class Block:
    pointer: int
    nbytes: int
    kind: Kind
    storage: Bytes = dataclasses.field(repr=False)

    @property
    def content(self) -> Bytes:
        start = self.pointer - self.storage.ctypes.data
        return self.storage[start : start + self.nbytes]

    def holds(self, address: int) -> bool:
        return self.pointer <= address < self.pointer + self.nbytes

    def overrun(self) -> bool:
        start = self.pointer - self.storage.ctypes.data
        before, after = self.storage[start - GUARD : start], self.storage[start + self.nbytes :][:GUARD]
        return bool((before != GUARDED).any() or (after != GUARDED).any())

    def __str__(self) -> str:
        return f"{self.nbytes} bytes of {self.kind.value} memory at {self.pointer:#x}"


class Blocks:
    """All allocations; what was freed is held, so that a late write hits nothing else and is found by `problems`."""

    def __init__(self) -> None:
        self.alive: dict[int, Block] = {}
        self._freed: dict[int, Block] = {}

    def used(self, kind: Kind) -> int:
        return sum(block.nbytes for block in self.alive.values() if block.kind is kind)

    def allocate(self, size: int, kind: Kind) -> int:
        if size <= 0:
            raise Refused("InvalidValue", f"{size} bytes were asked for")
        storage = np.full(size + ALIGNMENT + 2 * GUARD, GUARDED, np.uint8)
        pointer = storage.ctypes.data + GUARD
        pointer += -pointer % ALIGNMENT
        block = self.alive[pointer] = Block(pointer, size, kind, storage)
        block.content[:] = POISON
        return pointer

    def free(self, pointer: int, kind: Kind) -> None:
        if pointer == 0:
            return
        block = self.alive.get(pointer)
        if block is None or block.kind is not kind:
            what = "freed twice" if pointer in self._freed else "freed, but was never allocated this way"
            raise Refused("InvalidValue", f"{pointer:#x} was {what}")
        block.content[:] = POISON
        self._freed[pointer] = self.alive.pop(pointer)

    def find(self, address: int) -> Block | None:
        return next((block for block in self.alive.values() if block.holds(address)), None)

    def array(self, pointer: int, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        self.check_device(pointer, math.prod(shape) * np.dtype(dtype).itemsize)
        block = self.find(pointer)
        assert block
        seen: npt.NDArray[Any] = np.ndarray(shape, dtype, block.content.data, pointer - block.pointer)
        return seen

    def check_device(self, address: int, count: int) -> None:
        """Refused where these bytes are not all in one live allocation of the device."""
        block = self.find(address)
        if block is None or block.kind is not Kind.DEVICE:
            raise Refused("InvalidValue", f"{address:#x} is not in live device memory")
        _check_end(block, address, count)

    def check_host(self, address: int, count: int) -> None:
        """Refused where these bytes are on the device, were freed, or reach out of pinned memory."""
        block = self.find(address)
        if block is None:
            if any(freed.holds(address) for freed in self._freed.values()):
                raise Refused("InvalidValue", f"{address:#x} was freed before")
            return
        if block.kind is Kind.DEVICE:
            raise Refused("InvalidValue", f"{address:#x} is device memory, the copy takes it for the host's")
        _check_end(block, address, count)

    def problems(self) -> list[str]:
        blocks = [*self.alive.values(), *self._freed.values()]
        after = [block for block in self._freed.values() if (block.content != POISON).any()]
        return [f"written beside {b}" for b in blocks if b.overrun()] + [f"written after free: {b}" for b in after]


def _check_end(block: Block, address: int, count: int) -> None:
    if address + count > block.pointer + block.nbytes:
        raise Refused("InvalidValue", f"{count} bytes at {address:#x} reach out of {block}")
