"""One denoising step of Stable Diffusion 1.x in one graph: UNet, guidance, blend and the sampler's matrix.

What does not change between steps, the prompt's keys and values, and what the schedule knows beforehand, the time
projections, are inputs: `ContextKeys` and `TimeRows` compute them once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from facesdk.errors import ConversionError

from .fused_attention import attention

#: the one value of a diffusers UNet2DConditionModel's setting that is built here; others make other networks
_FIXED = {
    "addition_embed_type": None, "attention_type": "default", "center_input_sample": False, "class_embed_type": None,
    "class_embeddings_concat": False, "dual_cross_attention": False, "encoder_hid_dim": None,
    "encoder_hid_dim_type": None, "mid_block_only_cross_attention": None, "mid_block_type": "UNetMidBlock2DCrossAttn",
    "num_class_embeds": None, "only_cross_attention": False, "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default", "time_cond_proj_dim": None, "time_embedding_act_fn": None,
    "time_embedding_type": "positional", "timestep_post_act": None,
}  # fmt: skip
_DOWN, _UP = {"DownBlock2D", "CrossAttnDownBlock2D"}, {"UpBlock2D", "CrossAttnUpBlock2D"}

Times = Iterator[Tensor]
Blocks = Iterator[tuple["TransformerBlock", Tensor, Tensor]]


class Denoiser(nn.Module):
    """The UNet's prediction (b, 4, h, w) for latents (b, 4, h, w), with time and context computed beforehand.

    time     (T,) one row of `TimeRows`, cut into one piece for every resnet in the network's order.
    context  key and value of every cross-attention in the network's order: (r, tokens, channels), r divides b.
    """

    def __init__(self, unet: Any) -> None:
        super().__init__()
        check(unet)
        self.unet = unet
        self.blocks = nn.ModuleList(map(TransformerBlock, _transformer_blocks(unet)))
        self.widths = [resnet.out_channels for resnet in _resnets(unet)]

    def forward(self, x: Tensor, time: Tensor, context: Sequence[Tensor]) -> Tensor:
        every: Any = self.blocks
        blocks: Blocks = zip(every, context[::2], context[1::2], strict=True)
        times: Times = iter(torch.split(time, self.widths))
        x = self.unet.conv_in(x)
        skips = [x]
        for block in self.unet.down_blocks:
            x = self.down(block, x, skips, times, blocks)
        x = self.middle(self.unet.mid_block, x, times, blocks)
        for block in self.unet.up_blocks:
            x = self.up(block, x, skips, times, blocks)
        prediction: Tensor = self.unet.conv_out(functional.silu(self.unet.conv_norm_out(x)))
        return prediction

    def down(self, block: Any, x: Tensor, skips: list[Tensor], times: Times, blocks: Blocks) -> Tensor:
        for each, transformer in _layers(block):
            x = self.layer(each, transformer, x, times, blocks)
            skips.append(x)
        for downsampler in block.downsamplers or ():
            x = downsampler(x)
            skips.append(x)
        return x

    def middle(self, block: Any, x: Tensor, times: Times, blocks: Blocks) -> Tensor:
        first, *rest = block.resnets
        x = resnet(first, x, next(times))
        for transformer, each in zip(block.attentions, rest, strict=True):
            x = resnet(each, self.transformer(transformer, x, blocks), next(times))
        return x

    def up(self, block: Any, x: Tensor, skips: list[Tensor], times: Times, blocks: Blocks) -> Tensor:
        for each, transformer in _layers(block):
            x = self.layer(each, transformer, torch.cat([x, skips.pop()], 1), times, blocks)
        for upsampler in block.upsamplers or ():
            # to the skip's size and not to twice this: an odd size was rounded up on the way down
            x = upsampler.conv(functional.interpolate(x, skips[-1].shape[-2:], mode="nearest"))
        return x

    def layer(self, block: Any, transformer: Any, x: Tensor, times: Times, blocks: Blocks) -> Tensor:
        x = resnet(block, x, next(times))
        return x if transformer is None else self.transformer(transformer, x, blocks)

    def transformer(self, transformer: Any, x: Tensor, blocks: Blocks) -> Tensor:
        tokens = projection(transformer.proj_in, transformer.norm(x).flatten(2).transpose(1, 2))
        for _ in transformer.transformer_blocks:
            block, key, value = next(blocks)
            tokens = block(tokens, key, value)
        return x + projection(transformer.proj_out, tokens).transpose(1, 2).reshape(x.shape)


class TransformerBlock(nn.Module):
    """A block of diffusers' with keys and values of the text given: tokens (b, s, channels) -> the same shape."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = block.norm1, block.norm2, block.norm3
        self.attn1, self.attn2 = block.attn1, block.attn2
        # two products with half of the weights each: without a split of the widest activations
        self.hidden, self.gate = _halves(block.ff.net[0].proj)
        self.out = block.ff.net[2]

    def forward(self, x: Tensor, key: Tensor, value: Tensor) -> Tensor:
        x = x + self.self_attention(self.norm1(x))
        x = x + self.cross_attention(self.norm2(x), key, value)
        return x + self.feed_forward(self.norm3(x))

    def self_attention(self, x: Tensor) -> Tensor:
        layer: Any = self.attn1
        mixed: Tensor = layer.to_out[0](attention(layer.to_q(x), layer.to_k(x), layer.to_v(x), layer.heads))
        return mixed

    def cross_attention(self, x: Tensor, key: Tensor, value: Tensor) -> Tensor:
        layer: Any = self.attn2
        mixed: Tensor = layer.to_out[0](attention(layer.to_q(x), key, value, layer.heads))
        return mixed

    def feed_forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x)
        # GELU, spelt as ONNX Runtime knows it
        mixed: Tensor = self.out(self.hidden(x) * (gate * (1 + torch.erf(gate / math.sqrt(2))) * 0.5))
        return mixed


