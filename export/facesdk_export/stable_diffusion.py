"""Stable Diffusion 1 as it is published: a folder of diffusers, or a single file with CompVis' names."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from facesdk.errors import ConversionError, ModelNotFound

from .checkpoints import Checkpoint, Report, load_into, read_checkpoint
from .clip_tokenizer import tokenizer_json
from .networks.text_encoder import TextModel
from .stable_diffusion_names import (
    TEXT,
    UNET,
    VAE,
    Entries,
    Renamed,
    ldm_unet_names,
    ldm_vae_names,
    old_vae_name,
    text_config,
    unet_config,
    vae_config,
)  # fmt: skip
from .stable_diffusion_networks import foreign, text_of, unet_of, vae_of

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel

__all__ = ["StableDiffusion", "ldm_unet_names", "ldm_vae_names", "read_stable_diffusion", "tokenizer_json"]

#: CompVis/stable-diffusion, v1-inference.yaml, in the words of diffusers' scheduler_config.json
_SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
}  # fmt: skip
#: what of a scheduler changes the noise that the network was trained on, and the values that are understood
_KNOWN: dict[str, tuple[Any, ...]] = {
    "prediction_type": ("epsilon", "v_prediction", "sample"), "beta_schedule": ("scaled_linear", "linear"),
    "trained_betas": (None,), "rescale_betas_zero_snr": (False, None),
}  # fmt: skip
_ENDINGS = (".safetensors", ".bin", ".fp16.safetensors", ".fp16.bin")
_INDICES = (".safetensors.index.json", ".bin.index.json")


@dataclasses.dataclass(frozen=True)
class StableDiffusion:
    """The networks in float32, and what is known of them.

    constants  as a bundle's [constants.diffusion]: scaling_factor, cell, latent_channels, tokens, width, timesteps,
               beta_start, beta_end, beta_schedule, prediction, size.
    report     how many entries each network took, and which ones none did.
    """

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text: TextModel
    constants: dict[str, Any]
    report: str
    path: Path


def read_stable_diffusion(path: str | Path, *, heads: int = 8, text_heads: int | None = None) -> StableDiffusion:
    """The networks of a folder of diffusers, or of a single file (.ckpt, .safetensors).

    heads, text_heads  of the UNet and of the text encoder (None: of 64 channels each), which a single file does not
                       tell; a folder does.
    Raises ModelNotFound; ConversionError for damaged files, missing entries, and other models than Stable Diffusion 1;
    MissingDependency.
    """
    return _from_folder(Path(path)) if Path(path).is_dir() else _from_file(read_checkpoint(path), heads, text_heads)


# -- single files -----------------------------------------------------------------------------------------


def _from_file(file: Checkpoint, heads: int, text_heads: int | None) -> StableDiffusion:
    _refuse_others(file)
    place = next((each for each in TEXT if each + "final_layer_norm.weight" in file.entries), TEXT[0])
    unet = unet_of(unet_config(Entries(file, UNET), heads), file.path)
    vae = vae_of(vae_config(Entries(file, VAE)), file.path)
    text = text_of(text_config(Entries(file, place), text_heads), file.path)
    constants = _constants(file.path, unet, vae, text, _SCHEDULER)
    report = _load(unet, file, {UNET + name: own for name, own in ldm_unet_names(unet.state_dict()).items()})
    report += _load(vae, file, {VAE + name: own for name, own in ldm_vae_names(vae.state_dict()).items()})
    report += _load(text, file, {place + name: name for name in text.state_dict()})
    return StableDiffusion(unet, vae, text, constants, _told(report), file.path)


def _load(network: nn.Module, file: Checkpoint, names: dict[str, str]) -> Report:
    return load_into(Renamed(network, names, file.entries), file)


def _refuse_others(file: Checkpoint) -> None:
    owners = {"conditioner.": "Stable Diffusion XL", "cond_stage_model.model.": "Stable Diffusion 2"}
    for prefix, owner in owners.items():
        if any(name.startswith(prefix) for name in file.entries):
            raise foreign(file.path, f"its text encoder's entries begin with {prefix}", owner)
    start, end, steps = (_SCHEDULER[key] for key in ("beta_start", "beta_end", "num_train_timesteps"))
    usual = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
    betas = file.entries.get("betas", usual).double()
    if betas.shape != usual.shape or not torch.allclose(betas, usual, rtol=2e-3, atol=0):  # float16 is that coarse
        fact = f"its noise schedule is of {betas.numel()} steps, of {betas.min():g} to {betas.max():g}"
        raise foreign(file.path, fact, "models that were trained on other noise")


# -- folders ----------------------------------------------------------------------------------------------


def _from_folder(folder: Path) -> StableDiffusion:
    unet, vae, text = (
        build(_config(folder / part / "config.json"), folder / part / "config.json")
        for build, part in ((unet_of, "unet"), (vae_of, "vae"), (text_of, "text_encoder"))
    )
    scheduler = folder / "scheduler" / "scheduler_config.json"
    constants = _constants(scheduler, unet, vae, text, _SCHEDULER | _config(scheduler))
    reports = {
        "unet": _load_part(unet, folder / "unet", lambda name: (name,)),
        "vae": _load_part(vae, folder / "vae", lambda name: (name, old_vae_name(name))),
        "text_encoder": _load_part(text, folder / "text_encoder", lambda name: (f"text_model.{name}", name)),
    }
    told = "\n".join(f"{part}: {_told(report)}" for part, report in reports.items())
    return StableDiffusion(unet, vae, text, constants, told, folder)


def _load_part(network: nn.Module, folder: Path, published: Callable[[str], Sequence[str]]) -> Report:
    """The report after loading a subfolder's weights; `published` gives the names that an entry may have."""
    file = _weights(folder)
    names = {name: published(name) for name in network.state_dict()}
    found = {
        name: next((each for each in each_of if each in file.entries), each_of[0]) for name, each_of in names.items()
    }
    return _load(network, file, {there: name for name, there in found.items()})


