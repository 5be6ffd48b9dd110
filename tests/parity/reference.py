"""The golden cases: where they are, and one reading of every system's case files."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

ROOT = Path(os.environ.get("FACESDK_REFERENCE") or Path(__file__).parents[3] / "shared" / "reference")


def cases() -> Iterator[Any]:
    """Every case of every system, as `reference/cases.py` reads them; annotation's one file is unfolded."""
    if not ROOT.is_dir():
        return
    reading = _reading()
    for folder in sorted(ROOT.glob("*/golden")):
        if (folder / "cases.json").exists():
            yield from _unfolded(folder, reading)
        else:
            yield from reading.cases(folder.parent.name, ROOT)


def _unfolded(folder: Path, reading: ModuleType) -> Iterator[Any]:
    """Cases of a folder with one `cases.json`: each names its npz, or a list of images with one npz each."""
    for facts in json.loads((folder / "cases.json").read_text())["cases"]:
        for part in facts.get("images", [facts]):
            case = reading.Case.__new__(reading.Case)
            case.path, case.facts = folder / part["npz"], facts
            case.arrays = dict(np.load(case.path))
            case.system, case.name, case.scalars = facts["system"], facts["case"], facts["scalars"]
            case.variant = part.get("name") or part.get("variant", facts["case"])
            case.inputs = {name: case.arrays[name] for name in facts["inputs"] if name in case.arrays}
            case.image = part if "images" in facts else None
            yield case


def compare(case: Any, output: str, got: Any, size: tuple[int, int] | None = None) -> str | None:
    """What is wrong with one output, or None; `size` (width, height) scales outputs given in pixels of an image."""
    rule = case.facts["outputs"][output]
    if rule.get("unit") != "pixels":
        ratio, text = case.compare(output, got)
        return None if ratio <= 1 else text
    want, got = case.arrays[output].astype(np.float64), np.asarray(got, np.float64)
    if got.shape != want.shape:
        return f"{output}: shape {got.shape}, expected {want.shape}"
    if not got.size:
        return None
    error = np.abs(got - want)
    planar = (error[..., :2] * size).max()
    depth = error[..., 2:].max(initial=0) if "tolerance_z" in rule else 0
    if planar <= rule["tolerance"] and depth <= rule.get("tolerance_z", 0):
        return None
    return f"{output}: {planar:.2e} of {rule['tolerance']} px, z {depth:.2e}"


def _reading() -> ModuleType:
    sys.path.insert(0, str(ROOT))  # cases.py imports fill.py beside it
    try:
        spec = importlib.util.spec_from_file_location("facesdk_reference_cases", ROOT / "cases.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(ROOT))
