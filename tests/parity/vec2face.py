"""Ways of the Vec2Face cases about the generator; one function per case serves torch and ONNX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from facesdk.synthesis.masks import MaskLaw, drop_mask, token_masks
from facesdk_export.networks.vec2face import Block, Generator, ImageDecoder
from facesdk_export.networks.vec2face_engines import export_form

from .exporting import onnx_outputs
from .hififace_networks import Arrays, Run, Step, filled, torch_outputs
from .reference import compare

Wrong = list[str]


def wrong(case: Any, got: Mapping[str, Any]) -> Wrong:
    """What is wrong with all outputs of a case; every one has to be there, and nothing else."""
    absent = [f"{name}: not both given and expected" for name in sorted(set(case.facts["outputs"]) ^ set(got))]
    texts = [compare(case, name, value) for name, value in got.items() if name in case.facts["outputs"]]
    return absent + [text for text in texts if text]


# -- networks of a case -----------------------------------------------------------------------------------


def image_decoder_of(config: Arrays) -> ImageDecoder:
    return ImageDecoder(
        config["z"], config["ch"], config["ch_mult"], config["blocks_per_level"], config["groups"],
        config["group_norm_eps"], config["out_channels"],
    )  # fmt: skip


def generator_of(case: Any) -> Generator:
    config = case.config("generator")
    generator = Generator(
        image_decoder_of(config["image_decoder"]), vector=config["rep_dim"], dim=config["dim"], depth=config["depth"],
        heads=config["heads"], decoder_dim=config["decoder_dim"], decoder_depth=config["decoder_depth"],
        decoder_heads=config["decoder_heads"], mlp_ratio=config["mlp_ratio"], map_size=config["map_size"],
        eps=config["layer_norm_eps"],
    )  # fmt: skip
    assert config["map_size"] ** 2 + 1 == config["tokens"]
    return filled(case, "generator", generator)


def block_of(config: Arrays) -> Block:
    assert config["qkv_bias"]
    return Block(config["dim"], config["heads"], config["mlp_ratio"], config["layer_norm_eps"])


# -- masks ------------------------------------------------------------------------------------------------


def law_of(scalars: Arrays) -> MaskLaw:
    return MaskLaw(*(scalars[f"mask_ratio_{name}"] for name in ("min", "max", "mu", "std")))


# -- cases ------------------------------------------------------------------------------------------------

STAGES = (
    "mid_projected", "gt_indices", "mid_rows", "mid_embedded", "mid_encoder_block0", "latent", "logits", "decoder_proj",
    "mid_decoder_conv_in", "mid_decoder_mid", "image",
)  # fmt: skip


class Stages(nn.Module):
    """Everything between a vector and its picture, in the published form."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, vector: Tensor, keep: Tensor, masked: Tensor) -> tuple[Tensor, ...]:
        generator: Any = self.generator
        rows = generator.rows(vector)
        embedded = generator.embedded(rows, masked)
        seen = embedded.gather(1, keep[..., None].expand(-1, -1, embedded.shape[2]))
        latent = generator.encode(rows, keep, masked)
        logits = generator.decode(latent, keep, masked)
        z = generator.feature_map(logits)
        first = generator.im_decoder.conv_in(z)
        middle = generator.im_decoder.mid.block_2(generator.im_decoder.mid.block_1(first))
        return (
            rows[:, 0], rows, torch.where(masked[..., None], rows[:, :1], rows), embedded, generator.blocks[0](seen),
            latent, logits, z, first, middle, generator(vector, keep, masked),
        )  # fmt: skip


def saved(image: np.ndarray) -> np.ndarray:
    """The uint8 picture (n, h, w, 3) that upstream writes: truncated, not rounded."""
    return ((image + 1) / 2 * 255).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


def generator(case: Any, run: Run) -> Wrong:
    network = generator_of(case)
    masks = token_masks(case.inputs["noise"], case.scalars["mask_rate"], law_of(case.scalars))
    inputs = {"vector": case.inputs["rep"], "keep": masks.keep, "masked": masks.masked}
    published = run(Stages(network), inputs, STAGES)
    engine = run(export_form(network), inputs, ("image",))
    known = {"drop_mask": drop_mask(masks), "all_mask": masks.masked}
    images = (published, published | engine)
    return [text for got in images for text in wrong(case, known | got | {"saved_uint8_hwc": saved(got["image"])})]


def with_weights(block: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    return block(x), block.attn.weights(block.norm1(x))


def published_blocks(case: Any, run: Run) -> Wrong:
    decoder = filled(case, "image_decoder", image_decoder_of(case.config("image_decoder")))
    got = run(decoder, {"z": case.inputs["z"]}, ["image"])
    for kind in ("encoder", "decoder"):
        block: nn.Module = filled(case, f"{kind}_block", block_of(case.config(f"{kind}_block")))
        names = (f"{kind}_block_out", f"{kind}_attention_weights")
        got |= run(Step(with_weights, block), {"x": case.inputs[f"{kind}_block_in"]}, names)
    return wrong(case, got)


def both_ways(
    run_case: Callable[[Any, Run], Wrong], *, dynamic_batch: bool = False
) -> dict[str, Callable[[Any], Wrong]]:
    onnx = partial(onnx_outputs, dynamic_batch=dynamic_batch)
    return {"torch": partial(run_case, run=torch_outputs), "onnx": partial(run_case, run=onnx)}


VEC2FACE = {
    "generator": both_ways(generator, dynamic_batch=True),
    "published_blocks": both_ways(published_blocks),
}
