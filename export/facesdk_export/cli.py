"""`facesdk export`: published files become a bundle."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from facesdk.errors import MissingDependency

#: written out, so that the help needs no torch
SYSTEMS = (
    "6drepnet", "arcface", "deep3d", "face2diffusion", "hififace", "ir-se50", "stable-diffusion", "vec2face", "xuehy",
)  # fmt: skip
#: name of a file in the recipes -> what it is; written out for the same reason
FILES = {
    "checkpoint": "the published file, where a system has one",
    "generator": "vec2face: vec2face_generator.pth",
    "arcface": "vec2face: arcface-r100-glint360k.pth, identity",
    "magface": "vec2face: magface-r100-glint360k.pth, quality",
    "headpose": "vec2face: 6DRepNet_300W_LP_AFLW2000.pth, head pose; may be left out",
    "pose_generator": "vec2face: pose_model.pth of Vec2Face+; may be left out",
    "stable_diffusion": "stable-diffusion, face2diffusion: folder of diffusers, or single file of version 1.x",
    "msid": "face2diffusion: msid.pt",
    "mapping": "face2diffusion: mapping.pt",
    "mf2d": "face2diffusion: fmap_epoch49.pth of MF2D, for two people; may be left out",
}


def command(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], Any]:
    """Make a bundle of engines from published checkpoints (needs torch).

    Every engine is held against torch on recorded inputs; its largest deviation goes into its card.
    """
    parser.add_argument("system", choices=SYSTEMS, help="what the files are of")
    for name, what in FILES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path, metavar="FILE", help=what)
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FOLDER", help="a new folder for the bundle"
    )
    parser.add_argument("--name", help="the bundle's name (default: the system's)")
    parser.add_argument("--fp16", action="store_true", help="also derive engines in fp16, held against fp32")
    return run


def run(options: argparse.Namespace) -> dict[str, Any]:
    """What `--json` says of the bundle."""
    if missing := [name for name in ("torch", "onnx", "onnxscript") if importlib.util.find_spec(name) is None]:
        raise MissingDependency(f"exporting needs {', '.join(missing)}", remedy=f"pip install {' '.join(missing)}")
    from .bundles import export

    files = {name: path for name in FILES if (path := getattr(options, name)) is not None}
    deviations = export(options.system, files, options.output, options.name, fp16=options.fp16)
    if not options.json:
        width = max(map(len, deviations), default=0)
        for engine, found in deviations.items():
            worst = max(found, key=lambda each: each.max_in_std)
            reference = "fp32" if engine.endswith("(fp16)") else "torch"
            print(f"{engine:{width}} {worst.max_in_std:.1e} standard deviations from {reference} ({worst.output})")
        print(options.output)
    engines = {name: [dataclasses.asdict(each) for each in found] for name, found in deviations.items()}
    return {"bundle": str(options.output), "engines": engines}
