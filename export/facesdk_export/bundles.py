"""From a published checkpoint to a bundle: every engine traced, held against torch, and written with its card."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from facesdk.errors import FaceSDKError, OutputError, UsageError
from facesdk.files import sha256
from facesdk.verify import Deviation
from facesdk_engines.precision import derive_fp16
from facesdk_engines.writing import write_manifest

from .checkpoints import Checkpoint, read_checkpoint
from .onnx_export import Part, write_part

VERSION = "1"
log = logging.getLogger("facesdk")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How one system's checkpoint becomes a bundle.

    parts      checkpoint -> engine name -> Part.   constants  the bundle's tables.
    commercial what is known of the published weights: "no", "unknown".
    """

    system: str
    about: str
    licence: str
    commercial: str
    parts: Callable[[Checkpoint], Mapping[str, Part]]
    constants: Mapping[str, Mapping[str, Any]]


def export(
    name: str, checkpoint: Path, folder: Path, bundle_name: str | None = None, *, fp16: bool = False
) -> dict[str, tuple[Deviation, ...]]:
    """Deviations of every engine from torch, by engine, after writing the bundle of system `name` into `folder`.

    fp16  write each engine in fp16 too; its deviations from fp32 are under "<engine> (fp16)".
    Raises UsageError, ModelNotFound, ConversionError (the checkpoint), ToleranceExceeded, OutputError; a folder that
    holds something already is refused.  The folder appears when the bundle is complete, and not at all otherwise.
    """
    from .recipes import RECIPES

    if name not in RECIPES:
        raise UsageError(f"there is no recipe {name!r}", remedy=f"choose one of: {', '.join(RECIPES)}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder} is not an empty folder", remedy="choose a new one, or empty it")
    recipe, digest = RECIPES[name], sha256(checkpoint) if checkpoint.is_file() else ""
    parts = recipe.parts(read_checkpoint(checkpoint))
    made_by = f"{name} {VERSION}"
    about = {
        "name": bundle_name or name, "about": recipe.about, "system": recipe.system, "licence": recipe.licence,
        "commercial": recipe.commercial, "recipe": made_by, "source": checkpoint.name, "source_sha256": digest,
    }  # fmt: skip
    deviations, engines = {}, {}
    with _new_folder(folder) as scratch:
        for engine, part in parts.items():
            log.info("exporting %s", engine)
            card = dataclasses.replace(
                part.card, system=recipe.system, engine=engine, source=checkpoint.name, source_sha256=digest,
                licence=recipe.licence, recipe=made_by,
            )  # fmt: skip
            engines[engine] = {"default": f"{engine}.onnx"}
            deviations[engine] = write_part(dataclasses.replace(part, card=card), scratch / f"{engine}.onnx")
            if fp16:
                engines[engine]["fp16"] = f"{engine}.fp16.onnx"
                deviations[f"{engine} (fp16)"] = _derive(part, scratch, engines[engine])
        write_manifest(scratch, about, engines, recipe.constants)
    return deviations


def _derive(part: Part, folder: Path, forms: Mapping[str, str]) -> tuple[Deviation, ...]:
    arrays = {name: tensor.numpy() for name, tensor in part.inputs.items()}
    return derive_fp16(folder / forms["default"], folder / forms["fp16"], arrays)


@contextlib.contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder beside `folder` that becomes it when the block ends well, and vanishes otherwise."""
    scratch = folder.absolute().with_name(f".{uuid.uuid4().hex[:12]}")
    try:
        scratch.mkdir(parents=True)
        yield scratch
        if folder.exists():
            folder.rmdir()  # empty
        scratch.rename(folder)
    except FaceSDKError:
        raise
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be written",
            cause=error.strerror or str(error),
            remedy="choose a place that you may write to, with room for the bundle",
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
