"""The denoising step in fp16: the network is, the sampler's arithmetic around it is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facesdk.card import Card
from facesdk.engine import Engine

torch = pytest.importorskip("torch", reason="the export room needs torch")
pytest.importorskip("diffusers", reason="the networks are built of diffusers' layers")
pytest.importorskip("onnxscript", reason="the export room needs onnxscript")

from facesdk_engines.precision import Islands, derive_fp16  # noqa: E402
from facesdk_engines.precision_graph import FLOAT, HALF, types_of  # noqa: E402
from facesdk_engines.range_audit import audit  # noqa: E402
from facesdk_engines.simulation import simulate  # noqa: E402
from facesdk_engines.weights import load_graph  # noqa: E402
from facesdk_export.networks.denoising_step import ContextKeys, DenoisingStep, TimeRows, context_names  # noqa: E402
from facesdk_export.onnx_export import Part, write_part  # noqa: E402

CONFIG = {
    "sample_size": 8, "layers_per_block": 1, "block_out_channels": [16], "attention_head_dim": 2,
    "cross_attention_dim": 12, "norm_num_groups": 4, "down_block_types": ["CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D"],
}  # fmt: skip
#: what the sampler computes with; of the others, time and the text's keys, the network does
SAMPLER = ("bank", "scale", "matrix", "weights", "noise", "level", "blend_noise", "known", "mask")
ISLANDS = Islands(inputs=SAMPLER)
Files = dict[str, Path]


@pytest.fixture(scope="module")
def inputs(unet: Any) -> dict[str, Any]:
    """Two pictures, two slots of memory, two conditions; as a sampler gives them, not normal."""
    generator = torch.Generator().manual_seed(4)
    latent, names = (2, 4, 8, 6), context_names(unet)
    keys = ContextKeys(unet)(torch.randn(2, 5, 12, generator=generator))
    given = {
        "bank": torch.randn(2, 2, *latent[1:], generator=generator) * 14.6, "scale": torch.tensor([0.0684]),
        "time": TimeRows(unet)(torch.tensor([901.3]))[0], "matrix": torch.tensor([[1.0, 0, -1.3, 0.7], [0, 0, 1, 0]]),
        "weights": torch.tensor([-6.0, 7.0]), "noise": torch.randn(latent, generator=generator),
        "level": torch.tensor([1.0, 14.6]), "blend_noise": torch.randn(latent, generator=generator),
        "known": torch.randn(latent, generator=generator), "mask": torch.rand(2, 1, 8, 6, generator=generator).round(),
    }  # fmt: skip
    return {name: tensor.detach() for name, tensor in (given | dict(zip(names, keys, strict=True))).items()}


@pytest.fixture(scope="module")
def unet() -> Any:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(**CONFIG).eval()


@pytest.fixture(scope="module")
def step(unet: Any, inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("step") / "step.onnx"
    free = {name: {0: "rows"} for name in context_names(unet)}
    write_part(Part(DenoisingStep(unet), inputs, ("next_bank",), Card(engine="step"), free), path)
    return path


@pytest.fixture(scope="module")
def arrays(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in inputs.items()}


@pytest.fixture(scope="module")
def halves(step: Path, arrays: dict[str, Any]) -> Files:
    files = {form: step.with_name(f"step{form}.fp16.onnx") for form in ("", ".tensorrt")}
    derive_fp16(step, files[""], arrays, ISLANDS, {step.with_name("step.tensorrt.onnx"): files[".tensorrt"]})
    return files


def run(path: Path, arrays: dict[str, Any], **changes: Any) -> np.ndarray:
    with Engine.open(path, "cpu") as engine:
        return engine(**arrays | {name: np.float32(value) for name, value in changes.items()})["next_bank"]


@pytest.mark.parametrize("form", ["", ".tensorrt"])
def test_what_is_not_the_networks_keeps_every_bit(step: Path, halves: Files, arrays: dict[str, Any], form: str) -> None:
    """Without the prediction's column, blend and matrix are as of fp32, of numbers that fp16 cannot hold."""
    matrix = [[1.0001, 0.3333, 0, 12345.678], [0, 1, 0, 0]]
    got = run(halves[form], arrays, matrix=matrix)
    np.testing.assert_array_equal(got, run(step, arrays, matrix=matrix))
    assert (got.astype(np.float16) != got).any()


@pytest.mark.parametrize("form", ["", ".tensorrt"])
def test_the_prediction_is_close(step: Path, halves: Files, arrays: dict[str, Any], form: str) -> None:
    matrix = [[0, 0, 1, 0], [0, 0, 0, 0]]
    got, want = run(halves[form], arrays, matrix=matrix)[:, 0], run(step, arrays, matrix=matrix)[:, 0]
    assert 0 < np.abs(got - want).max() < 0.02 * want.std()


@pytest.mark.parametrize("form", ["", ".tensorrt"])
def test_where_the_precision_changes(halves: Files, form: str) -> None:
    """Layers and attention are fp16, norms and softmax are not; the sampler's inputs are cast once, before a layer."""
    model = load_graph(halves[form])
    known = types_of(model)
    kinds: dict[str, set[int]] = {}
    for node in model.graph.node:
        floats = {known[name] for name in (*node.input, *node.output) if known.get(name) in (FLOAT, HALF)}
        kinds.setdefault(node.op_type, set()).update(floats)
    attention = "MultiHeadAttention" if form == "" else "FusedAttention"
    assert all(kinds[operator] == {HALF} for operator in ("Conv", "Sigmoid", attention))
    islands = ("InstanceNormalization", "LayerNormalization", "ReduceSum", "Sub")
    assert all(kinds[operator] == {FLOAT} for operator in islands)
    read = {name for node in model.graph.node if node.op_type == "Cast" for name in node.input}
    assert not read.intersection(SAMPLER)
    assert {value.name for value in model.graph.input} - set(SAMPLER) == read.intersection(
        value.name for value in model.graph.input
    )


def test_without_islands_the_sampler_loses_digits(step: Path, arrays: dict[str, Any]) -> None:
    """At the first step the latent is 14.6 wide: rounded, it is off by up to 2^-7 in each element."""
    ((on,), (off,)) = simulate(step, arrays, ISLANDS), simulate(step, arrays, Islands(operators=()))
    assert on.cosine > off.cosine
    assert on.mean_abs < off.mean_abs


def test_nothing_overflows(step: Path, arrays: dict[str, Any]) -> None:
    ranges = audit(step, arrays, ISLANDS)
    assert max(each.largest for each in ranges if not each.stays and each.operator != "input") < 1000
    assert not any(each.overflows for each in ranges)
    sampled = {each.name: each for each in ranges}
    assert sampled["next_bank"].stays
    assert sampled["bank"].largest == np.abs(arrays["bank"]).max()
