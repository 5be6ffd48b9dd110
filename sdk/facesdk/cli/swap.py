"""`facesdk swap`: one face into a photo, all pairs of a folder, or an interpolation."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from ..engine import Device
from ..errors import UsageError
from ..facade import FaceSDK
from ..face import Face
from ..frames import check_frames_file, grid, write_frames
from ..image import read_image, write_image
from ..provenance import Provenance
from ..swap.interpolate import FRAMES, MODES, interpolate
from ..swap.pairs import all_pairs
from ..swap.paste import PasteOptions
from ..swap.swapper import SwapOptions
from .annotate import pictures_of
from .options import add_options, read_options
from .progress import progress


def command(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], Any]:
    """Put the face of a source photo into a target photo.

    With --interpolate a series between two identities (.gif, .webp, .mp4, or .png as a strip); with --grid all pairs of
    a folder's photos.  What is made is marked as such (XMP, IPTC's DigitalSourceType), unless --no-mark.
    """
    parser.add_argument("--source", type=Path, nargs="+", metavar="PHOTO", help="photo of the source, or several of it")
    parser.add_argument("--target", type=Path, metavar="PHOTO", help="photo whose faces are swapped")
    parser.add_argument("--grid", type=Path, metavar="FOLDER", help="swap all pairs: a row a target, a column a source")
    parser.add_argument("-o", "--output", type=Path, required=True, help="file of the result")
    parser.add_argument(
        "--faces",
        default="all",
        metavar="WHICH",
        help="all, largest, a number from 1 (from the left), X,Y (default: all)",
    )
    parser.add_argument("--like", type=Path, metavar="PHOTO", help="only the face that is most like this person")
    parser.add_argument("--interpolate", choices=MODES, help="what moves: the identity, the 3d shape, or all")
    parser.add_argument("--source2", type=Path, metavar="PHOTO", help="where the series begins (default: the target)")
    parser.add_argument("--frames", type=int, default=FRAMES, help=f"pictures of the series (default: {FRAMES})")
    parser.add_argument("--frame-ms", type=int, default=300, help="milliseconds of each (default: 300)")
    parser.add_argument("--bundle", help="face swap bundle: a name in the store or a folder")
    parser.add_argument("--annotation", help="annotation bundle: a name in the store or a folder")
    parser.add_argument("--device", choices=get_args(Device), default="auto", help="where engines run (default: auto)")
    parser.add_argument("--threads", type=int, help="processor threads of each engine")
    parser.add_argument(
        "--mark", action=argparse.BooleanOptionalAction, default=True, help="mark the result as made by a model"
    )
    add_options(parser, SwapOptions)
    add_options(parser, PasteOptions)
    return run


def run(options: argparse.Namespace) -> dict[str, Any]:
    """What `--json` says of the result."""
    if bool(options.grid) == bool(options.source and options.target):
        raise UsageError("nothing to swap", remedy="give --source and --target, or --grid FOLDER")
    swap, paste = read_options(options, SwapOptions), read_options(options, PasteOptions)
    if options.grid or options.interpolate:
        _check_plain(options, swap)
    with FaceSDK(options.device, threads=options.threads, annotation=options.annotation, swapper=options.bundle) as sdk:
        if options.grid:
            return _grid(sdk, options, swap)
        if options.interpolate:
            return _series(sdk, options, swap, paste)
        return _single(sdk, options, swap, paste)


def _check_plain(options: argparse.Namespace, swap: SwapOptions) -> None:
    """Raise before any work is done: series and grids run the network once, at full strength."""
    if options.grid and options.interpolate:
        raise UsageError("--grid and --interpolate exclude each other", remedy="leave one of them out")
    plain = dataclasses.replace(swap, strength=1, iterations=1, boost=1)
    if plain != swap:
        raise UsageError(
            "a series or grid runs the network once and at full strength",
            remedy="leave out --strength, --iterations and --boost",
        )
    if options.interpolate:
        check_frames_file(options.output, options.frame_ms)


def _single(sdk: FaceSDK, options: argparse.Namespace, swap: SwapOptions, paste: PasteOptions) -> dict[str, Any]:
    like = sdk.swap_source(options.like, swap.template) if options.like else None
    source = sdk.swap_source(options.source, swap.template)
    result = sdk.swap(source, options.target, options.faces, swap, paste, like=like)
    write_image(options.output, result.picture, _mark(sdk, options))
    if not options.json:
        print(f"{options.output}: {len(result.faces)} face(s) swapped")
        for number, swapped in enumerate(result.faces, start=1):
            cosines = (swapped.similarity_source, swapped.similarity_target)
            text = ", ".join("not measured" if cosine is None else f"{cosine:+.3f}" for cosine in cosines)
            print(f"  {number}: box {_box(swapped.face)}, cosines to the source and to the face before: {text}")
    faces = [
        {
            "box": _box(swapped.face),
            "similarity_source": swapped.similarity_source,
            "similarity_target": swapped.similarity_target,
        }
        for swapped in result.faces
    ]
    timings = {stage: round(ms, 2) for stage, ms in result.timings_ms.items()}
    return {"file": str(options.output), "faces": faces, "timings_ms": timings}


def _box(face: Face) -> list[float]:
    return [round(float(value), 2) for value in face.box]


def _series(sdk: FaceSDK, options: argparse.Namespace, swap: SwapOptions, paste: PasteOptions) -> dict[str, Any]:
    first = sdk.swap_source(options.source, swap.template)
    second = sdk.swap_source(options.source2, swap.template) if options.source2 else None
    picture = read_image(options.target)
    face = sdk.chosen_faces(picture, options.faces if options.faces != "all" else "largest")[0]
    networks, mode = sdk.swapper.networks, options.interpolate
    series = interpolate(networks, picture, face, first, second, mode, options.frames, paste, swap.template)
    frames = list(progress(series, "frame", options.frames))
    write_frames(options.output, frames, frame_ms=options.frame_ms, provenance=_mark(sdk, options))
    if not options.json:
        print(f"{options.output}: {len(frames)} frames")
    return {"file": str(options.output), "frames": len(frames)}


def _grid(sdk: FaceSDK, options: argparse.Namespace, swap: SwapOptions) -> dict[str, Any]:
    photos = [photo for photo in pictures_of(options.grid) if photo.resolve() != options.output.resolve()]
    if not photos:
        raise UsageError(f"{options.grid} holds no pictures", remedy="give a folder of photos with a face each")
    pictures = [read_image(photo) for photo in photos]
    faces = [(picture, sdk.chosen_faces(picture, "largest")[0]) for picture in pictures]
    pairs = all_pairs(sdk.swapper.networks, faces, swap.template)
    cells = list(progress(pairs, "pair", len(photos) ** 2))
    write_image(options.output, grid(cells, len(photos)), _mark(sdk, options))
    if not options.json:
        print(f"{options.output}: {len(photos)} x {len(photos)} pairs; rows are targets, columns sources")
    return {"file": str(options.output), "photos": [str(photo) for photo in photos]}


def _mark(sdk: FaceSDK, options: argparse.Namespace) -> Provenance | None:
    bundle = sdk.swapper.networks.bundle
    return Provenance("swapped", bundle.name, str(bundle.about.get("recipe", ""))) if options.mark else None
