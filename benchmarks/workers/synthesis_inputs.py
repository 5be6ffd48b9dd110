"""The inputs that every synthesis worker is given, from one seed."""

import numpy as np

from facesdk.synthesis.masks import POSITIONS, MaskLaw, token_masks


def inputs(case, batch):
    """Name -> array of the generator or, with targets, of the step."""
    rng, law = np.random.default_rng(0), MaskLaw()
    vectors, references = rng.standard_normal((2, batch, 512)).astype(np.float32)
    masks = token_masks(rng.random((batch, POSITIONS)), rng.uniform(0.15, 0.6, batch), law)
    arrays = {"vector": vectors, "keep": masks.keep, "masked": masks.masked}
    if case == "generator":
        return arrays
    targets = np.tile(np.float32([0, 27, 45, 0, 0]), (batch, 1))
    weights = np.tile(np.float32([100, 1, 1, 1, 1]), (batch, 1))
    return {"vector": vectors, "reference": references, **arrays, "targets": targets, "weights": weights}
