"""The recipes by name: which published files `facesdk export` reads."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ..bundles import Recipe
from .encoders import ARCFACE, IR_SE50
from .face2diffusion import FACE2DIFFUSION
from .geometry import DEEP3D, SIXDREPNET
from .hififace import HIFIFACE, XUEHY
from .stable_diffusion import STABLE_DIFFUSION
from .vec2face import VEC2FACE

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "6drepnet": SIXDREPNET,
        "arcface": ARCFACE,
        "deep3d": DEEP3D,
        "face2diffusion": FACE2DIFFUSION,
        "hififace": HIFIFACE,
        "ir-se50": IR_SE50,
        "stable-diffusion": STABLE_DIFFUSION,
        "vec2face": VEC2FACE,
        "xuehy": XUEHY,
    }
)
