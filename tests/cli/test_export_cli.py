"""`facesdk export`: exit codes, reports, and what is said where torch is not installed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facesdk.bundle import Bundle
from facesdk.cli import main
from facesdk.encoder import Encoder
from facesdk.identity import Identity


def words(checkpoint: Path, folder: Path, system: str = "arcface") -> list[str]:
    return ["export", system, "--checkpoint", str(checkpoint), "-o", str(folder)]


def test_the_help_needs_no_torch() -> None:
    """It names the systems, and imports none of the libraries that exporting needs."""
    code = (
        "import sys; from facesdk.cli import main\n"
        "try: main(['export', '--help'])\n"
        "finally: assert not {'torch', 'onnx', 'onnxruntime', 'cv2'} & set(sys.modules), sorted(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    systems = "6drepnet,arcface,deep3d,face2diffusion,hififace,ir-se50,stable-diffusion,vec2face,xuehy"
    assert systems in "".join(done.stdout.split())
    options = ("checkpoint", "generator", "arcface", "magface", "headpose", "pose-generator")
    for option in (*options, "stable-diffusion", "msid", "mapping", "mf2d"):
        assert f"  --{option} FILE" in done.stdout


@pytest.mark.parametrize("missing", [["torch"], ["onnxscript"], ["torch", "onnx", "onnxscript"]])
def test_missing_packages_are_named(
    tmp_path: Path, missing: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name in missing else (real(name, *more) or True)
    )
    assert main(words(tmp_path / "a.ckpt", tmp_path / "bundle")) == 4
    told = capsys.readouterr().err
    assert f"pip install {' '.join(missing)}" in told
    assert "[missing-dependency]" in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "line",
    [["export"], ["export", "simswap", "--checkpoint", "a", "-o", "b"], ["export", "arcface", "--checkpoint", "a"],
     ["export", "vec2face", "--generator", "-o", "b"]],
)  # fmt: skip
def test_wrong_usage(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(line)
    assert caught.value.code == 2
    assert capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "fact", "remedy"),
    [
        ("arcface", "arcface needs --checkpoint", "facesdk export arcface --checkpoint FILE -o FOLDER"),
        ("arcface --generator a", "arcface needs --checkpoint and has no --generator", "--checkpoint FILE -o FOLDER"),
        ("arcface --checkpoint a --magface b --pose-generator c", "arcface has no --magface, --pose-generator", ""),
        ("vec2face", "vec2face needs --generator, --arcface, --magface", "[--headpose FILE] [--pose-generator FILE]"),
        ("vec2face --generator a --headpose b", "vec2face needs --arcface, --magface", "--magface FILE [--headpose"),
        ("vec2face --checkpoint a", "--magface and has no --checkpoint", "vec2face --generator FILE --arcface FILE"),
    ],
)
def test_files_that_the_system_does_not_have(
    tmp_path: Path, given: str, fact: str, remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="the export room needs torch")
    line = ["export", *given.split(), "-o", str(tmp_path / "bundle"), "--json"]
    assert main(line) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "usage"
    assert fact in error["fact"]
    assert remedy in error["remedy"]
    assert ("6DRepNet_300W_LP_AFLW2000.pth" in error["cause"]) == given.startswith("vec2face")
    assert list(tmp_path.iterdir()) == []


def test_one_of_several_files_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch", reason="the export room needs torch")
    files = {name: tmp_path / f"{name}.pth" for name in ("generator", "arcface", "magface")}
    line = [word for name, path in files.items() for word in (f"--{name}", str(path))]
    assert main(["export", "vec2face", *line, "-o", str(tmp_path / "bundle"), "--json"]) == 4
    assert "generator.pth does not exist" in json.loads(capsys.readouterr().out)["error"]["fact"]
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch", reason="the export room needs torch")
    assert main([*words(tmp_path / "absent.pth", tmp_path / "bundle"), "--json"]) == 4
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "model-not-found"
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch", reason="the export room needs torch")
    (tmp_path / "a.pth").write_text("<html>not found</html>")
    assert main(words(tmp_path / "a.pth", tmp_path / "bundle")) == 1
    told = capsys.readouterr().err
    assert "[conversion]" in told
    assert "remedy" in told
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


@pytest.fixture(scope="module")
def arcface(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the smallest published depth, random."""
    torch = pytest.importorskip("torch", reason="the export room needs torch")
    pytest.importorskip("onnxscript", reason="the export room needs onnxscript")
    from facesdk_export.networks import IResNet
    from facesdk_export.networks.iresnet import LAYERS

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("ckpt") / "backbone.pth"
    torch.save(IResNet(LAYERS[18]).state_dict(), path)
    return path


def test_from_a_checkpoint_to_an_identity(arcface: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole way of a real architecture: exported, reported, opened and used."""
    folder = tmp_path / "bundle"
    assert main([*words(arcface, folder), "--name", "mine", "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert report["bundle"] == str(folder)
    ((output,),) = report["engines"].values()
    assert output["output"] == "embedding"
    assert 0 <= output["max_in_std"] < 1e-3
    assert (output["nan"], output["infinite"]) == (0, 0)
    bundle = Bundle(folder)
    bundle.verify()
    assert (bundle.name, bundle.about["commercial"]) == ("mine", "no")
    encoder = Encoder(bundle, "cpu", 1)
    vector = encoder.vectors([np.full((112, 112, 3), 90, np.uint8)])
    assert vector.shape == (1, 512)
    assert np.isfinite(Identity(vector[0], encoder.space).vector).all()
    encoder.close()
    assert main(words(arcface, folder)) == 1  # it is full now
    assert "not an empty folder" in capsys.readouterr().err
    bundle.verify()
