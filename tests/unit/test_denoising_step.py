"""The denoising step and its companions: as diffusers' network in a loop written out, and as engines of any size."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facesdk.bundle import Bundle
from facesdk.card import Card
from facesdk.engine import Engine
from facesdk.errors import ConversionError, IntegrityError
from facesdk.graph import Graph
from facesdk_engines.writing import write_manifest

torch = pytest.importorskip("torch", reason="the export room needs torch")
pytest.importorskip("diffusers", reason="the networks are built of diffusers' layers")
pytest.importorskip("onnxscript", reason="the export room needs onnxscript")

from torch import nn  # noqa: E402

from facesdk_export.networks.denoising_step import (  # noqa: E402
    ContextKeys,
    DenoisingStep,
    TimeRows,
    context_layers,
    context_names,
)
from facesdk_export.networks.fused_attention import attention  # noqa: E402
from facesdk_export.onnx_export import Part, write_part  # noqa: E402

CONFIG = {
    "sample_size": 8, "layers_per_block": 1, "block_out_channels": [8, 16], "attention_head_dim": 2,
    "cross_attention_dim": 12, "norm_num_groups": 4, "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}  # fmt: skip
LATENT = {0: "n", 2: "h", 3: "w"}
TIMESTEP = 964.5517578125  # fractional, as linearly spaced schedules have it


def network(**changes: Any) -> Any:
    """Diffusers' UNet in float64, with weights that every layer's output depends on."""
    from diffusers import UNet2DConditionModel

    generator = torch.Generator().manual_seed(0)
    unet = UNet2DConditionModel(**{**CONFIG, **changes}).double().eval()
    for parameter in unet.parameters():
        weight = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        matrix = parameter.ndim > 1
        parameter.data = weight * (0.7 / max(1, parameter[0].numel()) ** 0.5) if matrix else 0.6 + 0.3 * weight
    return unet


@pytest.fixture(scope="module")
def unet() -> Any:
    return network()


def example(
    unet: Any, n: int, memory: int, conditions: int, prompts: int, size: tuple[int, int], tokens: int = 5
) -> tuple[dict[str, Any], Any]:
    """Inputs of the step by name, and the text (conditions * prompts, tokens, width) behind its keys and values."""
    generator = torch.Generator().manual_seed(n + memory)

    def normal(*shape: int) -> Any:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    text = normal(conditions * prompts, tokens, unet.config.cross_attention_dim)
    with torch.no_grad():
        pairs, row = ContextKeys(unet)(text), TimeRows(unet)(torch.tensor([TIMESTEP]))[0]
    latent = (n, 4, *size)
    inputs = {
        "bank": normal(n, memory, *latent[1:]), "scale": torch.tensor([0.7], dtype=torch.float64), "time": row,
        "matrix": normal(memory, memory + 2), "weights": normal(conditions), "noise": normal(*latent),
        "level": normal(2), "blend_noise": normal(*latent), "known": normal(*latent),
        "mask": (normal(n, 1, *size) > 0).double(), **dict(zip(context_names(unet), pairs, strict=True)),
    }  # fmt: skip
    return inputs, text


def written_out(unet: Any, inputs: dict[str, Any], text: Any) -> Any:
    """The next bank, picture by picture and condition by condition."""
    bank, level, known, fresh = (inputs[name].clone() for name in ("bank", "level", "known", "blend_noise"))
    kept = inputs["mask"].expand_as(known) == 0
    bank[:, 0][kept] = (level[0] * known + level[1] * fresh)[kept]
    n, conditions = len(bank), len(inputs["weights"])
    prompts = len(text) // conditions
    guided = torch.zeros_like(known)
    for condition, picture in itertools.product(range(conditions), range(n)):
        words = text[condition * prompts + picture * prompts // n]
        prediction = unet(inputs["scale"] * bank[picture, :1], TIMESTEP, words[None]).sample[0]
        guided[picture] += inputs["weights"][condition] * prediction
    columns = torch.stack([*bank.unbind(1), guided, inputs["noise"]], 1)
    return torch.einsum("ij,njchw->nichw", inputs["matrix"], columns)


SIZES = [
    (1, 1, 1, 1, (8, 8)), (2, 2, 2, 1, (7, 9)), (3, 3, 2, 3, (6, 5)), (4, 4, 3, 2, (8, 6)), (1, 2, 3, 1, (3, 1)),
]  # fmt: skip


@pytest.mark.parametrize(("n", "memory", "conditions", "prompts", "size"), SIZES)
def test_the_step_is_diffusers_network_in_a_loop(
    unet: Any, n: int, memory: int, conditions: int, prompts: int, size: tuple[int, int]
) -> None:
    inputs, text = example(unet, n, memory, conditions, prompts, size)
    with torch.no_grad():
        want, got = written_out(unet, inputs, text), DenoisingStep(unet)(*inputs.values())
    assert (got - want).abs().max() <= 1e-10 * want.abs().max()


VARIANTS = [
    {"use_linear_projection": True}, {"transformer_layers_per_block": 2}, {"layers_per_block": 2},
    {"attention_head_dim": [2, 4]}, {"downsample_padding": 0}, {"mid_block_scale_factor": 2.0},
    {"block_out_channels": [8, 8, 16], "down_block_types": ["DownBlock2D", *CONFIG["down_block_types"]],
     "up_block_types": [*CONFIG["up_block_types"], "UpBlock2D"]},
]  # fmt: skip


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda changes: next(iter(changes)))
def test_networks_of_other_sizes(changes: dict[str, Any]) -> None:
    other = network(**changes)
    inputs, text = example(other, 2, 2, 2, 1, (7, 6))
    with torch.no_grad():
        want, got = written_out(other, inputs, text), DenoisingStep(other)(*inputs.values())
    assert (got - want).abs().max() <= 1e-10 * want.abs().max()


def test_where_nothing_is_kept_nothing_is_blended(unet: Any) -> None:
    inputs, _ = example(unet, 1, 1, 1, 1, (8, 8))
    inputs["mask"] = torch.ones_like(inputs["mask"])
    step = DenoisingStep(unet)
    with torch.no_grad():
        plain = step(*inputs.values())
        other = step(*{**inputs, "known": inputs["noise"], "level": inputs["level"] + 1}.values())
    assert torch.equal(plain, other)


def test_context_names(unet: Any) -> None:
    assert context_layers(unet) == 4  # one on the way down, one in the middle, two on the way up
    assert context_names(unet)[:3] == ("key_00", "value_00", "key_01")
    assert len(ContextKeys(unet)(torch.zeros(1, 2, 12, dtype=torch.float64))) == len(context_names(unet))


def test_weights_are_shared(unet: Any) -> None:
    theirs = {parameter.untyped_storage().data_ptr() for parameter in unet.parameters()}
    for module in (DenoisingStep(unet), TimeRows(unet), ContextKeys(unet)):
        assert {parameter.untyped_storage().data_ptr() for parameter in module.parameters()} <= theirs


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_class_embeds": 3}, "num_class_embeds is 3"),
        ({"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift"),
        ({"in_channels": 9}, "4 channels of 9"),
        ({"act_fn": "gelu"}, "act_fn is 'gelu'"),
        ({"down_block_types": ["CrossAttnDownBlock2D", "AttnDownBlock2D"]}, "AttnDownBlock2D"),
        ({"only_cross_attention": True}, "only_cross_attention"),
    ],
)  # fmt: skip
def test_other_networks_are_refused(changes: dict[str, Any], said: str) -> None:
    for module in (DenoisingStep, TimeRows, ContextKeys):
        with pytest.raises(ConversionError, match=r"not one of Stable Diffusion 1\.x") as caught:
            module(network(**changes))
        assert said in caught.value.cause


def test_rows_of_the_query_share_rows_of_keys() -> None:
    query, key, value = (torch.randn(rows, length, 8, dtype=torch.float64) for rows, length in ((6, 3), (2, 4), (2, 4)))
    every = [each.repeat_interleave(3, 0) for each in (key, value)]
    torch.testing.assert_close(attention(query, key, value, 2), attention(query, *every, 2), rtol=0, atol=1e-12)
    one = attention(query[:1], key[:1], value[:1], 1)
    want = (query[0] @ key[0].T / 8**0.5).softmax(-1) @ value[0]
    torch.testing.assert_close(one[0], want, rtol=0, atol=1e-12)


# -- engines ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(unet: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The step's files."""
    path = tmp_path_factory.mktemp("step")
    single = copy.deepcopy(unet).float()
    inputs, _ = example(unet, 4, 3, 2, 2, (6, 10))
    free = {
        "bank": {0: "n", 1: "k", 3: "h", 4: "w"}, "matrix": {0: "k", 1: "k + 2"}, "weights": {0: "c"},
        **dict.fromkeys(("noise", "blend_noise", "known", "mask"), LATENT),
        **{name: {0: "rows", 1: "tokens"} for name in context_names(unet)},
    }  # fmt: skip
    tensors = {name: tensor.float() for name, tensor in inputs.items()}
    part = Part(DenoisingStep(single), tensors, ("next_bank",), Card(engine="step"), free)
    deviations, forms = write_part(part, path / "step.onnx")
    assert forms == {
        "default": "step.onnx", "openvino": "step.openvino.onnx", "tensorrt": "step.tensorrt.onnx",
    }  # fmt: skip
    assert deviations[0].max_in_std < 1e-5
    return path


