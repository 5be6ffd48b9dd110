"""Identity encoders: ArcFace (IResNet of any depth) and IR-SE50."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from facesdk.card import Card

from ..bundles import Recipe
from ..checkpoints import Checkpoint
from ..networks import IRSE, iresnet_of
from ..onnx_export import Part
from .parts import CROPS, Pictures, example_picture, loaded, on_meta


def encoder_part(network: nn.Module, size: int) -> Part:
    """Pictures -> vectors of `network`, whose faces are (size, size) RGB in [-1, 1]."""
    scale = torch.full((3,), 1 / 127.5)
    card = Card(
        about="identity of an aligned face",
        inputs={"image": f"uint8 RGB (n, {size}, {size}, 3), aligned to the ArcFace template"},
        outputs={"embedding": "(n, 512) identity vector"},
    )
    module = Pictures(network, scale, torch.full((3,), -1.0))
    return Part(module, {"image": example_picture(size)}, ("embedding",), card, sizes=CROPS)


def _arcface(checkpoint: Checkpoint) -> dict[str, Part]:
    network = on_meta(lambda: iresnet_of(checkpoint.entries))
    return {"encoder": encoder_part(loaded(network, checkpoint), 112)}


def _ir_se50(checkpoint: Checkpoint) -> dict[str, Part]:
    return {"encoder": encoder_part(loaded(on_meta(IRSE), checkpoint), 112)}


def encoder_constants(space: str, normalised: bool) -> dict[str, dict[str, Any]]:
    """The tables that make an encoder of a bundle with the engine `encoder`."""
    crop = {"size": 112, "template": "arcface", "preprocessing": "arcface-112 rgb [-1, 1]"}
    return {"encoder": {**crop, "space": space, "normalised": normalised}}


ARCFACE = Recipe(
    "encoder", "ArcFace identity encoder (IResNet)", "LicenseRef-insightface-non-commercial", "no", _arcface,
    encoder_constants("arcface", normalised=False),
)  # fmt: skip
IR_SE50 = Recipe(
    "encoder", "ArcFace identity encoder (IR-SE50)", "LicenseRef-unknown", "unknown", _ir_se50,
    encoder_constants("arcface-ir-se50", normalised=True),
)  # fmt: skip
