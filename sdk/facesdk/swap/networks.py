"""HifiFace on engines: a source face becomes a vector, a target crop is encoded once, the decoder joins them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..bundle import Bundle
from ..engine import Device, Precision
from ..engine_set import EngineSet
from ..errors import BundleError, FaceSDKError, UsageError
from ..store import Store

Floats = npt.NDArray[np.float32]

SYSTEM = "hififace"
ENGINES = ("identity", "shape", "target", "decoder")
_CONSTANTS = {"size": int, "template": str, "shape_coefficients": int, "renormalise_identity": bool}


@dataclasses.dataclass(frozen=True, eq=False)
class SourceFace:
    """What a swap needs of the source: unit identity vector (512,), shape coefficients (80,)."""

    identity: Floats
    shape: Floats


@dataclasses.dataclass(frozen=True, eq=False)
class TargetFace:
    """What a swap needs of the target crop, whatever the source: computed once for many sources.

    crop (1, 3, size, size) RGB 0..1; coefficients (257,), of which the first 80 are the target's own shape; skip and
    bottleneck: the encoder's two outputs.
    """

    crop: Floats
    coefficients: Floats
    skip: Floats
    bottleneck: Floats


def find_bundle(store: Store, name_or_path: str | Path | None = None) -> Bundle:
    """The face swap bundle of that name or folder, else the only one in the store; raises as `Store.only`."""
    how = (
        "facesdk export hififace --checkpoint hififace_opensouce_299999.ckpt -o bundle, then facesdk models add bundle"
    )
    return store.only(SYSTEM, name_or_path, what="face swap", argument="swapper", option="--bundle", how=how)


class SwapNetworks(EngineSet):
    """The engines of a hififace bundle, opened at once.  Safe to use from several threads.

    Engines: identity (face -> identity), shape (face -> coefficients), target (target -> skip, bottleneck), decoder
    (target, skip, bottleneck, vector -> swapped, mask); pictures are (n, 3, size, size) float32 RGB 0..1.
    """

    def __init__(
        self, bundle: Bundle, device: Device, threads: int | None = None, *, precision: Precision = "fp32"
    ) -> None:
        """Raises BundleError where the bundle is of another kind, or what Engine.open raises."""
        constants = _constants(bundle)
        super().__init__(bundle, device, threads, dict.fromkeys(ENGINES, precision))
        self.size: int = constants["size"]
        self.template: str = constants["template"]
        self._shape_width: int = constants["shape_coefficients"]
        self._renormalise: bool = constants["renormalise_identity"]
        try:
            opened = {name: self[name] for name in ENGINES}
        except FaceSDKError:
            self.close()
            raise
        self.description = opened["decoder"].description

    def source(self, crop: Floats) -> SourceFace:
        """The source's vector from its (size, size, 3) crop, RGB 0..1."""
        face = _nchw(crop)
        coefficients = self.run("shape", face=face)["coefficients"][0]
        return SourceFace(self.run("identity", face=face)["identity"][0], coefficients[: self._shape_width])

    def target(self, crop: Floats) -> TargetFace:
        """The target's features from its (size, size, 3) crop, RGB 0..1."""
        face = _nchw(crop)
        encoded = self.run("target", target=face)
        coefficients = self.run("shape", face=face)["coefficients"][0]
        return TargetFace(face, coefficients, encoded["skip"], encoded["bottleneck"])

    def identity(self, crop: Floats) -> Floats:
        """(512,) unit identity vector of a crop, in the system's own space."""
        identity: Floats = self.run("identity", face=_nchw(crop))["identity"][0]
        return identity

    def swap(self, source: SourceFace, target: TargetFace) -> tuple[Floats, Floats]:
        """The swapped crop (size, size, 3), not clamped, and the model's mask (size, size) clamped to 0..1."""
        vector = np.concatenate([source.shape, target.coefficients[self._shape_width :], source.identity])[None]
        outputs = self.run("decoder", target=target.crop, skip=target.skip, bottleneck=target.bottleneck, vector=vector)
        return outputs["swapped"][0].transpose(1, 2, 0), np.clip(outputs["mask"][0, 0], 0, 1)

    def between(self, first: SourceFace, second: SourceFace, shape: float, identity: float) -> SourceFace:
        """A source between two: the shares of the first in shape and in identity, each 0..1."""
        mixed = identity * first.identity + (1 - identity) * second.identity
        if self._renormalise:
            mixed = mixed / max(float(np.linalg.norm(mixed)), 1e-12)
        mixed_shape = shape * first.shape + (1 - shape) * second.shape
        return SourceFace(mixed.astype(np.float32), mixed_shape.astype(np.float32))

    def own(self, target: TargetFace) -> SourceFace:
        """The target as a source: swapping it in changes nothing but what the network loses."""
        identity = self.run("identity", face=target.crop)["identity"][0]
        return SourceFace(identity, target.coefficients[: self._shape_width])

    def mean(self, sources: Sequence[SourceFace]) -> SourceFace:
        """One source from several photos of a person: means, the identity back on the unit sphere."""
        if not sources:
            raise UsageError("no source face", remedy="give at least one photo of the source")
        identity = np.mean([source.identity for source in sources], axis=0)
        norm = max(float(np.linalg.norm(identity)), 1e-12)
        shape = np.mean([source.shape for source in sources], axis=0)
        return SourceFace((identity / norm).astype(np.float32), shape.astype(np.float32))


def _constants(bundle: Bundle) -> Mapping[str, Any]:
    constants = bundle.constants.get("swap", {})
    lacks = [f"engine {name}" for name in ENGINES if name not in bundle.engine_names]
    lacks += [f"constant {name}" for name, kind in _CONSTANTS.items() if type(constants.get(name)) is not kind]
    if lacks:
        raise BundleError(
            f"{bundle.name} is not a face swap bundle",
            cause=f"missing or malformed: {', '.join(lacks)}",
            remedy="make one: facesdk export hififace --checkpoint FILE -o FOLDER",
        )
    return constants  # type: ignore[no-any-return]


def _nchw(crop: Floats) -> Floats:
    return np.ascontiguousarray(crop.transpose(2, 0, 1)[None], np.float32)
