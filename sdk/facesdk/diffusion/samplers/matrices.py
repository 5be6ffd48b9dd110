"""`Sampler`: a scheduler as data.  A linear step that is applied to unit vectors is its own matrix."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...errors import UsageError
from ..schedule import Floats, Level
from .options import Prediction

Latent = npt.NDArray[np.floating[Any]]
#: network input, timestep -> network output
Network = Callable[[Latent, float], Latent]


@dataclasses.dataclass(frozen=True, eq=False)
class Sampler:
    """A scheduler, one row per network evaluation; all float64.

    timesteps (N,)         what the network is told.      scales (N,)  factor of the latent before the network.
    matrices (N, K, K+2)   next bank = matrix @ [bank; network output; fresh noise].  Row 0 of the bank is the latent,
                           the others what the scheduler remembers, 0 at the start.
    clean (N, K+2)         the clean latent that a step predicts, of the same columns.
    levels (N+1, 2)        signal and noise of row 0 before every step, where the network believes it, and at the end.
    initial                the start from pure noise is initial * N(0, 1).
    """

    timesteps: Floats
    scales: Floats
    matrices: Floats
    clean: Floats
    levels: Floats
    initial: float

    @property
    def noisy(self) -> bool:
        """Whether any step uses fresh noise."""
        return bool(self.matrices[:, :, -1].any())

    def __len__(self) -> int:
        return len(self.timesteps)


class Step(NamedTuple):
    """One network evaluation, which takes the latent from a level `before` it to one `after` it.

    clean, bank  rows of coefficients of [bank; network output; fresh noise].
    """

    timestep: float
    before: Level
    after: Level
    clean: Floats
    bank: tuple[Floats, ...]


class Columns(NamedTuple):
    """Unit vectors of [latent; memory ...; network output; fresh noise]."""

    latent: Floats
    memory: tuple[Floats, ...]
    output: Floats
    noise: Floats


def columns(memory: int) -> Columns:
    """What a scheduler's step is computed on, as if on latents, to become the rows of its matrix."""
    latent, *remembered, output, noise = np.eye(memory + 3)
    return Columns(latent, tuple(remembered), output, noise)


def predicted_clean(prediction: Prediction, latent: Floats, output: Floats, level: Level) -> Floats:
    """The clean latent behind a network output, for a network that sees latents of variance 1.

    v_prediction: arXiv 2202.00512, appendix D.
    """
    signal, noise = level
    if prediction == "epsilon":
        return (latent - noise * output) / signal
    if prediction == "v_prediction":
        norm = np.hypot(signal, noise)
        return np.asarray((signal * latent / norm - noise * output) / norm)
    return output


def assembled(steps: Iterable[Step], *, initial: float = 1.0, scaled: bool = False) -> Sampler:
    """The sampler of these steps; a `scaled` network sees the latent brought to variance 1."""
    steps = list(steps)
    levels = np.array([*(step.before for step in steps), steps[-1].after])
    return Sampler(
        timesteps=np.array([step.timestep for step in steps], np.float64),
        scales=1 / np.hypot(*levels[:-1].T) if scaled else np.ones(len(steps)),
        matrices=np.array([step.bank for step in steps]),
        clean=np.array([step.clean for step in steps]),
        levels=levels,
        initial=initial,
    )


def walk(sampler: Sampler, network: Network, latent: Latent, noise: Latent | None) -> Iterator[tuple[Latent, Latent]]:
    """After each step: the latent, and the clean latent that the step predicted.

    latent  the start, any shape, at levels[0].   noise  (N, *latent.shape), or None where the sampler is not noisy.
    Computed in the latent's dtype.
    """
    if noise is None and sampler.noisy:
        raise UsageError("this sampler needs fresh noise", remedy="give one array of noise per step")
    noise = np.zeros((len(sampler), *latent.shape), latent.dtype) if noise is None else np.asarray(noise, latent.dtype)
    if noise.shape != (len(sampler), *latent.shape):
        raise UsageError(
            f"noise has shape {noise.shape} for latents of {latent.shape} and {len(sampler)} steps",
            remedy=f"give {(len(sampler), *latent.shape)}",
        )
    scales, matrices, rows = (a.astype(latent.dtype) for a in (sampler.scales, sampler.matrices, sampler.clean))
    bank = np.zeros((matrices.shape[1], *latent.shape), latent.dtype)
    bank[0] = latent
    for i, timestep in enumerate(sampler.timesteps):
        output = np.asarray(network(scales[i] * bank[0], float(timestep)), latent.dtype)
        stacked = np.concatenate([bank, output[None], noise[i][None]])
        bank = np.tensordot(matrices[i], stacked, 1)
        yield bank[0], np.tensordot(rows[i], stacked, 1)


def run(sampler: Sampler, network: Network, latent: Latent, noise: Latent | None = None) -> Latent:
    """The start and the latent after every step, (N + 1, *latent.shape): row i is at levels[i].  See `walk`."""
    return np.stack([latent, *(after for after, _ in walk(sampler, network, latent, noise))])
