"""`facesdk generate`: a prompt, and photos of people, -> pictures."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from PIL import Image as Pillow

from .. import machine
from ..diffusion.generate import Generation
from ..diffusion.networks import DiffusionNetworks
from ..diffusion.options import GenerateOptions
from ..diffusion.picture_conditions import asked_size, picture_condition
from ..diffusion.plan import plan
from ..engine import Device, Precision
from ..errors import OutputError, UsageError
from ..facade import FaceSDK
from ..frames import grid
from ..image import MAX_PIXELS, MAX_SIDE, Picture, read_image, write_image
from ..provenance import Kind, Provenance
from .options import add_options, read_options
from .people import by_placeholder, faces_of, given_person, save_tokens
from .progress import stages

# longest side of each format, px: as much as is read again, and WebP's 14 bits
_SUFFIXES = {**dict.fromkeys((".png", ".jpg", ".jpeg"), MAX_SIDE), ".webp": 16383}
_OTHERS = {".gif", ".bmp", ".tif", ".tiff", ".ppm", ".avif", ".npz"}


def command(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], Any]:
    """Draw pictures of a prompt, with the people of photos in them.

    A person stands in the prompt as "f l" ("f" with --method mf2d), a second one as "g l" ("g").  The output is a
    folder of numbered PNG files, or one picture file, in which several stand side by side.
    """
    parser.add_argument("prompt", metavar="PROMPT", help='what to draw, as "f l eating bread"')
    parser.add_argument(
        "--face", type=given_person, action="append", metavar="[NAME=]FILE[,FILE]",
        help="photos of a person, or face-token files (.npz); NAME is the placeholder's first letter",
    )  # fmt: skip
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder, or picture file")
    parser.add_argument(
        "--grid", action="store_true", help="several in rows and columns: the file, or grid.png as well"
    )
    parser.add_argument("--image", type=Path, metavar="PHOTO", help="photo to start from")
    parser.add_argument("--mask", type=Path, metavar="PICTURE", help="white where --image is drawn anew")
    parser.add_argument(
        "--blend", type=given_person, metavar="[NAME=]FILE[,FILE]", help="another person, mixed into a face"
    )
    parser.add_argument("--amount", type=float, default=0.5, help="of --blend, 0 to 1 (default: 0.5)")
    parser.add_argument("--save-tokens", type=Path, metavar="FILE", help="also write the face tokens, .npz")
    parser.add_argument("--preview-every", type=int, default=0, metavar="N", help="write preview.png every N steps")
    parser.add_argument("--profile", action="store_true", help="say what time and memory went where")
    parser.add_argument("--bundle", help="diffusion bundle: a name in the store or a folder")
    parser.add_argument("--annotation", help="annotation bundle: a name in the store or a folder")
    parser.add_argument("--device", choices=get_args(Device), default="auto", help="where engines run (default: auto)")
    parser.add_argument("--threads", type=int, help="processor threads of each engine")
    parser.add_argument("--precision", choices=get_args(Precision), default="fp32", help="of engines (default: fp32)")
    parser.add_argument(
        "--mark", action=argparse.BooleanOptionalAction, default=True, help="mark the pictures as made by a model"
    )
    add_options(parser, GenerateOptions)
    return run


def run(options: argparse.Namespace) -> dict[str, Any]:
    """What `--json` says of the pictures."""
    asked = read_options(options, GenerateOptions)
    _check(options)
    image = read_image(options.image) if options.image else None
    mask = np.asarray(Pillow.fromarray(read_image(options.mask)).convert("L")) if options.mask else None
    with FaceSDK(
        options.device, threads=options.threads, annotation=options.annotation, diffusion=options.bundle,
        precision=options.precision, resident=False,
    ) as sdk:  # fmt: skip
        networks, faces = sdk.diffusion, {}
        _check_sheet(options, asked, image, networks)
        if options.face:
            people = by_placeholder(options.face, networks.face_settings().identifiers)
            faces = faces_of(sdk, people, options.blend, options.amount, asked.method)
        mark = _mark(options, networks)
        with stages("") as show:
            made = sdk.generate(
                options.prompt, faces, asked, image=image, mask=mask,
                on_step=lambda done, steps: show("step", done, steps),
                on_preview=lambda _, pictures: write_image(_preview_file(options.output), _strip(list(pictures)), mark),
                preview_every=options.preview_every,
            )  # fmt: skip
        report = {"prompt": options.prompt, **_write(options, made, mark), **_facts(made)}
        if options.save_tokens and made.method is not None:
            files = save_tokens(sdk, faces, made.method, options.save_tokens)
            report["tokens"] = [str(file) for file in files]
    if options.profile:
        picture = image is not None
        report["profile"] = _profile(networks) | {"plan": _plan(networks, asked, len(faces), picture=picture)}
    if not options.json:
        _say(report)
    return report


# -- what is given ----------------------------------------------------------------------------------------


def _check(options: argparse.Namespace) -> None:
    """Raise before any work is done."""
    if options.mask and not options.image:
        raise UsageError("--mask is of --image", remedy="give the photo too: --image PHOTO")
    if (options.blend or options.save_tokens) and not options.face:
        raise UsageError("--blend and --save-tokens are of faces", remedy="give one: --face PHOTO")
    if not 0 <= options.amount <= 1:
        raise UsageError(f"--amount is {options.amount}", remedy="give 0 (the face itself) to 1 (the other)")
    if options.preview_every < 0:
        raise UsageError(f"--preview-every is {options.preview_every}", remedy="give 0 (none) or more")
    if options.save_tokens and options.save_tokens.suffix.lower() != ".npz":
        raise UsageError(f"--save-tokens is {str(options.save_tokens)!r}", remedy="give a file that ends in .npz")
    if options.output.suffix.lower() in _OTHERS:
        raise UsageError(f"-o is {str(options.output)!r}", remedy=f"give a folder, or {', '.join(_SUFFIXES)}")
    _check_place("-o", options.output, a_file=_is_picture(options.output))
    if options.save_tokens:
        _check_place("--save-tokens", options.save_tokens, a_file=True)


def _check_place(option: str, output: Path, *, a_file: bool) -> None:
    """Raise OutputError where nothing could be written once the work is done."""
    there = next(path for path in (output, *output.parents, Path()) if path.exists())
    if there.is_dir() == (a_file and there == output) or not os.access(there, os.W_OK):
        cause = f"{there} is a {'folder' if there.is_dir() else 'file'}, or is not yours to write to"
        raise OutputError(f"{output} cannot be written", cause=cause, remedy=f"choose another place with {option}")


def _check_sheet(
    options: argparse.Namespace, asked: GenerateOptions, image: Picture | None, networks: DiffusionNetworks
) -> None:
    """Raise UsageError where several pictures are more than one file can hold."""
    if _is_picture(options.output) or options.grid:
        settings = networks.settings
        if image is None:
            width, height = asked_size(asked.width, asked.height, settings)
        else:
            condition = picture_condition(image, None, asked.width, asked.height, settings.cell)
            height, width = condition.picture.shape[:2]
        count, limit = asked.keep or asked.images, _SUFFIXES.get(options.output.suffix.lower(), _SUFFIXES[".png"])
        columns = math.ceil(math.sqrt(count)) if options.grid else count
        across, down = width * columns, height * -(-count // columns)
        if max(across, down) > limit or across * down > MAX_PIXELS:
            raise UsageError(
                f"{count} pictures are too many for one file",
                cause=f"it would be {across} x {down}; the limits are {limit} a side and {MAX_PIXELS:,} pixels",
                remedy="ask for fewer, or give a folder and no --grid: -o NAME",
            )


def _is_picture(output: Path) -> bool:
    return output.suffix.lower() in _SUFFIXES


# -- what is written --------------------------------------------------------------------------------------


def _write(options: argparse.Namespace, made: Generation, mark: Provenance | None) -> dict[str, Any]:
    """Write the pictures; what the report says of their files."""
    pictures, output = list(made.images), options.output
    sheet = grid(pictures, math.ceil(math.sqrt(len(pictures)))) if options.grid and len(pictures) > 1 else None
    if _is_picture(output):
        write_image(output, _strip(pictures) if sheet is None else sheet, mark)
        return {"files": [str(output)]}
    files = [output / f"{number:04d}.png" for number in range(len(pictures))]
    for file, picture in zip(files, pictures, strict=True):
        write_image(file, picture, mark)
    report: dict[str, Any] = {"files": [str(file) for file in files]}
    if sheet is not None:
        report["grid"] = str(output / "grid.png")
        write_image(report["grid"], sheet, mark)
    return report


def _strip(pictures: Sequence[Picture]) -> Picture:
    """Pictures side by side, as the published script writes them."""
    return np.concatenate(pictures, axis=1)


def _preview_file(output: Path) -> Path:
    return output.with_name(f"{output.stem}.preview.png") if _is_picture(output) else output / "preview.png"


def _mark(options: argparse.Namespace, networks: DiffusionNetworks) -> Provenance | None:
    bundle = networks.bundle
    kind: Kind = "swapped" if options.mask else "generated"  # a part of a photo, or all of a picture
    return Provenance(kind, bundle.name, str(bundle.about.get("recipe", ""))) if options.mark else None


# -- what is said -----------------------------------------------------------------------------------------


def _facts(made: Generation) -> dict[str, Any]:
    similarity = None if made.similarity is None else [_number(value) for value in made.similarity.tolist()]
    return {
        "seeds": made.seeds.tolist(),
        "similarity": similarity,
        "faces": list(made.faces),
        "method": made.method,
        "scheduler": made.scheduler,
        "steps": made.steps,
        "guidance": made.guidance,
        "timings_ms": {stage: round(ms, 2) for stage, ms in made.timings_ms.items()},
    }


def _number(value: float) -> float | None:
    """Rounded; None for NaN, a picture without a face."""
    return None if math.isnan(value) else round(value, 4)


def _profile(networks: DiffusionNetworks) -> dict[str, Any]:
    """Megabytes: of each engine's file with its weights, and the most that the process held."""
    sizes = {name: round(networks.engines.file_mb(name), 1) for name in networks.bundle.engine_names}
    peak = machine.peak_resident_mb()
    return {"engines_mb": sizes, "peak_mb": None if peak is None else round(peak)}


