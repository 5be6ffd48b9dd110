"""`facesdk compare`: how alike two people are."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import NoFaceFound
from ..facade import FaceSDK
from ..identity import Identity
from .encode import SUFFIX, add_encoder_options, encode_photo, open_sdk


def command(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], Any]:
    """Compare the people of two photos or identity files: cosine, -1 to 1.

    From which value on two photos show one person depends on the encoder.
    """
    for name in ("A", "B"):
        parser.add_argument(name.lower(), type=Path, metavar=name, help=f"photo, or identity file ({SUFFIX})")
    add_encoder_options(parser)
    return run


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Similarity and space, ready for JSON."""
    with open_sdk(options) as sdk:
        one, other = (_identity(sdk, path, options) for path in (options.a, options.b))
    similarity = one.cosine(other)
    if not options.json:
        print(f"{similarity:.4f}")
    return {"similarity": round(similarity, 6), "space": dataclasses.asdict(one.space)}


def _identity(sdk: FaceSDK, path: Path, options: argparse.Namespace) -> Identity:
    if path.suffix.lower() == SUFFIX:
        return Identity.load(path)
    try:
        return encode_photo(sdk, path, options)
    except NoFaceFound as error:  # in which of the two
        raise NoFaceFound(
            f"{path}: {error.fact}", reason=error.reason, best_rejected=error.best_rejected, remedy=error.remedy
        ) from error
