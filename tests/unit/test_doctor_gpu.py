"""What `facesdk doctor` says of GPUs: quiet where there is none, with the commands where the stack has gaps."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from facesdk import doctor, doctor_gpu
from facesdk.bundle import Bundle
from facesdk.doctor_gpu import examine_gpus, examine_plans
from facesdk.errors import ModelNotFound, ProviderUnavailable
from facesdk.files import sha256
from facesdk.finding import Finding
from facesdk.nvidia import Driver, Gpu
from facesdk.plans.key import Key, side_car, write_key

RTX, H200 = Gpu("NVIDIA GeForce RTX 4090", "8.9", 25757.2), Gpu("NVIDIA H200", "9.0", 150754.8)
HERE = Driver("580.65.06", "13.0", (RTX,))
NO_GPU = (None, Driver("", "13.0", (), 803), Driver("580.65.06", "13.0", ()))
PROVIDER = "onnxruntime-ep-nv-tensorrt-rtx"
Wheel = Callable[..., None]


def by_subject(findings: Any) -> dict[str, Finding]:
    return {finding.subject: finding for finding in findings}


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheel:
    """Install a distribution, and a module with this code, where Python looks first."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)

    def install(distribution: str, version: str, module: str = "", code: str = "") -> None:
        metadata = folder / f"{distribution.replace('-', '_')}-{version}.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        if module:
            monkeypatch.setitem(sys.modules, module, None)  # so that it is forgotten afterwards
            del sys.modules[module]
            (folder / module).mkdir()
            (folder / module / "__init__.py").write_text(code)

    return install


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment in which nothing for GPUs is installed, whatever this one holds."""
    for module in ("cuda", "cuda.bindings", "tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, module, None)
    here = doctor_gpu.importlib.util.find_spec
    monkeypatch.setattr(
        doctor_gpu.library.importlib.util, "find_spec",
        lambda name: None if name in ("tensorrt", "tensorrt_rtx", doctor_gpu.library.PLUGIN_MODULE) else here(name),
    )  # fmt: skip
    monkeypatch.setenv("FACESDK_KERNELS", str(tmp_path / "nowhere"))


# -- without a GPU ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", NO_GPU)
def test_without_a_gpu_the_devices_are_off_for_one_reason(
    driver: Driver | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "driver", lambda: driver)
    monkeypatch.setattr(doctor_gpu, "_stack", lambda gpu: pytest.fail("the stack was tried"))
    findings = doctor.examine()
    assert doctor.healthy([finding for finding in findings if finding.subject not in ("cpu", "openvino")])
    off = [finding for finding in findings if "GPU devices are off" in finding.fact]
    assert [finding.subject for finding in off] == ["cuda", "tensorrt", "tensorrt-rtx"]
    assert {(finding.topic, finding.state, finding.fact, finding.remedy) for finding in off} == {
        ("backends", "note", off[0].fact, off[0].remedy)
    }
    assert off[0].remedy
    assert not [finding for finding in findings if finding.topic == "gpu" and finding.state != "ok"]


def test_the_reason_says_what_the_driver_answers() -> None:
    reasons = [doctor_gpu.off(driver) for driver in NO_GPU]
    assert [reason and reason[0].partition(":")[0] for reason in reasons] == [
        "no NVIDIA driver",
        "the driver has no GPU to use (CUDA error 803)",
        "the driver has no GPU to use (it counts none)",
    ]
    assert doctor_gpu.off(HERE) is None


def test_without_a_gpu_nothing_large_is_loaded(wheel: Wheel) -> None:
    """In a process of its own, with TensorRT's modules there to be loaded."""
    for module, distribution in (("tensorrt", "tensorrt"), ("tensorrt_rtx", "tensorrt-rtx"), ("cuda", "cuda-bindings")):
        wheel(distribution, "9.8.7", module, "raise SystemExit('loaded')")
    code = (
        "from facesdk import nvidia, doctor\n"
        "nvidia._CUDA = 'libnosuchdriver.so.1'\n"
        "facts = {finding.subject: finding.fact for finding in doctor.examine() if finding.topic == 'gpu'}\n"
        "assert facts == dict.fromkeys(['cuda-python', 'tensorrt', 'tensorrt-rtx'], "
        "'9.8.7, not tried without a GPU'), facts\n"
    )
    command = [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}\n{code}"]
    subprocess.run(command, check=True, timeout=60)


