"""`Encoder`: aligned crop of a face -> `Identity`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .annotation.alignment import arcface_template
from .bundle import Bundle
from .engine import Device, Engine
from .errors import BundleError, UsageError
from .face import Face
from .identity import Identity, Space
from .image import Picture
from .store import Store

SYSTEM = ENGINE = "encoder"

_CONSTANTS = {"size": int, "template": str, "space": str, "preprocessing": str, "normalised": bool}
_MOST_CROPS = 16  # in one call of the engine, to bound its activations


class Encoder:
    """The network of an encoder bundle.  Safe to use from several threads.

    The bundle's engine `encoder` takes `image` uint8 (n, size, size, 3), RGB, and gives `embedding` (n, d).
    space       of the identities: the bundle's name for it and the start of the weights' sha256, where the card has it.
    thresholds  purpose -> least cosine, as the bundle states them; often empty.
    """

    def __init__(self, bundle: Bundle, device: Device = "auto", threads: int | None = None) -> None:
        """Raises BundleError where the bundle is no encoder, or what Engine.open raises."""
        constants = _constants(bundle)
        self.bundle, self.size = bundle, int(constants["size"])
        self.thresholds: Mapping[str, float] = constants.get("thresholds", {})
        self.engine = bundle.open(ENGINE, device, threads=threads)
        try:
            width = _width(self.engine, bundle.name, self.size)
        except BundleError:
            self.engine.close()
            raise
        model = "-".join(filter(None, (constants["space"], self.engine.card.source_sha256[:8])))
        self.space = Space(model, constants["preprocessing"], constants["normalised"], width)

    def encode(self, picture: Picture, face: Face, *, flip: bool = False) -> Identity:
        """The identity of one face; `flip`: mean of the vectors of the crop and of its mirror image."""
        return self.encode_many([(picture, face)], flip=flip)

    def encode_many(self, faces: Iterable[tuple[Picture, Face]], *, flip: bool = False) -> Identity:
        """One identity of several faces of one person, `Identity.mean_of` those of each; raises UsageError."""
        crops = [face.aligned(picture, self.size) for picture, face in faces]
        return Identity.mean_of(Identity(vector, self.space) for vector in self.vectors(crops, flip=flip))

    def vectors(self, crops: Iterable[Picture], *, flip: bool = False) -> npt.NDArray[np.float32]:
        """(n, d) outputs of the network for (size, size, 3) aligned crops, before any normalisation."""
        stack = list(crops)
        if not stack:
            raise UsageError("no faces to encode", remedy="give at least one")
        if flip:
            stack = [view for crop in stack for view in (crop, crop[:, ::-1])]
        step = self.engine.at_most(_MOST_CROPS, "image")
        starts = range(0, len(stack), step)
        parts = [self.engine(image=np.stack(stack[start : start + step]))["embedding"] for start in starts]
        found = np.concatenate(parts).astype(np.float32)
        return np.asarray(found.reshape(-1, 2, found.shape[1]).mean(axis=1)) if flip else found

    def close(self) -> None:
        """Free the engine."""
        self.engine.close()


def find_bundle(store: Store, name_or_path: str | Path | None = None) -> Bundle:
    """The encoder bundle of that name or folder, else the only one in the store; raises as `Store.only`."""
    how = (
        "facesdk export arcface --checkpoint backbone.pth -o bundle/, then facesdk models add bundle/; "
        "or a pack of insightface: facesdk models add buffalo_l.zip"
    )
    return store.only(SYSTEM, name_or_path, what="encoder", argument="encoder", option="--encoder", how=how)


def _constants(bundle: Bundle) -> Mapping[str, Any]:
    constants = bundle.constants.get("encoder", {})
    wrong = [f"constant {name}" for name, kind in _CONSTANTS.items() if type(constants.get(name)) is not kind]
    if ENGINE not in bundle.engine_names:
        wrong.insert(0, f"engine {ENGINE}")
    if wrong:
        raise BundleError(
            f"{bundle.name} is not an encoder bundle",
            cause=f"missing or malformed: {', '.join(wrong)}",
            remedy="choose one of system encoder: facesdk models list",
        )
    if constants["template"] != "arcface":
        raise BundleError(
            f"{bundle.name} wants crops of the template {constants['template']!r}",
            cause="this version of FaceSDK aligns to: arcface",
            remedy="export the bundle again, or update FaceSDK",
        )
    arcface_template(constants["size"])
    return constants  # type: ignore[no-any-return]


def _width(engine: Engine, name: str, size: int) -> int:
    """The d of `embedding` (n, d)."""
    takes = {tensor.name: (tensor.dtype, tensor.shape[1:]) for tensor in engine.inputs}
    gives = {tensor.name: tensor.shape for tensor in engine.outputs}
    width = gives.get("embedding", (None,))[-1]
    if takes != {"image": (np.dtype(np.uint8), (size, size, 3))} or not isinstance(width, int):
        raise BundleError(
            f"{name}: {engine!r} is no encoder",
            remedy=f"export it as image uint8 (n, {size}, {size}, 3) -> embedding float32 (n, d)",
        )
    return width