@pytest.mark.parametrize(
    ("device", "file"),
    [("cpu", "step"), ("cpu", "step.openvino"), ("cpu", "step.tensorrt"), ("openvino", "step.openvino")],
)
def test_every_form_at_every_size(unet: Any, folder: Path, device: Any, file: str) -> None:
    if device == "openvino":
        pytest.importorskip("openvino", reason="openvino is not installed")
    with Engine.open(folder / f"{file}.onnx", device) as engine:
        for n, memory, conditions, prompts, size in SIZES[:3]:
            inputs, _ = example(unet, n, memory, conditions, prompts, size, tokens=n + 1)
            with torch.no_grad():
                want = DenoisingStep(unet)(*inputs.values()).numpy()
            got = engine(**{name: tensor.float().numpy() for name, tensor in inputs.items()})["next_bank"]
            assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


def test_the_step_runs_as_a_scan(unet: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two steps; the weights' file is found from any working directory."""
    monkeypatch.chdir(tmp_path)
    inputs, _ = example(unet, 2, 2, 2, 1, (8, 6))
    again = inputs | {"time": -inputs["time"], "scale": inputs["scale"] + 1, "noise": -inputs["noise"]}
    with torch.no_grad():
        first = DenoisingStep(unet)(*inputs.values())
        want = DenoisingStep(unet)(*(again | {"bank": first}).values())
    single, steps = ({name: each.float().numpy() for name, each in table.items()} for table in (inputs, again))
    per_step = ("scale", "time", "matrix", "weights", "noise", "level", "blend_noise")
    series = {name: np.stack([single[name], steps[name]]) for name in per_step}
    constants = {name: array for name, array in single.items() if name != "bank" and name not in per_step}
    with Engine.open(folder / "step.onnx", "cpu") as engine:
        got = engine.scan({"bank": single["bank"]}, series, constants)["bank"]
    assert np.abs(got - want.numpy()).max() <= 1e-5 * want.abs().max()


def test_weights_are_stored_once(unet: Any, folder: Path) -> None:
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert sorted(sizes) == ["step.onnx", "step.onnx.data", "step.openvino.onnx", "step.tensorrt.onnx"]
    keys = sum(each.weight.numel() for each in ContextKeys(unet).projections)
    times = sum(each.numel() for each in TimeRows(unet).parameters())
    weights = 4 * (sum(each.numel() for each in unet.parameters()) - keys - times)
    assert weights * 0.8 < sizes["step.onnx.data"] < weights + 20_000  # all but tiny ones; aligned only where large


def test_the_sdk_reads_every_form(folder: Path) -> None:
    for path in folder.glob("*.onnx"):
        card, graph = Card.read(path), Graph.read(path)
        assert card.deviation["next_bank"] < 1e-5
        assert card.example_shapes["bank"] == (4, 3, 4, 6, 10)
        assert [str(value) for value in graph.inputs[:4]] == [
            "bank float32[n, k, 4, h, w]", "scale float32[1]", "time float32[104]", "matrix float32[k, k + 2]",
        ]  # fmt: skip
        assert b"denoising_step.py" not in path.read_bytes()  # the exporter notes where every node comes from


def test_a_bundle_pins_the_weights(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    write_manifest(tmp_path, {"name": "x", "system": "x", "licence": "MIT"}, {"step": {"default": "step.onnx"}}, {})
    Bundle(tmp_path).verify()
    with (tmp_path / "step.onnx.data").open("r+b") as file:
        file.write(b"other")
    with pytest.raises(IntegrityError, match=r"step\.onnx\.data"):
        Bundle(tmp_path).verify()


def test_time_and_context_as_engines(unet: Any, tmp_path: Path) -> None:
    single = copy.deepcopy(unet).float()
    texts, steps = torch.randn(3, 5, 12), torch.tensor([0.0, TIMESTEP, 999.0, 3.0])
    modules: dict[str, tuple[nn.Module, dict[str, Any], tuple[str, ...], dict[int, str]]] = {
        "time": (TimeRows(single), {"timestep": steps}, ("rows",), {0: "s"}),
        "context": (ContextKeys(single), {"text": texts}, context_names(unet), {0: "rows", 1: "tokens"}),
    }
    for name, (module, inputs, outputs, free) in modules.items():
        deviations, forms = write_part(
            Part(module, inputs, outputs, Card(engine=name), free), tmp_path / f"{name}.onnx"
        )
        assert (len(deviations), forms) == (len(outputs), {"default": f"{name}.onnx"})
        assert max(each.max_in_std for each in deviations) < 1e-5
    with Engine.open(tmp_path / "time.onnx", "cpu") as engine, torch.no_grad():
        rows = engine(timestep=np.float32([TIMESTEP]))["rows"]
        np.testing.assert_allclose(rows, TimeRows(unet)(torch.tensor([TIMESTEP])), rtol=0, atol=1e-4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["context.onnx", "time.onnx"]
