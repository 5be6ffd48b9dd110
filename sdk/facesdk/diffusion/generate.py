"""`generate`: prompt and faces in, pictures out.  Everything is checked before any engine opens."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from ..engine import StepCallback
from ..errors import UsageError
from ..image import Picture
from . import autoencoder, seeds
from .conditioning import Conditioning, condition
from .face_tokens import FaceTokens, Method
from .job import Job, job_of
from .loop import OnLatents, denoise
from .networks import DiffusionNetworks
from .options import Fusion, GenerateOptions
from .plan import pictures_at_once
from .samplers import SchedulerName
from .schedule import check_whole

__all__ = ["GenerateOptions", "Generation", "generate"]

Floats = npt.NDArray[np.float32]
Pictures = npt.NDArray[np.uint8]
#: picture -> how like the faces it is, None where it shows none
Score = Callable[[Picture], float | None]
#: called with the network steps done, of all batches, and pictures (batch, H, W, 3) of what they are going to be
OnPreview = Callable[[int, Pictures], None]


@dataclasses.dataclass(frozen=True, eq=False)
class Generation:
    """n pictures and how they were made.

    images      (n, H, W, 3) RGB uint8, by seed, or where some were kept of more, best first.
    seeds       (n,) int64.   similarity  (n,) to the faces, NaN where a picture shows none; None: not measured.
    latents     (n, 4, h, w) that the images were decoded of.   faces  the placeholders that were filled.
    method, fusion  how they were; None without faces.   scheduler, steps, guidance  that were used.
    timings_ms  milliseconds by stage: text, encode (of a picture), denoise (previews too), decode, score.
    """

    images: Pictures
    seeds: npt.NDArray[np.int64]
    similarity: Floats | None
    latents: Floats
    faces: tuple[str, ...]
    method: Method | None
    fusion: Fusion | None
    scheduler: SchedulerName
    steps: int
    guidance: float
    timings_ms: dict[str, float]


def generate(
    networks: DiffusionNetworks,
    prompt: str,
    faces: Mapping[str, FaceTokens] | None = None,
    options: GenerateOptions | None = None,
    *,
    image: Picture | None = None,
    mask: npt.NDArray[Any] | None = None,
    latents: Floats | None = None,
    noise: Floats | None = None,
    score: Score | None = None,
    on_step: StepCallback | None = None,
    on_preview: OnPreview | None = None,
    preview_every: int = 0,
) -> Generation:
    """Pictures of a prompt; of a prompt and an image where one is given, changed only in its mask where there is one.

    faces    placeholder in the prompt -> tokens.   mask  (H, W), 1 where the image is to change.
    latents  (n, 4, h, w), noise (steps, n, 4, h, w): unit normal values in place of the seeds' own.
    on_step  called as (network steps done, all of them); an exception raised there ends it all.
    Raises UsageError, ImageError, EmbeddingSpaceMismatch before any engine opens; EngineError.
    """
    options, clock = options or GenerateOptions(), _Clock()
    job = job_of(networks, prompt, faces or {}, options, image, mask, latents, noise)
    if options.keep is not None and score is None:
        raise UsageError(
            "there is nothing to choose pictures by",
            cause="they are measured against photos or identities, which face tokens do not hold",
            remedy="give a photo as a face, or leave out keep",
        )
    check_whole("preview_every", preview_every, 0)
    with clock("text"):
        told = condition(networks, job.prompt, options, job.course.guidance, job.course.begin)
        times = networks.time_rows(job.course.sampler.timesteps)
    known = _encoded(job, clock)
    watch = _Watch(job, on_step, on_preview, preview_every)
    with clock("denoise"):
        made = _denoised(job, told, times, known, watch)
    with clock("decode"):
        images = job.finished(networks.decode(made, options.tile))
    similarity = None if score is None else _scored(images, score, clock)
    return _generation(job, images, made, similarity, clock.timings_ms)


def _encoded(job: Job, clock: _Clock) -> Floats | None:
    """(images, *shape): each picture's own draw of the photo's latent; None without a photo."""
    if job.picture is None:
        return None
    options, factor = job.options, job.networks.settings.scaling_factor
    with clock("encode"):
        mean, logvar = job.networks.moments(job.picture.encoded(), options.tile)
        draws = (seeds.posterior(options.seed + number, job.shape) for number in range(options.images))
        return np.stack([autoencoder.sample(mean, logvar, draw, factor) for draw in draws])


def _denoised(job: Job, told: Conditioning, times: Floats, known: Floats | None, watch: _Watch) -> Floats:
    """(images, *shape) clean latents."""
    networks, images, sampler = job.networks, job.options.images, job.course.sampler
    parts = []
    with networks.stage("step", *watch.engines):
        batch = networks.step.at_most(pictures_at_once(job.options, networks.step.device), "bank")
        watch.batches = math.ceil(images / batch)
        for number, first in enumerate(range(0, images, batch)):
            pictures = range(first, min(first + batch, images))
            kept = None if known is None else known[pictures.start : pictures.stop]
            start, blend = job.starts(pictures, kept), job.blend(pictures, kept)
            on_step, on_latents = watch.of_batch(number)
            parts.append(
                denoise(
                    networks, sampler, told, start, job.step_noise(pictures), blend,
                    times=times, on_step=on_step, on_latents=on_latents, every=watch.every,
                )
            )  # fmt: skip
    return np.concatenate(parts)


def _scored(images: Pictures, score: Score, clock: _Clock) -> Floats:
    """(images,) similarities, NaN where there is none."""
    with clock("score"):
        return np.array([math.nan if (got := score(each)) is None else got for each in images], np.float32)


class _Watch:
    """Who is told of the steps of all batches, and shown what they are going to be."""

    def __init__(self, job: Job, on_step: StepCallback | None, on_preview: OnPreview | None, every: int) -> None:
        self.batches, self.every = 1, every if on_preview is not None else 0
        self.engines = ("vae_decoder",) if self.every else ()
        self._job, self._on_step, self._on_preview = job, on_step, on_preview

    def of_batch(self, number: int) -> tuple[StepCallback, OnLatents | None]:
        steps, on_preview = len(self._job.course.sampler), self._on_preview
        done, total = number * steps, self.batches * steps

        def on_step(step: int, _: int) -> None:
            if self._on_step is not None:
                self._on_step(done + step, total)

        def on_latents(step: int, latents: Floats, clean: Floats) -> None:
            if on_preview is not None and step < steps:
                job = self._job
                on_preview(done + step, job.finished(job.networks.decode(clean, job.options.tile)))

        return on_step, on_latents if self.every else None


def _generation(
    job: Job, images: Pictures, latents: Floats, similarity: Floats | None, timings_ms: dict[str, float]
) -> Generation:
    order = np.arange(len(images))
    if similarity is not None and job.options.keep is not None:
        order = np.argsort(-similarity, kind="stable")[: job.options.keep]  # NaN comes last
        similarity = similarity[order]
    faces = tuple(job.prompt.faces)
    return Generation(
        images=images[order],
        seeds=job.options.seed + order.astype(np.int64),
        similarity=similarity,
        latents=latents[order],
        faces=faces,
        method=job.prompt.method,
        fusion=job.options.fusion if faces else None,
        scheduler=job.course.scheduler,
        steps=job.course.steps,
        guidance=job.course.guidance,
        timings_ms=timings_ms,
    )


class _Clock:
    """Milliseconds by stage."""

    def __init__(self) -> None:
        self.timings_ms: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.timings_ms[stage] = (time.perf_counter() - started) * 1e3
