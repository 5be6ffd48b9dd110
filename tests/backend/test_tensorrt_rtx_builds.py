"""Every graph that is exported becomes a plan of TensorRT for RTX, for real, without a GPU.  No plan is run."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from facesdk.bundle import Bundle
from facesdk.card import Card
from facesdk.errors import EngineError, EngineUnreadable, UnsupportedOperator
from facesdk.graph import Graph

if importlib.util.find_spec("tensorrt_rtx") is None:
    pytest.skip("TensorRT for RTX is not installed: pip install tensorrt-rtx", allow_module_level=True)
onnx = pytest.importorskip("onnx", reason="building needs onnx")

from facesdk.plans.key import Here, check  # noqa: E402
from facesdk.plans.profiles import profile  # noqa: E402
from facesdk_engines.attention import DOMAIN, OPERATOR, with_function  # noqa: E402
from facesdk_engines.forms import forms  # noqa: E402
from facesdk_engines.precision import to_fp16  # noqa: E402
from facesdk_engines.tensorrt.build import Built, Request  # noqa: E402
from facesdk_engines.tensorrt.child import build_in_child  # noqa: E402
from facesdk_engines.tensorrt.options import BuildOptions  # noqa: E402
from facesdk_engines.tensorrt.plans import build_plans  # noqa: E402
from facesdk_engines.writing import write_engine  # noqa: E402

SMALL_UNET = {
    "layers_per_block": 1, "block_out_channels": [32], "down_block_types": ["CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D"],
}  # fmt: skip


def nothing(share: float, phase: str) -> None:
    """Nobody looks."""


def built(path: Path, plan: Path, sizes: Mapping[str, Any] = MappingProxyType({}), **options: Any) -> Built:
    """Facts of the plan of a file, with the profile of these sizes and its card."""
    shapes = profile(path.stem, Graph.read(path).inputs, sizes, Card.read(path).example_shapes)
    return build_in_child(Request(path, plan, BuildOptions(**options), shapes), nothing)[0]


# -- exported networks, in little ---------------------------------------------------------------------------------

Parts = Mapping[str, Any]


def swap_parts(folder: Path, kind: str = "published") -> Parts:
    from torch import nn

    from facesdk_export.networks import IResNet
    from facesdk_export.recipes.hififace import _swap_parts
    from tests.unit.test_hififace_networks import small_generator

    generator = small_generator(kind)
    generator.id_extractor.f_id = IResNet((1, 1), (4, 8))
    generator.id_extractor.f_3d = nn.Sequential(nn.AvgPool2d(32), nn.Flatten(), nn.Linear(3 * 8 * 8, 257))
    return _swap_parts(generator.eval())


def synthesis_parts(folder: Path) -> Parts:
    from facesdk_export.networks.vec2face_plus import PosedGenerator
    from facesdk_export.recipes import vec2face
    from tests.unit.test_vec2face_recipe import generator, headpose, iresnet

    face = generator()
    networks = {"generator": face, "arcface": iresnet(), "magface": iresnet(), "headpose": headpose()}
    forms = {name: vec2face._form(network) for name, network in networks.items()}
    return {
        "generator": vec2face._generator(forms["generator"], face),
        "step": vec2face._step(forms, networks, ()),
        "encoder": vec2face._encoder(forms["arcface"], networks["arcface"]),
        "quality": vec2face._quality(forms["magface"], networks["magface"]),
        "pose": vec2face._pose(networks["headpose"]),
        "pose_generator": vec2face._posed(generator(PosedGenerator)),
    }


def diffusion_parts(folder: Path) -> Parts:
    from facesdk_export.recipes.stable_diffusion import stable_diffusion_parts
    from facesdk_export.stable_diffusion import read_stable_diffusion
    from tests.unit import stable_diffusion_files as files

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(files.TEXT, "vocab_size", 400)  # the recipe's example prompt has ids up to there
        for name, value in SMALL_UNET.items():
            patch.setitem(files.UNET, name, value)
        network = read_stable_diffusion(files.write_folder(folder / "files", files.weights()))
    return {name: part for name, part in stable_diffusion_parts(network).items() if not isinstance(part, bytes)}


def face_parts(folder: Path) -> Parts:
    """What Face2Diffusion has beside Stable Diffusion."""
    from facesdk_export.networks import MSID, MappingNetwork
    from facesdk_export.recipes import face_tokens

    msid = MSID((0, 1, 2, 3), patch=28, dim=24, depth=4, hidden=40).eval()
    mapping = {name: MappingNetwork(msid.width, 30, 64).eval() for name in ("mapping", "mf2d")}
    return {
        "encoder": face_tokens._encoder_part(msid),
        "mapping": face_tokens.mapping_part(mapping["mapping"], "mapping"),
        "mapping_mf2d": face_tokens.mapping_part(mapping["mf2d"], "mf2d"),
    }


def arcface_parts(folder: Path) -> Parts:
    from facesdk_export.networks import IResNet
    from facesdk_export.recipes.encoders import encoder_part

    return {"encoder": encoder_part(IResNet((1, 1), (4, 8)).eval(), 112)}


def ir_se50_parts(folder: Path) -> Parts:
    from facesdk_export.networks import IRSE
    from facesdk_export.recipes.encoders import encoder_part

    return {"encoder": encoder_part(IRSE((2, 1), (8, 16), reduction=4).eval(), 112)}


def geometry_parts(folder: Path, recipe: str, network: str, small: Callable[[], Any]) -> Parts:
    """The parts that a recipe makes of a file of a smaller network."""
    import torch

    from facesdk_export.checkpoints import read_checkpoint
    from facesdk_export.recipes import geometry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(geometry, network, small)
        torch.save(small().state_dict(), folder / "small.pth")
        made: Parts = getattr(geometry, recipe).parts(checkpoint=read_checkpoint(folder / "small.pth"))
    return made


def deep3d_parts(folder: Path) -> Parts:
    from facesdk_export.networks import Deep3DRecon

    return geometry_parts(folder, "DEEP3D", "Deep3DRecon", lambda: Deep3DRecon("resnet18"))


def pose_parts(folder: Path) -> Parts:
    from tests.unit.test_vec2face_recipe import headpose

    return geometry_parts(folder, "SIXDREPNET", "SixDRepNet", headpose)


_SWAP = ("identity", "shape", "target", "decoder")
#: recipe -> its parts in little, and their names
SYSTEMS: Mapping[str, tuple[Callable[[Path], Parts], tuple[str, ...]]] = {
    "6drepnet": (pose_parts, ("pose",)),
    "arcface": (arcface_parts, ("encoder",)),
    "deep3d": (deep3d_parts, ("shape",)),
    "face2diffusion": (face_parts, ("encoder", "mapping", "mapping_mf2d")),
    "hififace": (swap_parts, _SWAP),
    "ir-se50": (ir_se50_parts, ("encoder",)),
    "stable-diffusion": (
        diffusion_parts, ("embedding", "text", "context", "time", "step", "vae_decoder", "vae_encoder"),
    ),
    "vec2face": (synthesis_parts, ("generator", "step", "encoder", "quality", "pose", "pose_generator")),
    "xuehy": (functools.partial(swap_parts, kind="xuehy"), _SWAP),
}  # fmt: skip


@pytest.fixture(scope="module")
def parts_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Parts]:
    pytest.importorskip("torch", reason="the export room needs torch")
    pytest.importorskip("onnxscript", reason="the export room needs onnxscript")

    @functools.cache
    def parts(system: str) -> Parts:
        import torch

        torch.manual_seed(0)
        return SYSTEMS[system][0](tmp_path_factory.mktemp(system))

    return parts


def exported(part: Any, path: Path) -> Path:
    """The file of a part in the form for TensorRT, with its weights inside."""
    from facesdk_export.onnx_export import trace

    traced = path.with_name("traced.onnx")
    trace(part.module, part.inputs, part.outputs, traced, part.free)
    model = onnx.load(traced)
    shapes = {name: tuple(tensor.shape) for name, tensor in part.inputs.items()}
    card = dataclasses.replace(part.card, example_shapes=shapes)
    write_engine(path, forms(model).get("tensorrt", model), card)
    return path


def halved(part: Any, path: Path) -> Path:
    half = path.with_suffix(".fp16.onnx")
    write_engine(half, to_fp16(onnx.load(path), part.islands), dataclasses.replace(Card.read(path), precision="fp16"))
    return half


def cases() -> list[Any]:
    names = [(system, engine) for system, (_, engines) in SYSTEMS.items() for engine in engines]
    return [pytest.param(*name, id="-".join(name)) for name in names]


@pytest.mark.parametrize(("system", "engine"), cases())
def test_exported_engines(parts_of: Any, tmp_path: Path, system: str, engine: str) -> None:
    """In each precision that it has, with the recipe's own sizes of every free axis."""
    part = parts_of(system)[engine]
    path = exported(part, tmp_path / f"{engine}.onnx")
    free = {axis for value in Graph.read(path).inputs for axis in value.shape if isinstance(axis, str)}
    assert {axis for axis in free if axis.isidentifier()} == part.sizes.keys()
    for file in (path, halved(part, path)) if part.half else (path,):
        plan = tmp_path / f"{file.stem}.plan"
        facts = built(file, plan, part.sizes)
        assert facts.layers > 0
        assert plan.stat().st_size == facts.plan_size > 5_000


