"""Faces as words, in Face2Diffusion: identity encoder and mapping networks, whose token embeddings enter a prompt."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from facesdk.card import Card
from facesdk.errors import ConversionError
from facesdk.plans.profiles import Sizes

from ..checkpoints import Checkpoint
from ..networks import MSID, MappingNetwork, mapping_of, msid_of
from ..networks.msid import UNUSED
from ..onnx_export import Part
from .encoders import encoder_constants, encoder_part
from .parts import loaded

SPACE = "msid"
#: rows of a plan: one person a call, as facesdk.diffusion makes them, or a few
PEOPLE: Mapping[str, Sizes] = {"batch": (1, 1, 4)}


def face_token_parts(msid: Checkpoint, mapping: Checkpoint, mf2d: Checkpoint | None = None) -> dict[str, Part]:
    """The engines `encoder`, `mapping` and, of a mapping network by MF2D, `mapping_mf2d`.

    Raises ConversionError for files that do not fit their network, and for a mapping network of other identities.
    """
    encoder = loaded(msid_of(msid.entries), msid, ignore=UNUSED)
    assert isinstance(encoder, MSID)
    parts = {"encoder": _encoder_part(encoder), "mapping": _checked_mapping(mapping, encoder.width, "mapping")}
    if mf2d is not None:
        parts["mapping_mf2d"] = _checked_mapping(mf2d, encoder.width, "mf2d")
    return parts


def _encoder_part(network: MSID) -> Part:
    part = encoder_part(network, network.size)
    card = dataclasses.replace(part.card, outputs={"embedding": f"(n, {network.width}) identity vector"})
    return dataclasses.replace(part, card=card, files=("msid",), constants=_constants(network.size))


def _constants(size: int) -> dict[str, dict[str, Any]]:
    crop = {"size": size, "preprocessing": f"arcface-{size} rgb [-1, 1]"}
    return {"encoder": {**encoder_constants(SPACE, normalised=False)["encoder"], **crop}}


def _checked_mapping(checkpoint: Checkpoint, identity: int, file: str) -> Part:
    network = mapping_of(checkpoint.entries)
    loaded(network, checkpoint)
    if network.identity != identity:
        raise ConversionError(
            f"{checkpoint.path} maps identities of {network.identity} numbers",
            cause=f"the identity encoder that it is exported with gives {identity}",
            remedy="give the files of one training: Face2Diffusion's msid.pt goes with its mapping.pt, and with "
            "MF2D's fmap_epoch*.pth",
        )
    return mapping_part(network, file)


def mapping_part(network: MappingNetwork, file: str) -> Part:
    """Identities and expressions -> the two token embeddings of a mapping network, which is of that file."""
    identity, random = network.identity, torch.Generator().manual_seed(0)
    inputs = {
        "identity": torch.randn(2, identity, generator=random),
        "expression": torch.randn(2, network.expression, generator=random),
        "given": torch.tensor([1.0, 0.0]),
    }
    card = Card(
        about="an identity as two token embeddings of the text encoder",
        inputs={
            "identity": f"(n, {identity}) the encoder's vector",
            "expression": f"(n, {network.expression}) expression coefficients",
            "given": "(n,) 1: use the expression; 0: leave it to the text",
        },
        outputs={name: f"(n, {network.token}) the {name} token's embedding" for name in ("first", "last")},
    )
    return Part(network, inputs, ("first", "last"), card, sizes=PEOPLE, files=(file,))