def _weights(folder: Path) -> Checkpoint:
    stems = ("diffusion_pytorch_model", "model", "pytorch_model")
    names = [stem + ending for ending in _ENDINGS + _INDICES for stem in stems]
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise ModelNotFound(
            f"{folder} holds no weights",
            cause=f"looked for {', '.join(stem + ending for stem in stems for ending in _ENDINGS[:2])}",
            remedy="download that subfolder too; its weights come with its config.json",
        )
    if path.suffix != ".json":
        return read_checkpoint(path)
    places = _config(path).get("weight_map")
    files = {Path(str(name)).name for name in places.values()} if isinstance(places, dict) else set()
    entries = {name: value for file in sorted(files) for name, value in read_checkpoint(folder / file).entries.items()}
    return Checkpoint(path, entries)


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelNotFound(
            f"{path} does not exist",
            cause="a folder of diffusers has unet/, vae/, text_encoder/ and scheduler/, each with its configuration",
            remedy="download the whole folder, or give a single file: .ckpt or .safetensors",
        ) from error
    except ValueError as error:
        raise ConversionError(f"{path} is no JSON", cause=str(error), remedy="download or copy it again") from error
    if not isinstance(config, dict):
        raise ConversionError(f"{path} holds a {type(config).__name__}, not a table", remedy="download it again")
    return config


# -- what is known ----------------------------------------------------------------------------------------


def _constants(
    source: Path, unet: UNet2DConditionModel, vae: AutoencoderKL, text: TextModel, scheduler: dict[str, Any]
) -> dict[str, Any]:
    tokens, width = text.embeddings["position_embedding"].weight.shape
    latent, sample = vae.config.latent_channels, unet.config.sample_size
    cell = 2 ** (len(vae.config.block_out_channels) - 1)
    if {unet.config.in_channels, unet.config.out_channels} != {latent}:
        fact = f"the UNet takes {unet.config.in_channels} channels, the latent has {latent}"
        raise foreign(source, fact, "models for inpainting or upscaling")
    if unet.config.cross_attention_dim != width:
        fact = f"the UNet attends to vectors of {unet.config.cross_attention_dim}, the text encoder gives {width}"
        raise foreign(source, fact, "two models mixed up")
    _check_scheduler(source, scheduler)
    return {
        "scaling_factor": vae.config.scaling_factor,
        "cell": cell,
        "latent_channels": latent,
        "tokens": tokens,
        "width": width,
        "timesteps": scheduler["num_train_timesteps"],
        "beta_start": scheduler["beta_start"],
        "beta_end": scheduler["beta_end"],
        "beta_schedule": scheduler["beta_schedule"],
        "prediction": scheduler["prediction_type"],
        "size": cell * (sample if isinstance(sample, int) else 64),
    }


def _check_scheduler(source: Path, scheduler: dict[str, Any]) -> None:
    for key, known in _KNOWN.items():
        if scheduler.get(key) not in known:
            raise foreign(source, f"{key} is {scheduler.get(key)!r}", "models that were trained on other noise")


def _told(report: Report) -> str:
    """The report in one line, several unused entries that begin with the same word by that and their number."""
    roots = Counter(name.partition(".")[0] for name in report.unused)
    told = [name for name in report.unused if roots[name.partition(".")[0]] == 1]
    told += [f"{root} ({count})" for root, count in roots.items() if count > 1]
    return f"{len(report.loaded)} entries loaded, unused: {', '.join(told) or 'none'}"
