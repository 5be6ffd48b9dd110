"""HifiFace in both published variants, as four engines: what can be cached is an engine of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from facesdk.card import Card

from ..bundles import Recipe
from ..checkpoints import Checkpoint
from ..networks import Deep3DRecon, IResNet
from ..networks.hififace import Generator, published_generator
from ..networks.hififace_engines import IdentityEncoder, ShapeEncoder, SwapDecoder, TargetEncoder
from ..networks.hififace_xuehy import xuehy_generator
from ..onnx_export import Part
from .parts import ALONE, COEFFICIENTS, CROP, example_crop, loaded, on_meta

SIZE = 256  # the published checkpoints'
ARCFACE_R100 = (3, 13, 30, 3)
_VECTOR = "(n, 769) source's coefficients 0:80, target's 80:257, source's identity (512)"


def _swap(build: Callable[[nn.Module, nn.Module], Generator], prefix: str) -> Callable[[Checkpoint], dict[str, Part]]:
    def parts(checkpoint: Checkpoint) -> dict[str, Part]:
        network = on_meta(lambda: build(Deep3DRecon(), IResNet(ARCFACE_R100)))
        # discriminators and the losses' own copies of the frozen networks travel in the file
        generator = loaded(network, checkpoint, prefix, ignore=("discriminator.", "g_loss."))
        assert isinstance(generator, Generator)
        return _swap_parts(generator)

    return parts


def _swap_parts(generator: Generator) -> dict[str, Part]:
    face, target = example_crop(SIZE, 0), example_crop(SIZE, 1)
    modules = {
        "identity": IdentityEncoder.from_generator(generator),
        "shape": ShapeEncoder.from_generator(generator),
        "target": TargetEncoder.from_generator(generator),
        "decoder": SwapDecoder.from_generator(generator),
    }
    with torch.inference_mode():
        skip, bottleneck = modules["target"].eval()(target)
        identity, coefficients = modules["identity"].eval()(face), modules["shape"].eval()(face)
    vector = torch.cat([coefficients, identity], dim=1)
    decoder_inputs = {
        "target": target,
        "skip": skip.clone(),
        "bottleneck": bottleneck.clone(),
        "vector": vector.clone(),
    }
    inputs: dict[str, dict[str, Tensor]] = {
        "identity": {"face": face}, "shape": {"face": face}, "target": {"target": target}, "decoder": decoder_inputs,
    }  # fmt: skip
    outputs = {
        "identity": {"identity": "(n, 512) of unit length"}, "shape": {"coefficients": COEFFICIENTS},
        "target": {"skip": "(n, 256, 64, 64)", "bottleneck": "(n, 512, 8, 8)"},
        "decoder": {"swapped": "(n, 3, 256, 256), not clamped", "mask": "(n, 1, 256, 256), not clamped"},
    }  # fmt: skip
    about = {
        "identity": "identity of a crop", "shape": "3DMM coefficients of a crop", "target": "features of the target",
        "decoder": "the target with another identity",
    }  # fmt: skip
    meanings = {"face": CROP, "target": CROP, "vector": _VECTOR, **outputs["target"]}
    return {
        name: Part(
            module, inputs[name], tuple(outputs[name]),
            Card(about=about[name], inputs={key: meanings[key] for key in inputs[name]}, outputs=outputs[name]),
            sizes=ALONE,
        )
        for name, module in modules.items()
    }  # fmt: skip


def _constants(renormalise: bool) -> dict[str, dict[str, Any]]:
    swap = {"size": SIZE, "template": "ffhq", "shape_coefficients": 80, "renormalise_identity": renormalise}
    return {"swap": swap}


# both files hold insightface's ArcFace weights, which are for non-commercial research; the code is BSD-3-Clause and MIT
_LICENCE, _COMMERCIAL = "LicenseRef-insightface-non-commercial", "no"

HIFIFACE = Recipe(
    "hififace", "HifiFace face swap (maum-ai)", _LICENCE, _COMMERCIAL, _swap(published_generator, "generator."),
    _constants(renormalise=True),
)  # fmt: skip
XUEHY = Recipe(
    "hififace", "HifiFace face swap (xuehy)", _LICENCE, _COMMERCIAL, _swap(xuehy_generator, ""),
    _constants(renormalise=False),
)  # fmt: skip
