"""`Synthesizer`: identity vectors in, pictures in memory out."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import numpy.typing as npt

from ..errors import UsageError
from .attributes import AttributeOptions, Reached
from .generate import SynthesisOptions, generate
from .networks import Floats, Pictures, SynthesisNetworks
from .report import unit
from .vectors import check_vectors


@dataclasses.dataclass(frozen=True, eq=False)
class Synthesis:
    """Pictures of n identities, and how they were reached.

    pictures    (n, images, size, size, 3) RGB uint8, failed ones too.   vectors  (n, 512) that were asked for.
    drawn       (n, images, 512) that each picture was drawn of: perturbed, and where it was optimised, moved.
    similarity  (n, measured) cosines of the first pictures' identities with the vectors asked for.
    reached     the optimisations: one for each identity, for each picture, or none, by kind.
    failed      (n, images) bool: the picture missed an attribute; its row in `reached` says which.
    timings_ms  milliseconds by stage.
    """

    pictures: Pictures
    vectors: Floats
    drawn: Floats
    similarity: Floats
    reached: tuple[Reached, ...]
    failed: npt.NDArray[np.bool_]
    timings_ms: dict[str, float]


class Synthesizer:
    """The networks of one bundle.  Safe to use from several threads."""

    def __init__(self, networks: SynthesisNetworks) -> None:
        self.networks = networks

    def synthesize(
        self,
        vectors: npt.NDArray[np.floating],
        images: int = 1,
        attributes: AttributeOptions | None = None,
        options: SynthesisOptions | None = None,
        seed: int = 0,
        *,
        unusual: bool = False,
    ) -> Synthesis:
        """`images` pictures of each row of vectors (n, 512); the same that `write_dataset` would write.

        options  batch sizes, kind, masks and `measured`; what concerns files has no meaning here.
        Raises UsageError, EngineError; a row that misses its attributes is told in `failed`, not raised.
        """
        if not len(vectors):
            raise UsageError("there are no identities to synthesise", remedy="give one or more")
        asked = check_vectors(vectors, unusual=unusual)
        options = dataclasses.replace(options or SynthesisOptions(), images=images, keep_failed=True)
        size, shape = self.networks.size, (len(asked), images)
        pictures, drawn = np.zeros((*shape, size, size, 3), np.uint8), np.zeros((*shape, asked.shape[1]), np.float32)
        failed = np.zeros(shape, bool)
        reached: dict[tuple[int, ...], Reached] = {}
        started = time.perf_counter()
        for made in generate(self.networks, asked, range(len(asked)), options, attributes, seed):
            place = made.identity, made.image
            pictures[place], drawn[place] = made.picture, made.vector
            if made.reached is not None:
                reached[made.reached.key], failed[place] = made.reached, not made.reached.passed
        generated = time.perf_counter()
        similarity = self._similarity(pictures[:, : options.measured], asked)
        measured = time.perf_counter()
        timings = {"generate": (generated - started) * 1e3, "similarity": (measured - generated) * 1e3}
        rows = tuple(reached[key] for key in sorted(reached))
        return Synthesis(pictures, asked, drawn, similarity, rows, failed, timings)

    def close(self) -> None:
        """Free the networks."""
        self.networks.close()

    def _similarity(self, pictures: Pictures, asked: Floats) -> Floats:
        count, measured = pictures.shape[:2]
        if not measured:
            return np.zeros((count, 0), np.float32)
        found = self.networks.encoder.vectors(pictures.reshape(-1, *pictures.shape[2:]))
        units = unit(found).reshape(count, measured, -1)
        return np.asarray(np.einsum("nmd,nd->nm", units, unit(asked)), np.float32)
