"""All pairs of some faces: each is read once as a source and once as a target."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..face import Face
from ..image import Picture
from .crop import crop_matrix, cut_crop
from .networks import Floats, SwapNetworks


def all_pairs(
    networks: SwapNetworks, faces: Sequence[tuple[Picture, Face]], template: str | None = None
) -> Iterator[Picture]:
    """The swapped crops, n for each of n targets in order: pair k has target k // n and source k % n."""
    crops = [_crop(networks, picture, face, template) for picture, face in faces]
    sources = [networks.source(crop) for crop in crops]
    for crop in crops:
        target = networks.target(crop)
        for source in sources:
            swapped, _ = networks.swap(source, target)
            yield np.rint(np.clip(swapped, 0, 1) * 255).astype(np.uint8)


def _crop(networks: SwapNetworks, picture: Picture, face: Face, template: str | None) -> Floats:
    matrix = crop_matrix(face, networks.size, template or networks.template)
    return cut_crop(picture, matrix, networks.size)[0]
