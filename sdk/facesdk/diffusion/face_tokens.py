"""`FaceTokens`: a face as words that a text encoder has never read, and the ways to put them into a prompt."""

from __future__ import annotations

import dataclasses
import math
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from ..errors import EmbeddingSpaceMismatch, UsageError, one_of
from ..files import atomic_path
from .prompt import Placement, TokenCount
from .tokenizer import LENGTH

Floats = npt.NDArray[np.float32]
Method = Literal["f2d", "mf2d"]

#: tokens that a face has: Face2Diffusion's scripts inject `first` and `last`, MF2D's only `first`
TOKEN_COUNTS: Mapping[Method, TokenCount] = {"f2d": 2, "mf2d": 1}
#: of the npz file; a change of its fields raises it
FORMAT = 1

# what numpy's reader raises on files that are damaged or of another kind
_DAMAGE = (OSError, ValueError, TypeError, AttributeError, LookupError, EOFError, MemoryError, RuntimeError,
           zipfile.BadZipFile, zlib.error)  # fmt: skip
_MAKE_AGAIN = "make one of photos: sdk.face_tokens(photos).save(path), on the command line --save-tokens FILE"


@dataclasses.dataclass(frozen=True)
class TokenSpace:
    """Where face tokens can be mixed: one mapping network, one way of using what it gives.

    model  names the mapping network's weights.
    """

    model: str
    method: Method
    width: int = 768

    def __post_init__(self) -> None:
        if self.method not in TOKEN_COUNTS:
            raise one_of("the method", self.method, tuple(TOKEN_COUNTS))

    @property
    def tokens(self) -> TokenCount:
        """How many tokens a face has."""
        return TOKEN_COUNTS[self.method]

    def __str__(self) -> str:
        return f"{self.model} ({self.method}, {self.width} values)"


@dataclasses.dataclass(frozen=True, eq=False)
class FaceTokens:
    """One person as the embeddings of one or two tokens.

    first, last  (space.width,) float32, read-only; `last` is None where a face has one token.
    photos       how many photos they were made of.
    Raises UsageError for other shapes and for NaN or infinite values.
    """

    first: Floats
    last: Floats | None
    space: TokenSpace
    photos: int = 1

    def __post_init__(self) -> None:
        if self.photos < 1:
            raise UsageError(f"face tokens of {self.photos} photos", remedy="give 1 or more")
        if (self.last is None) != (self.space.tokens == 1):
            given = "one" if self.last is None else "two"
            fact = f"{given} of face tokens, where {self.space.method} has {self.space.tokens}"
            raise UsageError(fact, remedy="give first and last for f2d, first and None for mf2d")
        object.__setattr__(self, "first", _checked("first", self.first, self.space.width))
        if self.last is not None:
            object.__setattr__(self, "last", _checked("last", self.last, self.space.width))

    @property
    def rows(self) -> Floats:
        """(space.tokens, space.width), in the order of the tokens in a prompt."""
        return np.stack([self.first] if self.last is None else [self.first, self.last])

    @classmethod
    def of_rows(cls, rows: npt.NDArray[np.floating], space: TokenSpace, photos: int = 1) -> FaceTokens:
        """The tokens whose `rows` these are."""
        if len(rows) != space.tokens:
            raise UsageError(f"{len(rows)} face tokens, {space.method} has {space.tokens}", remedy="give all of them")
        return cls(rows[0], rows[1] if space.tokens == 2 else None, space, photos)

    @classmethod
    def mean_of(cls, faces: Iterable[FaceTokens]) -> FaceTokens:
        """The mean of tokens, each face counting once.  Raises EmbeddingSpaceMismatch, UsageError for none at all."""
        members = list(faces)
        if not members:
            raise UsageError("the mean of no face tokens", remedy="give at least one")
        for other in members[1:]:
            _check_spaces(members[0], other)
        mean = np.mean([member.rows.astype(np.float64) for member in members], axis=0)
        return cls.of_rows(mean, members[0].space, sum(member.photos for member in members))

    def save(self, path: str | Path) -> None:
        """Write an npz file, whole or not at all; raises OutputError."""
        fields: dict[str, Any] = {"format": FORMAT, "tokens": self.rows, "photos": self.photos}
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **fields, **dataclasses.asdict(self.space))

    @classmethod
    def load(cls, path: str | Path) -> FaceTokens:
        """The tokens in a file of `save`; raises UsageError for any other file."""
        try:
            with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as archive:
                fields = {name: archive[name] for name in archive.files}
            if int(fields["format"]) == FORMAT:
                method = cast(Method, str(fields["method"]))
                space = TokenSpace(str(fields["model"]), method, int(fields["width"]))
                return cls.of_rows(fields["tokens"], space, int(fields["photos"]))
        except FileNotFoundError as error:
            raise UsageError(f"{path} does not exist", remedy=f"check the path, or {_MAKE_AGAIN}") from error
        except _DAMAGE as error:
            raise UsageError(f"{path} is not a file of face tokens", cause=_told(error), remedy=_MAKE_AGAIN) from error
        cause = f"this version of FaceSDK reads format {FORMAT}"
        raise UsageError(f"{path} has format {fields['format']}", cause=cause, remedy=_MAKE_AGAIN)