@pytest.mark.parametrize("system", SYSTEMS)
def test_no_engine_is_forgotten(parts_of: Any, system: str) -> None:
    assert tuple(parts_of(system)) == SYSTEMS[system][1]


def test_no_recipe_is_forgotten() -> None:
    pytest.importorskip("torch", reason="the export room needs torch")
    from facesdk_export.recipes import RECIPES

    assert set(SYSTEMS) == set(RECIPES)


# -- bundles ------------------------------------------------------------------------------------------------------


def test_annotation_bundle(bundle_478: Bundle, tmp_path: Path) -> None:
    plans = list(build_plans(bundle_478, BuildOptions(), folder=tmp_path))
    assert [plan.key.engine for plan in plans] == list(bundle_478.engine_names)
    for plan in plans:
        assert plan.key.capabilities == ("8.6", "8.9", "12.0")
        assert check(plan.path, Here(plan.key.version, "8.9", bundle_478.files), whole=True) == plan.key
        with pytest.raises(EngineError, match=r"this GPU has 9\.0"):
            check(plan.path, Here(plan.key.version, "9.0"))
    assert [plan.built for plan in build_plans(bundle_478, BuildOptions(), folder=tmp_path)] == [False] * len(plans)


def test_the_full_range_detector(bundle_468: Bundle, tmp_path: Path) -> None:
    plans = list(build_plans(bundle_468, BuildOptions(), folder=tmp_path))
    assert {plan.key.engine for plan in plans} == {"detector_short", "detector_full", "landmarks"}
    assert plans[0].key.profile == {"image": [[1, 128, 128, 3]] * 3}


