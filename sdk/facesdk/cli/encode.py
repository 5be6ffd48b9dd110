"""`facesdk encode`: photos of one person -> an identity file."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from ..engine import Device
from ..errors import FaceSDKError, NoFaceFound, UsageError
from ..facade import FaceSDK
from ..identity import Identity
from ..image import read_image
from .progress import progress

SUFFIX = ".npz"


def command(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], Any]:
    """Make an identity file of photos of one person.

    Of each photo the largest face counts.
    """
    parser.add_argument("photos", nargs="+", type=Path, metavar="PHOTO", help="picture of the person")
    parser.add_argument("-o", "--output", type=Path, required=True, help=f"the identity file, {SUFFIX}")
    add_encoder_options(parser)
    return run


def add_encoder_options(parser: argparse.ArgumentParser) -> None:
    """What encoding a photo can be told, here and in other verbs."""
    parser.add_argument("--flip", action="store_true", help="mean over each face and its mirror image")
    parser.add_argument("--frame", type=int, help="which frame of animated pictures")
    parser.add_argument("--device", choices=get_args(Device), default="auto", help="where engines run (default: auto)")
    parser.add_argument("--threads", type=int, help="processor threads of each engine")
    parser.add_argument("--encoder", help="encoder bundle: a name in the store or a folder")
    parser.add_argument("--annotation", help="annotation bundle: a name in the store or a folder")


def open_sdk(options: argparse.Namespace) -> FaceSDK:
    """The facade that these options ask for; no engine is open yet."""
    return FaceSDK(options.device, threads=options.threads, annotation=options.annotation, encoder=options.encoder)


def encode_photo(sdk: FaceSDK, photo: Path, options: argparse.Namespace) -> Identity:
    """The identity of the largest face of a photo."""
    return sdk.encode(read_image(photo, frame=options.frame), flip=options.flip)


def run(options: argparse.Namespace) -> tuple[dict[str, Any], int]:
    """What was written, and the exit status: 1 if a photo failed, else 3 if one shows no face."""
    if options.output.suffix.lower() != SUFFIX:
        raise UsageError(f"the output is {str(options.output)!r}", remedy=f"give a file name that ends in {SUFFIX}")
    identities: dict[str, Identity] = {}
    errors: dict[str, FaceSDKError] = {}
    with open_sdk(options) as sdk:
        _ = sdk.encoder, sdk.annotator  # what is missing is said once, not for every photo
        for photo in progress(list(dict.fromkeys(options.photos)), "photo"):
            try:
                identities[str(photo)] = encode_photo(sdk, photo, options)
            except FaceSDKError as error:
                errors[str(photo)] = error
            if str(photo) in errors and not options.json:
                print(f"{photo}: {errors[str(photo)]} [{errors[str(photo)].code}]", file=sys.stderr)
    failed = [error for error in errors.values() if not isinstance(error, NoFaceFound)]
    status = FaceSDKError.exit_code if failed else NoFaceFound.exit_code if errors else 0
    return _result(options, identities, errors), status


def _result(
    options: argparse.Namespace, identities: dict[str, Identity], errors: dict[str, FaceSDKError]
) -> dict[str, Any]:
    """Write the identity, where there is one; what `--json` says."""
    problems = [{"photo": photo, "error": error.as_dict()} for photo, error in errors.items()]
    if not identities:
        return {"file": None, "photos": [], "failed": problems}
    person = Identity.mean_of(identities.values())
    person.save(options.output)
    photos = [{"photo": photo, "similarity": round(person.cosine(one), 6)} for photo, one in identities.items()]
    if not options.json:
        print(f"{options.output}: {len(photos)} photo(s), {person.space}")
        print(*(f"  {entry['photo']}: similarity to the mean {entry['similarity']:.3f}" for entry in photos), sep="\n")
    space = dataclasses.asdict(person.space)
    return {"file": str(options.output), "space": space, "photos": photos, "failed": problems}
