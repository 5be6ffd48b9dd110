"""`Identity`: who a face is, as a vector that knows the space it lives in."""

from __future__ import annotations

import dataclasses
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import EmbeddingSpaceMismatch, UsageError
from .files import atomic_path

#: of the npz file; a change of its fields raises it
FORMAT = 1

# what numpy's reader raises on files that are damaged or of another kind
_DAMAGE = (OSError, ValueError, TypeError, AttributeError, LookupError, EOFError, MemoryError, RuntimeError,
           zipfile.BadZipFile, zlib.error)  # fmt: skip
_ENCODE_AGAIN = "facesdk encode PHOTO -o identity.npz"


@dataclasses.dataclass(frozen=True)
class Space:
    """Where vectors can be compared with each other: one encoder, one way of preparing its input.

    model          names the encoder's weights.
    preprocessing  names the alignment and scaling, with a version.
    normalised     whether vectors have length one; elsewhere their length means something (quality, for some).
    """

    model: str
    preprocessing: str
    normalised: bool
    width: int

    def __str__(self) -> str:
        form = "normalised" if self.normalised else "not normalised"
        return f"{self.model} ({self.preprocessing}, {self.width} values, {form})"


@dataclasses.dataclass(frozen=True, eq=False)
class Identity:
    """One person in one space.

    vector  (space.width,) float32, read-only; divided by its length where the space is normalised.
    photos  how many photos it was made of.
    Raises UsageError for a vector of another shape, of length zero, or with NaN or infinite values.
    """

    vector: npt.NDArray[np.float32]
    space: Space
    photos: int = 1

    def __post_init__(self) -> None:
        if self.photos < 1:
            raise UsageError(f"an identity of {self.photos} photos", remedy="give 1 or more")
        vector = _checked(self.vector, self.space.width)
        if self.space.normalised:
            vector = vector / np.linalg.norm(vector)
        single = vector.astype(np.float32)
        single.flags.writeable = False
        object.__setattr__(self, "vector", single)

    def cosine(self, other: Identity) -> float:
        """Similarity -1..1; raises EmbeddingSpaceMismatch."""
        _check_spaces(self.space, other.space)
        return float(np.clip(_unit(self.vector) @ _unit(other.vector), -1, 1))

    @classmethod
    def mean_of(cls, identities: Iterable[Identity]) -> Identity:
        """The direction of the mean of the unit vectors, each identity counting once.

        Its length is one, or, in a space that is not normalised, the mean of the lengths.
        Raises EmbeddingSpaceMismatch; UsageError for none at all or for vectors that cancel out.
        """
        members = list(identities)
        if not members:
            raise UsageError("the mean of no identities", remedy="give at least one")
        for other in members[1:]:
            _check_spaces(members[0].space, other.space)
        direction = np.mean([_unit(member.vector) for member in members], axis=0)
        if np.linalg.norm(direction) < 1e-6:
            raise UsageError("the identities cancel out", remedy="give photos of one person")
        length = np.mean([np.linalg.norm(member.vector) for member in members])
        photos = sum(member.photos for member in members)
        return cls(length * _unit(direction), members[0].space, photos)

    def save(self, path: str | Path) -> None:
        """Write an npz file, whole or not at all; raises OutputError."""
        fields: dict[str, Any] = {"format": FORMAT, "vector": self.vector, "photos": self.photos}
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **fields, **dataclasses.asdict(self.space))

    @classmethod
    def load(cls, path: str | Path) -> Identity:
        """The identity in a file of `save`; raises UsageError for any other file."""
        try:
            with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as archive:
                fields = {name: archive[name] for name in archive.files}
            if int(fields["format"]) == FORMAT:
                return cls(fields["vector"], _space(fields), int(fields["photos"]))
        except FileNotFoundError as error:
            raise UsageError(f"{path} does not exist", remedy=f"check the path, or make it: {_ENCODE_AGAIN}") from error
        except _DAMAGE as error:
            cause = error.fact if isinstance(error, UsageError) else str(error)
            raise UsageError(
                f"{path} is not an identity file", cause=cause, remedy=f"make one: {_ENCODE_AGAIN}"
            ) from error
        raise UsageError(
            f"{path} has format {fields['format']}",
            cause=f"this version of FaceSDK reads format {FORMAT}",
            remedy=f"encode the photos again: {_ENCODE_AGAIN}",
        )


def _space(fields: dict[str, npt.NDArray[Any]]) -> Space:
    names = str(fields["model"]), str(fields["preprocessing"])
    return Space(*names, normalised=bool(fields["normalised"]), width=int(fields["width"]))


def _checked(vector: npt.NDArray[Any], width: int) -> npt.NDArray[np.float64]:
    array = np.asarray(vector)
    remedy = "give the output of the space's encoder for one face"
    if array.dtype.kind != "f" or array.shape != (width,):
        raise UsageError(f"the vector is {array.dtype} of shape {array.shape}, not float32 ({width},)", remedy=remedy)
    with np.errstate(over="ignore"):
        array = array.astype(np.float32).astype(np.float64)
    bad = width - int(np.isfinite(array).sum())
    if bad:
        raise UsageError(f"the vector holds {bad} NaN or infinite values of {width}", remedy=remedy)
    if not array.any():
        raise UsageError("the vector has length zero", cause="it has no direction to compare", remedy=remedy)
    return array


def _unit(vector: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    double = vector.astype(np.float64)
    return np.asarray(double / np.linalg.norm(double))


def _check_spaces(one: Space, other: Space) -> None:
    if one != other:
        raise EmbeddingSpaceMismatch(
            "identities of two spaces cannot be compared",
            cause=f"{one} and {other}",
            remedy="encode the photos of both with one encoder: facesdk encode PHOTO -o identity.npz --encoder NAME",
        )
