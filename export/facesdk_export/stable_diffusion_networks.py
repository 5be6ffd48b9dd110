"""Stable Diffusion 1's networks of their configurations, on the meta device; other diffusion models are refused."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from facesdk.errors import ConversionError, MissingDependency

from .networks.text_encoder import TextModel

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel

Config = Mapping[str, Any]
Source = str | Path

#: key of a UNet's configuration that Stable Diffusion 1 leaves at its default -> models that do not
_UNET_FOREIGN = {
    "use_linear_projection": "Stable Diffusion 2 and XL", "addition_embed_type": "Stable Diffusion XL",
    "class_embed_type": "unCLIP", "num_class_embeds": "upscalers", "encoder_hid_dim": "Kandinsky",
    "time_cond_proj_dim": "latent consistency models", "dual_cross_attention": "Versatile Diffusion",
    "center_input_sample": "pixel-space models", "resnet_time_scale_shift": "pixel-space models",
    "act_fn": "other models", "only_cross_attention": "upscalers", "addition_time_embed_dim": "Stable Diffusion XL",
}  # fmt: skip
_VAE_FOREIGN = {
    "shift_factor": "Stable Diffusion 3 and Flux", "use_quant_conv": "Stable Diffusion 3 and Flux",
    "use_post_quant_conv": "Stable Diffusion 3 and Flux", "mid_block_add_attention": "Flux", "act_fn": "other models",
    "latents_mean": "other models",
}  # fmt: skip
#: openai/clip-vit-large-patch14, config.json: key -> (argument of TextModel, value where the key is absent)
_TEXT = {
    "vocab_size": ("vocabulary", 49408), "hidden_size": ("width", 768), "num_hidden_layers": ("layers", 12),
    "num_attention_heads": ("heads", 12), "intermediate_size": ("hidden", 3072),
    "max_position_embeddings": ("tokens", 77), "layer_norm_eps": ("eps", 1e-5),
}  # fmt: skip


def unet_of(config: Config, source: Source = "the UNet's configuration") -> UNet2DConditionModel:
    """The UNet without values; keys that diffusers does not know are passed over.  Raises ConversionError."""
    network: UNet2DConditionModel = _network("UNet2DConditionModel", config, _UNET_FOREIGN, source)
    return network


def vae_of(config: Config, source: Source = "the autoencoder's configuration") -> AutoencoderKL:
    """The autoencoder without values; as `unet_of`."""
    network: AutoencoderKL = _network("AutoencoderKL", config, _VAE_FOREIGN, source)
    return network


def text_of(config: Config, source: Source = "the text encoder's configuration") -> TextModel:
    """The text encoder without values, of the configuration as transformers writes it.  Raises ConversionError."""
    if config.get("hidden_act", "quick_gelu") != "quick_gelu":
        raise foreign(source, f"hidden_act is {config['hidden_act']!r}", "Stable Diffusion 2")
    sizes = {name: config.get(key, value) for key, (name, value) in _TEXT.items()}
    try:
        if sizes["width"] % sizes["heads"]:
            raise ValueError(f"{sizes['heads']} heads do not divide {sizes['width']} channels")
        with torch.device("meta"):
            return TextModel(**sizes).eval()
    except (TypeError, ValueError, RuntimeError) as error:
        raise _malformed(source, error) from error


def foreign(source: Source, fact: str, owner: str) -> ConversionError:
    """The error for a model of another kind: what was found, and who has that."""
    return ConversionError(
        f"{source} is not Stable Diffusion 1: {fact}",
        cause=f"that is the form of {owner}",
        remedy="choose a model of the family Stable Diffusion 1 (1.4, 1.5, or one fine-tuned from them)",
    )


def _network(name: str, config: Config, unlike: Mapping[str, str], source: Source) -> Any:
    kind = _kind(name)
    defaults = {key: each.default for key, each in inspect.signature(kind).parameters.items()}
    for key, owner in unlike.items():
        if (config.get(key, defaults[key]) or None) != (defaults[key] or None):
            raise foreign(source, f"{key} is {config[key]!r}", owner)
    try:
        with torch.device("meta"):
            return kind(**{key: value for key, value in config.items() if key in defaults}).eval()
    except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError, AttributeError) as error:
        raise _malformed(source, error) from error


def _kind(name: str) -> type[nn.Module]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other packages, on their way in
            import diffusers

            kind: type[nn.Module] = getattr(diffusers, name)
    except (ImportError, RuntimeError) as error:  # the latter is diffusers' own of a broken import
        raise MissingDependency(
            "Stable Diffusion's networks need the package diffusers", cause=str(error), remedy="pip install diffusers"
        ) from error
    return kind


def _malformed(source: Source, error: Exception) -> ConversionError:
    return ConversionError(
        f"{source} describes no network",
        cause=str(error).partition("\n")[0],
        remedy="download the folder again; config.json and the weights have to be of one model",
    )