def test_an_insightface_pack(tmp_path: Path) -> None:
    """Of the published signatures; the networks themselves are a user's to bring."""
    from tests.unit.test_insightface_pack import build, pack, swapper, whole

    networks = {**whole(), "inswapper_128.onnx": swapper()}
    bundle = build(pack(tmp_path / "buffalo_l.zip", networks), tmp_path / "bundle")
    plans = {plan.key.engine: plan for plan in build_plans(bundle, BuildOptions(), folder=tmp_path)}
    assert plans.keys() == set(bundle.engine_names)
    assert plans["scrfd"].key.profile["image"] == [[1, 3, side, side] for side in (320, 640, 1280)]
    assert plans["encoder"].key.profile["image"] == [[rows, 112, 112, 3] for rows in (1, 1, 16)]
    assert plans["inswapper"].key.profile == {}


# -- attention ----------------------------------------------------------------------------------------------------


def attention_file(path: Path, dim: int, *, half: bool, heads: int = 8) -> Path:
    """Self-attention, then attention to a text of 77 tokens, of free length and batch."""
    width, random, helper = heads * dim, np.random.default_rng(0), onnx.helper
    matrix = lambda: (random.normal(size=(width, width)) / width**0.5).astype(np.float32)  # noqa: E731
    weights = {name: matrix() for name in ("wq", "wk", "wv", "wo")}
    attention = {"domain": DOMAIN, "heads": heads, "scale": dim**-0.5}
    nodes = [
        *(helper.make_node("MatMul", ["x", f"w{name}"], [name], f"to_{name}") for name in "qkv"),
        helper.make_node(OPERATOR, ["q", "k", "v"], ["mixed"], "self_attention", **attention),
        helper.make_node("MatMul", ["mixed", "wo"], ["query"], "to_query"),
        helper.make_node(OPERATOR, ["query", "text_k", "text_v"], ["told"], "text_attention", **attention),
        helper.make_node("Add", ["told", "x"], ["y"], "add"),
    ]
    shapes = {"x": ["n", "s", width], "text_k": ["r", 77, width], "text_v": ["r", 77, width]}
    float32 = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info(name, float32, shape) for name, shape in shapes.items()],
        [helper.make_tensor_value_info("y", float32, shapes["x"])],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    imports = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    model = with_function(helper.make_model(graph, opset_imports=imports, ir_version=9))
    examples = {"x": (2, 256, width), "text_k": (2, 77, width), "text_v": (2, 77, width)}
    write_engine(path, to_fp16(model) if half else model, Card(example_shapes=examples))
    return path