def interpolate(one: FaceTokens, other: FaceTokens, t: float) -> FaceTokens:
    """The tokens on the line from one person (t = 0) to another (t = 1); outside 0..1 they are exaggerated.

    Raises EmbeddingSpaceMismatch; UsageError where t is not finite or leads out of float32.
    """
    _check_spaces(one, other)
    if not math.isfinite(t):
        raise UsageError(f"a position of {t} between two faces", remedy="give a number; 0 is the one, 1 the other")
    return FaceTokens.of_rows(_between(one.rows, other.rows, t), one.space, one.photos + other.photos)


def inject(
    embeddings: Floats,
    placement: Placement,
    tokens: Mapping[str, FaceTokens],
    strength: float = 1.0,
    class_embeddings: Floats | None = None,
) -> Floats:
    """The (77, width) input of the text encoder with faces in their places, without position embeddings.

    strength  1 is the face as published; 0 the row of `class_embeddings`, which are those of `class_ids`;
              between and above on the line through both.
    """
    _check(embeddings, placement, tokens, strength)
    if strength == 1:
        class_embeddings = embeddings
    elif class_embeddings is None:
        raise UsageError(f"a strength of {strength} without class words", remedy="give class_embeddings, or strength 1")
    _check(class_embeddings, placement, tokens, strength)
    result: Floats = embeddings.copy()
    for name, face in tokens.items():
        places = list(placement.positions[name])
        result[places] = _between(class_embeddings[places], face.rows, strength)
    return result


def add_to_output(
    hidden: Floats, placement: Placement, tokens: Mapping[str, FaceTokens], strength: float = 1.0
) -> Floats:
    """The (77, width) output of the text encoder plus `strength` times the faces, as MF2D's training adds them."""
    _check(hidden, placement, tokens, strength)
    result: Floats = hidden.copy()
    for name, face in tokens.items():
        result[list(placement.positions[name])] += np.float32(strength) * face.rows
    return result


def _between(one: Floats, other: Floats, t: float) -> Floats:
    """On the line from one (t = 0) to other (t = 1), bit for bit these at the ends."""
    if t in (0, 1):
        return other if t else one
    mixed = (1 - t) * one.astype(np.float64) + t * other.astype(np.float64)
    with np.errstate(over="ignore"):
        return mixed.astype(np.float32)


def _check(rows: Floats, placement: Placement, tokens: Mapping[str, FaceTokens], strength: float) -> None:
    if not (math.isfinite(strength) and strength >= 0):
        raise UsageError(f"a strength of {strength}", remedy="give 0 (the class words) to 1 (the face), or more")
    if set(tokens) != set(placement.positions):
        faces, places = (", ".join(sorted(names)) or "none" for names in (tokens, placement.positions))
        raise UsageError(f"faces for {faces}, placeholders of {places}", remedy="place the identifiers of the faces")
    for name, face in tokens.items():
        _check_face(name, face, rows, len(placement.positions[name]))


def _check_face(name: str, face: FaceTokens, rows: Floats, count: int) -> None:
    width = face.space.width
    if rows.dtype != np.float32 or rows.shape != (LENGTH, width):
        raise UsageError(
            f"rows {rows.dtype} {rows.shape} for tokens float32 of {width} values",
            remedy=f"give the text encoder's rows of one prompt: float32 ({LENGTH}, {width})",
        )
    if count != face.space.tokens:
        raise UsageError(
            f"the placeholder of {name!r} has {count} tokens, its face {face.space.tokens} ({face.space.method})",
            remedy=f"place it with tokens={face.space.tokens}",
        )


def _checked(name: str, token: npt.NDArray[Any], width: int) -> Floats:
    array = np.asarray(token)
    remedy = "give the output of the mapping network for one face"
    if array.dtype.kind != "f" or array.shape != (width,):
        fact = f"the {name} token is {array.dtype} of shape {array.shape}, not float32 ({width},)"
        raise UsageError(fact, remedy=remedy)
    with np.errstate(over="ignore"):
        single = array.astype(np.float32)
    bad = width - int(np.isfinite(single).sum())
    if bad:
        raise UsageError(f"the {name} token holds {bad} NaN or infinite values of {width}", remedy=remedy)
    single.flags.writeable = False
    return single


def _told(error: Exception) -> str:
    """What is wrong with a file; NumPy's own words would have it loaded as a pickle."""
    if isinstance(error, UsageError):
        return error.fact
    return str(error) if isinstance(error, OSError) else "it is damaged, or of another kind"


def _check_spaces(one: FaceTokens, other: FaceTokens) -> None:
    if one.space != other.space:
        raise EmbeddingSpaceMismatch(
            "face tokens of two spaces cannot be mixed",
            cause=f"{one.space} and {other.space}",
            remedy="make both with one bundle and method: sdk.face_tokens(photos, method=...)",
        )
