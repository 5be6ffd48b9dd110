"""A face swap in four steps that can be used alone: align, infer, mask, paste."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import numpy as np

from ..errors import UsageError, one_of
from ..face import Face
from ..image import Picture
from . import boost
from .crop import TEMPLATES, crop_matrix, cut_crop
from .masks import region_mask
from .networks import Floats, SourceFace, SwapNetworks
from .paste import Pasted, PasteOptions, Swapped, paste_all, paste_mask

_BOOSTS = (1, 2, 4)


@dataclasses.dataclass(frozen=True)
class SwapOptions:
    """How a face is swapped."""

    strength: float = dataclasses.field(
        default=1.0, metadata={"help": "share of the source in identity and shape, 0 (the target's own) to 1"}
    )
    iterations: int = dataclasses.field(default=1, metadata={"help": "how often the result is fed back as the target"})
    boost: int = dataclasses.field(
        default=1, metadata={"help": "1, 2 or 4: run the network on that many sub-grids a side, for large faces"}
    )
    template: str | None = dataclasses.field(
        default=None, metadata={"help": f"alignment of the crops, of {', '.join(TEMPLATES)}; the bundle's by default"}
    )
    similarity: bool = dataclasses.field(default=True, metadata={"help": "measure the identities afterwards"})

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise UsageError(f"strength is {self.strength}", remedy="give 0 to 1")
        if not 1 <= self.iterations <= 10:
            raise UsageError(f"iterations is {self.iterations}", remedy="give 1 to 10")
        if self.boost not in _BOOSTS:
            raise one_of("boost", self.boost, [str(factor) for factor in _BOOSTS])
        if self.template is not None and self.template not in TEMPLATES:
            raise one_of("template", self.template, tuple(TEMPLATES))


@dataclasses.dataclass(frozen=True, eq=False)
class SwappedFace:
    """One face of the target after the swap; cosines of its identity with the source's and with its own before.

    Both in the swap system's own identity space; None where they were not measured.
    """

    face: Face
    similarity_source: float | None
    similarity_target: float | None


@dataclasses.dataclass(frozen=True, eq=False)
class SwapResult:
    """The new picture, what was swapped in it, and milliseconds by stage.

    pasted  weight of the paste: `pasted.mask_full()` is (H, W), 1 where the result replaces the picture.
    """

    picture: Picture
    faces: tuple[SwappedFace, ...]
    pasted: Pasted
    timings_ms: dict[str, float]


class Swapper:
    """The networks of one bundle, used on annotated pictures.  Safe to use from several threads."""

    def __init__(self, networks: SwapNetworks) -> None:
        self.networks = networks

    def source(self, picture: Picture, face: Face, template: str | None = None) -> SourceFace:
        """What a swap needs of the source; compute it once for many targets."""
        matrix = crop_matrix(face, self.networks.size, template or self.networks.template)
        return self.networks.source(cut_crop(picture, matrix, self.networks.size)[0])

    def swap(
        self,
        picture: Picture,
        faces: Sequence[Face],
        source: SourceFace,
        options: SwapOptions | None = None,
        paste: PasteOptions | None = None,
    ) -> SwapResult:
        """A new picture in which these faces bear the source's identity."""
        options, paste = options or SwapOptions(), paste or PasteOptions()
        timings = dict.fromkeys(("align", "infer", "paste", "similarity"), 0.0)
        crops, swapped = [], []
        for face in faces:
            crop, result = self._one(picture, face, source, options, paste, timings)
            crops.append(crop)
            swapped.append(result)
        with _Lap(timings, "paste"):
            pasted = paste_all(picture, crops, paste)
        return SwapResult(pasted.picture, tuple(swapped), pasted, timings)

    def close(self) -> None:
        """Free the networks."""
        self.networks.close()

    def most_like(
        self, picture: Picture, faces: Sequence[Face], reference: SourceFace, template: str | None = None
    ) -> Face:
        """The face whose identity has the greatest cosine with the reference's."""
        return max(faces, key=lambda face: float(self.source(picture, face, template).identity @ reference.identity))

    def infer(self, crop: Floats, source: SourceFace, options: SwapOptions) -> tuple[Floats, Floats]:
        """The swapped crop and the model's mask, both of the crop's size (the network's times `boost`).

        Of several iterations the greatest mask counts: what any of them changed, the result holds.
        """
        result, mask = crop, np.zeros(crop.shape[:2], np.float32)
        for _ in range(options.iterations):
            parts = [self._infer_part(part, source, options) for part in boost.split(result, options.boost)]
            result = np.clip(boost.join(np.stack([picture for picture, _ in parts])), 0, 1)
            mask = np.maximum(mask, boost.join(np.stack([mask for _, mask in parts])))
        return result, mask

    def _infer_part(self, part: Floats, source: SourceFace, options: SwapOptions) -> tuple[Floats, Floats]:
        target = self.networks.target(part)
        if options.strength < 1:
            own = self.networks.own(target)
            source = self.networks.between(source, own, options.strength, options.strength)
        return self.networks.swap(source, target)

    def _one(
        self,
        picture: Picture,
        face: Face,
        source: SourceFace,
        options: SwapOptions,
        paste: PasteOptions,
        timings: dict[str, float],
    ) -> tuple[Swapped, SwappedFace]:
        with _Lap(timings, "align"):
            size = self.networks.size * options.boost
            matrix = crop_matrix(face, size, options.template or self.networks.template)
            crop, validity = cut_crop(picture, matrix, size)
        with _Lap(timings, "infer"):
            result, model_mask = self.infer(crop, source, options)
        with _Lap(timings, "paste"):
            region = region_mask(face, matrix, size) if paste.mask in ("region", "both") else None
            mask = paste_mask(paste, validity, model_mask=model_mask, region_mask=region)
        with _Lap(timings, "similarity"):
            cosines = self._similarities(crop, result, source, options) if options.similarity else (None, None)
        return Swapped(result, crop, mask, matrix, model_mask), SwappedFace(face, *cosines)

    def _similarities(
        self, crop: Floats, result: Floats, source: SourceFace, options: SwapOptions
    ) -> tuple[float, float]:
        before, after = (self.networks.identity(boost.split(c, options.boost)[0]) for c in (crop, result))
        return float(after @ source.identity), float(after @ before)


class _Lap:
    """Adds the milliseconds of its block to one stage."""

    def __init__(self, timings: dict[str, float], stage: str) -> None:
        self._timings, self._stage = timings, stage

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        self._timings[self._stage] += (time.perf_counter() - self._start) * 1e3
