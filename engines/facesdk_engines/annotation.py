"""The annotation bundles: MediaPipe's published networks, converted from its wheel or from a task file."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from facesdk import protobuf
from facesdk.annotation.geometry import FACE_POINTS
from facesdk.card import Card
from facesdk.errors import ConversionError, MissingDependency
from facesdk.files import sha256

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Arrays = dict[str, npt.NDArray[Any]]


class AnnotationBuilder:
    """Entry point of `facesdk.builders`: makes `annotation` and `annotation-478`."""

    names = ("annotation", "annotation-478")

    def recognises(self, path: Path) -> str | None:
        """The bundle that `build` would make of a file, or None."""
        if path.suffix == ".task":
            return "annotation-478"
        return "annotation" if re.fullmatch(r"mediapipe-0\.10\.21-.*\.whl", path.name) else None

    def build(self, source: Path, folder: Path) -> None:
        """Convert every network of `source` into `folder`, with its constants and manifest.

        Raises MissingDependency without onnx, ConversionError for a damaged file.
        """
        if importlib.util.find_spec("onnx") is None:
            raise MissingDependency(
                f"{source.name} has to be converted, which needs onnx",
                cause="running engines does not need it, making them does",
                remedy="pip install onnx",
            )
        kind = "task" if source.suffix == ".task" else "wheel"
        recipe = _recipe()
        _build(_Archive(source), recipe, recipe[kind], folder)


builder = AnnotationBuilder()


class _Archive:
    """A zip file whose every failure is a ConversionError that names it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise self.damaged(str(error)) from error

    def read(self, member: str) -> bytes:
        try:
            return self._zip.read(member)
        except (KeyError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            raise self.damaged(f"{member}: {error}") from error

    def damaged(self, cause: str) -> ConversionError:
        return ConversionError(
            f"{self.path.name} does not hold the networks of a face landmarker",
            cause=cause,
            remedy="download the file again",
        )


def _build(archive: _Archive, recipe: Mapping[str, Any], kind: Mapping[str, Any], folder: Path) -> None:
    from .writing import write_arrays, write_manifest

    digest = sha256(archive.path)
    engines, profiles = {}, {}
    for name, own in kind["engines"].items():
        facts = {**recipe["engines"][name], **own}
        card = Card(
            system="annotation",
            engine=name,
            about=facts["about"],
            source=f"{kind['source']}: {facts['file']}",
            source_sha256=digest,
            licence=recipe["licence"]["licence"],
            recipe=recipe["recipe"],
            inputs=facts["inputs"],
            outputs=facts["outputs"],
        )
        engines[name] = _convert(archive.read(facts["file"]), facts, card, folder)
        profiles[name] = facts.get("sizes", {})
    arrays = _geometry(archive, kind["geometry"]) if "geometry" in kind else _wheel_geometry(archive, recipe, kind)
    constants = {"detection": recipe["detection"], "landmarks": kind["landmarks"]}
    if "blendshapes" in engines:
        arrays["blendshape_landmarks"] = np.array(recipe["blendshapes"]["landmarks"])
        constants["blendshapes"] = {"names": recipe["blendshapes"]["names"]}
    write_arrays(folder / "mesh.npz", **arrays)
    source = {"source": kind["source"], "source_sha256": digest, "recipe": recipe["recipe"]}
    about = {"name": kind["bundle"], "about": kind["about"], "system": "annotation", **recipe["licence"], **source}
    write_manifest(folder, about, engines, constants, profiles)


def _convert(data: bytes, facts: Mapping[str, Any], card: Card, folder: Path) -> dict[str, str]:
    """Files of one engine by device: as published, and rewritten for ONNX Runtime's processor kernels."""
    from . import tflite
    from .pictures import take_pictures
    from .writing import write_engine

    picture, name = "scale" in facts, card.engine
    shape = (1, facts["size"], facts["size"], 3) if picture else tuple(facts["shape"])
    card = dataclasses.replace(card, example_shapes={next(iter(facts["inputs"])): shape})
    layout = {"batch": "free", "input_layout": "nchw"} if picture else {"batch": "fixed"}
    files: dict[str, str] = {}
    for device, prelu in (("default", "prelu"), ("cpu", "convolutions")):
        model = tflite.convert(data, name=name, prelu=prelu, rename=facts["names"], **layout)
        if picture:
            take_pictures(model, facts["size"], facts["scale"], facts["offset"])
        files[device] = f"{name}.onnx" if device == "default" else f"{name}.{device}.onnx"
        write_engine(folder / files[device], model, card)
    return files


def _geometry(archive: _Archive, member: str) -> Arrays:
    """Triangles and weighted canonical points of MediaPipe's GeometryPipelineMetadata message."""
    try:
        top = list(protobuf.fields(archive.read(member)))
        mesh = list(protobuf.fields(_one(top, 1)))
        vertices = np.frombuffer(b"".join(_all(mesh, 3)), "<f4").reshape(-1, 5)[:, :3]  # x y z u v
        triangles = np.array([i for entry in _all(mesh, 4) for i in _integers(entry)]).reshape(-1, 3)
        basis = [dict(protobuf.fields(entry)) for entry in _all(top, 2)]
        index = np.array([entry.get(1, 0) for entry in basis])
        weight = np.array([struct.unpack("<f", entry[2])[0] for entry in basis])  # type: ignore[arg-type]
        return _mesh(triangles, index, vertices[index], weight)
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, struct.error) as error:
        raise archive.damaged(f"{member}: {error}") from error


