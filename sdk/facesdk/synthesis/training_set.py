"""Training sets: pictures, features and labels in one LMDB file, as Vec2Face and its recognition training read it.

Key: the record's number in ASCII digits.  Value, in msgpack: [picture, label] for recognition, for the generator
[picture, feature, label]; picture and feature are the bytes of their files.  Beside them `__len__`, `__classnum__` and
`__keys__`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..arrays import read_array
from ..errors import MissingDependency, UsageError
from .centres import Feature, read_feature

Mask = npt.NDArray[np.int64]


class Record(NamedTuple):
    """One record; `feature` is None in sets for recognition.  `picture` is a file's bytes: read_image decodes it."""

    picture: bytes
    feature: Feature | None
    label: int


class TrainingSet:
    """A set in an LMDB file or folder, opened for reading; safe to use in forked and spawned processes.

    mask  record numbers, or the .npy file of them: the set is then these records, in this order.
    Raises UsageError where the file is no such set, is cut short, or the mask points outside it.
    """

    def __init__(self, path: str | Path, mask: str | Path | Mask | None = None) -> None:
        self.path = Path(path)
        lmdb, self._msgpack = libraries()
        if not self.path.exists():
            raise UsageError(f"{self.path} does not exist", remedy="check the path")
        self._environment: Any = None
        self._damage = lmdb.Error, ValueError, TypeError, LookupError
        try:
            folder = self.path.is_dir()
            self._environment = lmdb.open(str(self.path), subdir=folder, readonly=True, lock=False, readahead=False)
            self._check_size()
            self.records, self.classes = int(self._entry(b"__len__")), int(self._entry(b"__classnum__"))
            self.mask = None if mask is None else _checked(mask, self.records)
        except UsageError:
            self.close()
            raise
        except self._damage as error:
            self.close()
            raise self._unreadable(error) from error

    def __len__(self) -> int:
        return self.records if self.mask is None else len(self.mask)

    def __iter__(self) -> Iterator[Record]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> Record:
        if not 0 <= number < len(self):
            raise IndexError(f"record {number} of {len(self)} in {self.path}")
        if self.mask is not None:
            number = int(self.mask[number])
        try:
            # a fourth field, the landmark picture of Vec2Face+, may follow the label
            picture, *features, label = self._entry(b"%d" % number)[:3]
            if not isinstance(label, int) or not all(isinstance(each, bytes) for each in (picture, *features)):
                raise ValueError(f"record {number} is neither [picture, label] nor [picture, feature, label]")
            name = f"the feature of record {number} of {self.path}"
            return Record(picture, read_feature(features[0], None, name) if features else None, label)
        except UsageError:
            raise
        except self._damage as error:
            raise self._unreadable(error) from error

    def part(self, mask: str | Path | Mask) -> TrainingSet:
        """The records of a mask over the whole set; both share the open file, which a process can open once."""
        part = object.__new__(TrainingSet)
        part.__dict__.update(self.__dict__, mask=_checked(mask, self.records))
        return part

    def close(self) -> None:
        """Release the file, for its parts too."""
        if self._environment is not None:
            self._environment.close()

    def __enter__(self) -> TrainingSet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[type[TrainingSet], tuple[Path, Mask | None]]:
        return TrainingSet, (self.path, self.mask)

    def _entry(self, key: bytes) -> Any:
        with self._environment.begin() as transaction:
            value = transaction.get(key)
        if value is None:
            raise ValueError(f"it has no entry {key.decode()}")
        return self._msgpack.unpackb(value)

    def _check_size(self) -> None:
        """Raise ValueError where pages are missing: LMDB would crash the process on reading them."""
        file = self.path / "data.mdb" if self.path.is_dir() else self.path
        pages = self._environment.info()["last_pgno"] + 1
        if file.stat().st_size < pages * self._environment.stat()["psize"]:
            raise ValueError("it is cut short")

    def _unreadable(self, error: Exception) -> UsageError:
        if "already open" in str(error):
            return UsageError(
                f"{self.path} is open in this process already", remedy="use one TrainingSet, and its parts for masks"
            )
        return UsageError(
            f"{self.path} is no training set",
            cause=str(error),
            remedy="copy or download it again, or write it with: facesdk dataset lmdb",
        )


def _checked(mask: str | Path | Mask, records: int) -> Mask:
    name = "the mask" if isinstance(mask, np.ndarray) else str(mask)
    numbers = mask if isinstance(mask, np.ndarray) else read_array(Path(mask))
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu" or not len(numbers):
        raise UsageError(f"{name} is {numbers.dtype} of shape {numbers.shape}", remedy="give record numbers (n,)")
    low, high = int(numbers.min()), int(numbers.max())
    if low < 0 or high >= records:
        raise UsageError(
            f"{name} names records {low} to {high} of a set of {records}", remedy="give the mask made for this set"
        )
    return numbers.astype(np.int64)


def libraries() -> tuple[ModuleType, ModuleType]:
    """The packages lmdb and msgpack; raises MissingDependency."""
    try:
        import lmdb
        import msgpack
    except ImportError as error:
        raise MissingDependency(
            "training sets need the packages lmdb and msgpack", cause=str(error), remedy="pip install lmdb msgpack"
        ) from error
    return lmdb, msgpack
