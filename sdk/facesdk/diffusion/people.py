"""Whose faces: photos, identities or face tokens by placeholder, and how like them a picture came out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias, cast

import numpy as np

from ..encoder import Encoder
from ..errors import NoFaceFound, UsageError
from ..face import Face
from ..identity import Identity
from ..image import Picture, PictureSource
from .face_tokens import TOKEN_COUNTS, FaceTokens, Method
from .networks import DiffusionNetworks
from .options import GenerateOptions
from .prompt import Placement, place
from .settings import FaceSettings

FaceSource: TypeAlias = FaceTokens | Identity | PictureSource | Sequence[PictureSource]
Faces: TypeAlias = FaceSource | Mapping[str, FaceSource] | Sequence[FaceSource]


@dataclasses.dataclass(frozen=True)
class People:
    """Those of a prompt: their tokens by placeholder, the identities of those known by one, and the method chosen."""

    tokens: Mapping[str, FaceTokens]
    identities: tuple[Identity, ...]
    options: GenerateOptions


def people_of(
    prompt: str,
    faces: Faces,
    options: GenerateOptions,
    networks: DiffusionNetworks,
    identity: Callable[[PictureSource | Sequence[PictureSource]], Identity],
) -> People:
    """The people that faces are of, after the prompt was found to fit; `identity` is that of photos of one person."""
    sources = named(faces, networks.faces.identifiers if networks.faces else ())
    if not sources:
        return People({}, (), options)
    method = method_of(options.method, sources.values(), networks.face_settings())
    placed(networks, prompt, list(sources), method, options.truncate)
    tokens, identities = {}, []
    for name, who in sources.items():
        if isinstance(who, FaceTokens):
            tokens[name] = who
        else:
            identities.append(who if isinstance(who, Identity) else identity(who))
            tokens[name] = networks.face_tokens(identities[-1], method)
    return People(tokens, tuple(identities), dataclasses.replace(options, method=method))


def method_of(asked: str, faces: Iterable[FaceSource], settings: FaceSettings) -> Method:
    """The method: as asked, or with "auto" that of the face tokens among the faces, or see FaceSettings.method."""
    people = list(faces)
    made = {who.space.method for who in people if isinstance(who, FaceTokens)}
    return settings.method(made.pop() if asked == "auto" and len(made) == 1 else asked, len(people))


def placed(networks: DiffusionNetworks, prompt: str, names: Sequence[str], method: Method, truncate: bool) -> Placement:
    """Where each of the people called so stands in the prompt; raises UsageError."""
    settings = networks.face_settings()
    unknown = [name for name in names if name not in settings.identifiers]
    if unknown:
        raise UsageError(
            f"no face is called {', '.join(unknown)}", remedy=f"name them: {', '.join(settings.identifiers)}"
        )
    return place(
        networks.tokenizer, prompt, names, TOKEN_COUNTS[method], truncate,
        second=settings.second, known=settings.identifiers,
    )  # fmt: skip


def named(faces: Faces, identifiers: Sequence[str]) -> dict[str, FaceSource]:
    """Placeholder -> source: as given, or in the order of `identifiers`; a list is of people, not of one's photos."""
    if isinstance(faces, Mapping):
        return dict(faces)
    people = cast(list[FaceSource], list(faces) if isinstance(faces, list | tuple) else [faces])
    if len(people) > len(identifiers):
        raise UsageError(
            f"{len(people)} people for {len(identifiers)} placeholders ({', '.join(identifiers) or 'none'})",
            remedy="give at most as many; several photos of one person are a list of their own: [[photo, photo]]",
        )
    return dict(zip(identifiers, people, strict=False))


def likeness(
    people: Sequence[Identity], annotate: Callable[[Picture], list[Face]], encoder: Encoder
) -> Callable[[Picture], float | None]:
    """A function: picture -> mean over the people of the cosine with the face most like them, None without a face."""

    def score(picture: Picture) -> float | None:
        try:
            found = [encoder.encode(picture, face) for face in annotate(picture)]
        except NoFaceFound:
            return None
        return float(np.mean([max(person.cosine(each) for each in found) for person in people]))

    return score