@pytest.mark.parametrize("dim", [40, 80, 160])  # of Stable Diffusion 1.x
def test_attention_is_fused_in_fp16_and_not_in_fp32(tmp_path: Path, dim: int) -> None:
    both = ("self_attention", "text_attention")
    half = built(attention_file(tmp_path / "half.onnx", dim, half=True), tmp_path / "half.plan").attentions
    full = built(attention_file(tmp_path / "full.onnx", dim, half=False), tmp_path / "full.plan").attentions
    assert half is not None
    assert full is not None
    assert (half.fused, half.decomposed) == (both, ())
    assert (full.fused, full.decomposed) == ((), both)


# -- what goes wrong ----------------------------------------------------------------------------------------------


def test_a_node_that_there_is_not(save_graph: Any, tmp_path: Path) -> None:
    path = save_graph([("Sparkle", ["x"], ["y"], {"name": "node_7"})], {"x": [1, 4]}, {"y": [1, 4]})
    with pytest.raises(UnsupportedOperator, match=r"cannot take node node_7 \(Sparkle\)"):
        built(path, tmp_path / "p.plan")
    assert not (tmp_path / "p.plan").exists()


def test_a_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"no graph at all")
    request = Request(path, tmp_path / "p.plan", BuildOptions(), {})
    with pytest.raises(EngineUnreadable, match=r"cannot read m\.onnx"):
        build_in_child(request, nothing)


def test_free_axes_without_a_profile(save_graph: Any, tmp_path: Path) -> None:
    path = save_graph([("Relu", ["x"], ["y"])], {"x": ["n", 4]}, {"y": ["n", 4]})
    with pytest.raises(EngineError, match="no optimization profile has been defined"):
        build_in_child(Request(path, tmp_path / "p.plan", BuildOptions(), {}), nothing)


def test_too_little_workspace(tmp_path: Path) -> None:
    path = attention_file(tmp_path / "a.onnx", 40, half=True)
    with pytest.raises(EngineError, match="workspace") as caught:
        built(path, tmp_path / "p.plan", workspace_mb=1)
    assert "--workspace-mb" in caught.value.remedy


def test_a_gpu_that_it_does_not_know(save_graph: Any, tmp_path: Path) -> None:
    path = save_graph([("Relu", ["x"], ["y"])], {"x": [1, 4]}, {"y": [1, 4]})
    with pytest.raises(EngineError, match=r"does not build for compute capability 6\.1"):
        built(path, tmp_path / "p.plan", gpus="6.1")
    assert built(path, tmp_path / "p.plan", gpus="12.0").plan_size > 0


@pytest.mark.skipif(sys.platform == "win32", reason="there are no signals on Windows")
def test_ctrl_c_leaves_nothing_behind(bundle_478: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = (
        "import signal, sys, pathlib\n"
        "from facesdk.bundle import Bundle\n"
        "from facesdk_engines.tensorrt.options import BuildOptions\n"
        "from facesdk_engines.tensorrt.plans import build_plans\n"
        "if __name__ == '__main__':\n"
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell in the background ignores it
        "    bundle, out = Bundle(sys.argv[1]), pathlib.Path(sys.argv[2])\n"
        "    tell = lambda *progress: print(*progress, flush=True)\n"
        "    list(build_plans(bundle, BuildOptions(), engines=['landmarks'], folder=out, on_progress=tell))\n"
    )
    script = tmp_path / "build.py"
    script.write_text(code)
    words = [sys.executable, str(script), str(bundle_478.folder), str(out)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("landmarks 0.")  # it builds
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert "KeyboardInterrupt" in said
    assert list(out.iterdir()) == []


def test_the_bar_moves(bundle_478: Bundle, tmp_path: Path) -> None:
    told: list[tuple[str, float, str]] = []
    (plan,) = build_plans(
        bundle_478, BuildOptions(), engines=["landmarks"], folder=tmp_path,
        on_progress=lambda *progress: told.append(progress),
    )  # fmt: skip
    shares = [share for _, share, _ in told]
    assert shares == sorted(shares)
    assert len(set(shares)) > 5
    assert len({phase for _, _, phase in told}) > 5
    assert plan.built
    assert json.loads((tmp_path / f"{plan.path.name}.json").read_text())["report"]["layers"] > 100
