"""Writing what the SDK opens: ONNX files with cards, and bundle folders with pinned hashes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from facesdk.bundle import MANIFEST
from facesdk.card import Card
from facesdk.files import atomic_path, sha256, write_text


def write_engine(path: Path, model: onnx.ModelProto, card: Card) -> None:
    """Write a checked ONNX file that carries `card`; weights outside the graph lie beside `path` already."""
    onnx.helper.set_model_props(model, card.to_properties())
    with atomic_path(path) as temporary:
        temporary.write_bytes(model.SerializeToString())
        onnx.checker.check_model(temporary, full_check=True)  # by path, from where it finds such weights


def write_arrays(path: Path, **arrays: npt.NDArray[Any]) -> None:
    """Write an npz archive."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def write_manifest(
    folder: Path,
    about: Mapping[str, Any],
    engines: Mapping[str, Mapping[str, str]],
    constants: Mapping[str, Any],
    profiles: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> None:
    """Write `bundle.toml` of a finished folder, pinning the sha256 of every file in it.

    engines   name -> {"default": file, device: file of the form for that device}.
    profiles  name -> sizes that its TensorRT plan is built for, see facesdk.plans.profiles.
    """
    files = {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST}
    tables: dict[str, Mapping[str, Any]] = {"bundle": about}
    tables |= {f"engines.{name}": forms for name, forms in engines.items()}
    tables |= {f"constants.{name}": values for name, values in constants.items()}
    tables |= {f"profiles.{name}": sizes for name, sizes in profiles.items() if sizes}
    tables["files"] = files
    text = "\n".join(_table(name, values) for name, values in tables.items())
    write_text(folder / MANIFEST, text)


def _table(name: str, values: Mapping[str, Any]) -> str:
    # JSON strings, numbers, booleans and arrays are TOML values too
    lines = [f"{_key(key)} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    return "\n".join([f"[{name}]", *lines, ""])


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)