# -- with a GPU -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("bare")
def test_a_gpu_without_its_stack_is_a_list_of_commands() -> None:
    found = by_subject(examine_gpus(Driver("580.65.06", "13.0", (RTX, H200))))
    assert found["driver"].fact == "580.65.06, CUDA 13.0"
    assert found["gpu 0"].fact == "NVIDIA GeForce RTX 4090, compute capability 8.9, 25.8 GB"
    assert found["gpu 1"].fact == "NVIDIA H200, compute capability 9.0, 150.8 GB"
    commands = {name: finding.remedy for name, finding in found.items() if finding.state != "ok"}
    assert {finding.state for finding in found.values()} == {"ok", "note"}
    assert commands.pop("attention kernels").startswith("in a checkout of FaceSDK: cmake")
    assert commands == {
        "cuda-python": "pip install cuda-python",
        "tensorrt": "pip install tensorrt-cu13",
        "tensorrt-rtx": "pip install tensorrt-rtx",
        "onnxruntime-ep-nv-tensorrt-rtx": "pip install onnxruntime-ep-nv-tensorrt-rtx-cu13",
    }
    assert found["tensorrt"].fact == "not installed"
    assert "CPUExecutionProvider" in found["onnxruntime providers"].fact


@pytest.mark.usefixtures("bare")
def test_tensorrt_for_rtx_is_not_advised_where_it_does_not_run() -> None:
    found = by_subject(examine_gpus(Driver("580.65.06", "13.0", (H200,))))
    assert found.keys() == {
        "driver",
        "gpu 0",
        "cuda-python",
        "tensorrt",
        "onnxruntime providers",
        "attention kernels",
    }


