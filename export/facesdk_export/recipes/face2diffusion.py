"""Face2Diffusion and MF2D: Stable Diffusion 1.x, and the networks that turn a face into words of its prompt."""

from __future__ import annotations

import dataclasses
from typing import Any

from facesdk.errors import ConversionError

from ..bundles import Recipe
from ..checkpoints import Checkpoint
from ..onnx_export import Part
from ..stable_diffusion import StableDiffusion, read_stable_diffusion
from .face_tokens import face_token_parts
from .stable_diffusion import FILE, NAME, stable_diffusion_parts

#: of the published scripts: scheduler and its spacing, steps and guidance of one person; words that stand for people
DEFAULTS = {"scheduler": "euler-ancestral", "spacing": "linspace", "steps": 30, "guidance": 7.0}
WORDS: dict[str, Any] = {"identifiers": ["f", "g"], "second": "l"}


def face2diffusion_parts(
    stable_diffusion: StableDiffusion, msid: Checkpoint, mapping: Checkpoint, mf2d: Checkpoint | None = None
) -> dict[str, Part | bytes]:
    """Engine name -> Part of the published files, and the bundle's tokenizer.json.

    Raises ConversionError where the mapping network's words are not of the text encoder's width.
    """
    faces = face_token_parts(msid, mapping, mf2d)
    _check_width(faces["mapping"], stable_diffusion.constants["width"])
    words = {**WORDS, "methods": ["f2d"] if mf2d is None else ["f2d", "mf2d"]}
    faces["mapping"] = dataclasses.replace(faces["mapping"], constants={"faces": words})
    parts = stable_diffusion_parts(stable_diffusion)
    step = parts["step"]
    assert isinstance(step, Part)
    diffusion = {**step.constants["diffusion"], **DEFAULTS}
    parts["step"] = dataclasses.replace(step, constants={"diffusion": diffusion})
    return parts | faces


def _check_width(mapping: Part, width: int) -> None:
    made: Any = mapping.module
    if made.token != width:
        raise ConversionError(
            f"the mapping network makes words of {made.token} numbers, the text encoder reads {width}",
            remedy="give files of one system: mapping.pt of Face2Diffusion goes with Stable Diffusion 1.x",
        )


FACE2DIFFUSION = Recipe(
    "face2diffusion", "Face2Diffusion and MF2D: pictures of people from a prompt and a photo each",
    "CC-BY-NC-SA-4.0", "no", face2diffusion_parts, {},
    {
        NAME: FILE, "msid": "msid.pt of Face2Diffusion",
        "mapping": "mapping.pt of Face2Diffusion", "mf2d": "fmap/fmap_epoch49.pth of MF2D, for two people",
    },
    ("mf2d",), {NAME: read_stable_diffusion},
)  # fmt: skip
