"""The engines' part of benchmarks/gpu, on the processor and on a stand-in of ONNX Runtime's CUDA provider."""

from __future__ import annotations

import csv
import json
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu import bundles, cases, engines, engines_report, workers
from benchmarks.gpu.cases import Place
from facesdk.backends import onnxruntime_cuda
from facesdk.bundle import Bundle
from facesdk.diffusion.conditioning import Conditioning
from facesdk.diffusion.loop import denoise
from facesdk.diffusion.networks import DiffusionNetworks
from facesdk.diffusion.samplers import run
from facesdk.nvidia import Gpu
from facesdk.plans import gpu as plans_gpu
from tests.ort_fake import FakeOrt
from tests.plan_bundles import make_bundle
from tests.swap_bundle import write_swap_bundle

ROOT = Path(__file__).parents[2]


class HereWorker:
    """A worker in this process; `fail`: (kind, question) -> an exception to raise in place of the answer."""

    fail: Callable[[str, dict[str, Any]], Exception | None] = staticmethod(lambda kind, question: None)

    def __init__(self, name: str, command: list[Any]) -> None:
        side, folder, device = map(str, command[-3:])
        assert command[:3] == [sys.executable, "-m", "benchmarks.gpu.workers"]
        place = Place.read(Path(folder))
        self.name = name
        self._answer = workers.answering(
            workers.Engines(place, device) if side == "engines" else workers.Torch(place, device)
        )
        self.about = self.ask({"do": "about"}) if side == "engines" else ""

    def ask(self, question: dict[str, Any]) -> Any:
        if (failure := HereWorker.fail(self.name, question)) is not None:
            raise failure
        return json.loads(json.dumps(self._answer(json.loads(json.dumps(question)))))

    def close(self) -> None: ...


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers in this process."""
    monkeypatch.setattr(engines, "Worker", HereWorker)
    monkeypatch.setattr(HereWorker, "fail", staticmethod(lambda kind, question: None))
    monkeypatch.setattr(engines, "_TURN_MS", 0.1)


@pytest.fixture
def folder(tmp_path: Path, swap_bundle: Bundle, synthesis_bundle: Bundle, diffusion_bundle: Bundle) -> Path:
    """Three small bundles that somebody brought, and what the processor makes of them."""
    brought = [str(bundle.folder) for bundle in (swap_bundle, synthesis_bundle, diffusion_bundle)]
    assert bundles.main([str(tmp_path / "bundles"), *brought]) == 0
    return tmp_path / "bundles"


def measured(folder: Path, *words: str) -> tuple[int, list[dict[str, str]], str]:
    """Status, rows of the CSV, and the table."""
    table = folder / "engines.md"
    status = engines.main([str(folder), "--results", str(folder), "-o", str(table), *words])
    rows = [row for path in folder.glob("*.csv") for row in csv.DictReader(path.read_text().splitlines())]
    return status, rows, table.read_text()


# -- bundles and what the processor makes of them -----------------------------------------------------------------


def test_results_are_kept_and_what_cannot_run_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = {place.bundle.name: place for place in cases.places(folder)}
    assert {name: place.cases()[0] for name, place in found.items()} == {
        "face2diffusion-tiny": "denoise", "hififace-tiny": "swap", "vec2face-tiny": "synthesize",
    }  # fmt: skip
    kept = found["hififace-tiny"].kept("swap")
    assert kept["swapped"].shape == (64, 64, 3)
    assert found["vec2face-tiny"].kept("synthesize")["pictures"].shape[:2] == (8, 1)
    assert found["face2diffusion-tiny"].kept("denoise")["latent"].std() > 0
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/*.npz")}
    assert bundles.main([str(folder), str(found["hififace-tiny"].bundle.folder)]) == 0
    assert "hififace-tiny/decoder: left out: decoder: input target" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in folder.glob("*/*.npz")}
    (folder / "brought-hififace-tiny" / "swap.npz").write_bytes(b"of another bundle")
    about = folder / "brought-hififace-tiny" / "place.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "manifest": "another"}))
    assert bundles.main([str(folder), str(found["hififace-tiny"].bundle.folder)]) == 0
    np.testing.assert_array_equal(found["hififace-tiny"].kept("swap")["swapped"], kept["swapped"])


def test_what_cannot_be_made_here_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bundles.importlib.util, "find_spec", lambda name: None if name == "diffusers" else name)
    assert bundles.main([str(tmp_path), "face2diffusion"]) == bundles.LEFT_OUT == 3
    assert capsys.readouterr().out.startswith("face2diffusion: left out: diffusers is not installed")
    assert list(tmp_path.iterdir()) == []


def test_files_are_written_whole_or_again(tmp_path: Path) -> None:
    written: list[Path] = []

    def write(folder: Path) -> dict[str, Path]:
        written.append(folder)
        (folder / "sd").mkdir()
        if len(written) == 1:
            raise KeyboardInterrupt
        return {"stable_diffusion": folder / "sd"}

    with pytest.raises(KeyboardInterrupt):
        bundles._files(write, tmp_path / "files")
    for _ in range(2):
        assert bundles._files(write, tmp_path / "files") == {"stable_diffusion": tmp_path / "files" / "sd"}
    assert len(written) == 2
    exported = pytest.importorskip("facesdk_export.clip_tokenizer")
    assert b"<|endoftext|>" in exported.tokenizer_json(tmp_path / "files" / "sd")  # nothing is downloaded for it


# -- on the processor, beside torch -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def arcface(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one small encoder in fp32 and fp16, and its published file."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    from facesdk_export.bundles import export
    from facesdk_export.networks import IResNet

    folder = tmp_path_factory.mktemp("arcface") / "arcface"
    folder.mkdir()
    torch.manual_seed(0)
    torch.save(IResNet((1, 1, 1, 1)).state_dict(), folder / "file.pth")
    export("arcface", folder / "file.pth", folder / "bundle", fp16=True)
    place = Place(folder, Bundle(folder / "bundle"), "arcface", {"checkpoint": folder / "file.pth"})
    assert [line.split(":")[0] for line in bundles.keep_results(place)] == ["encoder"]
    place.write()
    return folder.parent


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real workers find the code."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *sys.path]))
    monkeypatch.setattr(engines, "_ROUNDS", 2)
    monkeypatch.setattr(engines, "_TURN_MS", 0.1)


@pytest.mark.usefixtures("processes")
def test_engines_beside_torch(arcface: Path) -> None:
    status, rows, table = measured(arcface, "--device", "cpu", "--compile-seconds", "0")
    assert status == 0, table
    figures = {row["system"]: row for row in rows}
    assert list(figures) == [
        "FaceSDK cpu fp32 resident", "FaceSDK cpu fp16 resident", "FaceSDK cpu fp32", "FaceSDK cpu fp16",
        "torch eager fp16", "torch eager fp32",
    ]  # fmt: skip
    assert {row["case"] for row in rows} == {"arcface/encoder"}
    for name, row in figures.items():
        peer = float(figures[f"torch eager {row['precision']}"]["median_ms"])
        assert float(row["ratio_to_eager"]) == pytest.approx(float(row["median_ms"]) / peer, rel=2e-3)
        assert row["transfers"] == ("included" if name in ("FaceSDK cpu fp32", "FaceSDK cpu fp16") else "excluded")
        assert int(row["calls"]) == 2
        assert name in table
    assert float(figures["FaceSDK cpu fp32"]["error"]) == 0
    assert figures["FaceSDK cpu fp32"]["limit"] == "0.001"
    for name in ("FaceSDK cpu fp16", "torch eager fp16"):  # torch was given the same numbers
        assert 1e-4 < float(figures[name]["error"]) < 0.02
        assert figures[name]["limit"] == "0.1"


@pytest.mark.usefixtures("processes")
def test_a_wrong_engine_is_reported_and_fails_the_part(arcface: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    planted = tmp_path / "planted" / "arcface"
    place = Place.read(arcface / "arcface")
    planted.mkdir(parents=True)
    (planted / "encoder.npz").write_bytes((place.folder / "encoder.npz").read_bytes())
    bundle = planted / "bundle"
    bundle.mkdir()
    for file in place.bundle.folder.iterdir():
        (bundle / file.name).write_bytes(file.read_bytes())
    model = onnx.load(bundle / "encoder.fp16.onnx")
    weight = next(each for each in model.graph.initializer if len(each.dims) == 4)
    weight.CopyFrom(onnx.numpy_helper.from_array(1.5 * onnx.numpy_helper.to_array(weight), weight.name))
    onnx.save(model, bundle / "encoder.fp16.onnx")
    Place(planted, Bundle(bundle)).write()
    status, rows, table = measured(planted.parent, "--device", "cpu")
    assert status == 1
    wrong = {row["system"] for row in rows if row["wrong"]}
    assert wrong == {"FaceSDK cpu fp16", "FaceSDK cpu fp16 resident"}
    assert "WRONG: FaceSDK cpu fp16: embedding: largest difference" in table


def test_layers_that_are_given_floats_cast_them_and_no_others_do() -> None:
    torch = pytest.importorskip("torch")
    from benchmarks.gpu.peers import Peer

    class Bytes(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)

        def forward(self, image: Any) -> Any:
            return self.second(self.first(image.float()))

    image = np.arange(8, dtype=np.uint8).reshape(2, 4)
    peer = Peer(Bytes(), lambda network, arrays: {"out": network(arrays["image"])}, {"image": image})
    network, arrays = peer.on("cpu", half=True)
    assert peer.run(network, arrays)["out"].dtype == torch.float16
    assert [len(layer._forward_pre_hooks) for layer in (network.first, network.second)] == [1, 0]
    assert peer.network.first.weight.dtype == torch.float32
    network, arrays = peer.on("cpu", half=False)
    assert not network.first._forward_pre_hooks


# -- on the stand-in of a GPU -------------------------------------------------------------------------------------


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeOrt:
    h200 = Gpu("NVIDIA H200", "9.0", 143771.0)
    monkeypatch.setattr(onnxruntime_cuda, "first_gpu", lambda: h200)
    monkeypatch.setattr(plans_gpu, "first_gpu", lambda: h200)
    onnxruntime_cuda._preload.cache_clear()
    return FakeOrt().install(monkeypatch)


@pytest.mark.usefixtures("here")
def test_verbs_run_on_cuda_and_loops_with_graphs_beside_without(folder: Path, cuda: FakeOrt) -> None:
    status, rows, table = measured(folder)
    assert status == 0, table
    assert (folder / "h200.csv").is_file()
    assert [(row["case"], row["system"]) for row in rows] == [
        ("face2diffusion-tiny/denoise", "FaceSDK cuda fp32"),
        ("face2diffusion-tiny/denoise", "FaceSDK cuda fp32, CUDA graph"),
        ("hififace-tiny/swap", "FaceSDK cuda fp32"),
        ("vec2face-tiny/synthesize", "FaceSDK cuda fp32"),
    ]
    plain, graph = rows[:2]
    assert cuda.replayed
    assert float(graph["ratio_to_plain"]) > 0
    assert plain["ratio_to_plain"] == ""
    assert {row["limit"] for row in rows} == {"0.001"}
    assert "CUDA graph (" in table


@pytest.mark.usefixtures("here")
def test_engines_run_on_cuda_with_and_without_transfers(tmp_path: Path, save_graph: Any, cuda: FakeOrt) -> None:
    bundle = make_bundle(save_graph, tmp_path / "demo")
    assert bundles.main([str(tmp_path / "places"), str(bundle.folder)]) == 0
    status, rows, table = measured(tmp_path / "places")
    assert status == 0, table
    assert [(row["system"], row["transfers"]) for row in rows] == [
        ("FaceSDK cuda fp32 resident", "excluded"), ("FaceSDK cuda fp16 resident", "excluded"),
        ("FaceSDK cuda fp32", "included"), ("FaceSDK cuda fp16", "included"),
    ]  # fmt: skip
    assert {row["case"] for row in rows} == {"demo/step"}
    assert float(rows[0]["error"]) == 0 < float(rows[1]["error"])
    assert len(cuda.opened) == 2


@pytest.mark.usefixtures("here")
def test_a_step_is_a_tenth_of_a_loop(folder: Path) -> None:
    (place,) = (place for place in cases.places(folder) if place.cases()[0] == "denoise")
    side = workers.Engines(place, "cpu")
    seen: list[int] = []
    question = {"case": "denoise", "way": "one", "precision": "fp32", "resident": False, "calls": 3}
    assert side.open(question)["wrong"] == ""
    running = side._open["one"]
    side._open["one"] = workers.Running(lambda: seen.append(1) or running.call(), running.close, "")
    times = side.run(question)
    assert (len(times), len(seen)) == (3, 3)
    assert workers._shares(question, [20.0]) == [2.0]
    assert workers._shares({"case": "swap"}, [20.0]) == [20.0]


def test_the_loop_is_the_one_that_pictures_are_made_by(diffusion_bundle: Bundle) -> None:
    job = cases.Denoising.of(diffusion_bundle)
    running = workers.start(diffusion_bundle, "denoise", "cpu")
    with DiffusionNetworks(diffusion_bundle, "cpu") as networks:
        weights = np.array([1 - networks.settings.guidance, networks.settings.guidance], np.float32)
        told = Conditioning(weights, ((0, networks.context(job.text)),))
        latent = denoise(networks, job.sampler, told, job.latent)
    np.testing.assert_array_equal(running.call()["latent"], job.share_of_the_network(latent))
    running.close()


def test_torch_walks_the_same_loop(diffusion_bundle: Bundle) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    from benchmarks.gpu.peers import _denoised

    job = cases.Denoising.of(diffusion_bundle)

    class Network(torch.nn.Module):
        """Of the latent, the time, and of the text that goes with its half of the batch."""

        def forward(self, latents: Any, time: Any, text: Any) -> Any:
            assert latents.shape[0] == text.shape[0] == 2
            sample = torch.tanh(latents) + time / 1000 + text.mean((1, 2))[:, None, None, None]
            return types.SimpleNamespace(sample=sample)

    def network(latent: Any, timestep: float) -> Any:
        answers = [np.tanh(latent) + timestep / 1000 + text.mean() for text in job.text]
        return answers[0] + job.guidance * (answers[1] - answers[0])

    arrays = {"latent": torch.from_numpy(job.latent), "text": torch.from_numpy(job.text)}
    expected = run(job.sampler, network, job.latent)[-1]
    np.testing.assert_allclose(_denoised(job, Network(), arrays)["latent"].numpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("here")
def test_a_graph_that_cannot_be_captured_is_a_note(folder: Path, cuda: FakeOrt) -> None:
    def fail(kind: str, question: dict[str, Any]) -> Exception | None:
        return RuntimeError("graphs died") if kind == "graphs" and question["do"] == "run" else None

    HereWorker.fail = staticmethod(fail)
    status, rows, _ = measured(folder)
    assert status == 0
    assert [row["note"] for row in rows if row["system"].endswith("graph")] == ["the timing broke off: graphs died"]
    assert len(rows) == 4


@pytest.mark.usefixtures("here")
def test_a_process_that_dies_does_not_spoil_the_rest(folder: Path) -> None:
    dead: list[str] = []

    def fail(kind: str, question: dict[str, Any]) -> Exception | None:
        if question["do"] == "open" and question["case"] == "swap":
            dead.append(kind)
            return RuntimeError("engines died on a question")
        return None

    HereWorker.fail = staticmethod(fail)
    status, rows, table = measured(folder, "--device", "cpu")
    assert status == 1
    assert [row["system"] for row in rows if row["case"].startswith("hififace") and row["wrong"]] == [
        "FaceSDK cpu fp32"
    ]
    assert "WRONG: FaceSDK cpu fp32: the process died: engines died" in table
    assert [row["case"] for row in rows if row["median_ms"]] == [
        "face2diffusion-tiny/denoise",
        "vec2face-tiny/synthesize",
    ]


@pytest.mark.usefixtures("here")
def test_nan_is_wrong(tmp_path: Path) -> None:
    """Of an engine by itself; a verb refuses it, which is no less wrong."""
    sound = Place(tmp_path / "place", Bundle(write_swap_bundle(tmp_path / "bundle")))
    sound.folder.mkdir()
    assert list(bundles.keep_results(sound))
    for file in write_swap_bundle(tmp_path / "broken", broken="mask").iterdir():
        file.replace(tmp_path / "bundle" / file.name)
    sound.write()
    status, rows, _ = measured(tmp_path, "--device", "cpu")
    assert status == 1
    assert "mask" in rows[0]["wrong"]


@pytest.mark.usefixtures("here")
def test_what_there_is_no_time_for_is_told(folder: Path) -> None:
    status, rows, table = measured(folder, "--device", "cpu", "--seconds", "-1")
    assert status == 0
    assert {row["note"] for row in rows} == {"left out: the time is up"}
    assert table.count("the time is up") == 3


def test_torch_is_compiled_while_there_is_time(folder: Path, here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    place = cases.places(folder)[0]
    known = Place(place.folder, place.bundle, "face2diffusion")
    clock = engines.Clock(compile_seconds=5.0)
    comparison = engines.Comparison(known, "cpu", clock)
    monkeypatch.setattr(comparison, "_worker", lambda kind: type("Worker", (), {"about": "torch 2"}))
    clock.end = engines.time.monotonic() + 60
    assert [lane.name for lane in comparison._lanes("denoise")][-2:] == ["torch eager fp32", "torch compile fp32"]
    clock.compiling = 0.0
    assert [lane.name for lane in comparison._lanes("denoise")][-1] == "torch eager fp32"


@pytest.mark.usefixtures("here")
def test_what_torch_cannot_do_is_a_note(folder: Path) -> None:
    comparison = engines.Comparison(cases.places(folder)[0], "cpu", engines.Clock(0))
    question = {"case": "denoise", "precision": "fp16"}
    told = comparison._failed(engines.Lane("torch eager fp16", None, {**question, "compiled": False}), "no half")  # type: ignore[arg-type]
    assert told["note"] == "left out: no half"
    assert "wrong" not in told
    assert comparison._failed(engines.Lane("FaceSDK cuda fp16", None, question), "no room")["wrong"] == "no room"  # type: ignore[arg-type]


def test_without_the_provider_the_part_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime_cuda, "first_gpu", lambda: Gpu("NVIDIA H200", "9.0", 143771.0))
    monkeypatch.setattr(onnxruntime_cuda.ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    status, rows, table = measured(tmp_path)
    assert (status, rows) == (engines.UNUSABLE, [])
    assert "was built without CUDA" in table
    assert "onnxruntime-gpu" in table


@pytest.mark.usefixtures("here")
def test_a_provider_that_cannot_be_loaded_is_told_once(
    folder: Path, cuda: FakeOrt, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeOrt(falls_back=True).install(monkeypatch)
    status, rows, table = measured(folder)
    assert (status, rows) == (engines.UNUSABLE, [])
    assert "ONNX Runtime fell back to CPUExecutionProvider" in table
    assert "pip install 'onnxruntime-gpu" in table


# -- figures ------------------------------------------------------------------------------------------------------


def test_limits_are_those_of_plans() -> None:
    expected = {"x": np.array([0.0, 1, 2, 3], np.float32)}
    near = {"x": expected["x"] + np.float32(0.01)}
    assert not cases.judge(expected, near, False, lambda name: 0.0)[0].broken
    exact = cases.summary(cases.judge(expected, near, True, lambda name: 0.0))
    assert exact["limit"] == 1e-3
    assert exact["error"] == pytest.approx(0.01 / expected["x"].std(), rel=1e-4)
    assert "largest difference 0.01" in exact["wrong"]
    recorded = cases.summary(cases.judge(expected, near, True, lambda name: 0.01))
    assert (recorded["limit"], recorded["wrong"]) == (0.05, "")
    nan = {"x": np.array([0.0, 1, 2, np.nan], np.float32)}
    assert cases.summary(cases.judge(expected, nan, False, lambda name: 0.0))["nan"] == 1


def test_the_target_is_that_of_the_loop() -> None:
    def row(case: str, system: str, ratio: Any) -> dict[str, Any]:
        return {
            "case": case, "system": system, "median_ms": 1.0, "gpu_mb": 5, "error": 0.01, "limit": 0.1, "cosine": 1.0,
            "ratio_to_eager": ratio, "ratio_to_compile": "", "wrong": "",
        }  # fmt: skip

    rows = [
        row("a/denoise", "FaceSDK cuda fp32", 0.9), row("a/denoise", "FaceSDK cuda fp16", 0.6),
        row("a/denoise", "torch eager fp16", 1.0), row("a/step", "FaceSDK cuda fp16", 0.1),
        row("b/denoise", "FaceSDK cuda fp16", 0.8), row("c/denoise", "FaceSDK cuda fp16", ""),
    ]  # fmt: skip
    table = engines_report.markdown("cuda", rows)
    assert "best: 0.6, FaceSDK cuda fp16: met" in table
    assert "best: 0.8, FaceSDK cuda fp16: MISSED" in table
    assert table.count("Asked:") == 2
    assert "## a/denoise, a step of 10" in table
    assert "| FaceSDK cuda fp16 | 1.0 | 5 | 0.01 / 0.1 | 1.0 | 0.1 |  |" in table
