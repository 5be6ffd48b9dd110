"""`facesdk export`: a published checkpoint becomes a bundle."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from facesdk.errors import MissingDependency

#: written out, so that the help needs no torch
SYSTEMS = ("6drepnet", "arcface", "deep3d", "hififace", "ir-se50", "xuehy")


def command(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], Any]:
    """Make a bundle of engines from a published checkpoint (needs torch).

    Every engine is held against torch on recorded inputs; its largest deviation goes into its card.
    """
    parser.add_argument("system", choices=SYSTEMS, help="what the checkpoint is")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="the published file")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FOLDER", help="a new folder for the bundle"
    )
    parser.add_argument("--name", help="the bundle's name (default: the system's)")
    parser.add_argument("--fp16", action="store_true", help="also derive each engine in fp16, held against fp32")
    return run


def run(options: argparse.Namespace) -> dict[str, Any]:
    """What `--json` says of the bundle."""
    if missing := [name for name in ("torch", "onnx", "onnxscript") if importlib.util.find_spec(name) is None]:
        raise MissingDependency(f"exporting needs {', '.join(missing)}", remedy=f"pip install {' '.join(missing)}")
    from .bundles import export

    deviations = export(options.system, options.checkpoint, options.output, options.name, fp16=options.fp16)
    if not options.json:
        width = max(map(len, deviations), default=0)
        for engine, found in deviations.items():
            worst = max(found, key=lambda each: each.max_in_std)
            reference = "fp32" if engine.endswith("(fp16)") else "torch"
            print(f"{engine:{width}} {worst.max_in_std:.1e} standard deviations from {reference} ({worst.output})")
        print(options.output)
    engines = {name: [dataclasses.asdict(each) for each in found] for name, found in deviations.items()}
    return {"bundle": str(options.output), "engines": engines}
