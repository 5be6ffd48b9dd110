"""The inputs that every worker of generation is given, from one seed, and the sampler's step that they take."""

import numpy as np

GUIDANCE, TIMESTEP = 7.5, 500.0
#: noise levels before and after a step of Euler's sampler, about the middle of the schedule
SIGMA, NEXT_SIGMA = 1.6, 1.4
SCALE = (SIGMA**2 + 1) ** -0.5


def inputs():
    """A latent (1, 4, 64, 64) as noisy as SIGMA says, and text (2, 77, 768): of nothing, of the prompt."""
    rng = np.random.default_rng(0)
    latent = (SIGMA**2 + 1) ** 0.5 * rng.standard_normal((1, 4, 64, 64))
    return latent.astype(np.float32), rng.standard_normal((2, 77, 768)).astype(np.float32)
