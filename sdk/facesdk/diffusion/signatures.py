"""What the engines of a diffusion bundle take and give, held against what they should."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np

from ..engine import Engine, Tensor
from .settings import DiffusionSettings

Axis = int | Literal["free", "fixed", "any"]
Takes = dict[str, tuple[str, tuple[Axis, ...]]]
Gives = tuple[str, ...]
Signature = tuple[Takes, Gives]


def context_names(layers: int) -> tuple[str, ...]:
    """key_00, value_00, key_01, ...: in the network's order."""
    return tuple(f"{kind}_{layer:02d}" for layer in range(layers) for kind in ("key", "value"))


def signatures(settings: DiffusionSettings) -> dict[str, Signature]:
    """Engine -> its inputs (dtype, shape) and the names of its outputs."""
    words: tuple[Axis, ...] = ("free", settings.tokens, settings.width)
    latent: tuple[Axis, ...] = ("free", settings.latent_channels, "any", "any")
    names = context_names(settings.layers)
    step: Takes = {
        "bank": ("float32", ("free", "free", *latent[1:])),
        "scale": ("float32", (1,)),
        "time": ("float32", (settings.time_width,)),
        "matrix": ("float32", ("free", "free")),
        "weights": ("float32", ("free",)),
        "level": ("float32", (2,)),
        "mask": ("float32", ("free", 1, "any", "any")),
        **dict.fromkeys(("noise", "blend_noise", "known"), ("float32", latent)),
        **dict.fromkeys(names, ("float32", ("free", settings.tokens, "any"))),
    }
    person: Takes = {"identity": ("float32", ("free", "any")), "expression": ("float32", ("free", "fixed"))}
    mapping: Signature = ({**person, "given": ("float32", ("free",))}, ("first", "last"))
    return {
        "embedding": ({"ids": ("int64", ("free", settings.tokens))}, ("embeddings",)),
        "text": ({"embeddings": ("float32", words)}, ("hidden",)),
        "context": ({"text": ("float32", words)}, names),
        "time": ({"timestep": ("float32", ("free",))}, ("rows",)),
        "step": (step, ("next_bank",)),
        "vae_decoder": ({"latent": ("float32", latent)}, ("image",)),
        "vae_encoder": ({"image": ("uint8", ("free", "any", "any", 3))}, ("mean", "logvar")),
        "mapping": mapping,
        "mapping_mf2d": mapping,
    }


def differences(engine: Engine, inputs: Takes, outputs: Iterable[str]) -> list[str]:
    """What an engine takes and gives otherwise than it should."""
    takes = {tensor.name: tensor for tensor in engine.inputs}
    gives = {tensor.name for tensor in engine.outputs}
    wrong = [f"input {name}" for name, wanted in inputs.items() if not _fits(takes.get(name), *wanted)]
    wrong += [f"unknown input {name}" for name in takes if name not in inputs]
    return wrong + [f"output {name}" for name in outputs if name not in gives]


def _fits(tensor: Tensor | None, dtype: str, shape: tuple[Axis, ...]) -> bool:
    if tensor is None or tensor.dtype != np.dtype(dtype) or len(tensor.shape) != len(shape):
        return False
    return all(map(_is_axis, tensor.shape, shape))


def _is_axis(got: int | str | None, wanted: Axis) -> bool:
    if isinstance(wanted, int):
        return got == wanted
    return wanted == "any" or isinstance(got, int) == (wanted == "fixed")
