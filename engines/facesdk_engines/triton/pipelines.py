"""The Python model beside the engines: which one a system has, what it takes and gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from facesdk.annotation.annotator import AnnotateOptions
from facesdk.bundle import Bundle
from facesdk.diffusion.options import GenerateOptions
from facesdk.swap.paste import PasteOptions
from facesdk.swap.swapper import SwapOptions
from facesdk.synthesis.attributes import AttributeOptions
from facesdk.synthesis.generate import SynthesisOptions

from .answers import PHOTOS, option_types
from .config import TYPES, Message, Word

_PICTURE = (-1, -1, 3)


@dataclasses.dataclass(frozen=True)
class Port:
    """An input or output; `type` by facesdk.graph's names, -1 in `dims` is any size."""

    name: str
    type: str
    dims: tuple[int, ...] = (1,)
    optional: bool = False

    def message(self) -> Message:
        """The port in a model's configuration."""
        fields = {"name": self.name, "data_type": Word(TYPES[self.type]), "dims": list(self.dims)}
        return {**fields, "optional": True} if self.optional else fields


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """answer  the function of `answers` that it runs.   part  what the bundle is to FaceSDK, as its argument."""

    answer: str
    part: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


def pipeline(bundle: Bundle, *, photos: bool) -> Pipeline | None:
    """The pipeline of a bundle's system, None where there is none.

    photos  whether annotation is there, to find faces in photos; without it crops or vectors are taken.
    """
    system = str(bundle.about["system"])
    if system == "encoder":
        return _encode(bundle, photos)
    if system == "hififace":
        return _swap(bundle, photos)
    if system in ("face2diffusion", "stable-diffusion"):
        return _generate(bundle, photos)
    return {"annotation": _ANNOTATE, "vec2face": _SYNTHESIZE}.get(system)


def _options(*kinds: type[Any], without: Iterable[str] = ()) -> tuple[Port, ...]:
    """An optional input for every field of option dataclasses."""
    types = {name: type_ for kind in kinds for name, type_ in option_types(kind).items()}
    return tuple(Port(name, type_, optional=True) for name, type_ in types.items() if name not in without)


def _encode(bundle: Bundle, photos: bool) -> Pipeline:
    flip, size = Port("flip", "bool", optional=True), bundle.constants["encoder"]["size"]
    if photos:
        inputs = (Port("image", "uint8", _PICTURE), flip)
        return Pipeline("encode", "encoder", inputs, (Port("embedding", "float32", (-1,)),))
    inputs = (Port("crops", "uint8", (-1, size, size, 3)), flip)
    return Pipeline("encode_crops", "encoder", inputs, (Port("embeddings", "float32", (-1, -1)),))


def _swap(bundle: Bundle, photos: bool) -> Pipeline:
    if photos:
        both = (Port("source", "uint8", _PICTURE), Port("target", "uint8", _PICTURE))
        inputs = (*both, Port("faces", "string", optional=True), *_options(SwapOptions, PasteOptions))
        outputs = (Port("picture", "uint8", _PICTURE), Port("similarity", "float32", (-1,)))
        return Pipeline("swap", "swapper", inputs, outputs)
    size = bundle.constants["swap"]["size"]
    crops = (Port("source", "float32", (size, size, 3)), Port("target", "float32", _PICTURE))
    inputs = (*crops, *_options(SwapOptions, without=("template", "similarity")))
    outputs = (Port("crop", "float32", _PICTURE), Port("mask", "float32", (-1, -1)))
    return Pipeline("swap_crops", "swapper", inputs, outputs)


def _generate(bundle: Bundle, photos: bool) -> Pipeline:
    inputs = [Port("prompt", "string")]
    if "faces" in bundle.constants:
        inputs += [Port("identity", "float32", (-1, -1), optional=True)]
        inputs += [Port(name, "uint8", _PICTURE, optional=True) for name in PHOTOS if photos]
    if "vae_encoder" in bundle.engine_names:
        inputs += [Port("image", "uint8", _PICTURE, optional=True), Port("mask", "float32", (-1, -1), optional=True)]
    outputs = (
        Port("images", "uint8", (-1, *_PICTURE)), Port("seeds", "int64", (-1,)), Port("similarity", "float32", (-1,)),
    )  # fmt: skip
    return Pipeline("generate", "diffusion", (*inputs, *_options(GenerateOptions)), outputs)


# of SynthesisOptions, what concerns files
_FILES = ("keep_failed", "measured", "separation", "format", "jpeg_quality", "mark", "start_class_id")
_SYNTHESIZE = Pipeline(
    "synthesize", "synthesizer",
    (
        Port("vectors", "float32", (-1, -1)), Port("seed", "int64", optional=True),
        *_options(SynthesisOptions, AttributeOptions, without=_FILES),
    ),
    (Port("pictures", "uint8", (-1, -1, *_PICTURE)), Port("failed", "bool", (-1, -1))),
)  # fmt: skip
_ANNOTATE = Pipeline(
    "annotate", "annotation", (Port("image", "uint8", _PICTURE), *_options(AnnotateOptions)),
    (Port("faces", "string"),),
)  # fmt: skip
