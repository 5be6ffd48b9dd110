"""What files of `torch.save` and TorchScript hold, their tensors mapped wherever the format allows.

Nothing in a file is trusted: sizes are held against the file's own before anything is allocated.
"""

from __future__ import annotations

import collections
import io
import math
import os
import struct
import typing
import zipfile
from pathlib import Path
from typing import IO, NamedTuple

import torch
from torch import Tensor

from .pickles import Constructors, Inert, unpickle

_STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip


class _Storage(NamedTuple):
    data: torch.UntypedStorage
    dtype: torch.dtype


def map_file(path: Path) -> torch.UntypedStorage:
    """The bytes of a file, mapped: pages are read when they are used, and changes stay in memory."""
    mapped = torch.UntypedStorage.from_file(os.fspath(path), False, path.stat().st_size)
    return typing.cast(torch.UntypedStorage, mapped)


class TorchZip:
    """A file of `torch.save` (since torch 1.6) or of TorchScript: a zip of one pickle and the tensors' bytes.

    Raises ValueError where it is neither, or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                self._members = {info.filename: info for info in archive.infolist()}
        except (zipfile.BadZipFile, NotImplementedError, UnicodeError, struct.error) as error:
            raise ValueError(f"it is cut off or damaged: {error}") from error
        pickles = [name for name in self._members if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("it is a zip archive, but not one that torch.save wrote: it holds no data.pkl")
        self._root = pickles[0].removesuffix("data.pkl")
        self._mapped = map_file(path)

    def pickle(self) -> bytes:
        """The pickle, which refers to the tensors' bytes."""
        return self._read("data.pkl")

    def saved(self) -> object:
        """What was saved; of a TorchScript module, its tensors under dotted names.

        Raises pickles.Refused where the pickle names a function, ValueError where it is damaged.
        """
        if self._root + "byteorder" in self._members and self._read("byteorder") != b"little":
            raise ValueError("its numbers are in big-endian order")
        saved = unpickle(io.BytesIO(self.pickle()), _constructors(), inert=True, persistent=self._storage)
        if isinstance(saved, Inert) and type(saved).__module__.startswith("__torch__"):
            return _script_entries(saved, "", set())
        return saved

    def _storage(self, pid: object) -> _Storage:
        """The storage of a persistent id: ("storage", type, member, device, number of elements)."""
        match pid:
            case ("storage", torch.dtype() as dtype, str() as key, str(), int() as count):
                start, size = self._span(f"data/{key}")
            case _:
                raise ValueError(f"unknown reference {str(pid)[:80]}")
        if size != count * dtype.itemsize:
            raise ValueError(f"tensor data {key} has {size} bytes, announced are {count * dtype.itemsize}")
        return _Storage(self._mapped[start : start + size], dtype)

    def _read(self, name: str) -> bytes:
        start, size = self._span(name)
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(size)

    def _span(self, name: str) -> tuple[int, int]:
        """Offset and size of a member in the file; torch.save compresses nothing, so a bomb has no fuse."""
        info = self._members.get(self._root + name)
        if info is None:
            raise ValueError(f"{name} is missing")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise ValueError(f"{name} is compressed, which torch.save never does")
        with self.path.open("rb") as file:
            file.seek(info.header_offset)
            header = file.read(30)
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise ValueError(f"{name} has no header")
        start = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
        if start + info.file_size > self.path.stat().st_size:
            raise ValueError(f"{name} is cut off")
        return start, info.file_size


# -- torch.save before 1.6 --------------------------------------------------------------------------------

#: the magic number that comes first, pickled
LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def read_legacy(path: Path) -> object:
    """What was saved: three pickles of versions, one of the object, one of its storages' keys, and their bytes.

    Raises pickles.Refused where a pickle names a function, ValueError where the file is damaged.
    """
    storages: dict[str, _Storage] = {}
    left = path.stat().st_size

    def storage(pid: object) -> _Storage:
        nonlocal left
        match pid:
            case ("storage", torch.dtype() as dtype, str() as key, str(), int() as count, *view):
                size = count * dtype.itemsize
            case _:
                raise ValueError(f"unknown reference {str(pid)[:80]}")
        if key not in storages:
            left -= size
            if size < 0 or left < 0:
                raise ValueError(f"{count} numbers are announced, which the file is too short for")
            storages[key] = _Storage(torch.empty(size, dtype=torch.uint8).untyped_storage(), dtype)
        return _part(storages[key], view)

    with path.open("rb") as file:
        for _ in range(3):
            unpickle(file, {}, inert=False)
        saved = unpickle(file, _constructors(), inert=True, persistent=storage)
        keys = unpickle(file, {}, inert=False)
        if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(storages):
            raise ValueError("its list of tensor data is damaged")
        for key in keys:
            _fill(storages[key], file)
    return saved


def _part(storage: _Storage, view: list[object]) -> _Storage:
    """The storage, or the part of it that torch before 1.2 could refer to: (key, offset, number of elements)."""
    match view:
        case [] | [None]:
            return storage
        case [(_, int() as first, int() as count)]:
            start, end = first * storage.dtype.itemsize, (first + count) * storage.dtype.itemsize
            if 0 <= start <= end <= storage.data.nbytes():
                return storage._replace(data=storage.data[start:end])
    raise ValueError("a reference to a part of tensor data is damaged")


def _fill(storage: _Storage, file: IO[bytes]) -> None:
    count = int.from_bytes(file.read(8), "little")
    if count * storage.dtype.itemsize != storage.data.nbytes():
        raise ValueError("its tensor data is cut off or damaged")
    if count:
        room = torch.empty(0, dtype=torch.uint8).set_(storage.data).numpy()
        if file.readinto(room) != room.nbytes:  # type: ignore[attr-defined]
            raise ValueError("its tensor data is cut off")


# -- what a pickle of torch may call -----------------------------------------------------------------------


def _constructors() -> Constructors:
    """Made anew for every file: nothing that one file does to them reaches the next."""
    storages = {("torch", name): dtype for name, dtype in _STORAGES.items()}
    return {
        **storages,
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor"): lambda *arguments: _tensor(*arguments),
        ("torch._utils", "_rebuild_tensor_v2"): lambda *arguments: _tensor(*arguments),
        ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
        ("torch._utils", "_rebuild_parameter_with_state"): lambda data, *_: data,
    }


def _tensor(storage: object, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Tensor:
    """A view of a storage that does not reach beyond it."""
    if not isinstance(storage, _Storage):
        raise ValueError("a tensor without a storage")
    if math.prod(size) == 0:
        return torch.empty(size, dtype=storage.dtype)
    end = offset + 1 + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
    if min((offset, *size, *stride)) < 0 or end > storage.data.nbytes() // storage.dtype.itemsize:
        raise ValueError(f"a tensor of shape {size} reaches beyond its data")
    return torch.empty(0, dtype=storage.dtype).set_(storage.data, offset, size, stride)


def _script_entries(module: Inert, prefix: str, seen: set[Inert]) -> dict[str, Tensor]:
    seen.add(module)
    found: dict[str, Tensor] = {}
    state = module.state if isinstance(module.state, dict) else {}
    for name, value in dict.items(state):
        if isinstance(value, Tensor):
            found[f"{prefix}{name}"] = value
        elif isinstance(value, Inert) and value not in seen:
            found |= _script_entries(value, f"{prefix}{name}.", seen)
    return found
