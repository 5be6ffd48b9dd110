"""The plans of a bundle: which files they are built of, when they are built again, what stops before a build."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from facesdk.bundle import Bundle
from facesdk.card import Card
from facesdk.errors import (
    BundleError,
    EngineError,
    FaceSDKError,
    MissingDependency,
    OutputError,
    ProviderUnavailable,
    UsageError,
)  # fmt: skip
from facesdk.files import sha256
from facesdk.nvidia import Driver, Gpu
from facesdk.plans import gpu, library
from facesdk.plans.key import read_key, side_car
from facesdk_engines import cli_build
from facesdk_engines.tensorrt import plans
from facesdk_engines.tensorrt.attention import Attentions
from facesdk_engines.tensorrt.build import Built, Request
from facesdk_engines.tensorrt.options import BuildOptions
from facesdk_engines.tensorrt.progress import OnProgress
from tests.trt_stub import Stub

H200 = Gpu("NVIDIA H200", "9.0", 143_771)
MakeBundle = Callable[..., Bundle]


@pytest.fixture
def make_bundle(save_graph: Any, tmp_path: Path) -> MakeBundle:
    """A bundle of engines: name -> forms; every file doubles x."""
    pytest.importorskip("onnx")
    from facesdk_engines.writing import write_manifest

    def make(engines: dict[str, dict[str, str]], more: str = "") -> Bundle:
        folder = tmp_path / "demo"
        folder.mkdir()
        for file in {file for forms in engines.values() for file in forms.values()}:
            card = Card(engine=file, example_shapes={"x": (2, 3)})
            shape = {"x": ["n", 3]}
            path = save_graph([("Add", ["x", "x"], ["y"])], shape, {"y": ["n", 3]}, name=Path(file).stem, card=card)
            path.rename(folder / file)
        about = {"name": "demo", "system": "demo", "licence": "MIT"}
        write_manifest(folder, about, engines, {})
        with (folder / "bundle.toml").open("a") as file:
            file.write(more)
        return Bundle(folder)

    return make


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """What was asked of a builder that always succeeds; the library is there, in version 1.7."""
    asked: list[Request] = []

    def pretend(request: Request, on_progress: OnProgress) -> tuple[Built, Request]:
        asked.append(request)
        on_progress(0.5, "compiling")
        request.plan.write_bytes(b"PLAN")
        facts = Attentions(("a",), ("b", "c"))
        return Built("1.7", ("TF32",), 4, sha256(request.plan), 2.5, 81.4, 33, facts), request

    monkeypatch.setattr(plans, "builds_on", lambda options: None if options.device == "tensorrt-rtx" else H200)
    monkeypatch.setattr(plans, "version", lambda device: "1.7")
    monkeypatch.setattr(plans, "build_in_child", pretend)
    return asked


def files(built: list[Request]) -> list[str]:
    return [request.onnx.name for request in built]


ENGINES = {
    "step": {"default": "step.onnx", "tensorrt": "step.tensorrt.onnx", "tensorrt-fp16": "step.half.onnx"},
    "text": {"default": "text.onnx", "fp16": "text.fp16.onnx"}, "mapping": {"default": "mapping.onnx"},
}  # fmt: skip


def test_every_engine_in_the_form_that_suits(make_bundle: MakeBundle, built: list[Request]) -> None:
    made = list(plans.build_plans(make_bundle(ENGINES), BuildOptions()))
    assert files(built) == ["step.tensorrt.onnx", "text.onnx", "mapping.onnx"]
    assert [plan.path.name for plan in made] == [f"{name}.tensorrt-rtx.fp32.plan" for name in ENGINES]
    assert built[0].profile == {"x": ((1, 3), (2, 3), (4, 3))}
    assert built[0].timing_cache is None


def test_engines_without_fp16_are_built_in_fp32(make_bundle: MakeBundle, built: list[Request]) -> None:
    made = list(plans.build_plans(make_bundle(ENGINES), BuildOptions(precision="fp16")))
    assert files(built) == ["step.half.onnx", "text.fp16.onnx", "mapping.onnx"]
    assert [plan.key.precision for plan in made] == ["fp16", "fp16", "fp32"]


def test_fp16_asked_for_by_name(make_bundle: MakeBundle, built: list[Request]) -> None:
    bundle = make_bundle(ENGINES)
    with pytest.raises(UsageError, match="mapping of demo has no fp16 form"):
        plans.build_plans(bundle, BuildOptions(precision="fp16"), engines=["text", "mapping"])
    with pytest.raises(UsageError, match="nose"):
        plans.build_plans(bundle, BuildOptions(), engines=["nose"])
    assert not built


def test_the_key_says_all(make_bundle: MakeBundle, built: list[Request], tmp_path: Path) -> None:
    bundle = make_bundle(ENGINES)
    options = BuildOptions("tensorrt", "fp16", hardware="capability", level=4)
    (plan,) = plans.build_plans(bundle, options, engines=["text"], folder=tmp_path / "out")
    assert plan.path == tmp_path / "out" / "text.tensorrt.sm90.fp16.plan"
    assert read_key(plan.path) == plan.key
    assert plan.key.files == {"text.fp16.onnx": bundle.files["text.fp16.onnx"]}
    assert (plan.key.capabilities, plan.key.gpu, plan.key.version) == (("9.0",), "NVIDIA H200", "1.7")
    assert plan.key.command == (
        f"facesdk build {bundle.folder} --engine text --device tensorrt --precision fp16 --hardware capability "
        f"--level 4 -o {tmp_path / 'out'}"
    )
    assert plan.key.report == {
        "seconds": 2.5, "layers": 33, "peak_mb": 81, "level": 4, "workspace_mb": None,
        "attention": {"fused": ["a"], "decomposed": ["b", "c"]},
    }  # fmt: skip
    assert Card.from_properties(plan.key.card).engine == "text.fp16.onnx"
    cache = built[0].timing_cache
    assert cache is not None
    assert cache.name == "1.7-nvidia-h200-9.0.cache"


def test_plans_of_every_kind_have_a_name_of_their_own(make_bundle: MakeBundle, built: list[Request]) -> None:
    bundle = make_bundle({"text": ENGINES["text"]})
    kinds: tuple[Any, ...] = ("this", "capability", "ampere")
    made = [next(plans.build_plans(bundle, BuildOptions("tensorrt", hardware=kind))) for kind in kinds]
    names = [f"text.tensorrt.{kind}.fp32.plan" for kind in ("sm90", "sm90", "ampere")]
    assert [plan.path.name for plan in made] == names


def test_a_plan_that_is_right_is_not_built_again(make_bundle: MakeBundle, built: list[Request]) -> None:
    bundle = make_bundle({"text": ENGINES["text"]})
    again = lambda **more: [plan.built for plan in plans.build_plans(bundle, BuildOptions(), **more)]  # noqa: E731
    assert again() == [True]
    assert again() == [False]
    assert again(force=True) == [True]
    assert [plan.built for plan in plans.build_plans(bundle, BuildOptions(level=1))] == [True]
    assert again() == [True]


@pytest.mark.parametrize("what", ["plan", "key", "onnx", "profile", "version", "gpu"])
def test_a_plan_that_is_not_right_is(
    make_bundle: MakeBundle, built: list[Request], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    bundle = make_bundle({"text": ENGINES["text"]})
    options = BuildOptions("tensorrt" if what == "gpu" else "tensorrt-rtx")
    (plan,) = plans.build_plans(bundle, options)
    if what == "plan":
        plan.path.write_bytes(b"PLAM")
    elif what == "key":
        side_car(plan.path).write_text("{}")
    elif what == "onnx":
        bundle.files = {}
        file = bundle.folder / "text.onnx"
        file.write_bytes(file.read_bytes() + b"\x12\x00")  # an empty field, which changes nothing but the file
    elif what == "profile":
        with (bundle.folder / "bundle.toml").open("a") as file_:
            file_.write("\n[profiles.text]\nx = [[1, 3], [1, 3], [1, 3]]\n")
    elif what == "gpu":
        monkeypatch.setattr(plans, "builds_on", lambda options: dataclasses.replace(H200, name="NVIDIA GH200"))
    else:
        monkeypatch.setattr(plans, "version", lambda device: "1.8")
    (plan,) = plans.build_plans(bundle, options)
    assert plan.built
    assert len(built) == 2


def test_profiles_of_the_bundle_and_of_a_file(make_bundle: MakeBundle, built: list[Request], tmp_path: Path) -> None:
    bundle = make_bundle({"text": ENGINES["text"]}, "\n[profiles.text]\nx = [[1, 3], [6, 3], [9, 3]]\n")
    list(plans.build_plans(bundle, BuildOptions()))
    own = tmp_path / "own.toml"
    own.write_text("[profiles.text]\nx = [[2, 3], [2, 3], [2, 3]]\n")
    list(plans.build_plans(bundle, BuildOptions(), profiles=own))
    assert [request.profile["x"] for request in built] == [((1, 3), (6, 3), (9, 3)), ((2, 3), (2, 3), (2, 3))]
    (plan,) = plans.build_plans(bundle, BuildOptions(), profiles=own)
    assert plan.key.command.endswith(f" --profiles {own}")
    own.write_text("[profiles.text]\nz = []\n")
    with pytest.raises(BundleError, match="no input or free axis z"):
        plans.build_plans(bundle, BuildOptions(), profiles=own)


def test_a_file_of_profiles_speaks_for_the_engines_it_names(
    make_bundle: MakeBundle, built: list[Request], tmp_path: Path
) -> None:
    bundle = make_bundle(
        {"text": ENGINES["text"], "other": ENGINES["text"]},
        "\n[profiles.text]\nx = [[1, 3], [6, 3], [9, 3]]\n[profiles.other]\nx = [[1, 3], [2, 3], [3, 3]]\n",
    )
    own = tmp_path / "own.toml"
    own.write_text("[profiles.text]\nx = [[5, 3], [5, 3], [5, 3]]\n")
    made = {plan.key.engine: plan.key for plan in plans.build_plans(bundle, BuildOptions(), profiles=own)}
    assert {name: key.profile["x"][1] for name, key in made.items()} == {"text": [5, 3], "other": [2, 3]}
    assert [name for name, key in made.items() if "--profiles" in key.command] == ["text"]
    own.write_text("[profiles.other]\nx = [[5, 3], [5, 3], [5, 3]]\n")
    with pytest.raises(UsageError, match="says nothing of the engines"):
        plans.build_plans(bundle, BuildOptions(), profiles=own, engines=["text"])


def test_an_interrupted_build_leaves_what_was_there(
    make_bundle: MakeBundle, built: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle({"text": ENGINES["text"]})
    (plan,) = plans.build_plans(bundle, BuildOptions())
    before = {path.name for path in bundle.folder.iterdir()}

    def interrupt(engine: str, share: float, phase: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(plans.build_plans(bundle, BuildOptions(), force=True, on_progress=interrupt))
    assert {path.name for path in bundle.folder.iterdir()} == before
    assert read_key(plan.path) == plan.key


def test_plans_that_were_finished_stay(
    make_bundle: MakeBundle, built: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(ENGINES)
    work = plans.build_in_child

    def fail_on_text(request: Request, on_progress: OnProgress) -> Any:
        if request.onnx.name == "text.onnx":
            raise EngineError("no")
        return work(request, on_progress)

    monkeypatch.setattr(plans, "build_in_child", fail_on_text)
    with pytest.raises(EngineError, match="no"):
        list(plans.build_plans(bundle, BuildOptions()))
    assert [path.name for path in bundle.folder.glob("*.plan")] == ["step.tensorrt-rtx.fp32.plan"]


def test_a_folder_that_cannot_be(make_bundle: MakeBundle, built: list[Request], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        list(plans.build_plans(make_bundle(ENGINES), BuildOptions(), folder=tmp_path / "file" / "out"))


# -- options ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"device": "cuda"}, "device"), ({"precision": "bf16"}, "precision"), ({"level": 6}, "level is 6"),
        ({"workspace_mb": 0}, "workspace is 0 MB"), ({"hardware": "ampere"}, "no hardware level 'ampere'"),
        ({"version_compatible": True}, "no version-compatible plans"), ({"gpus": "rtx"}, "gpus is 'rtx'"),
        ({"gpus": "8.6,"}, ""), ({"gpus": ","}, "gpus is ','"),
        ({"device": "tensorrt", "gpus": "8.6"}, "for the GPU that it runs on"),
    ],
)  # fmt: skip
def test_options_that_cannot_be(options: dict[str, Any], said: str) -> None:
    if not said:
        assert BuildOptions(**options).capabilities == ("8.6",)
        return
    with pytest.raises(UsageError, match=said):
        BuildOptions(**options)


def test_options_as_the_command_takes_them() -> None:
    parser = argparse.ArgumentParser()
    cli_build.command(parser)
    options = BuildOptions("tensorrt-rtx", "fp16", gpus="8.9", strip=True, level=0, workspace_mb=5)
    words = options.arguments().split()
    parsed = parser.parse_args(["bundle", *words])
    assert cli_build.read_options(parsed, BuildOptions) == options
    assert dataclasses.asdict(BuildOptions()) == {
        name: value for name, value in vars(parser.parse_args(["bundle"])).items() if name in vars(options)
    }


def test_a_typo_in_the_profiles(make_bundle: MakeBundle, built: list[Request], tmp_path: Path) -> None:
    (tmp_path / "sizes.toml").write_text("[profiles.step]\nn = [1, 1, 1]\n[profiles.txet]\nn = [1, 1, 1]\n")
    with pytest.raises(UsageError, match="profiles of txet, which demo has not") as caught:
        plans.build_plans(make_bundle(ENGINES), BuildOptions(), profiles=tmp_path / "sizes.toml")
    assert caught.value.remedy == "choose of: step, text, mapping"
    assert not built


def test_the_command_of_a_folder_with_a_space(make_bundle: MakeBundle, built: list[Request], tmp_path: Path) -> None:
    (plan,) = plans.build_plans(make_bundle(ENGINES), BuildOptions(), engines=["text"], folder=tmp_path / "my plans")
    assert shlex.split(plan.key.command)[-1] == str(tmp_path / "my plans")


def test_stripping_without_a_gpu(make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "require", lambda device, what: None)
    monkeypatch.setattr(gpu, "driver", lambda: None)
    error = refused(ProviderUnavailable, str(make_bundle(ENGINES).folder), "--strip")
    assert error.remedy.endswith("leave --refit and --strip out")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_is_gone_when_the_line_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    bar = cli_build._Bar()
    bar.show("step", 0.1, "parsing")
    time.sleep(1.1)  # short builds show none
    bar.show("step", 0.83, "choosing")
    assert "step:  83%" in terminal.getvalue()
    assert "choosing" in terminal.getvalue()
    bar.close()
    *_, wiped, end = terminal.getvalue().split("\r")
    assert (wiped.strip(), end) == ("", "")
    bar.close()


@pytest.mark.usefixtures("built")
def test_a_line_says_that_a_precision_is_missing(make_bundle: MakeBundle, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = make_bundle(ENGINES)
    for words in ("layers", "is still right"):
        verb(str(bundle.folder), "--precision", "fp16")
        lines = capsys.readouterr().out.splitlines()
        assert [line.endswith(", fp32: it has no fp16 form") for line in lines] == [".fp32." in line for line in lines]
        assert any(".fp32." in line for line in lines)
        assert all(words in line for line in lines)


# -- what is missing here -----------------------------------------------------------------------------------------


def verb(*words: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    run = cli_build.command(parser)
    result: dict[str, Any] = run(parser.parse_args(words))
    return result


def refused(kind: type[FaceSDKError], *words: str) -> FaceSDKError:
    started = time.monotonic()
    with pytest.raises(kind) as caught:
        verb(*words)
    assert time.monotonic() - started < 1
    return caught.value


@pytest.mark.parametrize(
    ("device", "remedy"),
    [("tensorrt-rtx", "pip install tensorrt-rtx"), ("tensorrt", "pip install tensorrt-cu13")],
)
def test_without_the_library(
    make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch, device: str, remedy: str
) -> None:
    monkeypatch.setattr(library.importlib.util, "find_spec", lambda name: None)
    error = refused(MissingDependency, str(make_bundle(ENGINES).folder), "--device", device)
    assert error.remedy == remedy


def test_without_a_driver(make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", Stub("11.4.0"))
    monkeypatch.setattr(gpu, "driver", lambda: None)
    error = refused(ProviderUnavailable, str(make_bundle(ENGINES).folder), "--device", "tensorrt")
    assert error.fact == "no NVIDIA driver is installed"
    assert "--device tensorrt-rtx" in error.remedy


@pytest.mark.parametrize(("code", "cause"), [(100, "CUDA error 100"), (0, "counts none")])
def test_without_a_gpu(make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch, code: int, cause: str) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", Stub("11.4.0"))
    monkeypatch.setattr(gpu, "driver", lambda: Driver("580.65.06", "13.0", (), code))
    error = refused(ProviderUnavailable, str(make_bundle(ENGINES).folder), "--device", "tensorrt")
    assert cause in error.cause


def test_the_first_gpu_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = (H200, Gpu("NVIDIA A2", "8.6", 15_356))
    monkeypatch.setattr(gpu, "driver", lambda: Driver("580.65.06", "13.0", gpus))
    assert gpu.first_gpu() == H200


def test_replaceable_weights_need_a_gpu_in_rtx_too(monkeypatch: pytest.MonkeyPatch) -> None:
    rtx = Stub("11.4.0")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", rtx)
    monkeypatch.setattr(gpu, "driver", lambda: None)
    assert plans.builds_on(BuildOptions()) is None
    for option in ("refit", "strip"):
        with pytest.raises(ProviderUnavailable):
            plans.builds_on(BuildOptions(**{option: True}))


def test_a_library_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise OSError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(library.importlib, "import_module", fail)
    with pytest.raises(ProviderUnavailable, match=r"libcudart\.so\.13") as caught:
        library.load("tensorrt-rtx")
    assert caught.value.remedy == "pip install --force-reinstall tensorrt-rtx"


# -- the verb -----------------------------------------------------------------------------------------------------


def test_the_verb_says_a_line_each(
    make_bundle: MakeBundle, built: list[Request], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_bundle({"text": ENGINES["text"]}).folder
    verb(str(folder))
    verb(str(folder))
    plan = folder / "text.tensorrt-rtx.fp32.plan"
    assert capsys.readouterr().out.splitlines() == [
        f"{plan}  0.0 MB, 33 layers, 2.5 s, attention: 1 fused, 2 not",
        f"{plan}  is still right",
    ]


def test_the_verbs_json(make_bundle: MakeBundle, built: list[Request], capsys: pytest.CaptureFixture[str]) -> None:
    result = json.loads(json.dumps(verb(str(make_bundle(ENGINES).folder), "--json", "--engine", "mapping")))
    assert capsys.readouterr().out == ""
    (plan,) = result["plans"]
    assert (plan["engine"], plan["built"], plan["device"]) == ("mapping", True, "tensorrt-rtx")
