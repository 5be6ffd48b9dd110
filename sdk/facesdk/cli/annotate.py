"""`facesdk annotate`: photos -> overlay, regions and JSON."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, get_args

from ..annotation.annotator import AnnotateOptions, Annotation
from ..engine import Device
from ..errors import FaceSDKError, NoFaceFound, UsageError
from ..facade import FaceSDK
from ..face import Face
from ..files import write_text
from ..image import Picture, read_image, write_image
from ..overlay import draw_overlay, draw_regions
from .options import add_options, read_options
from .progress import progress

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".gif"}

_OVERLAY, _REGIONS = ".overlay.png", ".regions.png"


def command(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], Any]:
    """Find the faces of photos: boxes, landmarks, pose, expression, regions.

    Writes NAME.overlay.png, NAME.regions.png and NAME.json for every photo.
    """
    parser.add_argument("photos", nargs="+", type=Path, metavar="PHOTO", help="picture, or folder of pictures")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the results")
    parser.add_argument("--device", choices=get_args(Device), default="auto", help="where engines run (default: auto)")
    parser.add_argument("--threads", type=int, help="processor threads of each engine")
    parser.add_argument("--bundle", help="annotation bundle: a name in the store or a folder")
    parser.add_argument("--frame", type=int, help="which frame of animated pictures")
    parser.add_argument(
        "--dense-face", type=int, metavar="SUBJECT",
        help="also write Dense-Face's files of each photo's best face, as samples of this subject: crop, mask, pose "
        "hint, regions, landmarks, index row (needs the bundle annotation-478)",
    )  # fmt: skip
    add_options(parser, AnnotateOptions)
    return run


def run(options: argparse.Namespace) -> tuple[list[dict[str, Any]], int]:
    """One result per photo, and the exit status: 1 if a photo failed, else 3 if one shows no face."""
    search = read_options(options, AnnotateOptions)
    targets = _targets(options.photos, options.output)
    results: list[dict[str, Any]] = []
    errors: list[FaceSDKError] = []
    with FaceSDK(options.device, threads=options.threads, annotation=options.bundle) as sdk:
        annotator = sdk.annotator
        for photo, target in progress(targets.items(), "photo"):
            try:
                picture = read_image(photo, frame=options.frame)
                annotation = annotator(picture, search)
                if annotation.error is not None:
                    raise annotation.error
                written = _write(picture, annotation, target)
                if options.dense_face is not None:
                    written["dense_face"] = _write_dense_face(options, picture, annotation.faces[0])
                results.append({"photo": str(photo), **written})
            except FaceSDKError as error:
                errors.append(error)
                results.append({"photo": str(photo), "error": error.as_dict()})
            if not options.json:
                _say(results[-1])
    failed = [error for error in errors if not isinstance(error, NoFaceFound)]
    return results, FaceSDKError.exit_code if failed else NoFaceFound.exit_code if errors else 0


def _write(picture: Picture, annotation: Annotation, target: Path) -> dict[str, Any]:
    """Write the three files of a photo; what `--json` says of it."""
    report = {
        "image_size": annotation.image_size,
        "faces": [face.as_dict() for face in annotation.faces],
        "passes": annotation.passes,
        "timings_ms": {stage: round(ms, 3) for stage, ms in annotation.timings_ms.items()},
    }
    overlay, regions, table = (target.with_name(target.name + end) for end in (_OVERLAY, _REGIONS, ".json"))
    write_image(overlay, draw_overlay(picture, annotation.faces))
    write_image(regions, draw_regions(annotation.faces, annotation.image_size))
    write_text(table, json.dumps(report, indent=1) + "\n")
    return {**report, "files": [str(path) for path in (overlay, regions, table)]}


def _write_dense_face(options: argparse.Namespace, picture: Picture, face: Face) -> dict[str, str]:
    """Write one sample of the data set and the inputs of inference; what `--json` says of them."""
    from .. import dense_face

    root = options.output / "dense_face"
    number = dense_face.next_number(root, options.dense_face)
    row = dense_face.write_sample(root, options.dense_face, number, picture, face)
    dense_face.append_index(root / "CASIA" / "index.csv", [row])
    dense_face.add_subjects(root / "CASIA" / "subjects.txt", [options.dense_face])
    inputs = dense_face.write_inference_inputs(root, 0, 0, number, picture, face)
    files = {name: str(getattr(inputs, name)) for name in ("cropped_face", "mask", "pose_hint")}
    return {"image": str(root / "CASIA" / row.face_file), "landmarks": str(root / "CASIA" / row.landmark_file), **files}


def _say(result: dict[str, Any]) -> None:
    if error := result.get("error"):
        details = "".join(f"\n  {part}: {error[part]}" for part in ("cause", "remedy") if error[part])
        print(f"{result['photo']}: {error['fact']} [{error['code']}]{details}", file=sys.stderr)
        return
    print(f"{result['photo']}: {len(result['faces'])} face(s)")
    for number, face in enumerate(result["faces"], start=1):
        box, pose = [round(v) for v in face["box"]], face["pose"]
        angles = ", ".join(f"{name} {pose[f'{name}_deg']:+.1f}" for name in ("yaw", "pitch", "roll"))
        points = len(face["landmarks"])
        print(f"  {number}: score {face['score']:.3f}, box {box}, {points} landmarks, {angles} deg (approximate)")
    print(*(f"  -> {path}" for path in result["files"]), sep="\n")


def _targets(photos: Iterable[Path], folder: Path) -> dict[Path, Path]:
    """Photo -> path stem of its results; photos of one name get a number.  Raises UsageError where there are none."""
    found = [photo for path in photos for photo in (pictures_of(path) if path.is_dir() else [path])]
    if not found:
        raise UsageError(
            "no pictures", cause="the folders hold none", remedy=f"pictures end in {', '.join(sorted(SUFFIXES))}"
        )
    targets: dict[Path, Path] = {}
    stems, taken = {photo.stem for photo in found}, set[str]()
    for photo in dict.fromkeys(found):
        name = photo.stem
        if name in taken:  # a number that makes no other photo's name: a-2.png keeps its own beside two a.png
            numbered = (f"{photo.stem}-{number}" for number in itertools.count(2))
            name = next(other for other in numbered if other not in taken and other not in stems)
        taken.add(name)
        targets[photo] = folder / name
    return targets


def pictures_of(folder: Path) -> list[Path]:
    """The pictures of a folder by name, but for those that `annotate` wrote; raises UsageError."""
    try:
        found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
        return [path for path in found if not path.name.endswith((_OVERLAY, _REGIONS))]
    except OSError as error:
        raise UsageError(
            f"{folder} cannot be listed", cause=error.strerror or str(error), remedy="check its permissions"
        ) from error
