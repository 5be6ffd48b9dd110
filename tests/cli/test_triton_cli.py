"""`facesdk export-triton`: what it prints, its exit codes, and that its help is cheap."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from facesdk import cli
from facesdk.bundle import Bundle
from facesdk.cli import main


@pytest.fixture(autouse=True)
def _verb(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verb as pyproject.toml registers it, whatever is installed."""
    verb = EntryPoint("export-triton", "facesdk_engines.cli_triton:command", cli.GROUP)
    monkeypatch.setattr(cli, "entry_points", lambda group: [verb])


def test_the_verb_is_registered() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert 'export-triton = "facesdk_engines.cli_triton:command"' in text


def test_a_repository(swap_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "models"
    assert main(["export-triton", str(swap_bundle.folder), str(folder), "--cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("hififace-tiny_identity  onnxruntime")
    assert lines[-2:] == ["hififace-tiny_pipeline  python", str(folder)]
    assert (folder / "hififace-tiny_pipeline" / "1" / "model.py").is_file()


def test_json(swap_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["export-triton", str(swap_bundle.folder), str(tmp_path / "models"), "--json", "--engine", "shape"]
    assert main(line) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["pipeline"] == ""
    (model,) = report["models"]
    assert (model["name"], model["backend"], model["files"]) == ("hififace-tiny_shape", "onnxruntime", ["shape.onnx"])
    assert main(line) == 1
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "output"


@pytest.mark.parametrize(
    ("more", "status", "words"),
    [
        (["--engine", "unet"], 2, "engine is 'unet'"),
        (["--instances", "0"], 2, "instances is 0"),
        (["--cpu", "--precision", "fp16"], 2, "do not compute in fp16"),
        (["--annotation", "nobody"], 4, "'nobody' is not installed"),
    ],
)
def test_errors(
    swap_bundle: Bundle, tmp_path: Path, more: list[str], status: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export-triton", str(swap_bundle.folder), str(tmp_path / "models"), *more]) == status
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_help_loads_nothing_large() -> None:
    code = (
        "import argparse, sys; from facesdk_engines.cli_triton import command; command(argparse.ArgumentParser())\n"
        "heavy = {'onnx', 'onnxruntime', 'cv2', 'numpy', 'torch'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_pipeline_needs_no_onnx() -> None:
    """Triton's Python has the packages of `pip install facesdk`, and not those that make engines."""
    code = (
        "import sys\nsys.modules['onnx'] = None\n"
        "import facesdk_engines.triton.answers, facesdk_engines.triton.serving\n"
        "heavy = {'torch', 'tensorrt', 'onnxruntime', 'openvino'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
