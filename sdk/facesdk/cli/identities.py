"""Where `facesdk synthesize` has its identities from: a file of vectors, photos, or chance."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image as Pillow

from ..errors import FaceSDKError, UsageError
from ..facade import FaceSDK
from ..files import atomic_path
from ..image import Picture, read_image
from ..synthesis.networks import Floats
from ..synthesis.sampling import sample_vectors
from ..synthesis.vectors import Vectors, open_vectors
from .annotate import SUFFIXES, pictures_of
from .progress import progress


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """Vectors (N, 512); where they come of photos, the names of these, and what became of the other photos."""

    vectors: Vectors
    stems: tuple[str, ...] = ()
    failed: dict[Path, FaceSDKError] = dataclasses.field(default_factory=dict)


def identities_of(sdk: FaceSDK, options: argparse.Namespace, photos: Sequence[Path], separation: float) -> Found:
    """The identities that the command line asks for; raises UsageError."""
    if photos:
        return _encoded(sdk, options, photos)
    if options.vectors:
        return Found(open_vectors(options.vectors))
    centres = open_vectors(options.centres) if options.centres else None
    return Found(
        sample_vectors(options.sample, options.seed, options.law, centres, separation, unusual=options.unusual)
    )


def given_photos(paths: Sequence[Path]) -> list[Path]:
    """Pictures, those of folders, and those of .txt lists, whose paths start at the list's own folder."""
    photos: list[Path] = []
    for path in paths:
        photos += pictures_of(path) if path.is_dir() else _listed(path) if path.suffix.lower() == ".txt" else [path]
    if not photos:
        raise UsageError("no photos", remedy=f"pictures end in {', '.join(sorted(SUFFIXES))}")
    return list(dict.fromkeys(photos))


def save_vectors(path: Path, vectors: Vectors) -> None:
    """Write the vectors as float32 .npy, whole or not at all; raises OutputError."""
    with atomic_path(path) as temporary:
        np.save(temporary, np.asarray(vectors, np.float32))


def _listed(path: Path) -> list[Path]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} cannot be read", cause=str(error), remedy="give a list of paths, a line each"
        ) from error
    return [path.parent / line.strip() for line in lines if line.strip()]


def _encoded(sdk: FaceSDK, options: argparse.Namespace, photos: Sequence[Path]) -> Found:
    """One vector for each photo that gives one; the others are told of on standard error."""
    vectors: dict[Path, Floats] = {}
    failed: dict[Path, FaceSDKError] = {}
    if not options.aligned:
        _ = sdk.annotator  # what is missing is said once, not for every photo
    for photo in progress(photos, "photo"):
        try:
            vectors[photo] = _aligned(sdk, photo) if options.aligned else sdk.synthesis_identity(photo).vector
        except FaceSDKError as error:
            failed[photo] = error
        if photo in failed and not options.json:
            print(f"{photo}: {failed[photo]} [{failed[photo].code}]", file=sys.stderr)
    stacked = np.array(list(vectors.values()), np.float32).reshape(len(vectors), sdk.synthesizer.networks.width)
    return Found(stacked, tuple(photo.stem for photo in vectors), failed)


def _aligned(sdk: FaceSDK, photo: Path) -> Floats:
    """The vector of a crop that is scaled as image_generation_with_reference does."""
    encoder, picture = sdk.synthesizer.networks.encoder, read_image(photo)
    size = (encoder.size, encoder.size)
    crop: Picture = np.asarray(Pillow.fromarray(picture).resize(size, Pillow.Resampling.BICUBIC))
    return np.asarray(encoder.vectors([crop])[0])
