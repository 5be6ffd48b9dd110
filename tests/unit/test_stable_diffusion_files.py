"""Stable Diffusion's files: every form that it is published in gives the same networks, others are refused."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from facesdk.errors import ConversionError, MissingDependency, ModelNotFound

torch = pytest.importorskip("torch", reason="the export room needs torch")
pytest.importorskip("diffusers", reason="Stable Diffusion's networks are those of diffusers")

from facesdk_export.stable_diffusion import StableDiffusion, read_stable_diffusion  # noqa: E402
from facesdk_export.stable_diffusion_names import ldm_unet_names, ldm_vae_names  # noqa: E402
from facesdk_export.stable_diffusion_networks import unet_of, vae_of  # noqa: E402
from tests.parity.reference import ROOT  # noqa: E402
from tests.unit.stable_diffusion_files import TEXT, Entries, save, single_file, weights, write_folder  # noqa: E402

Change = Callable[[Entries], Any]


@pytest.fixture(scope="module")
def values() -> dict[str, Entries]:
    return weights()


def check(read: StableDiffusion, values: dict[str, Entries]) -> None:
    """All values arrived, bit for bit, as float32."""
    for network, part in ((read.unet, "unet"), (read.vae, "vae"), (read.text, "text_encoder")):
        got = network.state_dict()
        assert got.keys() == values[part].keys()
        assert all(torch.equal(got[name], value.float()) for name, value in values[part].items())
        assert not any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers()))


# -- forms ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".safetensors", ".bin", ".fp16.safetensors"])
def test_folder(tmp_path: Path, values: dict[str, Entries], ending: str) -> None:
    read = read_stable_diffusion(write_folder(tmp_path / "sd", values, ending))
    check(read, values)
    assert read.report.count("unused: none") == 3
    assert read.constants == {
        "scaling_factor": 0.18215, "cell": 2, "latent_channels": 4, "tokens": 77, "width": 64, "timesteps": 1000,
        "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction": "epsilon", "size": 16,
    }  # fmt: skip


def test_folder_as_diffusers_and_transformers_save_it(tmp_path: Path, values: dict[str, Entries]) -> None:
    folder = write_folder(tmp_path / "sd", values)
    read = read_stable_diffusion(folder)
    for network, part in ((read.unet, "unet"), (read.vae, "vae")):
        shutil.rmtree(folder / part)
        network.save_pretrained(folder / part)
    transformers = pytest.importorskip("transformers", reason="what writes text encoders")
    text = transformers.CLIPTextModel(transformers.CLIPTextConfig(**TEXT))
    text.load_state_dict(_for_transformers(text, values["text_encoder"]))
    shutil.rmtree(folder / "text_encoder")
    text.save_pretrained(folder / "text_encoder")
    again = read_stable_diffusion(folder)
    check(again, values)
    assert again.constants == read.constants


def _for_transformers(text: Any, values: Entries) -> Entries:
    """The values under the names that the installed version has in memory."""
    return {name: values[name.removeprefix("text_model.")] for name in text.state_dict()}


@pytest.mark.parametrize("ending", [".ckpt", ".safetensors"])
def test_single_file(tmp_path: Path, values: dict[str, Entries], ending: str) -> None:
    path = tmp_path / f"model{ending}"
    entries = single_file(values)
    save({"state_dict": entries, "global_step": 3} if ending == ".ckpt" else entries, path)
    read = read_stable_diffusion(path, text_heads=1)
    check(read, values)
    count = sum(map(len, values.values()))
    left = "betas, cond_stage_model.transformer.text_model.embeddings.position_ids"
    assert read.report == f"{count} entries loaded, unused: {left}"
    assert read.unet.config.attention_head_dim == 8
    assert read.constants["size"] == 2 * 64


def test_both_forms_compute_the_same(tmp_path: Path, values: dict[str, Entries]) -> None:
    save(single_file(values), tmp_path / "model.safetensors")
    reads = [read_stable_diffusion(write_folder(tmp_path / "sd", values))]
    reads.append(read_stable_diffusion(tmp_path / "model.safetensors"))
    generator = torch.Generator().manual_seed(1)
    latent = torch.randn(1, 4, 8, 8, generator=generator)
    ids = torch.randint(0, 300, (1, 77), generator=generator)
    with torch.inference_mode():
        texts = [read.text(ids) for read in reads]
        noises = [read.unet(latent, 7.5, text).sample for read, text in zip(reads, texts, strict=True)]
        images = [read.vae.decode(latent).sample for read in reads]
    for first, second in (texts, noises, images):
        torch.testing.assert_close(first, second, rtol=0, atol=1e-5)  # sums depend on how the file is aligned


def test_half_precision_becomes_float32(tmp_path: Path, values: dict[str, Entries]) -> None:
    halves = {part: {name: value.half() for name, value in entries.items()} for part, entries in values.items()}
    check(read_stable_diffusion(write_folder(tmp_path / "sd", halves)), halves)
    entries = single_file(halves)
    save(entries | {"betas": entries["betas"].half()}, tmp_path / "model.safetensors")
    check(read_stable_diffusion(tmp_path / "model.safetensors"), halves)


def test_shards(tmp_path: Path, values: dict[str, Entries]) -> None:
    folder = write_folder(tmp_path / "sd", values)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    names = list(values["unet"])
    files = {"one.safetensors": names[:100], "two.safetensors": names[100:]}
    for file, part in files.items():
        save({name: values["unet"][name] for name in part}, folder / "unet" / file)
    index = {"metadata": {}, "weight_map": {name: file for file, part in files.items() for name in part}}
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    check(read_stable_diffusion(folder), values)


OLD = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}


def old(name: str) -> str:
    for new, past in OLD.items():
        name = name.replace(new, past)
    return name


@pytest.mark.parametrize("convolutions", [False, True])
def test_attention_names_of_the_past(tmp_path: Path, values: dict[str, Entries], convolutions: bool) -> None:
    folder = write_folder(tmp_path / "sd", values, ".bin")
    renamed = {old(name): value for name, value in values["vae"].items()}
    assert sum(name not in values["vae"] for name in renamed) == 16
    if convolutions:
        renamed = {n: v[..., None, None] if "attentions" in n and v.ndim == 2 else v for n, v in renamed.items()}
    save(renamed, folder / "vae" / "diffusion_pytorch_model.bin")
    read = read_stable_diffusion(folder)
    check(read, values)
    assert read.report.count("unused: none") == 3


def test_text_encoders_of_all_times(tmp_path: Path, values: dict[str, Entries]) -> None:
    folder = write_folder(tmp_path / "sd", values, ".bin")
    path = folder / "text_encoder" / "pytorch_model.bin"
    save(values["text_encoder"], path)
    check(read_stable_diffusion(folder), values)
    named = {f"text_model.{name}": value for name, value in values["text_encoder"].items()}
    save(named | {"text_model.embeddings.position_ids": torch.arange(77)[None]}, path)
    read = read_stable_diffusion(folder)
    check(read, values)
    assert "text_encoder: 36 entries loaded, unused: text_model.embeddings.position_ids" in read.report
    entries = {name.replace("transformer.text_model.", "transformer."): v for name, v in single_file(values).items()}
    save(entries, tmp_path / "new.safetensors")
    check(read_stable_diffusion(tmp_path / "new.safetensors"), values)


def test_averages_are_reported_and_not_used(tmp_path: Path, values: dict[str, Entries]) -> None:
    entries = single_file(values)
    names = [name for name in entries if name.startswith("model.")]
    for name in names:
        entries["model_ema." + name.removeprefix("model.").replace(".", "")] = torch.zeros(1)
    entries["model_ema.decay"] = torch.zeros(())
    save(entries | {"first_stage_model.loss.logvar": torch.zeros(())}, tmp_path / "model.ckpt")
    read = read_stable_diffusion(tmp_path / "model.ckpt")
    check(read, values)
    assert f"model_ema ({len(names) + 1})" in read.report
    assert "first_stage_model.loss.logvar" in read.report


def test_other_predictions(tmp_path: Path, values: dict[str, Entries]) -> None:
    scheduler = {"prediction_type": "v_prediction", "beta_schedule": "linear", "beta_end": 0.02}
    read = read_stable_diffusion(write_folder(tmp_path / "sd", values, scheduler=scheduler))
    assert (read.constants["prediction"], read.constants["beta_schedule"]) == ("v_prediction", "linear")
    assert read.constants["beta_end"] == 0.02


# -- published names --------------------------------------------------------------------------------------


@pytest.mark.skipif(not ROOT.is_dir(), reason="the reference folder is absent")
def test_published_entries_are_all_known() -> None:
    """The full-size manifests, which were taken from the original classes."""
    published = manifest("face2diffusion")
    single = manifest("dense_face")["DenseFace_text_editing.safetensors"]["entries"]
    for part, build, names, prefix in (
        ("unet", unet_of, ldm_unet_names, "model.diffusion_model."),
        ("vae", vae_of, ldm_vae_names, "first_stage_model."),
    ):
        of_folder = published[f"sd14/{part}/diffusion_pytorch_model"]
        shapes = {name: list(value.shape) for name, value in build(of_folder["config"]).state_dict().items()}
        assert {old(name) if part == "vae" else name: shape for name, shape in shapes.items()} == of_folder["entries"]
        of_file = {prefix + name: without_ones(shapes[own]) for name, own in names(shapes).items()}
        assert of_file == {name: without_ones(shape) for name, shape in single.items() if name.startswith(prefix)}


def manifest(system: str) -> dict[str, Any]:
    text: dict[str, Any] = json.loads((ROOT / system / "state_dict.json").read_text())
    return text


def without_ones(shape: list[int]) -> list[int]:
    return [side for side in shape if side > 1]


# -- refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight",
        "model.diffusion_model.output_blocks.0.0.in_layers.2.weight",
        "model.diffusion_model.input_blocks.0.0.weight",
        "first_stage_model.decoder.mid.attn_1.q.weight",
        "first_stage_model.post_quant_conv.weight",
        "cond_stage_model.transformer.text_model.encoder.layers.1.mlp.fc2.bias",
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
    ],
)
def test_a_missing_entry_is_named_as_published(tmp_path: Path, values: dict[str, Entries], name: str) -> None:
    entries = single_file(values)
    del entries[name]
    save(entries, tmp_path / "model.safetensors")
    with pytest.raises(ConversionError, match=re.escape(name)):
        read_stable_diffusion(tmp_path / "model.safetensors")


def test_a_missing_entry_of_a_folder(tmp_path: Path, values: dict[str, Entries]) -> None:
    folder = write_folder(tmp_path / "sd", values)
    rest = {name: value for name, value in values["unet"].items() if name != "mid_block.resnets.0.conv1.bias"}
    save(rest, folder / "unet" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ConversionError, match=r"missing: mid_block\.resnets\.0\.conv1\.bias"):
        read_stable_diffusion(folder)


def wider(entries: Entries) -> None:
    entries["model.diffusion_model.out.0.weight"] = torch.ones(33)


def inpainting(entries: Entries) -> None:
    entries["model.diffusion_model.input_blocks.0.0.weight"] = torch.zeros(32, 9, 3, 3)


def linear(entries: Entries) -> None:
    for name in list(entries):
        if re.search(r"proj_(in|out)\.weight", name):
            entries[name] = entries[name].reshape(entries[name].shape[:2])


def second(entries: Entries) -> None:
    entries["cond_stage_model.model.positional_embedding"] = torch.zeros(77, 1024)


def extra_large(entries: Entries) -> None:
    entries["conditioner.embedders.0.transformer.text_model.final_layer_norm.bias"] = torch.zeros(768)


def other_noise(entries: Entries) -> None:
    entries["betas"] = torch.linspace(1e-4, 0.02, 1000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (wider, r"out\.0\.weight is \[33\], not \[32\]"),
        (inpainting, "takes 9 channels"),
        (linear, "use_linear_projection is True"),
        (second, "Stable Diffusion 2"),
        (extra_large, "Stable Diffusion XL"),
        (other_noise, "noise schedule"),
    ],
)
def test_other_single_files_are_refused(
    tmp_path: Path, values: dict[str, Entries], change: Change, message: str
) -> None:
    entries = single_file(values)
    change(entries)
    save(entries, tmp_path / "model.safetensors")
    with pytest.raises(ConversionError, match=message):
        read_stable_diffusion(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("part", "config", "message"),
    [
        ("unet", {"use_linear_projection": True}, "Stable Diffusion 2"),
        ("unet", {"addition_embed_type": "text_time"}, "Stable Diffusion XL"),
        ("unet", {"cross_attention_dim": 1024}, "attends to vectors of 1024, the text encoder gives 64"),
        ("unet", {"down_block_types": ["NoSuchBlock"] * 2}, "describes no network"),
        ("unet", {"block_out_channels": [30, 64]}, "describes no network"),
        ("unet", {"block_out_channels": [320, 640]}, "does not fit the network"),
        ("vae", {"use_quant_conv": False}, "Flux"),
        ("vae", {"latent_channels": 16}, "the latent has 16"),
        ("text_encoder", {"hidden_act": "gelu"}, "Stable Diffusion 2"),
        ("text_encoder", {"num_attention_heads": 5}, "5 heads do not divide 64"),
        ("text_encoder", {"hidden_size": "wide"}, "describes no network"),
        ("scheduler", {"prediction_type": "flow"}, "prediction_type is 'flow'"),
        ("scheduler", {"trained_betas": [0.1]}, "trained_betas"),
        ("scheduler", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
    ],
)
def test_other_folders_are_refused(
    tmp_path: Path, values: dict[str, Entries], part: str, config: dict[str, Any], message: str
) -> None:
    folder = write_folder(tmp_path / "sd", values, **{part: config})
    with pytest.raises(ConversionError, match=message):
        read_stable_diffusion(folder)


# -- damage -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt"])
def test_a_truncated_file(tmp_path: Path, values: dict[str, Entries], name: str) -> None:
    save(single_file(values), tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConversionError, match="cannot be read as a checkpoint"):
        read_stable_diffusion(tmp_path / name)


@pytest.mark.parametrize(
    "missing", ["unet/config.json", "vae/diffusion_pytorch_model.bin", "scheduler/scheduler_config.json"]
)
def test_an_incomplete_folder(tmp_path: Path, values: dict[str, Entries], missing: str) -> None:
    folder = write_folder(tmp_path / "sd", values, ".bin")
    (folder / missing).unlink()
    with pytest.raises(ModelNotFound, match=missing.partition("/")[0]):
        read_stable_diffusion(folder)


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_a_damaged_configuration(tmp_path: Path, values: dict[str, Entries], text: str) -> None:
    folder = write_folder(tmp_path / "sd", values)
    (folder / "vae" / "config.json").write_text(text)
    with pytest.raises(ConversionError, match=re.escape(str(folder / "vae" / "config.json"))):
        read_stable_diffusion(folder)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        read_stable_diffusion(tmp_path / "model.ckpt")


def test_without_diffusers(tmp_path: Path, values: dict[str, Entries], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "sd", values)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingDependency, match="pip install diffusers"):
        read_stable_diffusion(folder)