def projection(layer: Any, tokens: Tensor) -> Tensor:
    """A linear layer, or a convolution of one pixel, on tokens (b, s, channels): there it needs no transposed copy."""
    return functional.linear(tokens, layer.weight.flatten(1), layer.bias)


def resnet(block: Any, x: Tensor, time: Tensor) -> Tensor:
    """A resnet of diffusers' with its time projection (channels,) given."""
    hidden = block.conv1(functional.silu(block.norm1(x))) + time[:, None, None]
    hidden = block.conv2(functional.silu(block.norm2(hidden)))
    out: Tensor = hidden + (x if block.conv_shortcut is None else block.conv_shortcut(x))
    return out if block.output_scale_factor == 1 else out / block.output_scale_factor


class DenoisingStep(nn.Module):
    """The engine `step`: the sampler's bank (n, K, 4, h, w) after one step.

    bank     row 0 the latent, the rest what the sampler remembers     scale  (1,) factor of the network's input
    time     (T,) one row of `TimeRows`     matrix  (K, K + 2): next bank of [bank; prediction; noise]
    weights  (C,) of the conditions' predictions; a batch is all pictures of the first condition, then of the second
    mask     (n, 1, h, w): where it is 0, the latent becomes level[0] known + level[1] blend_noise
    context  keys and values of `ContextKeys`, C * p rows in the batch's order; p divides n
    """

    def __init__(self, unet: Any, network: Callable[[Any], nn.Module] = Denoiser) -> None:
        super().__init__()
        self.network = network(unet)

    def forward(
        self, bank: Tensor, scale: Tensor, time: Tensor, matrix: Tensor, weights: Tensor, noise: Tensor,
        level: Tensor, blend_noise: Tensor, known: Tensor, mask: Tensor, *context: Tensor,
    ) -> Tensor:  # fmt: skip
        latent = mask * bank[:, 0] + (1 - mask) * (level[0] * known + level[1] * blend_noise)
        conditions = weights.shape[0]
        predictions: Tensor = self.network((scale * latent).repeat(conditions, 1, 1, 1), time, context)
        guided = (weights[:, None] * predictions.reshape(conditions, -1)).sum(0).reshape(latent.shape)
        columns = torch.cat([latent[:, None], bank[:, 1:], guided[:, None], noise[:, None]], 1)
        return (matrix @ columns.flatten(2)).reshape(bank.shape)


