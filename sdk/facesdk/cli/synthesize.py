"""`facesdk synthesize`: identities -> a data set of pictures, or a grid to look at."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

from ..engine import Device
from ..errors import FaceSDKError, NoFaceFound, UsageError
from ..facade import FaceSDK
from ..frames import grid
from ..image import MAX_PIXELS, MAX_SIDE, write_image
from ..provenance import Provenance
from ..synthesis.attributes import AttributeOptions
from ..synthesis.dataset import write_dataset
from ..synthesis.generate import SynthesisOptions, attributes_of, generate
from ..synthesis.layout import layout
from ..synthesis.report import Report
from ..synthesis.sampling import Law
from ..synthesis.vectors import Vectors, check_vectors
from .annotate import SUFFIXES
from .identities import Found, given_photos, identities_of, save_vectors
from .options import add_options, read_options
from .progress import stages

_MARGIN_PX = 2  # of a grid's pictures, at least


def command(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], Any]:
    """Make pictures of identities: a data set of faces, or a grid to look at.

    The output is a folder for a data set, in the layout of Vec2Face's scripts, or a picture file for a grid with a row
    for each identity.  A data set that was interrupted is gone on with by --resume.
    """
    sources = parser.add_mutually_exclusive_group(required=True)
    sources.add_argument("--vectors", type=Path, metavar="FILE", help="identity vectors, .npy (N, 512)")
    sources.add_argument(
        "--photos", type=Path, nargs="+", metavar="PHOTO", help="pictures, folders of them, or .txt lists of paths"
    )
    sources.add_argument("--sample", type=int, metavar="N", help="draw N new identities")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder, or picture file for a grid")
    parser.add_argument("--name", help="name of the data set")
    parser.add_argument("--resume", action="store_true", help="make what is missing of an interrupted data set")
    parser.add_argument(
        "--start-end", type=_slice, metavar="A:B", help="only identities A to B - 1; their numbers and pictures stay"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (default: 0)")
    parser.add_argument("--law", choices=get_args(Law), default="normal", help="of --sample (default: normal)")
    parser.add_argument("--centres", type=Path, metavar="FILE", help="vectors that the law pca is fitted to, .npy")
    parser.add_argument("--save-vectors", type=Path, metavar="FILE", help="also write the identity vectors, .npy")
    parser.add_argument("--unusual", action="store_true", help="take vectors of a length the generator does not know")
    parser.add_argument(
        "--aligned", action="store_true", help="photos are aligned crops already: take them as they are"
    )
    parser.add_argument("--bundle", help="synthesis bundle: a name in the store or a folder")
    parser.add_argument("--annotation", help="annotation bundle: a name in the store or a folder")
    parser.add_argument("--device", choices=get_args(Device), default="auto", help="where engines run (default: auto)")
    parser.add_argument("--threads", type=int, help="processor threads of each engine")
    add_options(parser, SynthesisOptions)
    add_options(parser, AttributeOptions)
    return run


def run(options: argparse.Namespace) -> tuple[dict[str, Any], int]:
    """What `--json` says, and the exit status: 1 if anything failed or was rejected, else 3 if a photo has no face."""
    synthesis, attributes = read_options(options, SynthesisOptions), read_options(options, AttributeOptions)
    _check(options)
    photos = given_photos(options.photos) if options.photos else []
    synthesis = synthesis.of_kind("reference" if photos else "image")
    _check_names(options, synthesis, attributes, photos)
    device, threads = options.device, options.threads
    with FaceSDK(device, threads=threads, annotation=options.annotation, synthesizer=options.bundle) as sdk:
        _ = sdk.synthesizer  # what is missing is said before photos are read
        found = identities_of(sdk, options, photos, synthesis.separation)
        made: dict[str, Any] = {}
        rejected = 0
        if len(found.vectors):
            if options.save_vectors:
                save_vectors(options.save_vectors, found.vectors)
            make = _grid if _is_grid(options.output) else _dataset
            made, rejected = make(sdk, options, found, synthesis, attributes)
    problems = [{"photo": str(photo), "error": error.as_dict()} for photo, error in found.failed.items()]
    failed = rejected or any(not isinstance(error, NoFaceFound) for error in found.failed.values())
    status = FaceSDKError.exit_code if failed else NoFaceFound.exit_code if problems else 0
    return {**made, "failed": problems}, status


def _check(options: argparse.Namespace) -> None:
    """Raise before any work is done."""
    if _is_grid(options.output):
        if options.resume or options.name:
            raise UsageError(
                f"{options.output} is a grid: it has no name, and nothing to resume",
                remedy="give a folder for a data set, or leave out --name and --resume",
            )
    elif not options.name:
        raise UsageError("the data set has no name", remedy="give --name, or a picture file for a grid: -o grid.png")
    if options.sample is None and (options.centres or options.law != "normal"):
        raise UsageError("--law and --centres are of --sample", remedy="leave them out, or draw identities: --sample N")
    if options.sample is not None and options.sample < 1:
        raise UsageError(f"--sample is {options.sample}", remedy="give 1 or more")
    if options.aligned and not options.photos:
        raise UsageError("--aligned is of --photos", remedy="leave it out")
    if options.save_vectors and options.save_vectors.suffix.lower() != ".npy":
        raise UsageError(f"--save-vectors is {str(options.save_vectors)!r}", remedy="give a file that ends in .npy")


def _check_names(
    options: argparse.Namespace, synthesis: SynthesisOptions, attributes: AttributeOptions, photos: Sequence[Path]
) -> None:
    """Raise before any work is done: folders that cannot be, attributes that the kind has not."""
    if _is_grid(options.output):
        attributes_of(synthesis.chosen_kind(), attributes)
    else:
        layout(options.output, options.name, synthesis, attributes, [photo.stem for photo in photos])


def _is_grid(output: Path) -> bool:
    return output.suffix.lower() in SUFFIXES


def _slice(text: str) -> tuple[int, int]:
    start, _, end = text.partition(":")
    if not (start.isdecimal() and end.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not A:B, as 0:1000")
    return int(start), int(end)


def _identities(options: argparse.Namespace, vectors: Vectors) -> range:
    """The rows asked for; raises UsageError where they are not there."""
    start, end = options.start_end or (0, len(vectors))
    if not 0 <= start < end <= len(vectors):
        raise UsageError(
            f"identities {start}:{end} of {len(vectors)}", remedy=f"give 0 <= A < B <= {len(vectors)} with --start-end"
        )
    return range(start, end)


# -- a data set -------------------------------------------------------------------------------------------


def _dataset(
    sdk: FaceSDK,
    options: argparse.Namespace,
    found: Found,
    synthesis: SynthesisOptions,
    attributes: AttributeOptions,
) -> tuple[dict[str, Any], int]:
    try:
        with stages("step") as show:
            report = write_dataset(
                sdk.synthesizer.networks, found.vectors, options.output, options.name, synthesis, attributes,
                options.seed, identities=_identities(options, found.vectors), stems=found.stems,
                resume=options.resume, unusual=options.unusual, on_progress=show,
            )  # fmt: skip
    except KeyboardInterrupt:
        words = [word for word in sys.argv[1:] if word != "--resume"]
        print(f"what was made stays; go on with: {shlex.join(['facesdk', *words, '--resume'])}", file=sys.stderr)
        raise
    if not options.json:
        _say(report)
    speed = report.images_per_second
    run_alone = {"made": report.made, "images_per_second": None if speed is None else round(speed, 3)}
    return {"folder": str(report.folder), **run_alone, **report.as_dict()}, report.images["rejected"]


def _say(report: Report) -> None:
    images, speed = report.images, report.images_per_second
    pace = f", {speed:.1f} made in a second" if speed else ""
    print(f"{report.folder}: {images['written']} of {images['asked']} pictures{pace}")
    if images["rejected"]:
        print(f"  {images['rejected']} missed their attributes")
        for row in report.rejected[:3]:
            number = f"{row['identity']}" + ("" if row["image"] is None else f", picture {row['image']}")
            print(f"    identity {number}: {'; '.join(row['reasons'])}")
    for term, values in report.attributes["pictures"].items():
        print(f"  {term}: mean {values['mean']:.2f}, {values['least']:.2f} to {values['greatest']:.2f}")
    if report.similarity:
        within, between = report.similarity["within"], report.similarity["between"]
        print(f"  cosine to the vector asked for: mean {within['to_vector']['mean']:.3f}")
        if between:
            above = f"{between['share_above']:.1%} above {between['threshold']:g}"
            print(f"  cosine to the most alike other identity: mean {between['to_nearest']['mean']:.3f}, {above}")


# -- a grid -----------------------------------------------------------------------------------------------


def _grid(
    sdk: FaceSDK,
    options: argparse.Namespace,
    found: Found,
    synthesis: SynthesisOptions,
    attributes: AttributeOptions,
) -> tuple[dict[str, Any], int]:
    networks, identities = sdk.synthesizer.networks, _identities(options, found.vectors)
    _check_size(networks.size, len(identities), synthesis.images)
    check_vectors(found.vectors[identities.start : identities.stop], identities.start, unusual=options.unusual)
    shown = dataclasses.replace(synthesis, keep_failed=True)
    cells, failed, total = {}, 0, len(identities) * synthesis.images
    with stages("step") as show:
        stream = generate(networks, found.vectors, identities, shown, attributes, options.seed)
        for done, made in enumerate(stream, start=1):
            cells[made.identity, made.image] = made.picture
            failed += made.reached is not None and not made.reached.passed
            show("image", done, total)
    pictures = [picture for _, picture in sorted(cells.items()) if picture is not None]
    bundle = networks.bundle
    mark = Provenance("generated", bundle.name, str(bundle.about.get("recipe", ""))) if synthesis.mark else None
    write_image(options.output, grid(pictures, synthesis.images), mark)
    if not options.json:
        missed = f"; {failed} of them missed their attributes" if failed else ""
        print(f"{options.output}: {len(identities)} identities with {synthesis.images} pictures each{missed}")
    return {"file": str(options.output), "identities": len(identities), "rejected": failed}, failed


def _check_size(size: int, rows: int, columns: int) -> None:
    height, width = ((count + 1) * (size + _MARGIN_PX) for count in (rows, columns))
    if max(height, width) > MAX_SIDE or height * width > MAX_PIXELS:
        raise UsageError(
            f"a grid of {rows} x {columns} pictures is too large",
            remedy="ask for fewer: --start-end 0:10 --images 8, or give a folder for a data set",
        )
