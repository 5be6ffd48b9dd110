"""What the pipelines do with a request: one function each, from inputs by name to outputs by name."""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from facesdk.annotation.annotator import AnnotateOptions
from facesdk.diffusion.options import GenerateOptions
from facesdk.engine import StepCallback
from facesdk.errors import NoFaceFound, UsageError
from facesdk.facade import FaceSDK
from facesdk.identity import Identity
from facesdk.image import check_picture
from facesdk.swap.paste import PasteOptions
from facesdk.swap.swapper import SwapOptions
from facesdk.synthesis.attributes import AttributeOptions
from facesdk.synthesis.generate import SynthesisOptions

Given = Mapping[str, Any]
Options = TypeVar("Options")

#: photos of the people of a prompt, in the order of their placeholders
PHOTOS = ("face", "second_face")


def generate(sdk: FaceSDK, given: Given, on_step: StepCallback) -> dict[str, Any]:
    """`images` (n, H, W, 3), their `seeds`, and `similarity` (n,) to the faces, NaN where it was not measured."""
    people = [given[name] for name in PHOTOS if name in given]
    people += [Identity(vector, sdk.diffusion.encoder.space) for vector in given.get("identity", ())]
    made = sdk.generate(
        given["prompt"], people, read_options(GenerateOptions, given), image=given.get("image"),
        mask=given.get("mask"), on_step=on_step,
    )  # fmt: skip
    similarity = np.full(len(made.images), math.nan, np.float32) if made.similarity is None else made.similarity
    return {"images": made.images, "seeds": made.seeds, "similarity": similarity}


def annotate(sdk: FaceSDK, given: Given, on_step: StepCallback) -> dict[str, Any]:
    """`faces`: a JSON list of Face.as_dict, empty where the picture shows none."""
    found = sdk.annotator(check_picture(given["image"]), read_options(AnnotateOptions, given))
    if found.error is not None and not isinstance(found.error, NoFaceFound):
        raise found.error
    return {"faces": json.dumps([face.as_dict() for face in found.faces])}


def encode(sdk: FaceSDK, given: Given, on_step: StepCallback) -> dict[str, Any]:
    """`embedding` (d,) of the largest face of a photo."""
    return {"embedding": sdk.encode(given["image"], flip=_value(given, "flip", False)).vector}


def encode_crops(sdk: FaceSDK, given: Given, on_step: StepCallback) -> dict[str, Any]:
    """`embeddings` (n, d) of aligned crops (n, size, size, 3), as the network gives them."""
    return {"embeddings": sdk.encoder.vectors(given["crops"], flip=_value(given, "flip", False))}


def swap(sdk: FaceSDK, given: Given, on_step: StepCallback) -> dict[str, Any]:
    """`picture`: the target with the source's face; `similarity` (n,) of its faces, NaN where it was not measured."""
    options, paste = read_options(SwapOptions, given), read_options(PasteOptions, given)
    made = sdk.swap(given["source"], given["target"], given.get("faces", "all"), options, paste)
    cosines = [math.nan if face.similarity_source is None else face.similarity_source for face in made.faces]
    return {"picture": made.picture, "similarity": np.array(cosines, np.float32)}


def swap_crops(sdk: FaceSDK, given: Given, on_step: StepCallback) -> dict[str, Any]:
    """`crop` (size, size, 3) RGB 0..1, the target's with the source's face, and `mask` (size, size) of what is new."""
    source = sdk.swapper.networks.source(given["source"])
    crop, mask = sdk.swapper.infer(given["target"], source, read_options(SwapOptions, given))
    return {"crop": crop, "mask": mask}


def synthesize(sdk: FaceSDK, given: Given, on_step: StepCallback) -> dict[str, Any]:
    """`pictures` (identities, images, H, W, 3), and `failed` (identities, images): it missed an attribute."""
    made = sdk.synthesize(
        given["vectors"], _value(given, "images", 1), read_options(AttributeOptions, given),
        read_options(SynthesisOptions, {name: value for name, value in given.items() if name != "images"}),
        _value(given, "seed", 0),
    )  # fmt: skip
    return {"pictures": made.pictures, "failed": made.failed}


def option_types(kind: type[Any]) -> dict[str, str]:
    """Field of an option dataclass -> the type of its values, by facesdk.graph's names."""
    names = {bool: "bool", int: "int64", float: "float64"}
    return {name: names.get(_plain(hint), "string") for name, hint in typing.get_type_hints(kind).items()}


def read_options(kind: type[Options], given: Given) -> Options:
    """The options among the inputs; those that were left out keep their defaults.  Raises UsageError."""
    fields = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: _value(given, name, None) for name in given if name in fields})


def _value(given: Given, name: str, default: Any) -> Any:
    """One number, truth value or text."""
    value = given.get(name, default)
    if not isinstance(value, np.ndarray):
        return value
    if value.size != 1:
        raise UsageError(f"{name} is {value.size} values", remedy="give one")
    return value.reshape(-1)[0].item()


def _plain(hint: Any) -> Any:
    """`int` of `int | None`."""
    members = [member for member in typing.get_args(hint) if member is not type(None)]
    return members[0] if len(members) == 1 else hint
