"""A Stable Diffusion in little, and its published forms on disk: a folder of diffusers, and a single file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facesdk_export.stable_diffusion_names import ldm_unet_names, ldm_vae_names
from facesdk_export.stable_diffusion_networks import text_of, unet_of, vae_of

Entries = dict[str, Tensor]

UNET = {
    "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.2.2", "sample_size": 8, "layers_per_block": 2,
    "block_out_channels": [32, 64], "attention_head_dim": 8, "cross_attention_dim": 64, "a_key_of_the_past": 1,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}  # fmt: skip
VAE = {
    "_class_name": "AutoencoderKL", "block_out_channels": [32, 64], "layers_per_block": 2, "sample_size": 16,
    "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2,
}  # fmt: skip
TEXT = {
    "vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 96,
    "max_position_embeddings": 77, "hidden_act": "quick_gelu", "projection_dim": 64,
}  # fmt: skip
SCHEDULER = {
    "_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000, "skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1,
}  # fmt: skip
PARTS: dict[str, tuple[Callable[..., Any], dict[str, Any], str]] = {
    "unet": (unet_of, UNET, "diffusion_pytorch_model"),
    "vae": (vae_of, VAE, "diffusion_pytorch_model"),
    "text_encoder": (text_of, TEXT, "pytorch_model"),
}


def weights() -> dict[str, Entries]:
    """Random values of each part's entries, under diffusers' and transformers' names; norms near one."""
    generator = torch.Generator().manual_seed(0)
    return {
        part: {name: _values(value, generator) for name, value in build(config).state_dict().items()}
        for part, (build, config, _) in PARTS.items()
    }


def _values(like: Tensor, generator: torch.Generator) -> Tensor:
    values = torch.randn(like.shape, generator=generator)
    return values / like[0].numel() ** 0.5 if like.ndim > 1 else 1 + 0.1 * values


def save(entries: Entries, path: Path) -> None:
    """Write a .bin or .ckpt of torch, or a .safetensors."""
    if path.suffix != ".safetensors":
        torch.save(entries, path)
        return
    kinds = {torch.float32: "F32", torch.float16: "F16", torch.int64: "I64"}
    header, start = {}, 0
    for name, value in entries.items():
        end = start + value.numel() * value.element_size()
        header[name] = {"dtype": kinds[value.dtype], "shape": list(value.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    data = b"".join(value.contiguous().numpy().tobytes() for value in entries.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def write_folder(
    folder: Path, values: dict[str, Entries], ending: str = ".safetensors", **changes: dict[str, Any]
) -> Path:
    """The folder, as diffusers saves it; `changes` are of the configurations: unet, vae, text_encoder, scheduler."""
    for part, (_, config, stem) in PARTS.items():
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(config | changes.get(part, {})))
        stem = "model" if stem == "pytorch_model" and ending == ".safetensors" else stem
        prefix = "text_model." if part == "text_encoder" else ""
        save({prefix + name: value for name, value in values[part].items()}, folder / part / f"{stem}{ending}")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER | changes.get("scheduler", {})))
    return folder


def single_file(values: dict[str, Entries]) -> Entries:
    """The same entries under CompVis' names, the autoencoder's attention as 1x1 convolutions."""
    unet = {f"model.diffusion_model.{name}": own for name, own in ldm_unet_names(values["unet"]).items()}
    vae = {f"first_stage_model.{name}": own for name, own in ldm_vae_names(values["vae"]).items()}
    entries = {name: values["unet"][own] for name, own in unet.items()}
    for name, own in vae.items():
        value = values["vae"][own]
        entries[name] = value[:, :, None, None] if ".attn_1." in name and value.ndim == 2 else value
    prefix = "cond_stage_model.transformer.text_model."
    entries |= {prefix + name: value for name, value in values["text_encoder"].items()}
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return entries | {"betas": betas.float(), f"{prefix}embeddings.position_ids": torch.arange(77)[None]}