def _plan(networks: DiffusionNetworks, asked: GenerateOptions, people: int, *, picture: bool) -> dict[str, Any]:
    """Stage -> megabytes of its engines' files, and of the arrays that are made for them."""
    rows = plan(networks, asked, people, picture=picture)
    return {
        row.stage: {
            "engines": list(row.engines), "files_mb": round(row.files_mb, 1), "arrays_mb": round(row.arrays_mb, 1)
        }
        for row in rows
    }  # fmt: skip


def _say(report: dict[str, Any]) -> None:
    where, count = report["files"][0], len(report["seeds"])
    more = "" if len(report["files"]) == 1 else f" to {Path(report['files'][-1]).name}"
    method = f"{report['method']}, " if report["method"] else ""
    how = f"{method}{report['scheduler']}, {report['steps']} steps, guidance {report['guidance']:g}"
    print(f"{where}{more}: {count} picture(s) of {how}")
    for seed, cosine in zip(report["seeds"], report["similarity"] or (), strict=False):
        print(f"  seed {seed}: " + ("no face found" if cosine is None else f"cosine to the photos {cosine:+.3f}"))
    if profile := report.get("profile"):
        print("  " + ", ".join(f"{stage} {ms / 1e3:.2f} s" for stage, ms in report["timings_ms"].items()))
        for stage, row in profile["plan"].items():
            print(f"  {stage}: {', '.join(row['engines'])}: {row['files_mb']:g} MB, arrays {row['arrays_mb']:g} MB")
        if profile["peak_mb"] is not None:
            print(f"  {profile['peak_mb']} MB at most")
