"""Shape and pose of a face: Deep3DFaceRecon's coefficients, 6DRepNet's rotation."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from facesdk.card import Card

from ..bundles import Recipe
from ..checkpoints import Checkpoint
from ..networks import Deep3DRecon, SixDRepNet, fold_training_form, is_training_form
from ..onnx_export import Part
from .parts import COEFFICIENTS, CROP, CROPS, Pictures, example_crop, example_picture, loaded, on_meta


def _deep3d(checkpoint: Checkpoint) -> dict[str, Part]:
    network = loaded(on_meta(Deep3DRecon), checkpoint)
    card = Card(about="3DMM coefficients of a face", inputs={"face": CROP}, outputs={"coefficients": COEFFICIENTS})
    return {"shape": Part(network, {"face": example_crop(224, 0)}, ("coefficients",), card, sizes=CROPS)}


def sixdrepnet(checkpoint: Checkpoint) -> nn.Module:
    """The network of a file in either form."""
    if is_training_form(checkpoint.entries):
        checkpoint = dataclasses.replace(checkpoint, entries=fold_training_form(checkpoint.entries))
    return loaded(on_meta(SixDRepNet), checkpoint)


def _sixdrepnet(checkpoint: Checkpoint) -> dict[str, Part]:
    network = sixdrepnet(checkpoint)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])  # ImageNet
    card = Card(
        about="head pose", inputs={"image": "uint8 RGB (n, 224, 224, 3): shorter side 224, centre crop"},
        outputs={"rotation": "(n, 3, 3)"},
    )  # fmt: skip
    module = Pictures(network, 1 / (255 * deviation), -mean / deviation)
    return {"pose": Part(module, {"image": example_picture(224)}, ("rotation",), card, sizes=CROPS)}


DEEP3D = Recipe("deep3d", "Deep3DFaceRecon: 3DMM coefficients", "MIT", "unknown", _deep3d, {"shape": {"size": 224}})
SIXDREPNET = Recipe("headpose", "6DRepNet: head pose", "MIT", "unknown", _sixdrepnet, {"pose": {"size": 224}})