def test_what_is_installed_is_loaded(wheel: Wheel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wheel("tensorrt-cu13-bindings", "11.4.0.1", "tensorrt", "__version__ = '11.4.0.1'")
    wheel("tensorrt-rtx", "1.7.1", "tensorrt_rtx", "raise ImportError('libtensorrt_rtx.so.1: cannot open')")
    wheel("onnxruntime-ep-nv-tensorrt-rtx-cu13", "0.5.0", "onnxruntime_ep_nv_tensorrt_rtx", "raise SystemExit(1)")
    wheel("cuda-bindings", "13.5.0")
    monkeypatch.setattr(doctor_gpu.runtime, "require", lambda: None)
    (tmp_path / "libfacesdk_kernels.so").write_text("not a library")
    monkeypatch.setenv("FACESDK_KERNELS", str(tmp_path / "libfacesdk_kernels.so"))
    found = by_subject(examine_gpus(HERE))
    facts = {name: (finding.state, finding.fact) for name, finding in found.items()}
    assert facts["tensorrt"] == ("ok", "11.4.0.1")
    assert facts["tensorrt-rtx"] == ("note", "libtensorrt_rtx.so.1: cannot open")
    assert found["tensorrt-rtx"].remedy == "pip install --force-reinstall tensorrt-rtx"
    assert facts["onnxruntime-ep-nv-tensorrt-rtx"] == ("ok", "0.5.0")
    assert facts["cuda-python"] == ("ok", "13.5.0")
    assert facts["attention kernels"][0] == "note"


def test_a_damaged_onnxruntime_is_a_note_among_the_others(wheel: Wheel) -> None:
    wheel("onnxruntime", "1.0", "onnxruntime", "raise SystemError('bad wheel')")
    finding = by_subject(examine_gpus(HERE))["onnxruntime providers"]
    assert (finding.state, finding.fact) == ("note", "bad wheel")
    assert finding.remedy


def test_a_driver_that_is_too_old_for_cuda_python(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise ProviderUnavailable("no device", cause="cudaErrorInsufficientDriver: too old", remedy="nvidia-smi")

    monkeypatch.setattr(doctor_gpu.runtime, "require", refuse)
    finding = by_subject(examine_gpus(HERE))["cuda-python"]
    assert (finding.state, finding.fact) == ("note", "cudaErrorInsufficientDriver: too old")


@pytest.mark.parametrize("driver", [None, HERE])
@pytest.mark.parametrize(
    ("name", "wheels"),
    [
        ("tensorrt", ("tensorrt-cu13-bindings", "tensorrt-cu12-bindings")),
        (PROVIDER, (f"{PROVIDER}-cu13", f"{PROVIDER}-cu12")),
    ],
)  # fmt: skip
def test_wheels_for_two_versions_of_cuda_are_a_problem(
    driver: Driver | None, name: str, wheels: tuple[str, str], wheel: Wheel
) -> None:
    for each in wheels:
        wheel(each, "1.0")
    (problem,) = [finding for finding in examine_gpus(driver) if finding.state == "problem"]
    assert (problem.subject, problem.remedy) == (
        name,
        f"pip uninstall -y {' '.join(wheels)} && pip install {wheels[0]}",
    )


def test_a_wheel_and_the_name_that_requires_it_are_no_conflict(wheel: Wheel) -> None:
    for name in ("tensorrt", "tensorrt-cu13-bindings"):
        wheel(name, "11.4.0")
    assert not [finding for finding in examine_gpus(None) if finding.state == "problem"]


def test_a_device_that_lacks_only_a_plan_works(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_(path: Path, device: str, **options: Any) -> Any:
        if device in ("cpu", "tensorrt", "tensorrt-rtx"):
            raise ModelNotFound("no plan lies there", remedy="facesdk build BUNDLE")
        raise ProviderUnavailable("not here", cause="libcudnn.so.9: cannot open", remedy="pip install it")

    monkeypatch.setattr(doctor.Engine, "open", open_)
    found = by_subject(doctor._backends(HERE))
    assert (found["tensorrt"].state, found["tensorrt"].fact) == ("ok", "runs the plans that facesdk build makes")
    assert (found["cuda"].state, found["cuda"].fact) == ("note", "libcudnn.so.9: cannot open")
    assert (found["cpu"].state, found["cpu"].fact) == ("problem", "no plan lies there")  # nothing but plans may lack


# -- plans ------------------------------------------------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    folder = tmp_path / "pair"
    folder.mkdir()
    (folder / "relu.onnx").write_bytes(b"a graph")
    (folder / "bundle.toml").write_text(
        '[bundle]\nname = "pair"\nsystem = "test"\nlicence = "MIT"\n[engines]\nrelu = { default = "relu.onnx" }\n'
        f'[files]\n"relu.onnx" = "{sha256(folder / "relu.onnx")}"\n'
    )
    return Bundle(folder)


def add_plan(bundle: Bundle, name: str, **changes: Any) -> Path:
    plan = bundle.folder / f"{name}.plan"
    plan.write_bytes(b"plan")
    key = Key(
        engine="relu", files=dict(bundle.files), builder="tensorrt_rtx", version="1.7.1", device="tensorrt-rtx",
        precision="fp32", hardware="this", capabilities=("8.6", "8.9", "12.0"), gpu="", profile={}, flags=(),
        plan_size=4, plan_sha256=sha256(plan), command="facesdk build pair --engine relu",
    )  # fmt: skip
    write_key(plan, dataclasses.replace(key, **changes))
    return plan


@pytest.fixture
def libraries(wheel: Wheel) -> None:
    wheel("tensorrt-rtx", "1.7.1", "tensorrt_rtx", "__version__ = '1.7.1'")
    wheel("tensorrt", "11.4.0", "tensorrt", "__version__ = '11.4.0'")


@pytest.mark.usefixtures("libraries")
@pytest.mark.parametrize("driver", [None, HERE])
def test_plans_that_are_right_are_counted(bundle: Bundle, driver: Driver | None) -> None:
    for name in ("relu.tensorrt-rtx.fp32", "relu.tensorrt-rtx.fp16"):
        add_plan(bundle, name)
    assert list(examine_plans(bundle, driver)) == [Finding("plans", "pair", "ok", "2 right")]


@pytest.mark.usefixtures("libraries")
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"version": "1.5.0"}, " is stale: tensorrt_rtx 1.5.0 built it, 1.7.1 is here"),
        ({"files": {"relu.onnx": "0" * 64}}, " is stale: relu.onnx has changed"),
        ({"capabilities": ("12.0",)}, " is stale: it runs on compute capability 12.0, this GPU has 8.9"),
        ({"files": {"gone.onnx": "0" * 64}}, " is stale: gone.onnx has changed"),
        ({"plan_size": 9}, ": it has 4 bytes of 9"),
    ],
)
def test_a_plan_that_is_not_right_says_why(bundle: Bundle, changes: dict[str, Any], says: str) -> None:
    add_plan(bundle, "relu.tensorrt-rtx.fp16")
    add_plan(bundle, "relu.tensorrt-rtx.fp32", **changes)
    right, wrong = examine_plans(bundle, HERE)
    assert right.fact == "1 right"
    assert (wrong.state, wrong.fact) == ("note", f"relu.tensorrt-rtx.fp32.plan{says}")
    assert wrong.remedy.startswith("facesdk build pair --engine relu")


