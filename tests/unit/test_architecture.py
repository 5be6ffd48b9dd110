"""The rooms: arrows between them point one way, and the run-time package stays light."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = {
    "facesdk": ROOT / "sdk" / "facesdk",
    "facesdk_engines": ROOT / "engines" / "facesdk_engines",
    "facesdk_export": ROOT / "export" / "facesdk_export",
}
OUTSIDE = {"benchmarks", "harness", "tests", "facesdk_training"}
#: what a room may import of the others
ALLOWED = {
    "facesdk": set(),
    "facesdk_engines": {"facesdk"},
    "facesdk_export": {"facesdk", "facesdk_engines"},
}
HEAVY = {"facesdk": {"torch", "onnx", "tensorrt"}, "facesdk_engines": {"torch"}, "facesdk_export": set()}


def imported(path: Path) -> set[str]:
    """Top-level packages that a module imports anywhere in its code."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("room", ROOMS)
def test_arrows_point_one_way(room: str) -> None:
    others = (set(ROOMS) | OUTSIDE) - ALLOWED[room] - {room}
    wrong = {
        str(path.relative_to(ROOT)): sorted(found)
        for path in ROOMS[room].rglob("*.py")
        if (found := imported(path) & (others | HEAVY[room]))
    }
    assert not wrong


def test_annotating_loads_neither_torch_nor_onnx(models_home: Path) -> None:
    """All modules of the run-time package together pull in nothing of the building rooms."""
    code = (
        "import importlib, pkgutil, sys, facesdk\n"
        "for module in pkgutil.walk_packages(facesdk.__path__, 'facesdk.'):\n"
        "    importlib.import_module(module.name)\n"
        "heavy = {'torch', 'onnx', 'tensorrt', 'facesdk_engines', 'facesdk_export', 'mediapipe'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_import_costs_no_more_than_numpy() -> None:
    """`import facesdk` takes at most 1.5 x `import numpy`: medians of nine fresh interpreters each, in turn."""
    clock = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"

    def seconds(module: str) -> float:
        command = [sys.executable, "-c", clock.format(module)]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    times = [(seconds("facesdk"), seconds("numpy")) for _ in range(9)]
    ours, numpys = (statistics.median(column) for column in zip(*times, strict=True))
    assert ours <= 1.5 * numpys, f"facesdk {ours * 1e3:.0f} ms, numpy {numpys * 1e3:.0f} ms"


def test_modules_are_small() -> None:
    """A module is one idea; 400 lines are the limit."""
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for room in ROOMS.values()
        for path in room.rglob("*.py")
    }
    assert not {name: length for name, length in lengths.items() if length > 400}


def test_public_names_exist() -> None:
    import facesdk

    assert len(facesdk.__all__) <= 25
    assert all(getattr(facesdk, name) is not None for name in facesdk.__all__)
    assert set(facesdk.__all__) == set(facesdk._HOMES)
    with pytest.raises(AttributeError):
        _ = facesdk.nothing_of_that_name
