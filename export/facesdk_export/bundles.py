"""From published files to a bundle: every engine traced, held against torch, and written with its card."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from facesdk.errors import UsageError
from facesdk.files import atomic_folder, check_empty, sha256
from facesdk.verify import Deviation
from facesdk_engines.precision import derive_fp16
from facesdk_engines.writing import write_manifest

from .checkpoints import read_checkpoint
from .onnx_export import Part, write_part

VERSION = "1"
_WEIGHTS = (".json", ".txt", ".safetensors", ".bin")
log = logging.getLogger("facesdk")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the published files of one system become a bundle.

    parts      function of what was read of each file, under its name -> engine name -> Part, or file name -> bytes.
    constants  the bundle's tables; what depends on the files stands in the parts.
    commercial what is known of the published weights: "no", "unknown".
    files      name -> what the file is.   optional  names of those that may be left out.
    readers    name -> what reads it, where that is not read_checkpoint; it may be a folder then.
    """

    system: str
    about: str
    licence: str
    commercial: str
    parts: Callable[..., Mapping[str, Part | bytes]]
    constants: Mapping[str, Mapping[str, Any]]
    files: Mapping[str, str] = dataclasses.field(default_factory=lambda: {"checkpoint": "the published file"})
    optional: Collection[str] = ()
    readers: Mapping[str, Callable[[Path], Any]] = dataclasses.field(default_factory=dict)


def export(
    system: str | Recipe,
    files: Path | Mapping[str, Path],
    folder: Path,
    bundle_name: str | None = None,
    *,
    fp16: bool = False,
) -> dict[str, tuple[Deviation, ...]]:
    """Deviations of every engine from torch, by engine, after writing the bundle of a system into `folder`.

    files  by their names in the recipe; a path alone is that of "checkpoint".
    fp16   write each engine that has one in fp16 too; its deviations from fp32 are under "<engine> (fp16)".
    Raises UsageError, ModelNotFound, ConversionError (the files), ToleranceExceeded, OutputError; a folder that
    holds something already is refused.  The folder appears when the bundle is complete, and not at all otherwise.
    """
    name = system.system if isinstance(system, Recipe) else system
    recipe = system if isinstance(system, Recipe) else _recipe(system)
    check_empty(folder)
    sources = _sources(name, recipe, {"checkpoint": files} if isinstance(files, Path) else files)
    read = {key: recipe.readers.get(key, read_checkpoint)(source.path) for key, source in sources.items()}
    parts = recipe.parts(**read)
    engines = {key: part for key, part in parts.items() if isinstance(part, Part)}
    made = [_with_card(part, engine, recipe, f"{name} {VERSION}", sources) for engine, part in engines.items()]
    with atomic_folder(folder) as scratch:
        for file, content in parts.items():
            if isinstance(content, bytes):
                (scratch / file).write_bytes(content)
        deviations, forms = _write(made, scratch, fp16)
        about = _about(bundle_name or name, recipe, made, sources)
        sizes = {part.card.engine: part.sizes for part in made}
        write_manifest(scratch, about, forms, _constants(recipe, made), sizes)
    return deviations


def _recipe(name: str) -> Recipe:
    from .recipes import RECIPES

    if name not in RECIPES:
        raise UsageError(f"there is no recipe {name!r}", remedy=f"choose one of: {', '.join(RECIPES)}")
    return RECIPES[name]


# -- files ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Source:
    path: Path
    digest: str


def _sources(name: str, recipe: Recipe, files: Mapping[str, Path]) -> dict[str, _Source]:
    """The given files in the recipe's order; raises UsageError for one that is missing or that it does not know."""
    missing = [key for key in recipe.files if key not in files and key not in recipe.optional]
    unknown = [key for key in files if key not in recipe.files]
    if missing or unknown:
        facts = (f"{verb} {_options(keys)}" for verb, keys in (("needs", missing), ("has no", unknown)) if keys)
        raise UsageError(
            f"{name} {' and '.join(facts)}",
            cause=f"it is made of {'; '.join(f'{_options([key])} ({what})' for key, what in recipe.files.items())}",
            remedy=f"facesdk export {name} {_usage(recipe)} -o FOLDER",
        )
    given = {key: files[key] for key in recipe.files if key in files}
    return {key: _Source(path, _digest(path)) for key, path in given.items()}


