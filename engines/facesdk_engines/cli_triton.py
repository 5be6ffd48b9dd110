"""`facesdk export-triton`: a model repository for NVIDIA Triton Inference Server."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from facesdk.cli.options import add_options, read_options

from .triton.options import RepositoryOptions


def command(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], Any]:
    """Write a model repository for NVIDIA Triton Inference Server.

    A model for each engine, of the TensorRT plans that lie there or else of the ONNX file, and a Python model that
    joins them: prompt to pictures, photos to photo, photo to faces.
    """
    parser.add_argument("bundle", metavar="BUNDLE", help="name of an installed model, or a bundle's folder")
    parser.add_argument("folder", type=Path, metavar="DIR", help="a new or empty folder for the repository")
    parser.add_argument("--annotation", metavar="BUNDLE", help="serve this bundle too, so that photos can be given")
    parser.add_argument(
        "--engine", action="append", default=[], metavar="NAME", help="only this one, without pipeline; may be repeated"
    )
    parser.add_argument(
        "--plans", action="append", default=[], type=Path, metavar="FOLDER",
        help="with TensorRT plans; may be repeated (default: the bundle's)",
    )  # fmt: skip
    add_options(parser, RepositoryOptions)
    return run


def run(options: argparse.Namespace) -> dict[str, Any]:
    """What `--json` says of the repository."""
    from facesdk.store import Store

    from .triton.repository import export_repository

    store = Store()
    made = export_repository(
        store.open(options.bundle), options.folder, read_options(options, RepositoryOptions),
        annotation=store.open(options.annotation) if options.annotation else None,
        engines=options.engine, plans=options.plans,
    )  # fmt: skip
    if not options.json:
        for model in made.models:
            sys.stdout.write(f"{_line(model)}\n")
        sys.stdout.write(f"{made.pipeline}  python\n" if made.pipeline else "")
        sys.stdout.write(f"{made.folder}\n")
    return {
        "repository": str(made.folder),
        "models": [_facts(model) for model in made.models],
        "pipeline": made.pipeline,
    }


def _line(model: Any) -> str:
    """One line on a model."""
    facts = _facts(model)
    words = [facts["backend"], facts["precision"], *facts["gpus"]]
    if model.batch:
        words.append(f"up to {model.batch} rows")
    return f"{model.name}  {', '.join(words)}" + (f"\n  {model.note}" if model.note else "")


def _facts(model: Any) -> dict[str, Any]:
    """JSON-ready facts of a model."""
    return {
        "name": model.name,
        "engine": model.engine,
        "precision": model.precision,
        "backend": "tensorrt" if model.plans else "onnxruntime",
        "max_batch_size": model.batch,
        "gpus": [plan.gpus for plan in model.plans],
        "files": [plan.path.name for plan in model.plans] or list(model.files),
        "note": model.note,
    }
