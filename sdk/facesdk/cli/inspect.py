"""`facesdk inspect`: what an engine, a bundle or a picture says about itself."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image as Pillow

from ..bundle import MANIFEST, Bundle
from ..card import Card
from ..errors import EngineUnreadable, FaceSDKError, ImageError, ModelNotFound, UsageError
from ..files import sha256
from ..graph import Graph, Value
from ..provenance import PictureFile
from ..store import Store

# EXIF 2.32, tag Orientation: what a viewer does with the stored pixels
_ORIENTATIONS = {
    1: "upright", 2: "flip left to right", 3: "turn by 180 degrees", 4: "flip top to bottom",
    5: "flip left to right, turn left by 90 degrees", 6: "turn right by 90 degrees",
    7: "flip left to right, turn right by 90 degrees", 8: "turn left by 90 degrees",
}  # fmt: skip


def command(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], Any]:
    """Say what an ONNX file, a bundle's folder or a picture is, and where it comes from."""
    parser.add_argument("file", type=Path, metavar="FILE", help="an ONNX file, a bundle (folder or name), a picture")
    return _run


def _run(options: argparse.Namespace) -> dict[str, Any]:
    document = inspect(options.file if options.file.exists() else _installed(options.file))
    if not options.json:
        print(_text(document))
    return document


def inspect(path: Path) -> dict[str, Any]:
    """What the file says about itself, ready for JSON; `kind` is "engine", "bundle" or "picture".

    Raises ModelNotFound, UsageError where it is none of these, EngineUnreadable, BundleError, ImageError.
    """
    if path.is_dir():
        return _bundle(path)
    if not path.is_file():
        raise ModelNotFound(f"{path} does not exist", remedy="check the path")
    if path.suffix.lower() == ".onnx":
        return _engine(path)
    try:
        return _picture(path)
    except ImageError as error:
        not_picture = error
    try:
        return _engine(path)
    except EngineUnreadable:
        if path.suffix.lower() in Pillow.registered_extensions():
            raise not_picture from None
    raise UsageError(
        f"{path} is neither an ONNX file, a bundle nor a picture",
        remedy=f"give an .onnx file, a folder with {MANIFEST}, or a picture that Pillow reads",
    )


def _engine(path: Path) -> dict[str, Any]:
    card = {name: value for name, value in dataclasses.asdict(Card.read(path)).items() if value}
    if card.keys() == {"precision"}:  # the default of a file without a card
        card = {}
    return {"kind": "engine", **_file(path), **_signature(path), "card": card}


def _signature(path: Path) -> dict[str, Any]:
    graph = Graph.read(path)
    return {
        "opset": dict(graph.opset),
        "inputs": [dataclasses.asdict(value) for value in graph.inputs],
        "outputs": [dataclasses.asdict(value) for value in graph.outputs],
    }


def _installed(path: Path) -> Path:
    """The folder of the bundle that is installed under this name, else the path itself."""
    folder = Store().path(str(path))
    return folder if len(path.parts) == 1 and folder.is_dir() else path


def _bundle(folder: Path) -> dict[str, Any]:
    bundle = Bundle(folder)
    about = {
        name: value if isinstance(value, str | int | float) else str(value) for name, value in bundle.about.items()
    }
    return {
        "kind": "bundle",
        "file": str(folder),
        "about": about,
        "engines": {name: _bundled(bundle.forms(name)) for name in bundle.engine_names},
    }


def _bundled(forms: Mapping[str, Path]) -> dict[str, Any]:
    files = {device: path.name for device, path in forms.items()}
    try:
        return {"files": files, **_signature(forms["default"])}
    except FaceSDKError as error:  # one damaged engine does not hide the others
        return {"files": files, "problem": error.fact}


def _picture(path: Path) -> dict[str, Any]:
    return {"kind": "picture", **_file(path), **dataclasses.asdict(PictureFile.read(path))}


def _file(path: Path) -> dict[str, Any]:
    return {"file": str(path), "bytes": path.stat().st_size, "sha256": sha256(path)}


# -- as text ------------------------------------------------------------------------------------------------


def _text(document: Mapping[str, Any]) -> str:
    tell = {"engine": _tell_engine, "bundle": _tell_bundle, "picture": _tell_picture}[document["kind"]]
    rows = [(document["kind"], document["file"])]
    if "bytes" in document:
        rows += [("size", _size(document["bytes"])), ("sha256", document["sha256"])]
    rows += tell(document)
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name.ljust(width)}  {value}".rstrip() for name, value in rows)


def _tell_engine(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    card = dict(document["card"])
    meanings = {"inputs": card.pop("inputs", {}), "outputs": card.pop("outputs", {})}
    rows = _tell_signature(document, meanings)
    rows += [(name, _one_line(value)) for name, value in card.items()]
    return rows if document["card"] else [*rows, ("card", "none: not made by FaceSDK")]


def _tell_signature(document: Mapping[str, Any], meanings: Mapping[str, Mapping[str, str]]) -> list[tuple[str, str]]:
    rows = [("opset", _one_line(document["opset"]))]
    for side in ("inputs", "outputs"):
        for value in document[side]:
            meaning = meanings.get(side, {}).get(value["name"])
            rows.append((side[:-1], f"{Value(**value)}" + (f": {meaning}" if meaning else "")))
    return rows


def _tell_bundle(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [(name, str(value)) for name, value in document["about"].items()]
    for name, engine in document["engines"].items():
        rows += [("", ""), ("engine", name)]
        rows += [("file", f"{file} ({device})") for device, file in engine["files"].items()]
        rows += [("problem", engine["problem"])] if "problem" in engine else _tell_signature(engine, {})
    return rows


def _tell_picture(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    orientation = f"{document['orientation']}, {_ORIENTATIONS[document['orientation']]}"
    return [
        ("picture", f"{document['format']}, {document['width']} x {document['height']}, mode {document['mode']}"),
        ("orientation", orientation),
        *(document["provenance"].items() or [("provenance", "no provenance recorded")]),
    ]


def _one_line(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_one_line(item)}" for name, item in value.items())
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _size(count: int) -> str:
    return f"{count} bytes" if count < 10_000 else f"{count / 1e6:.2f} MB"