def _digest(path: Path) -> str:
    """sha256 of a file, or of the list of a folder's files with theirs; "" where there is nothing."""
    if not path.is_dir():
        return sha256(path) if path.is_file() else ""
    files = sorted(each for each in path.glob("*/*") if each.suffix in _WEIGHTS)
    lines = [f"{each.relative_to(path).as_posix()} {sha256(each)}\n" for each in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _options(names: Collection[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def _usage(recipe: Recipe) -> str:
    words = {name: f"{_options([name])} FILE" for name in recipe.files}
    return " ".join(f"[{word}]" if name in recipe.optional else word for name, word in words.items())


def _origin(sources: Collection[_Source]) -> tuple[str, str]:
    """Names and digests of all files, each as one text."""
    return " + ".join(source.path.name for source in sources), " + ".join(source.digest for source in sources)


# -- engines ----------------------------------------------------------------------------------------------


def _with_card(part: Part, engine: str, recipe: Recipe, made_by: str, sources: Mapping[str, _Source]) -> Part:
    source, digest = _origin([sources[key] for key in part.files or sources])
    card = dataclasses.replace(
        part.card, system=recipe.system, engine=engine, source=source, source_sha256=digest,
        licence=part.card.licence or recipe.licence, recipe=made_by,
    )  # fmt: skip
    return dataclasses.replace(part, card=card)


def _write(
    parts: Collection[Part], folder: Path, fp16: bool
) -> tuple[dict[str, tuple[Deviation, ...]], dict[str, dict[str, str]]]:
    """Deviations, and the forms of each engine, after writing them all."""
    deviations, engines = {}, {}
    for part in parts:
        engine = part.card.engine
        log.info("exporting %s", engine)
        deviations[engine], forms = write_part(part, folder / f"{engine}.onnx")
        engines[engine] = forms
        if fp16 and part.half:
            deviations[f"{engine} (fp16)"], halved = _derive(part, folder, forms)
            forms |= halved
    return deviations, engines


def _derive(part: Part, folder: Path, forms: Mapping[str, str]) -> tuple[tuple[Deviation, ...], dict[str, str]]:
    """Deviations, and the fp16 forms: those of processors have none, and OpenVINO computes in no fp16."""
    engine, arrays = part.card.engine, {name: tensor.numpy() for name, tensor in part.inputs.items()}
    halved = {"fp16": f"{engine}.fp16.onnx"}
    others = {}
    if "tensorrt" in forms:
        halved["tensorrt-fp16"] = f"{engine}.tensorrt-fp16.onnx"
        others[folder / forms["tensorrt"]] = folder / halved["tensorrt-fp16"]
    return derive_fp16(folder / forms["default"], folder / halved["fp16"], arrays, part.islands, others), halved


# -- bundle -----------------------------------------------------------------------------------------------


def _about(name: str, recipe: Recipe, parts: Collection[Part], sources: Mapping[str, _Source]) -> dict[str, str]:
    licences = dict.fromkeys(part.card.licence for part in parts)
    made_by = next(part.card.recipe for part in parts)
    source, digest = _origin(sources.values())
    return {
        "name": name, "about": recipe.about, "system": recipe.system, "licence": " AND ".join(licences),
        "commercial": recipe.commercial, "recipe": made_by, "source": source, "source_sha256": digest,
    }  # fmt: skip


def _constants(recipe: Recipe, parts: Collection[Part]) -> dict[str, Mapping[str, Any]]:
    tables = dict(recipe.constants)
    for part in parts:
        tables |= part.constants
    return tables
