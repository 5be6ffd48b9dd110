"""Writing training sets: folders of pictures, and of features, into one LMDB file."""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from ..errors import ImageError, OutputError, UsageError
from ..files import atomic_path
from .centres import WIDTH, read_feature
from .folders import FEATURES, PICTURES, OnIdentity, check_suffix, files_of, identities, reading
from .labels import Counts
from .training_set import libraries

#: records written at once: some MB of pictures of 112 x 112
_BATCH = 256
_FIRST_MAP_BYTES = 1 << 26


def write_training_set(
    pictures: str | Path,
    output: str | Path,
    features: str | Path | None = None,
    *,
    width: int = WIDTH,
    on_identity: OnIdentity | None = None,
) -> Counts:
    """Write the set of the folders {pictures}/{identity}/{picture}, and {features}/{identity}/{picture}.npy if given.

    Records are in the order of the pictures' paths; labels count the identities in that order.
    Raises UsageError where pictures and features do not agree, ImageError, MissingDependency; nothing is written then.
    """
    check_suffix(Path(output), ".lmdb")
    lmdb, msgpack = libraries()
    source = _Source(Path(pictures), None if features is None else Path(features), width)
    names, count = source.names(), 0
    with atomic_path(output) as temporary, _writing(lmdb, temporary, Path(output)) as environment:
        packed = (msgpack.packb(record) for record in source.records(names, on_identity))
        numbered = ((b"%d" % number, value) for number, value in enumerate(packed))
        while batch := list(itertools.islice(numbered, _BATCH)):
            _put(lmdb, environment, batch)
            count += len(batch)
        sizes = [(b"__len__", msgpack.packb(count)), (b"__classnum__", msgpack.packb(len(names)))]
        _put(lmdb, environment, [(b"__keys__", _keys(msgpack, count)), *sizes])
        environment.sync(True)
    return Counts(count, len(names))


class _Source(NamedTuple):
    """The folders that a set is made of."""

    pictures: Path
    features: Path | None
    width: int

    def names(self) -> list[str]:
        """The identities; raises UsageError where pictures and features are not of the same."""
        names = [name for name, _ in identities(self.pictures, PICTURES)]
        if self.features is not None:
            others = {name for name, _ in identities(self.features, FEATURES)}
            _check_agreement("identities", self.pictures, set(names), self.features, others)
        return names

    def records(self, names: list[str], on_identity: OnIdentity | None) -> Iterator[tuple[bytes | int, ...]]:
        for label, name in enumerate(names):
            files = files_of(self.pictures / name, PICTURES)
            features = self._features(name, files)
            for file in files:
                yield (_picture(file), *(_feature(path, self.width) for path in features.get(file.stem, ())), label)
            if on_identity is not None:
                on_identity(label + 1, len(names))

    def _features(self, name: str, pictures: list[Path]) -> dict[str, list[Path]]:
        """Stem -> the one feature of that stem; empty for sets without features."""
        if self.features is None:
            return {}
        found = {path.stem: [path] for path in files_of(self.features / name, FEATURES)}
        stems = sorted(path.stem for path in pictures)
        for stem, following in itertools.pairwise(stems):
            if stem == following:
                raise UsageError(
                    f"{self.pictures / name} holds two pictures called {stem}", remedy="take out or rename one of them"
                )
        _check_agreement("files", self.pictures / name, set(stems), self.features / name, set(found))
        return found


def _check_agreement(what: str, pictures: Path, of_pictures: set[str], features: Path, of_features: set[str]) -> None:
    alone = sorted(of_pictures ^ of_features)
    if alone:
        here, there = (pictures, features) if alone[0] in of_pictures else (features, pictures)
        raise UsageError(
            f"pictures and features do not agree: {alone[0]} is in {here}, but not in {there}",
            cause=f"{len(alone)} {what} are on one side only",
            remedy="give every picture one feature, IDENTITY/PICTURE.npy for IDENTITY/PICTURE.jpg, and no others",
        )


def _picture(path: Path) -> bytes:
    """The file's bytes, of which Pillow has read the header."""
    from PIL import Image

    with reading(path):
        data = path.read_bytes()
    try:
        with Image.open(io.BytesIO(data)):
            return data
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageError(f"{path} is no picture", remedy="replace it, or take it out of the folder") from error


def _feature(path: Path, width: int) -> bytes:
    """The file's bytes, which hold an embedding."""
    with reading(path):
        data = path.read_bytes()
    read_feature(data, width, path)
    return data


@contextlib.contextmanager
def _writing(lmdb: ModuleType, temporary: Path, output: Path) -> Iterator[Any]:
    """An LMDB environment in one file, closed at the end; its errors become OutputError."""
    try:
        # no lock file: nobody else knows the name; no waiting for the disk before the end
        with lmdb.open(str(temporary), subdir=False, lock=False, sync=False, map_size=_FIRST_MAP_BYTES) as environment:
            yield environment
    except lmdb.Error as error:
        raise OutputError(
            f"{output} cannot be written", cause=str(error), remedy="choose a folder with room for the file"
        ) from error


def _put(lmdb: ModuleType, environment: Any, items: list[tuple[bytes, bytes]]) -> None:
    """Write the items in one transaction; where the map is full, in one of twice the size."""
    try:
        with environment.begin(write=True) as transaction:
            for key, value in items:
                transaction.put(key, value)
    except lmdb.MapFullError:
        environment.set_mapsize(2 * environment.info()["map_size"])
        _put(lmdb, environment, items)


def _keys(msgpack: ModuleType, count: int) -> bytes:
    """The list of all keys in msgpack, made without a list of millions of objects."""
    packer = msgpack.Packer()
    packed = bytearray(packer.pack_array_header(count))
    for number in range(count):
        packed += packer.pack(b"%d" % number)
    return bytes(packed)
