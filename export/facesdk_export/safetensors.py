"""What safetensors files hold: a table of names, types, shapes and places, and the tensors' bytes, which are mapped."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from .archives import map_file

_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; raises ValueError where it is damaged."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header, start = _header(file, size)
    mapped = map_file(path)
    return {name: _tensor(name, entry, mapped, start, size) for name, entry in header.items() if name != "__metadata__"}


def _header(file: IO[bytes], size: int) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(file.read(8), "little")
    if length > size - 8:
        raise ValueError(f"its header announces {length} bytes, the file has {size}")
    try:
        header = json.loads(file.read(length))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its header is no JSON: {error}") from error
    if not isinstance(header, dict):
        raise ValueError("its header is no table")
    return header, 8 + length


def _tensor(name: str, entry: object, mapped: torch.UntypedStorage, start: int, size: int) -> Tensor:
    match entry:
        case {"dtype": str() as kind, "shape": list() as shape, "data_offsets": [int() as begin, int() as end]}:
            dtype = _TYPES.get(kind)
        case _:
            raise ValueError(f"entry {name} has no dtype, shape and data_offsets")
    if dtype is None:
        raise ValueError(f"entry {name} has dtype {kind}")
    if not all(type(side) is int and side >= 0 for side in shape) or not 0 <= begin <= end <= size - start:
        raise ValueError(f"entry {name} lies outside the file")
    if math.prod(shape) * dtype.itemsize != end - begin:
        raise ValueError(f"entry {name} of shape {shape} has {end - begin} bytes")
    data = mapped[start + begin : start + end]
    if (start + begin) % dtype.itemsize:
        data = data.clone()  # the format allows odd offsets, the processor may not
    return torch.empty(0, dtype=dtype).set_(data).reshape(shape)
