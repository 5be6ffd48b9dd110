"""From one identity to another in steps: what depends on the target alone is computed once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from ..errors import UsageError, one_of
from ..face import Face
from ..image import Picture
from .crop import crop_matrix, cut_crop
from .masks import region_mask
from .networks import SourceFace, SwapNetworks
from .paste import PasteOptions, paste, paste_mask

Mode = Literal["identity", "3d", "all"]
MODES: tuple[Mode, ...] = ("identity", "3d", "all")
FRAMES = 21  # of the original's command line: rates 0, 0.05 ... 1


def interpolate(
    networks: SwapNetworks,
    picture: Picture,
    face: Face,
    first: SourceFace,
    second: SourceFace | None = None,
    mode: Mode = "all",
    frames: int = FRAMES,
    options: PasteOptions | None = None,
    template: str | None = None,
) -> Iterator[Picture]:
    """`frames` pictures from the second source (the target's own face by default) to the first.

    mode  "identity" moves the identity vector, "3d" the shape, "all" both; what stays is the first source's.
    """
    if mode not in MODES:
        raise one_of("mode", mode, MODES)
    if frames < 2:
        raise UsageError(f"frames is {frames}", remedy="give 2 or more")
    options = options or PasteOptions()
    matrix = crop_matrix(face, networks.size, template or networks.template)
    crop, validity = cut_crop(picture, matrix, networks.size)
    target = networks.target(crop)
    second = networks.own(target) if second is None else second
    region = region_mask(face, matrix, networks.size) if options.mask in ("region", "both") else None
    for rate in np.linspace(0, 1, frames).tolist():
        shape, identity = (rate if mode in moved else 1.0 for moved in (("3d", "all"), ("identity", "all")))
        result, mask = networks.swap(networks.between(first, second, shape, identity), target)
        weight = paste_mask(options, validity, model_mask=mask, region_mask=region)
        yield paste(picture, result, crop, weight, matrix, options, model_mask=mask).picture
