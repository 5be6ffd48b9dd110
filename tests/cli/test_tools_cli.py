"""`facesdk bench`, `doctor` and `inspect` as a user runs them."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from PIL.PngImagePlugin import PngInfo

import facesdk.cli.bench as bench_cli
from facesdk import doctor, measurement
from facesdk.card import Card
from facesdk.cli import bench_report, main
from facesdk.cli.doctor import without_home
from facesdk.errors import ProviderUnavailable
from facesdk.finding import Finding
from facesdk.nvidia import Driver, Gpu
from facesdk.provenance import parse_xmp

QUICK = ["--warmup-ms", "0", "--iterations", "3", "--duration", "0"]
COMPOSITE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"


@pytest.fixture
def relu(save_graph):
    card = Card(system="test", engine="relu", about="the positive part", inputs={"x": "anything"}, licence="MIT")
    return save_graph([("Relu", ["x"], ["y"])], {"x": ["n", 4]}, {"y": ["n", 4]}, name="relu", card=card)


@pytest.fixture
def bundle(relu, save_graph):
    folder = relu.parent
    save_graph([("Neg", ["x"], ["y"])], {"x": ["n", 4]}, {"y": ["n", 4]}, name="neg")
    (folder / "bundle.toml").write_text(
        '[bundle]\nname = "pair"\nsystem = "test"\nlicence = "MIT"\nmade = 2026-01-02\n'
        '[engines]\nrelu = { default = "relu.onnx" }\nneg = { default = "neg.onnx", openvino = "neg.onnx" }\n'
    )
    return folder


def run(*words):
    return main([str(word) for word in words])


def run_json(capsys, *words):
    status = run(*words, "--json")
    return status, json.loads(capsys.readouterr().out)


# -- bench ------------------------------------------------------------------------------------------------------


def test_bench_prints_one_row_and_states_its_defaults(relu, capsys):
    assert run("bench", relu, "--device", "cpu", "--batch", 5, *QUICK) == 0
    out = capsys.readouterr().out
    assert "warm-up 0 ms, then at least 3 calls and 0 s; random inputs, seed 0; threads: the backend's choice" in out
    (row,) = [line.split() for line in out.splitlines() if line.startswith("relu  ")]
    assert row[:5] == ["relu", "cpu", "fp32", "5", "3"]
    assert "relu: x:5x4" in out


def test_bench_default_limits_are_trtexecs(capsys):
    with pytest.raises(SystemExit):
        run("bench", "--help")
    out = " ".join(capsys.readouterr().out.split())
    for default in ("(default: 200)", "(default: 10)", "(default: 3)"):
        assert default in out


def test_bench_of_a_bundle_on_two_devices(bundle, capsys):
    pytest.importorskip("openvino", reason="openvino is not installed")
    status, found = run_json(capsys, "bench", bundle, "--device", "cpu,openvino", "--threads", 1, *QUICK)
    assert status == 0
    pairs = [(row["engine"], row["device"]) for row in found["results"]]
    assert pairs == [(f"pair/{name}", device) for name in ("relu", "neg") for device in ("cpu", "openvino")]
    for row in found["results"]:
        assert row["threads"] == 1
        assert row["calls"] == 3
        assert row["min_ms"] <= row["median_ms"] <= row["p90_ms"] <= row["p95_ms"] <= row["p99_ms"] <= row["max_ms"]
    assert found["machine"]["numpy"] == np.__version__


def test_bench_csv_has_stable_columns_and_is_replaced_as_a_whole(relu, tmp_path, capsys):
    target = tmp_path / "out" / "bench.csv"
    target.parent.mkdir()
    target.write_text("before")
    assert run("bench", relu, "--device", "cpu", "--csv", target, "--shapes", "x:2x4", *QUICK) == 0
    (row,) = csv.DictReader(target.read_text().splitlines())
    assert ",".join(row) == (
        "engine,device,backend,precision,threads,batch,shapes,"
        "calls,min_ms,mean_ms,median_ms,p90_ms,p95_ms,p99_ms,max_ms,calls_per_s,rows_per_s,"
        "load_ms,memory_mb,peak_mb,max_abs_error,max_error_in_std,min_cosine,nan,"
        "cpu,cores,python,facesdk,numpy,onnxruntime,openvino,"
        "transfers,gpu_memory_mb,gpu,compute_capability,driver,onnxruntime-gpu,tensorrt,tensorrt-rtx,cuda-bindings"
    )
    assert (row["transfers"], row["gpu_memory_mb"]) == ("", "")
    assert (row["engine"], row["device"], row["shapes"], row["batch"], row["threads"]) == (
        "relu",
        "cpu",
        "x:2x4",
        "2",
        "",
    )
    assert float(row["rows_per_s"]) == pytest.approx(2 * float(row["calls_per_s"]), rel=1e-4)
    assert row["cpu"]
    assert [path.name for path in target.parent.iterdir()] == ["bench.csv"]


def test_bench_compares_precisions_where_they_exist(relu, capsys, monkeypatch):
    asked = []

    def measured(job):
        asked.append((job.device, job.precision))
        raise ProviderUnavailable("not here")

    monkeypatch.setattr(bench_cli, "measure_apart", measured)
    assert run("bench", relu, "--device", "cpu,openvino", "--precision", "fp32,bf16") == 4
    assert asked == [("cpu", "fp32"), ("openvino", "fp32"), ("openvino", "bf16")]


def test_bench_compares_fp16_on_every_device_that_has_it(relu, capsys, monkeypatch):
    asked = []

    def measured(job):
        asked.append((job.device, job.precision))
        raise ProviderUnavailable("not here")

    monkeypatch.setattr(bench_cli, "measure_apart", measured)
    devices = ("auto", "cpu", "openvino", "cuda", "tensorrt", "tensorrt-rtx")
    run("bench", relu, "--device", ",".join(devices), "--precision", "fp32,fp16")
    assert asked == [
        (device, precision)
        for device in devices
        for precision in ("fp32", "fp16")
        if (device, precision) != ("openvino", "fp16")
    ]


@pytest.fixture
def gpu(monkeypatch):
    """A machine whose GPUs answer in no time: measured on the processor, reported as of a GPU."""

    def measured(job):
        found = measurement.measure(dataclasses.replace(job, device="cpu"))
        if job.device == "cpu":
            return found
        resident = dataclasses.replace(found.statistics, mean_ms=0.125)
        return dataclasses.replace(
            found, device=job.device, resident=resident, gpu_memory_mb=512.4, spin_wait=job.device != "cuda",
            remarks=("plain launches: a layer copies to the processor",) if job.device == "tensorrt" else (),
        )  # fmt: skip

    monkeypatch.setattr(bench_cli, "measure_apart", measured)
    here = Driver("580.65.06", "13.0", (Gpu("NVIDIA H200", "9.0", 150754.8),))
    monkeypatch.setattr(bench_report, "driver", lambda: here)


@pytest.mark.usefixtures("gpu")
def test_bench_of_gpus_has_a_line_without_transfers_and_one_with(relu, capsys):
    assert run("bench", relu, "--device", "cpu,tensorrt,tensorrt-rtx", *QUICK) == 0
    out = capsys.readouterr().out
    head, *rows = [line.split("  ") for line in out.splitlines() if line.startswith(("engine", "relu  "))]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in (head, *rows)]
    assert cells[0][:6] == ["engine", "device", "precision", "transfers", "batch", "calls"]
    assert [(row[1], row[3], row[-1]) for row in cells[1:]] == [
        ("cpu", "-", "-"),
        ("tensorrt", "excluded", "512"),
        ("tensorrt", "included", "512"),
        ("tensorrt-rtx", "excluded", "512"),
        ("tensorrt-rtx", "included", "512"),
    ]
    assert cells[0][-1] == "GPU MB"
    assert "NVIDIA H200, compute capability 9.0, driver 580.65.06, CUDA 13.0" in out
    assert "on GPUs: CUDA graph on, where no note says why not; spin wait on; transfers excluded:" in out
    assert out.count("relu on tensorrt: plain launches: a layer copies to the processor") == 1


@pytest.mark.usefixtures("gpu")
def test_bench_says_where_it_does_not_spin(relu, capsys):
    assert run("bench", relu, "--device", "cuda,tensorrt", *QUICK) == 0
    assert "spin wait off (it needs: pip install cuda-python)" in capsys.readouterr().out


@pytest.mark.usefixtures("gpu")
def test_bench_of_processors_says_nothing_of_gpus(relu, capsys):
    assert run("bench", relu, "--device", "cpu", *QUICK) == 0
    out = capsys.readouterr().out
    for word in ("GPU", "transfers", "spin", "CUDA"):
        assert word not in out


@pytest.mark.usefixtures("gpu")
def test_bench_writes_both_lines_of_a_gpu(relu, tmp_path, capsys):
    status, found = run_json(
        capsys, "bench", relu, "--device", "cpu,tensorrt", "--csv", tmp_path / "gpu.csv", "--batch", 2, *QUICK
    )
    assert status == 0
    assert [(row["device"], row["transfers"]) for row in found["results"]] == [
        ("cpu", ""), ("tensorrt", "excluded"), ("tensorrt", "included")
    ]  # fmt: skip
    assert found["machine"]["gpu"] == "NVIDIA H200"
    _, excluded, included = csv.DictReader((tmp_path / "gpu.csv").read_text().splitlines())
    assert (excluded["transfers"], excluded["mean_ms"], excluded["gpu_memory_mb"]) == ("excluded", "0.125", "512.4")
    assert (included["transfers"], included["compute_capability"]) == ("included", "9.0")
    assert float(included["mean_ms"]) != 0.125
    assert included["driver"] == "580.65.06, CUDA 13.0"


def test_bench_never_drops_a_precision_in_silence(relu, capsys):
    assert run("bench", relu, "--device", "cpu", "--precision", "fp32,bf16", *QUICK) == 2
    captured = capsys.readouterr()
    assert "relu    cpu     fp32" in captured.out
    assert "relu on cpu bf16: precision bf16 does not run on device cpu" in captured.err


def test_bench_gives_shapes_to_the_engines_that_have_the_input(bundle, save_graph, capsys):
    other = save_graph([("Relu", ["z"], ["y"])], {"z": ["n"]}, {"y": ["n"]}, name="other")
    status, found = run_json(capsys, "bench", bundle, other, "--device", "cpu", "--shapes", "x:3x4", *QUICK)
    assert status == 0
    assert [row["shapes"] for row in found["results"]] == [{"x": [3, 4]}, {"x": [3, 4]}, {"z": [1]}]


def test_bench_shows_what_worked_and_says_what_did_not(relu, tmp_path, capsys):
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"not a graph")
    assert run("bench", bad, relu, "--device", "cpu", *QUICK) == 1
    captured = capsys.readouterr()
    assert "relu    cpu" in captured.out
    assert "bad on cpu fp32" in captured.err
    assert "is not an ONNX file" in captured.err
    status, found = run_json(capsys, "bench", bad, relu, "--device", "cpu", *QUICK)
    assert (status, len(found["results"]), found["errors"][0]["code"]) == (1, 1, "engine-unreadable")


def test_bench_says_once_what_holds_for_several_engines(bundle, relu, capsys, monkeypatch):
    def measured(job):
        if job.device == "cpu" and job.engine is None:
            return measurement.measure(job)
        raise ProviderUnavailable(f"{job.name} not here", cause="no driver", remedy=f"install that of {job.device}")

    monkeypatch.setattr(bench_cli, "measure_apart", measured)
    status, found = run_json(capsys, "bench", bundle, relu, "--device", "cuda,cpu", *QUICK)
    assert (status, len(found["errors"]), len(found["results"])) == (4, 5, 1)
    run("bench", bundle, relu, "--device", "cuda,cpu", *QUICK)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("facesdk bench:")]
    assert len(said) == 2, said
    assert " and 2 more on cuda fp32: " in said[0]
    assert " and 1 more on cpu fp32: " in said[1]


def test_bench_says_every_reason_where_nothing_worked(relu, tmp_path, capsys, monkeypatch):
    def measured(job):
        raise ProviderUnavailable(f"no {job.device}", cause="no driver", remedy=f"install {job.device}")

    monkeypatch.setattr(bench_cli, "measure_apart", measured)
    table = tmp_path / "bench.csv"
    assert run("bench", relu, "--device", "cuda,tensorrt", "--csv", table) == 4
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "relu on cuda fp32: no cuda" in captured.err
    assert "relu on tensorrt fp32: no tensorrt" in captured.err
    assert not table.exists()
    status, found = run_json(capsys, "bench", relu, "--device", "cuda,tensorrt")
    assert (status, found["results"], [error["device"] for error in found["errors"]]) == (4, [], ["cuda", "tensorrt"])


def test_bench_tells_files_of_one_name_apart(relu, tmp_path, capsys):
    copy = tmp_path / "other" / "relu.onnx"
    copy.parent.mkdir()
    copy.write_bytes(relu.read_bytes())
    _, found = run_json(capsys, "bench", relu, copy, "--device", "cpu", *QUICK)
    assert [row["engine"] for row in found["results"]] == [str(relu), str(copy)]


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["--device", "gpu"], 2, "choose one of: auto, cpu, openvino, cuda"),
        (["--device", ""], 2, "--device is ''"),
        (["--precision", "fp8"], 2, "choose one of: fp32, bf16"),
        (["--device", "cpu", "--precision", "bf16"], 2, "bf16 does not run on device cpu"),
        (["--device", "cpu", "--shapes", "x"], 2, "'x' is no shape"),
        (["--device", "cpu", "--shapes", "x:0x4"], 2, "is no shape"),
        (["--device", "cpu", "--shapes", "x:1x5"], 2, "shape 1x5 does not fit input x float32[n, 4]"),
        (["--device", "cpu", "--shapes", "z:1x4"], 2, "--shapes names z, which no engine has"),
        (["--device", "cpu", "--batch", "0"], 2, "--batch is 0"),
        (["--device", "cpu", "--threads", "0"], 2, "threads is 0"),
        (["--device", "cpu", "--iterations", "0"], 2, "give --iterations 1 or more"),
    ],
)
def test_bench_usage_errors(relu, capsys, words, status, says):
    assert run("bench", relu, *words) == status
    assert says in capsys.readouterr().err


def test_bench_names_the_axis_it_cannot_size(save_graph, capsys):
    path = save_graph([("Relu", ["x"], ["y"])], {"x": ["n", "width"]}, {"y": ["n", "width"]})
    assert run("bench", path, "--device", "cpu", *QUICK) == 2
    assert "give --shapes x:nxwidth" in capsys.readouterr().err
    assert run("bench", path, "--device", "cpu", "--shapes", "x:1x7", *QUICK) == 0


@pytest.mark.parametrize("word", ["absent.onnx", "no-such-bundle"])
def test_bench_of_what_is_not_there(tmp_path, capsys, monkeypatch, word):
    monkeypatch.chdir(tmp_path)
    assert run("bench", word, "--device", "cpu") == 4
    assert word in capsys.readouterr().err


# -- doctor -----------------------------------------------------------------------------------------------------


def test_doctor_finds_this_environment_healthy(capsys):
    status, found = run_json(capsys, "doctor")
    subjects = {finding["subject"]: finding for finding in found["findings"]}
    assert (status, found["healthy"]) == (0, True)
    assert subjects["cpu"]["state"] == "ok"
    assert "ONNX Runtime" in subjects["cpu"]["fact"]
    assert {"cuda", "openvino", "numpy", "processor", "home"} <= subjects.keys()
    for finding in found["findings"]:
        assert finding["state"] == "ok" or finding["remedy"], finding


def run_with_path(folder, *words):
    """The command in a process of its own that finds packages in `folder` first."""
    code = "import sys; from facesdk.cli import main; sys.exit(main())"
    path = os.pathsep.join([str(folder), *filter(None, sys.path)])
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_doctor_sees_two_wheels_in_conflict(tmp_path):
    for name in ("onnxruntime_gpu-1.20.0", "opencv_python-4.10.0"):
        metadata = tmp_path / f"{name}.dist-info" / "METADATA"
        metadata.parent.mkdir()
        distribution, version = name.replace("_", "-").rsplit("-", 1)
        metadata.write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
    child = run_with_path(tmp_path, "doctor")
    assert child.returncode == 4
    assert "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu" in child.stdout
    assert "pip uninstall -y opencv-python-headless opencv-python && pip install opencv-python-headless" in child.stdout


def test_doctor_says_in_one_line_what_is_off_without_a_driver(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "driver", lambda: None)
    assert run("doctor") == 0
    out = capsys.readouterr().out
    assert out.count("no NVIDIA driver: GPU devices are off") == 1
    (line,) = [line for line in out.splitlines() if "GPU devices" in line]
    assert line.split("  ")[1:3] == ["--", "cuda, tensorrt, tensorrt-rtx"]
    status, found = run_json(capsys, "doctor")
    off = [finding for finding in found["findings"] if finding["subject"] in ("cuda", "tensorrt", "tensorrt-rtx")]
    assert (status, len([finding for finding in off if finding["topic"] == "backends"])) == (0, 3)


def test_doctor_takes_about_a_second():
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "facesdk.cli", "doctor"], check=True, capture_output=True)
    assert time.perf_counter() - start < 5  # with room for a busy machine


@pytest.mark.parametrize("content", ["", "raise ImportError('libonnxruntime.so')", "raise SystemError('bad wheel')"])
def test_doctor_reports_a_broken_runtime(tmp_path, content):
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").write_text(content)
    child = run_with_path(tmp_path, "doctor")
    assert child.returncode == 4
    (line,) = [line for line in child.stdout.splitlines() if line.startswith("  !!")]
    assert "cpu" in line
    assert "pip install --force-reinstall onnxruntime" in child.stdout


def test_doctor_names_a_home_that_cannot_be_written(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FACESDK_HOME", str(tmp_path / "file" / "home"))
    assert run("doctor") == 0
    out = capsys.readouterr().out
    assert "cannot be written" in out
    assert "export FACESDK_HOME=" in out


def test_doctor_leaves_nothing_behind(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("FACESDK_HOME", str(tmp_path / "deep" / "home"))
    assert run("doctor") == 0
    assert list(tmp_path.iterdir()) == []


def test_the_report_hides_the_users_folder(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("FACESDK_HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    run("doctor", "--report")
    out = capsys.readouterr().out
    assert out.startswith("```\n")
    assert out.endswith("\n```\n")
    assert "~/.cache/facesdk" in out
    assert str(tmp_path) not in out


def test_a_home_is_hidden_as_a_whole_folder_only(monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: Path("/home/ann"))
    assert without_home("/home/ann/x /home/ann /home/anna") == "~/x ~ /home/anna"
    monkeypatch.setattr(Path, "home", lambda: Path("/"))
    assert without_home("/etc/x") == "/etc/x"


def test_only_problems_are_unhealthy():
    findings = [Finding("backends", "cpu", "ok", ""), Finding("backends", "cuda", "note", "", "pip")]
    assert doctor.healthy(findings)
    assert not doctor.healthy([*findings, Finding("packages", "numpy", "problem", "")])


def test_the_one_node_file_is_what_its_generator_makes():
    pytest.importorskip("onnx", reason="onnx is not installed")
    from facesdk_engines.one_node import one_node

    assert doctor._ONE_NODE.read_bytes() == one_node()
    assert len(one_node()) < 300


# -- inspect ----------------------------------------------------------------------------------------------------


def test_inspect_an_engine(relu, capsys):
    assert run("inspect", relu) == 0
    out = capsys.readouterr().out
    for line in ("opset", "x float32[n, 4]: anything", "y float32[n, 4]", "the positive part", "MIT"):
        assert line in out
    status, found = run_json(capsys, "inspect", relu)
    assert (status, found["kind"], found["opset"], found["bytes"]) == (
        0,
        "engine",
        {"ai.onnx": 17},
        relu.stat().st_size,
    )
    assert len(found["sha256"]) == 64
    assert found["card"]["system"] == "test"


def test_inspect_a_graph_without_a_card(save_graph, capsys):
    assert run("inspect", save_graph([("Relu", ["x"], ["y"])], {"x": [1]}, {"y": [1]})) == 0
    assert "none: not made by FaceSDK" in capsys.readouterr().out


def test_inspect_a_bundle(bundle, capsys):
    (bundle / "neg.onnx").write_bytes(b"damaged")
    assert run("inspect", bundle) == 0
    out = capsys.readouterr().out
    for line in ("pair", "MIT", "2026-01-02", "relu.onnx (default)", "neg.onnx (openvino)", "is not an ONNX file"):
        assert line in out
    status, found = run_json(capsys, "inspect", bundle)
    assert (status, found["engines"]["relu"]["inputs"][0]["shape"]) == (0, ["n", 4])


def packet(body):
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF>{body}</rdf:RDF></x:xmpmeta>'


ATTRIBUTES = packet(
    f'<rdf:Description Iptc4xmpExt:DigitalSourceType="{COMPOSITE}" xmp:CreatorTool="FaceSDK 0.1 &amp; co"/>'
)
PROPERTIES = packet(f"<Iptc4xmpExt:DigitalSourceType>{COMPOSITE}</Iptc4xmpExt:DigitalSourceType>")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_inspect_a_picture_with_provenance(tmp_path, capsys, suffix):
    path, extra = tmp_path / f"picture.{suffix}", {}
    if suffix == "png":
        extra["pnginfo"] = PngInfo()
        extra["pnginfo"].add_itxt("XML:com.adobe.xmp", ATTRIBUTES)
    elif suffix == "tif":
        extra["tiffinfo"] = {700: ATTRIBUTES.encode()}
    else:
        extra["xmp"] = ATTRIBUTES.encode()
    Pillow.new("RGB", (8, 6)).save(path, **extra)
    status, found = run_json(capsys, "inspect", path)
    assert (status, found["kind"], found["width"], found["height"], found["mode"]) == (0, "picture", 8, 6, "RGB")
    assert found["provenance"] == {"DigitalSourceType": COMPOSITE, "software": "FaceSDK 0.1 & co"}


def test_inspect_a_picture_without_provenance(tmp_path, capsys):
    path = tmp_path / "plain.jpg"
    exif = Pillow.Exif()
    exif[0x0112] = 6
    Pillow.new("L", (8, 6)).save(path, exif=exif)
    assert run("inspect", path) == 0
    out = capsys.readouterr().out
    assert "no provenance recorded" in out
    assert "JPEG, 8 x 6, mode L" in out
    assert "6, turn right by 90 degrees" in out


def test_inspect_reads_exif_software_and_survives_odd_orientation(tmp_path, capsys):
    path, exif = tmp_path / "odd.jpg", Pillow.Exif()
    exif[0x0112], exif[0x0131] = 77, "Camera 3"
    Pillow.new("RGB", (2, 2)).save(path, exif=exif)
    _, found = run_json(capsys, "inspect", path)
    assert (found["orientation"], found["provenance"]) == (1, {"software": "Camera 3"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ATTRIBUTES, {"DigitalSourceType": COMPOSITE, "software": "FaceSDK 0.1 & co"}),
        (PROPERTIES, {"DigitalSourceType": COMPOSITE}),
        (packet('<Iptc4xmpExt:DigitalSourceType rdf:resource="u:x"/>'), {"DigitalSourceType": "u:x"}),
        ("<x:xmpmeta><unclosed Iptc4xmpExt:DigitalSourceType='a:b'", {"DigitalSourceType": "a:b"}),
        (packet('<d facesdk:bundle="hififace 3" tiff:Software="S"/>'), {"bundle": "hififace 3", "software": "S"}),
        (packet('<d Iptc4xmpExt:DigitalSourceType=""/>'), {}),
        (packet("<dc:title>about DigitalSourceType</dc:title>"), {}),
        ("", {}),
        ("\x00\ufffd<<<<", {}),
    ],
)
def test_xmp_in_all_its_forms(text, expected):
    assert parse_xmp(text.encode()) == expected


def test_xmp_that_is_not_utf_8_or_very_long_is_no_trouble():
    assert parse_xmp(b'\xff\xfe<d e:DigitalSourceType="a"' + b"<" * 500_000) == {"DigitalSourceType": "a"}
    assert parse_xmp(b"<a:b " * 200_000) == {}


@pytest.mark.parametrize(
    ("name", "content", "status", "code"),
    [
        ("notes.txt", b"hello", 2, "usage"),
        ("empty.bin", b"", 2, "usage"),
        ("broken.jpg", b"\xff\xd8\xff\xe0 cut", 1, "image-unreadable"),
        ("broken.png", b"no png", 1, "image-unreadable"),
        ("broken.onnx", b"no graph", 1, "engine-unreadable"),
    ],
)
def test_inspect_of_unknown_files(tmp_path, capsys, name, content, status, code):
    path = tmp_path / name
    path.write_bytes(content)
    actual, found = run_json(capsys, "inspect", path)
    assert (actual, found["error"]["code"]) == (status, code)
    assert found["error"]["remedy"]


def test_inspect_of_what_is_not_there(tmp_path, capsys):
    assert run("inspect", tmp_path / "absent") == 4
    assert run("inspect", tmp_path) == 4
    err = capsys.readouterr().err
    assert "does not exist" in err
    assert "is not a bundle" in err