@pytest.mark.usefixtures("libraries")
def test_a_plan_of_tensorrt_is_for_one_model_of_gpu(bundle: Bundle) -> None:
    made = {"device": "tensorrt", "builder": "tensorrt", "version": "11.4.0", "gpu": "NVIDIA L4"}
    add_plan(bundle, "relu.tensorrt.sm89.fp32", **made)
    (wrong,) = examine_plans(bundle, HERE)
    assert wrong.fact.endswith("it was built for NVIDIA L4 alone, this is NVIDIA GeForce RTX 4090")


@pytest.mark.usefixtures("libraries")
def test_a_plan_without_its_side_car(bundle: Bundle) -> None:
    side_car(add_plan(bundle, "relu.tensorrt-rtx.fp32")).unlink()
    (wrong,) = examine_plans(bundle, None)
    assert "relu.tensorrt-rtx.fp32.plan.json does not exist" in wrong.fact
    assert wrong.remedy


@pytest.mark.usefixtures("libraries")
def test_plans_of_a_fleet_are_not_stale(bundle: Bundle) -> None:
    for kind, capability in (("sm89", "8.9"), ("sm90", "9.0"), ("sm120", "12.0")):
        plan = {
            "device": "tensorrt",
            "builder": "tensorrt",
            "version": "11.4.0",
            "capabilities": (capability,),
            "gpu": RTX.name,
        }
        add_plan(bundle, f"relu.tensorrt.{kind}.fp16", **plan)
    assert [finding.fact for finding in examine_plans(bundle, HERE)] == ["1 right, 2 for other GPUs"]
    assert [finding.fact for finding in examine_plans(bundle, None)] == ["3 right"]


@pytest.mark.usefixtures("libraries")
def test_no_plans_are_worth_a_word_only_where_they_could_run(bundle: Bundle) -> None:
    assert not list(examine_plans(bundle, None))
    for gpu, device in ((RTX, "tensorrt-rtx"), (H200, "tensorrt")):
        (none,) = examine_plans(bundle, Driver("", "13.0", (gpu,)))
        assert (none.state, none.fact, none.remedy) == ("note", "none", f"facesdk build pair --device {device}")


def test_the_version_is_the_one_that_the_library_says_itself(bundle: Bundle, wheel: Wheel) -> None:
    wheel("tensorrt-rtx", "1.7", "tensorrt_rtx", "__version__ = '1.7.1'")
    add_plan(bundle, "relu.tensorrt-rtx.fp32")
    assert [finding.fact for finding in examine_plans(bundle, HERE)] == ["1 right"]


@pytest.mark.parametrize("device", ["", "tensorrt-next"])
def test_a_device_of_another_version_of_facesdk_is_no_trouble(bundle: Bundle, device: str) -> None:
    add_plan(bundle, "relu.tensorrt-rtx.fp32", device=device)
    assert [finding.fact for finding in examine_plans(bundle, HERE)] == ["1 right"]


def test_a_version_that_is_not_known_is_not_compared(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_gpu, "versions", lambda names: dict.fromkeys(names))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    add_plan(bundle, "relu.tensorrt-rtx.fp32", version="0.1")
    assert [finding.fact for finding in examine_plans(bundle, HERE)] == ["1 right"]
