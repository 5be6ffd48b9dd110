"""Names and sizes of Stable Diffusion 1 in single files: CompVis' names of what diffusers names otherwise."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from facesdk.errors import ConversionError

from .checkpoints import Checkpoint

#: where a single file has the three networks; the text encoder's second place is that of newer transformers
UNET, VAE = "model.diffusion_model.", "first_stage_model."
TEXT = ("cond_stage_model.transformer.text_model.", "cond_stage_model.transformer.")

_UNET_LAYERS = {
    "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
_UNET_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out": "proj_out"}
#: diffusers' names of the same layers up to 0.16
_VAE_OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


# -- names ------------------------------------------------------------------------------------------------


def ldm_unet_names(entries: Collection[str]) -> dict[str, str]:
    """Name below "model.diffusion_model." -> the same entry in diffusers, of all entries of a UNet2DConditionModel."""
    layers = _count(entries, r"down_blocks\.\d+\.resnets\.(\d+)\.")
    return {_unet_name(name, layers, entries): name for name in entries}


def _unet_name(name: str, layers: int, entries: Collection[str]) -> str:
    match name.split("."):
        case ["down_blocks", level, "downsamplers", _, _, leaf]:
            return f"input_blocks.{(int(level) + 1) * (layers + 1)}.0.op.{leaf}"
        case ["down_blocks", level, kind, index, *rest]:
            return f"input_blocks.{int(level) * (layers + 1) + int(index) + 1}.{_unet_layer(kind, rest)}"
        case ["mid_block", kind, index, *rest]:
            return f"middle_block.{2 * int(index) + int(kind == 'attentions')}.{_unet_layer(kind, rest)[2:]}"
        case ["up_blocks", level, "upsamplers", _, _, leaf]:
            place = 1 + (f"up_blocks.{level}.attentions.0.norm.weight" in entries)
            return f"output_blocks.{int(level) * (layers + 1) + layers}.{place}.conv.{leaf}"
        case ["up_blocks", level, kind, index, *rest]:
            return f"output_blocks.{int(level) * (layers + 1) + int(index)}.{_unet_layer(kind, rest)}"
    layer, _, leaf = name.rpartition(".")
    return f"{_UNET_LAYERS[layer]}.{leaf}"


def _unet_layer(kind: str, rest: Sequence[str]) -> str:
    layer, *leaf = rest
    return ".".join(["0", _UNET_RESNET[layer], *leaf] if kind == "resnets" else ["1", *rest])


def ldm_vae_names(entries: Collection[str]) -> dict[str, str]:
    """Name below "first_stage_model." -> the same entry in diffusers, of all entries of an AutoencoderKL."""
    levels = _count(entries, r"decoder\.up_blocks\.(\d+)\.")
    return {_vae_name(name, levels): name for name in entries}


def _vae_name(name: str, levels: int) -> str:
    name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    match name.split("."):
        case [half, "down_blocks" | "up_blocks" as way, level, kind, index, *rest]:
            place = f"down.{level}" if way == "down_blocks" else f"up.{levels - 1 - int(level)}"
            inner = ["block", index] if kind == "resnets" else [kind.removesuffix("rs")]
            return ".".join([half, place, *inner, *rest])
        case [half, "mid_block", "resnets", index, *rest]:
            return ".".join([half, f"mid.block_{int(index) + 1}", *rest])
        case [half, "mid_block", "attentions", _, layer, *_, leaf]:
            return f"{half}.mid.attn_1.{_VAE_ATTENTION[layer]}.{leaf}"
    return name


def old_vae_name(name: str) -> str:
    """An AutoencoderKL's entry as diffusers named it up to 0.16."""
    new = next((layer for layer in _VAE_OLD if f".attentions.0.{layer}." in name), "")
    return name.replace(new, _VAE_OLD[new]) if new else name


class Renamed(nn.Module):
    """A network under a file's names, for load_into: published name -> the network's own.

    forms  the file's entries: where one of them is a 1x1 convolution, a linear layer of the network takes it.
    """

    def __init__(self, network: nn.Module, names: Mapping[str, str], forms: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self.network, self.names, self.forms = network, names, forms or {}

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Tensor]:
        own = self.network.state_dict()
        return {name: self._published(name, own[mine]) for name, mine in self.names.items()}

    def load_state_dict(self, entries: Mapping[str, Tensor], *args: Any, **options: Any) -> Any:
        shapes = {name: value.shape for name, value in self.network.state_dict().items()}
        own = {self.names[name]: value.reshape(shapes[self.names[name]]) for name, value in entries.items()}
        return self.network.load_state_dict(own, *args, **options)

    def _published(self, name: str, value: Tensor) -> Tensor:
        form = self.forms.get(name, value)
        return value[..., None, None] if form.ndim == 4 and value.ndim == 2 else value