class TimeRows(nn.Module):
    """The engine `time`: (s, T), every resnet's time projection for timesteps (s,), in the network's order."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        check(unet)
        self.sinusoids, self.embedding = unet.time_proj, unet.time_embedding
        self.projections = nn.ModuleList(resnet.time_emb_proj for resnet in _resnets(unet))

    def forward(self, timestep: Tensor) -> Tensor:
        activated = functional.silu(self.embedded(timestep))
        return torch.cat([layer(activated) for layer in self.projections], 1)

    def embedded(self, timestep: Tensor) -> Tensor:
        """The time embedding (s, width) itself."""
        sinusoids = self.sinusoids(timestep).to(self.embedding.linear_1.weight.dtype)
        embedding: Tensor = self.embedding(sinusoids)
        return embedding


class ContextKeys(nn.Module):
    """The engine `context`: key and value (r, tokens, channels) of every cross-attention for text (r, tokens, 768)."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        check(unet)
        layers = [block.attn2 for block in _transformer_blocks(unet)]
        self.projections = nn.ModuleList(each for layer in layers for each in (layer.to_k, layer.to_v))

    def forward(self, text: Tensor) -> tuple[Tensor, ...]:
        return tuple(layer(text) for layer in self.projections)


def context_layers(unet: Any) -> int:
    """The number of cross-attentions, and so of keys and of values."""
    return len(_transformer_blocks(unet))


def context_names(unet: Any) -> tuple[str, ...]:
    """Names of what `ContextKeys` returns: key_00, value_00, key_01, ..."""
    return tuple(f"{kind}_{layer:02}" for layer in range(context_layers(unet)) for kind in ("key", "value"))


def check(unet: Any) -> None:
    """Raise ConversionError for a network that is not built like Stable Diffusion 1.x."""
    config = unet.config
    wrong = [
        f"{name} is {config[name]!r}" for name, value in _FIXED.items() if (config[name] or None) != (value or None)
    ]
    wrong += [f"it has a block {kind}" for kind in config.down_block_types if kind not in _DOWN]
    wrong += [f"it has a block {kind}" for kind in config.up_block_types if kind not in _UP]
    if config.act_fn not in ("silu", "swish"):
        wrong.append(f"act_fn is {config.act_fn!r}")
    if config.norm_num_groups is None:
        wrong.append("it has no normalisation")
    if config.in_channels != config.out_channels:
        wrong.append(f"it makes {config.out_channels} channels of {config.in_channels}")
    if wrong:
        raise ConversionError(
            "the denoising network is not one of Stable Diffusion 1.x",
            cause="; ".join(wrong),
            remedy="give a checkpoint of Stable Diffusion 1.1 to 1.5, or fine-tuned from one",
        )


# -- parts in the network's order -------------------------------------------------------------------------


def _blocks(unet: Any) -> list[Any]:
    return [*unet.down_blocks, unet.mid_block, *unet.up_blocks]


def _resnets(unet: Any) -> list[Any]:
    return [resnet for block in _blocks(unet) for resnet in block.resnets]


def _transformer_blocks(unet: Any) -> list[Any]:
    transformers = [each for block in _blocks(unet) for each in getattr(block, "attentions", ())]
    return [block for transformer in transformers for block in transformer.transformer_blocks]


def _layers(block: Any) -> Iterator[tuple[Any, Any]]:
    return zip(block.resnets, getattr(block, "attentions", (None,) * len(block.resnets)), strict=True)


def _halves(linear: nn.Linear) -> tuple[nn.Linear, nn.Linear]:
    """The layers that make the first and the second half of another's outputs, on its weights."""
    halves = (nn.Linear(linear.in_features, linear.out_features // 2, device="meta") for _ in range(2))
    first, second = halves
    first.weight, second.weight = map(nn.Parameter, linear.weight.detach().chunk(2))
    first.bias, second.bias = map(nn.Parameter, linear.bias.detach().chunk(2))
    return first, second
