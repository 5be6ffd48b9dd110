"""Bundles of the ONNX packs of insightface that a user has: archive, folder or single file -> engines with cards."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import re
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from facesdk.card import Card
from facesdk.errors import ConversionError, MissingDependency
from facesdk.files import sha256

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from .insightface_graph import Network

log = logging.getLogger("facesdk")

SUFFIX = ".onnx"
_MOST_BYTES = 1 << 31  # protobuf's own limit of one file, here of a pack; buffalo_l unpacks to 0.34 GB
_DAMAGE = (OSError, EOFError, RuntimeError, NotImplementedError, ValueError, zipfile.BadZipFile, zlib.error)


class InsightfaceBuilder:
    """Entry point of `facesdk.builders`: one bundle per pack, named after it."""

    names = ("antelopev2", "buffalo_l", "buffalo_m", "buffalo_s", "buffalo_sc", "inswapper_128")

    def recognises(self, path: Path) -> str | None:
        """The bundle's name, for an .onnx file, and for a folder or an archive that holds one."""
        if path.is_dir():
            ours = any(path.rglob(f"*{SUFFIX}"))
        else:
            ours = path.suffix.lower() == SUFFIX or (path.suffix.lower() == ".zip" and _may_hold_networks(path))
        return bundle_name(path) if ours else None

    def build(self, source: Path, folder: Path) -> None:
        """Write every known network of the pack, with its constants and manifest; the log names the others.

        Raises MissingDependency without onnx; ConversionError for damaged packs, for those without a known network,
        and for those with two of a kind.
        """
        if importlib.util.find_spec("onnx") is None:
            raise MissingDependency(
                f"the graphs of {source.name} have to be read, which needs onnx",
                cause="running engines does not need it, making them does",
                remedy="pip install onnx",
            )
        _build(source, folder, _recipe())


builder = InsightfaceBuilder()


def bundle_name(path: Path) -> str:
    """What the bundle of a pack is called: the stem, in the letters of the store."""
    path = path.resolve()
    stem = path.name if path.is_dir() else path.stem
    return re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("._-") or "insightface"


def _build(source: Path, folder: Path, recipe: Mapping[str, Any]) -> None:
    from .writing import write_arrays, write_manifest

    engines: dict[str, Mapping[str, str]] = {}
    constants: dict[str, Mapping[str, Any]] = {}
    profiles: dict[str, Mapping[str, Any]] = {}
    files: dict[str, str] = {}
    unknown: list[str] = []
    for name, data in _members(source):
        network = _read(name, data, recipe)
        if network is None:
            unknown.append(name)
            continue
        if network.kind in files:
            raise _two_of_a_kind(source, network.kind, files[network.kind], name)
        files[network.kind] = name
        engines[network.kind] = {"default": _write(network, name, data, folder, recipe)}
        space = {"space": PurePosixPath(name).stem.lower()} if network.kind == "encoder" else {}
        constants[network.kind] = network.constants | space
        profiles[network.kind] = _sizes(network, recipe)
        if network.arrays:
            write_arrays(folder / f"{network.kind}.npz", **network.arrays)
    if not engines:
        raise _nothing_known(source, unknown)
    for name in unknown:
        log.warning("%s: %s is no network that is known; it is left out", source.name, name)
    about = {
        "name": bundle_name(source),
        "about": f"insightface pack {source.name}: {', '.join(files.values())}",
        "system": "encoder" if "encoder" in engines else "insightface",
        **recipe["licence"],
        "source": f"insightface: {source.name}",
        **({"source_sha256": sha256(source)} if source.is_file() else {}),
        "recipe": recipe["recipe"],
    }
    write_manifest(folder, about, engines, constants, profiles)


def _read(name: str, data: bytes, recipe: Mapping[str, Any]) -> Network | None:
    from .insightface_graph import read_network

    try:
        return read_network(data, recipe["engines"])
    except ValueError as error:
        raise ConversionError(
            f"{name} is not a sound ONNX graph", cause=str(error), remedy="download the pack again"
        ) from error