def _wheel_geometry(archive: _Archive, recipe: Mapping[str, Any], kind: Mapping[str, Any]) -> Arrays:
    """The wheel has the mesh as edges and no canonical face: that one comes from the recipe."""
    anchors = np.array(recipe["canonical"]["anchors"])
    edges = _read_edges(archive, kind["connections"])
    try:
        return _mesh(_triangles(edges), anchors[:, 0].astype(np.int64), anchors[:, 1:4], anchors[:, 4])
    except ValueError as error:
        raise archive.damaged(f"{kind['connections']}: {error}") from error


def _mesh(triangles: Any, index: Any, position: Any, weight: Any) -> Arrays:
    points = np.concatenate([np.ravel(triangles), index])
    if not len(triangles) or not len(index) or not ((points >= 0) & (points < FACE_POINTS)).all():
        raise ValueError(f"triangles or anchors outside the {FACE_POINTS} points of the mesh")
    return {
        "triangles": np.asarray(triangles, np.int64),
        "anchor_index": np.asarray(index, np.int64),
        "anchor_position": np.asarray(position, np.float32),
        "anchor_weight": np.asarray(weight, np.float32),
    }


def _read_edges(archive: _Archive, member: str) -> list[tuple[int, int]]:
    """The literal of FACEMESH_TESSELATION in a Python file, which is parsed and never run."""
    try:
        for node in ast.parse(archive.read(member)).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "FACEMESH_TESSELATION":
                return [(int(a), int(b)) for a, b in ast.literal_eval(node.value.args[0])]  # type: ignore[attr-defined]
    except (SyntaxError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise archive.damaged(f"{member}: {error}") from error
    raise archive.damaged(f"{member} has no FACEMESH_TESSELATION")


def _triangles(edges: list[tuple[int, int]]) -> npt.NDArray[np.int64]:
    """All triples of landmarks that are joined pairwise."""
    joined: dict[int, set[int]] = {}
    for a, b in edges:
        joined.setdefault(a, set()).add(b)
        joined.setdefault(b, set()).add(a)
    return np.array(sorted({tuple(sorted((a, b, c))) for a, b in edges for c in joined[a] & joined[b]}))


def _integers(entry: int | memoryview) -> list[int]:
    """The values of one entry of a repeated integer field, which may be packed or not."""
    return [entry] if isinstance(entry, int) else list(protobuf.varints(entry))


def _one(message: list[tuple[int, Any]], number: int) -> Any:
    return _all(message, number)[0]


def _all(message: list[tuple[int, Any]], number: int) -> list[Any]:
    return [value for field, value in message if field == number]


def _recipe() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