def _count(entries: Collection[str], pattern: str) -> int:
    return 1 + max((int(found[1]) for name in entries if (found := re.match(pattern, name))), default=0)


# -- sizes ------------------------------------------------------------------------------------------------


class Entries:
    """The entries below a file's prefix, asked for their shapes; raises ConversionError where one is absent."""

    def __init__(self, file: Checkpoint, prefix: str) -> None:
        self.path, self.entries, self.prefix = file.path, file.entries, prefix

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.entries

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self:
            raise ConversionError(
                f"{self.path} has no entry {self.prefix}{name}",
                cause="a single file of Stable Diffusion 1 holds the UNet, the autoencoder and the text encoder",
                remedy="give the whole checkpoint, or the folder of diffusers that it was made from",
            )
        return tuple(self.entries[self.prefix + name].shape)

    def count(self, pattern: str) -> int:
        """One more than the largest number that the pattern's group finds."""
        return _count(
            [name.removeprefix(self.prefix) for name in self.entries if name.startswith(self.prefix)], pattern
        )


def unet_config(entries: Entries, heads: int) -> dict[str, Any]:
    """UNet2DConditionModel's configuration, of the entries below UNET; `heads` does not show in them."""
    blocks = entries.count(r"input_blocks\.(\d+)\.")
    layers = next((block for block in range(blocks) if f"input_blocks.{block}.0.op.weight" in entries), blocks) - 1
    last = range(layers, blocks, layers + 1)
    attended = [f"input_blocks.{block}.1.proj_in.weight" in entries for block in last]
    inner = "middle_block.1.transformer_blocks"
    return {
        "in_channels": entries.shape("input_blocks.0.0.weight")[1],
        "out_channels": entries.shape("out.2.weight")[0],
        "layers_per_block": layers,
        "block_out_channels": [entries.shape(f"input_blocks.{block}.0.out_layers.3.weight")[0] for block in last],
        "attention_head_dim": heads,  # diffusers' name for the number of heads
        "cross_attention_dim": entries.shape(f"{inner}.0.attn2.to_k.weight")[1],
        "sample_size": 64,  # pictures of 512 pixels
        "transformer_layers_per_block": entries.count(rf"{re.escape(inner)}\.(\d+)\."),
        "use_linear_projection": len(entries.shape("middle_block.1.proj_in.weight")) == 2,
        **block_types(attended),
    }


def block_types(attended: Sequence[bool]) -> dict[str, Any]:
    """UNet2DConditionModel's kinds of blocks, of whether each level, the widest map first, has attention."""
    down = ["CrossAttnDownBlock2D" if each else "DownBlock2D" for each in attended]
    return {"down_block_types": down, "up_block_types": [each.replace("Down", "Up") for each in reversed(down)]}


def vae_config(entries: Entries) -> dict[str, Any]:
    """AutoencoderKL's configuration, of the entries below VAE."""
    levels = entries.count(r"encoder\.down\.(\d+)\.")
    firsts = [f"encoder.down.{level}.block.0.conv1.weight" for level in range(levels)]
    return {
        "in_channels": entries.shape("encoder.conv_in.weight")[1],
        "out_channels": entries.shape("decoder.conv_out.weight")[0],
        "latent_channels": entries.shape("post_quant_conv.weight")[0],
        "layers_per_block": entries.count(r"encoder\.down\.0\.block\.(\d+)\."),
        "block_out_channels": [entries.shape(name)[0] for name in firsts],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "scaling_factor": 0.18215,  # CompVis/stable-diffusion, v1-inference.yaml
    }


def text_config(entries: Entries, heads: int | None) -> dict[str, Any]:
    """The text encoder's configuration as transformers writes it; heads of 64 channels where none are given."""
    vocabulary, width = entries.shape("embeddings.token_embedding.weight")
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": entries.count(r"encoder\.layers\.(\d+)\."),
        "num_attention_heads": heads or width // 64,
        "intermediate_size": entries.shape("encoder.layers.0.mlp.fc1.weight")[0],
        "max_position_embeddings": entries.shape("embeddings.position_embedding.weight")[0],
    }
