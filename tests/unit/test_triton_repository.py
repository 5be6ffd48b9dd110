"""Model repositories: what Triton's own schema reads in them, which files they hold, and what stops one."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from facesdk.bundle import Bundle
from facesdk.errors import EngineStale, EngineUnreadable, IntegrityError, OutputError, UsageError
from facesdk.files import sha256
from facesdk.plans.key import Key, files_of, write_key
from facesdk.plans.names import plan_name
from facesdk_engines.triton.options import RepositoryOptions
from facesdk_engines.triton.repository import export_repository
from tests.unit.triton_server import Server, read_config, type_name

ON_CPU = RepositoryOptions(cpu=True)
SIZES = "\n[profiles.generator]\nn = [1, 2, 8]\n[profiles.quality]\nn = [1, 4, 16]\n"


@pytest.fixture
def sized(synthesis_bundle: Bundle, tmp_path: Path) -> Bundle:
    """A copy that says the sizes of two engines, to which plans may be added."""
    shutil.copytree(synthesis_bundle.folder, tmp_path / "sized")
    with (tmp_path / "sized" / "bundle.toml").open("a") as file:
        file.write(SIZES)
    return Bundle(tmp_path / "sized")


def add_plan(
    bundle: Bundle, engine: str, capability: str = "9.0", *, folder: Path | None = None, rows: int = 8, **facts: Any
) -> Path:
    """A plan beside its side-car: to the stand-in of Triton, an ONNX file is one."""
    onnx = bundle.forms(engine)["default"]
    device, hardware = facts.get("device", "tensorrt"), facts.get("hardware", "this")
    name = plan_name(engine, device, "fp32", capability=capability, hardware=hardware)
    plan = (folder or bundle.folder) / name
    plan.parent.mkdir(exist_ok=True)
    shutil.copy(onnx, plan)
    from facesdk.graph import Graph

    profile = {value.name: [[count, *value.shape[1:]] for count in (1, 2, rows)] for value in Graph.read(onnx).inputs}
    told: dict[str, Any] = {
        "engine": engine, "files": files_of(onnx, bundle.files), "builder": "tensorrt", "version": "10.16",
        "device": device, "precision": "fp32", "hardware": hardware, "capabilities": (capability,), "gpu": "NVIDIA",
        "profile": profile, "flags": (), "plan_size": plan.stat().st_size, "plan_sha256": sha256(plan),
        "command": f"facesdk build {bundle.folder} --engine {engine} --device tensorrt --strip",
    }  # fmt: skip
    write_key(plan, Key(**{**told, **facts}))
    return plan


def config_of(folder: Path, model: str) -> Any:
    return read_config(folder / model / "config.pbtxt")


# -- what is in it --------------------------------------------------------------------------------------------


def test_a_model_for_every_engine_and_one_for_the_pipeline(
    diffusion_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = export_repository(diffusion_bundle, tmp_path / "models", RepositoryOptions(instances=2))
    names = {f"face2diffusion-tiny_{engine}" for engine in diffusion_bundle.engine_names}
    assert {model.name for model in made.models} == names
    assert {path.name for path in made.folder.iterdir()} == names | {made.pipeline}
    assert made.pipeline == "face2diffusion-tiny_pipeline"
    step = config_of(made.folder, "face2diffusion-tiny_step")
    assert (step.backend, step.max_batch_size) == ("onnxruntime", 0)
    inputs = {io.name: (type_name(io), list(io.dims)) for io in step.input}
    assert inputs["bank"] == ("TYPE_FP32", [-1, -1, 4, -1, -1])
    assert inputs["scale"] == ("TYPE_FP32", [1])
    assert config_of(made.folder, "face2diffusion-tiny_vae_encoder").input[0].data_type == 2  # TYPE_UINT8
    (group,) = step.instance_group
    assert (group.count, group.kind) == (2, group.KIND_GPU)
    assert step.parameters["facesdk.source_sha256"].string_value == "5eed" * 16
    assert config_of(made.folder, made.pipeline).parameters["facesdk.licence"].string_value == "MIT"
    prompt = {io.name: io for io in config_of(made.folder, made.pipeline).input}
    assert not prompt["prompt"].optional
    assert all(io.optional for name, io in prompt.items() if name != "prompt")
    assert {"identity", "image", "mask", "seed", "steps", "guidance"} <= prompt.keys()
    assert "face" not in prompt  # photos need annotation
    Server(made.folder, monkeypatch).close()  # it loads: signatures, warm-up, model.py


def test_a_bundle_without_faces_takes_none(plain_diffusion_bundle: Bundle, tmp_path: Path) -> None:
    made = export_repository(plain_diffusion_bundle, tmp_path / "models", ON_CPU)
    names = {io.name for io in config_of(made.folder, made.pipeline).input}
    assert "identity" not in names
    assert "prompt" in names


def test_a_system_without_pipeline(synthesis_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "other"
    shutil.copytree(synthesis_bundle.folder, folder)
    manifest = folder / "bundle.toml"
    manifest.write_text(manifest.read_text().replace('system = "vec2face"', 'system = "6drepnet"'))
    made = export_repository(Bundle(folder), tmp_path / "models", ON_CPU)
    assert made.pipeline == ""
    assert len(made.models) == len(synthesis_bundle.engine_names)
    Server(made.folder, monkeypatch).close()


def test_the_server_batches_what_it_can(sized: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = export_repository(sized, tmp_path / "models", ON_CPU)
    generator, quality = (config_of(made.folder, f"vec2face-tiny_{name}") for name in ("generator", "quality"))
    assert generator.max_batch_size == 8
    assert list(generator.dynamic_batching.preferred_batch_size) == [2, 8]
    assert [list(io.dims) for io in generator.input] == [[512], [45], [50]]
    (sample,) = generator.model_warmup
    assert (sample.batch_size, list(sample.inputs["vector"].dims)) == (2, [512])
    (output,) = quality.output  # (n,)
    assert (list(output.dims), list(output.reshape.shape)) == ([1], [])
    assert output.HasField("reshape")
    Server(made.folder, monkeypatch).close()


def test_one_engine_alone(swap_bundle: Bundle, tmp_path: Path) -> None:
    made = export_repository(swap_bundle, tmp_path / "models", ON_CPU, engines=["shape", "target"])
    assert sorted(path.name for path in made.folder.iterdir()) == ["hififace-tiny_shape", "hififace-tiny_target"]
    assert made.pipeline == ""


def test_files_are_linked_or_copied(swap_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def file_of(name: str, **options: Any) -> Path:
        made = export_repository(
            swap_bundle, tmp_path / name, RepositoryOptions(cpu=True, **options), engines=["shape"]
        )
        return made.folder / "hififace-tiny_shape" / "1" / "model.onnx"

    source = swap_bundle.folder / "shape.onnx"
    assert file_of("linked").samefile(source)
    copied = file_of("copied", copy=True)
    assert not copied.samefile(source)
    assert copied.read_bytes() == source.read_bytes()

    def refuse(*_: Any) -> NoReturn:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    assert not file_of("elsewhere").samefile(source)


def test_weights_beside_the_graph(swap_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They lie in a folder `model.onnx` under the names by which the graph calls them."""
    onnx = pytest.importorskip("onnx")
    folder = tmp_path / "big"
    shutil.copytree(swap_bundle.folder, folder)
    path = folder / "shape.onnx"
    model = onnx.load(path)
    path.unlink()
    onnx.save(model, path, save_as_external_data=True, location="shape.onnx.data", size_threshold=0)
    manifest = (folder / "bundle.toml").read_text().splitlines()
    (folder / "bundle.toml").write_text("\n".join(line for line in manifest if not line.startswith('"shape.onnx"')))
    made = export_repository(Bundle(folder), tmp_path / "models", ON_CPU)
    place = made.folder / "hififace-tiny_shape" / "1"
    assert [file.name for file in place.iterdir()] == ["model.onnx"]
    assert sorted(file.name for file in (place / "model.onnx").iterdir()) == ["model.onnx", "shape.onnx.data"]
    server = Server(made.folder, monkeypatch)
    crop = np.random.default_rng(0).random((64, 64, 3), np.float32)
    assert server.ask("hififace-tiny_pipeline", source=crop, target=crop)["crop"].shape == (64, 64, 3)
    outline = made.folder / made.pipeline / "1" / "bundles" / "hififace-tiny" / "shape.onnx"
    assert outline.stat().st_size < 2000  # no weights in the pipeline
    server.close()