def _sizes(network: Network, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's sizes of those axes that are free in this file."""
    axes = {axis.dim_param for value in network.model.graph.input for axis in value.type.tensor_type.shape.dim}
    return {axis: sizes for axis, sizes in recipe["engines"][network.kind].get("sizes", {}).items() if axis in axes}


def _write(network: Network, name: str, data: bytes, folder: Path, recipe: Mapping[str, Any]) -> str:
    """Write one engine; its file's name."""
    from onnx import checker, shape_inference

    from .writing import write_engine

    facts = recipe["engines"][network.kind]
    card = Card(
        system="insightface",
        engine=network.kind,
        about=facts["about"],
        source=f"insightface: {name}",
        source_sha256=hashlib.sha256(data).hexdigest(),
        licence=recipe["licence"]["licence"],
        recipe=recipe["recipe"],
        inputs=facts["inputs"],
        outputs=facts.get("gives", {}),
        example_shapes=network.example_shapes,
    )
    file = f"{network.kind}{SUFFIX}"
    try:
        write_engine(folder / file, network.model, card)
    except (checker.ValidationError, shape_inference.InferenceError, UnicodeDecodeError) as error:
        raise ConversionError(
            f"{name} is not a sound ONNX graph", cause=str(error).strip(), remedy="download the pack again"
        ) from error
    return file


# -- where the graphs are -------------------------------------------------------------------------------------


def _members(source: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of every .onnx file, one at a time; raises ConversionError."""
    read = _zipped if source.is_file() and source.suffix.lower() == ".zip" else _plain
    try:
        yield from read(source)
    except ConversionError:
        raise
    except _DAMAGE as error:
        raise ConversionError(
            f"{source.name} cannot be read", cause=str(error), remedy="download the pack again"
        ) from error


def _plain(source: Path) -> Iterator[tuple[str, bytes]]:
    """Of a folder, or the file itself."""
    files = {source.name: source}
    if source.is_dir():
        there = sorted(source.rglob(f"*{SUFFIX}"))
        files = {path.relative_to(source).as_posix(): path for path in there if _is_network(path.name)}
    _check_size(source, sum(path.stat().st_size for path in files.values()))
    for name, path in files.items():
        yield name, path.read_bytes()


def _zipped(source: Path) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(source) as archive:
        _check_names(source, archive.namelist())
        members = [info for info in archive.infolist() if _is_network(info.filename)]
        _check_size(source, sum(info.file_size for info in members))
        for info in members:
            yield info.filename, archive.read(info)


def _is_network(name: str) -> bool:
    """Whether it is an .onnx file, and not one of those that macOS adds to archives (._name.onnx)."""
    return name.lower().endswith(SUFFIX) and not PurePosixPath(name).name.startswith(".")


def _may_hold_networks(path: Path) -> bool:
    """Whether an archive lists an .onnx file; a damaged one is taken, so that the error says what is wrong with it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(map(_is_network, archive.namelist()))
    except _DAMAGE:
        return True


def _check_names(source: Path, names: list[str]) -> None:
    """Nothing is unpacked to these names; an archive that tries to leave its folder is not to be trusted at all."""
    bad = [name for name in names if name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name) or ":" in name]
    if bad:
        raise ConversionError(
            f"{source.name} holds {bad[0]!r}, which points out of its folder",
            cause="the archive is damaged or made with bad intent",
            remedy="download the pack from its publisher",
        )


def _check_size(source: Path, size: int) -> None:
    if size > _MOST_BYTES:
        raise ConversionError(
            f"{source.name} holds {size / 1e9:.1f} GB of networks",
            cause=f"the limit is {_MOST_BYTES / 1e9:.1f} GB; known packs stay below 0.6",
            remedy="add the .onnx files that you need one by one",
        )


# -- what is wrong --------------------------------------------------------------------------------------------


def _two_of_a_kind(source: Path, kind: str, first: str, second: str) -> ConversionError:
    return ConversionError(
        f"{source.name} holds two networks of the kind {kind}: {first} and {second}",
        cause="a bundle has one engine of a kind",
        remedy=f"unpack the one that you want and add it by itself: facesdk models add {PurePosixPath(first).name}",
    )


def _nothing_known(source: Path, unknown: list[str]) -> ConversionError:
    return ConversionError(
        f"{source.name} holds no network that is known",
        cause=f"unknown: {', '.join(unknown)}" if unknown else f"it holds no {SUFFIX} file",
        remedy=f"known are insightface's {', '.join(_recipe()['engines'])}, in their published form",
    )


def _recipe() -> dict[str, Any]:
    recipe: dict[str, Any] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    return recipe
