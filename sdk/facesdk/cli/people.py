"""Whose faces `facesdk generate` puts into a prompt: photos and face-token files, by placeholder."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from ..diffusion.face_tokens import FaceTokens, Method, interpolate
from ..diffusion.people import FaceSource, method_of
from ..errors import UsageError
from ..facade import FaceSDK
from ..image import PictureSource

Given = tuple[str, list[Path]]
People = dict[str, list[Path]]


def given_person(text: str) -> Given:
    """Name, or "", and files of [NAME=]FILE[,FILE]; a file that is called just so comes first."""
    name, equals, rest = text.partition("=")
    if not (equals and name.isidentifier()) or Path(text).is_file():
        name, rest = "", text
    files = [rest] if Path(rest).is_file() else rest.split(",")
    if not all(files):
        raise argparse.ArgumentTypeError(f"{text!r} is not FILE,FILE or NAME=FILE,FILE")
    return name, [Path(file) for file in files]


def by_placeholder(given: Sequence[Given], identifiers: Sequence[str]) -> People:
    """Placeholder -> files: by name, where one may come repeatedly, or else a person each, in the bundle's order."""
    unnamed = [files for name, files in given if not name]
    if unnamed and (len(unnamed) < len(given) or len(unnamed) > len(identifiers)):
        raise UsageError(
            f"{len(unnamed)} of {len(given)} faces have no name",
            cause=f"the placeholders are {', '.join(identifiers)}",
            remedy="name all: --face f=a.jpg --face g=b.jpg; several photos of one person: --face a1.jpg,a2.jpg",
        )
    people: People = {}
    for name, files in zip(identifiers, unnamed, strict=False) if unnamed else given:
        people.setdefault(name, []).extend(files)
    return people


def faces_of(sdk: FaceSDK, people: People, blend: Given | None, amount: float, asked: str) -> dict[str, FaceSource]:
    """Placeholder -> photos, or face tokens where files of such are among them or another person is mixed in.

    blend  whose face, or "" for the first one's, and the other person; `amount` of whom is 0 to 1.
    """
    stored = {name: _stored(files) for name, files in people.items()}
    first: list[FaceSource] = [next(iter(stored[name]), files) for name, files in people.items()]
    method = method_of(asked, first, sdk.diffusion.face_settings())
    faces: dict[str, FaceSource] = {
        name: _tokens(sdk, files, method) if stored[name] else files for name, files in people.items()
    }
    if blend is not None:
        name, other = blend[0] or next(iter(people)), blend[1]
        if name not in people:
            raise UsageError(f"--blend is of {name!r}, who has no --face", remedy=f"choose of: {', '.join(people)}")
        faces[name] = interpolate(_tokens(sdk, people[name], method), _tokens(sdk, other, method), amount)
    return faces


def save_tokens(sdk: FaceSDK, faces: Mapping[str, FaceSource], method: Method, path: Path) -> list[Path]:
    """Write each person's face tokens, of several as NAME-f.npz, NAME-g.npz; the files."""
    files = [path if len(faces) == 1 else path.with_name(f"{path.stem}-{name}{path.suffix}") for name in faces]
    for file, who in zip(files, faces.values(), strict=True):
        tokens = who if isinstance(who, FaceTokens) else sdk.face_tokens(cast(list[PictureSource], who), method)
        tokens.save(file)
    return files


def _tokens(sdk: FaceSDK, files: Sequence[Path], method: Method) -> FaceTokens:
    """The mean of one person's face-token files and of what all photos give together."""
    photos = [file for file in files if not _is_tokens(file)]
    return FaceTokens.mean_of([*_stored(files), *([sdk.face_tokens(photos, method)] if photos else [])])


def _stored(files: Sequence[Path]) -> list[FaceTokens]:
    return [FaceTokens.load(file) for file in files if _is_tokens(file)]


def _is_tokens(file: Path) -> bool:
    return file.suffix.lower() == ".npz"