# -- plans ----------------------------------------------------------------------------------------------------


def test_a_plan_for_each_kind_of_gpu(sized: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_plan(sized, "generator", "8.6", rows=6)
    add_plan(sized, "generator", "9.0")
    add_plan(sized, "generator", "8.0", hardware="ampere")
    made = export_repository(sized, tmp_path / "models")
    config = config_of(made.folder, "vec2face-tiny_generator")
    assert config.backend == "tensorrt"
    assert dict(config.cc_model_filenames) == {"8.6": "model_sm86.plan", "9.0": "model_sm90.plan"}
    assert config.default_model_filename == "model.plan"  # Ampere and later
    files = {path.name for path in (made.folder / "vec2face-tiny_generator" / "1").iterdir()}
    assert files == {"model.plan", "model_sm86.plan", "model_sm90.plan"}
    assert config.max_batch_size == 6  # what every plan takes
    assert config.model_warmup[0].batch_size == 2  # what they are best at
    assert config.parameters["facesdk.tensorrt"].string_value == "10.16"
    assert config_of(made.folder, "vec2face-tiny_quality").backend == "onnxruntime"  # it has none
    server = Server(made.folder, monkeypatch)
    vectors = np.random.default_rng(0).normal(size=(1, 512)).astype(np.float32)
    assert server.ask("vec2face-tiny_pipeline", vectors=vectors, kind="reference")["pictures"].any()
    server.close()


def test_plans_of_other_folders(sized: Bundle, tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    add_plan(sized, "generator", "8.9", folder=folders[0])
    add_plan(sized, "generator", "9.0", folder=folders[1])
    made = export_repository(sized, tmp_path / "models", plans=folders)
    (model,) = (model for model in made.models if model.plans)
    assert [plan.gpus for plan in model.plans] == ["8.9", "9.0"]
    add_plan(sized, "generator", "9.0", folder=folders[0])
    with pytest.raises(UsageError, match="are for the same GPUs"):
        export_repository(sized, tmp_path / "more", plans=folders)


def test_plans_that_were_asked_for_and_are_not_there(sized: Bundle, tmp_path: Path) -> None:
    """ONNX Runtime is not taken in silence."""
    (tmp_path / "empty").mkdir()
    add_plan(sized, "generator")  # in fp32, and beside the bundle
    half = RepositoryOptions(precision="fp16")
    for folder, options, words in (
        (tmp_path / "nowhere", None, "there is no folder"),
        (tmp_path / "empty", None, "no plan of TensorRT for vec2face-tiny in fp32"),
        (sized.folder, ON_CPU, "do not run on the processor"),
    ):
        with pytest.raises(UsageError, match=words):
            export_repository(sized, tmp_path / "models", options, plans=[folder])
    assert not (tmp_path / "models").exists()
    models = export_repository(sized, tmp_path / "models", half, plans=[sized.folder]).models
    assert {model.precision for model in models} == {"fp32"}  # none has an fp16 form, and what is served says so


def test_the_processor_needs_no_plans(sized: Bundle, tmp_path: Path) -> None:
    add_plan(sized, "generator")
    assert not any(model.plans for model in export_repository(sized, tmp_path / "models", ON_CPU).models)


def test_plans_of_tensors_without_axes_are_left_with_a_word(
    save_graph: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton's TensorRT backend compares numbers of axes, and no tensor of the server's may have none."""
    from facesdk_engines.writing import write_manifest

    path = save_graph([("Mul", ["x", "lone"], ["y"])], {"x": ["n", 4], "lone": []}, {"y": ["n", 4]}, name="scaled")
    about = {"name": "demo", "system": "demo", "licence": "MIT"}
    write_manifest(tmp_path, about, {"scaled": {"default": path.name}}, {})
    add_plan(Bundle(tmp_path), "scaled")
    made = export_repository(Bundle(tmp_path), tmp_path / "models")
    (model,) = made.models
    assert "takes no tensors without axes: lone" in model.note
    assert config_of(made.folder, model.name).backend == "onnxruntime"
    Server(made.folder, monkeypatch).close()


def test_plans_of_another_library_are_left_with_a_word(sized: Bundle, tmp_path: Path) -> None:
    add_plan(sized, "generator", device="tensorrt-rtx")
    notes = {model.engine: model.note for model in export_repository(sized, tmp_path / "models").models}
    assert "no backend for plans of TensorRT for RTX" in notes["generator"]
    assert notes["quality"] == ""


@pytest.mark.parametrize(
    ("facts", "error", "words"),
    [
        ({"files": {"generator.onnx": "0" * 64}}, EngineStale, "generator.onnx has changed"),
        ({"plan_size": 5}, EngineUnreadable, "bytes of 5"),
        ({"plan_sha256": "0" * 64}, EngineUnreadable, "sha256"),
        ({"flags": ("STRIP_PLAN",)}, UsageError, "has no weights"),
    ],
)
def test_a_plan_that_is_not_right(
    sized: Bundle, tmp_path: Path, facts: dict[str, Any], error: type[Exception], words: str
) -> None:
    add_plan(sized, "generator", **facts)
    with pytest.raises(error, match=words) as caught:
        export_repository(sized, tmp_path / "models")
    assert "facesdk build" in str(caught.value)
    assert not (tmp_path / "models").exists()


def test_a_server_has_one_version_of_tensorrt(sized: Bundle, tmp_path: Path) -> None:
    add_plan(sized, "generator")
    add_plan(sized, "quality", version="10.9")
    with pytest.raises(UsageError, match=r"plans are of TensorRT 10\.16, 10\.9"):
        export_repository(sized, tmp_path / "models")
    add_plan(sized, "quality", version="10.9", flags=("VERSION_COMPATIBLE",))
    assert export_repository(sized, tmp_path / "models").pipeline


# -- what stops it --------------------------------------------------------------------------------------------


def test_an_engine_that_there_is_not(swap_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="engine is 'unet'") as caught:
        export_repository(swap_bundle, tmp_path / "models", engines=["unet"])
    assert "identity, shape, target, decoder" in caught.value.remedy
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something(swap_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    export_repository(swap_bundle, tmp_path / "models", ON_CPU)  # an empty one is taken
    before = sorted(path.name for path in (tmp_path / "models").iterdir())
    with pytest.raises(OutputError, match="not an empty folder"):
        export_repository(swap_bundle, tmp_path / "models", ON_CPU)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="not an empty folder"):
        export_repository(swap_bundle, tmp_path / "file", ON_CPU)
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == before


def test_a_full_disc_leaves_nothing(swap_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OutputError, match="No space left"):
        export_repository(swap_bundle, tmp_path / "models", RepositoryOptions(copy=True))
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_bundle(swap_bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(swap_bundle.folder, tmp_path / "bundle")
    with (tmp_path / "bundle" / "shape.onnx").open("ab") as file:
        file.write(b"more")
    with pytest.raises(IntegrityError, match=r"shape\.onnx"):
        export_repository(Bundle(tmp_path / "bundle"), tmp_path / "models", ON_CPU)
    assert not (tmp_path / "models").exists()


def test_half_precision_of_the_engines_that_have_it(swap_bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(swap_bundle.folder, tmp_path / "bundle")
    shutil.copy(tmp_path / "bundle" / "shape.onnx", tmp_path / "bundle" / "shape.fp16.onnx")
    manifest = tmp_path / "bundle" / "bundle.toml"
    forms = 'default = "shape.onnx"\n'
    manifest.write_text(manifest.read_text().replace(forms, forms + 'fp16 = "shape.fp16.onnx"\n'))
    options = RepositoryOptions(precision="fp16")
    models = export_repository(Bundle(tmp_path / "bundle"), tmp_path / "models", options).models
    assert {model.engine: model.onnx.name for model in models} == {
        "identity": "identity.onnx", "shape": "shape.fp16.onnx", "target": "target.onnx", "decoder": "decoder.onnx",
    }  # fmt: skip
