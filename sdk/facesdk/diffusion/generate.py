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
from .conditioning import Conditioning, Reading, condition, read_prompt
from .face_tokens import FaceTokens, Method
from .loop import Blend, OnLatents, denoise
from .networks import DiffusionNetworks
from .options import Course, Fusion, GenerateOptions, course
from .picture_conditions import PictureCondition, asked_size, picture_condition
from .samplers import SchedulerName

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
    job = _job(networks, prompt, faces or {}, options, image, mask, latents, noise)
    if options.keep is not None and score is None:
        raise UsageError("there is nothing to choose pictures by", remedy="give faces, or leave out keep")
    if preview_every < 0:
        raise UsageError(f"preview_every is {preview_every}", remedy="give 0 (no previews) or more steps")
    with clock("text"):
        told = condition(networks, job.reading, options, job.course.guidance, job.course.begin)
        times = networks.time_rows(job.course.sampler.timesteps)
    known = None
    if job.picture is not None:
        with clock("encode"):
            known = _encoded(job, job.picture)
    watch = _Watch(job, on_step, on_preview, preview_every)
    with clock("denoise"):
        made = _denoised(job, told, times, known, watch)
    with clock("decode"):
        images = job.finished(networks.decode(made, options.tile))
    similarity = None
    if score is not None:
        with clock("score"):
            similarity = np.array([math.nan if (got := score(each)) is None else got for each in images], np.float32)
    return _generation(job, images, made, similarity, clock.timings_ms)


# -- what is to be done -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class _Job:
    """A generation that was checked.   shape  of one latent.   latents, noise  see `generate`."""

    networks: DiffusionNetworks
    options: GenerateOptions
    reading: Reading
    course: Course
    picture: PictureCondition | None
    shape: tuple[int, int, int]
    latents: Floats | None
    noise: Floats | None

    def finished(self, pictures: Pictures) -> Pictures:
        """Pictures as they leave: in a photo's size, and its own outside the mask."""
        return pictures if self.picture is None else np.stack([self.picture.finished(each) for each in pictures])

    def starts(self, pictures: range, known: Floats | None) -> Floats:
        """(n, *shape) of some of the pictures: noise alone, or known latents with as much as the first step expects."""
        if self.latents is not None:
            unit = self.latents[pictures.start : pictures.stop]
        else:
            unit = np.stack([seeds.start(self.options.seed + picture, self.shape) for picture in pictures])
        if known is None:
            return np.asarray(np.float32(self.course.sampler.initial) * unit)
        signal, spread = self.course.sampler.levels[0].astype(np.float32)
        return np.asarray(signal * known + spread * unit)

    def step_noise(self, pictures: range) -> Floats | None:
        """(steps, n, *shape), None where the sampler draws none."""
        if self.noise is not None:
            return self.noise[:, pictures.start : pictures.stop]
        return self._drawn(seeds.step_noise, len(self.course.sampler), pictures) if self.course.sampler.noisy else None

    def blend(self, pictures: range, known: Floats | None) -> Blend | None:
        """What inpainting puts back; None without a mask."""
        if known is None or self.picture is None or self.picture.mask is None:
            return None
        steps = len(self.course.sampler) if self.options.fresh_blend else 1
        return Blend(known, self.picture.latent_mask(), self._drawn(seeds.blend_noise, steps, pictures))

    def _drawn(self, draw: Callable[[int, int, tuple[int, ...]], Floats], steps: int, pictures: range) -> Floats:
        return np.stack([draw(self.options.seed + picture, steps, self.shape) for picture in pictures], axis=1)


def _job(
    networks: DiffusionNetworks,
    prompt: str,
    faces: Mapping[str, FaceTokens],
    options: GenerateOptions,
    image: Picture | None,
    mask: npt.NDArray[Any] | None,
    latents: Floats | None,
    noise: Floats | None,
) -> _Job:
    settings = networks.settings
    autoencoder.check_tile(options.tile, settings.cell)
    if image is None and mask is not None:
        raise UsageError("a mask without an image", remedy="give the image that it is of")
    if image is None and options.denoise is not None:
        raise UsageError("denoise is of an image", remedy="give one, or leave it out")
    picture = None
    if image is None:
        width, height = asked_size(options.width, options.height, settings)
    else:
        networks.check_encodes()
        picture = picture_condition(image, mask, options.width, options.height, settings.cell)
        height, width = picture.encoded().shape[:2]
    shape = settings.latent_channels, height // settings.cell, width // settings.cell
    reading = read_prompt(networks, prompt, faces, options)
    way = course(options, settings, reading.method, len(faces), picture=picture is not None, mask=mask is not None)
    latents = _given("latents", latents, (options.images, *shape))
    noise = _given("noise", noise, (len(way.sampler), options.images, *shape))
    return _Job(networks, options, reading, way, picture, shape, latents, noise)


def _given(name: str, values: Floats | None, shape: tuple[int, ...]) -> Floats | None:
    if values is None:
        return None
    array = np.asarray(values)
    if array.shape != shape or array.dtype.kind != "f" or not np.isfinite(array).all():
        got = f"{array.dtype} of shape {array.shape}"
        raise UsageError(f"{name} are {got}, not finite floats {shape}", remedy="give unit normal values of that shape")
    return array.astype(np.float32)


# -- doing it ---------------------------------------------------------------------------------------------


def _encoded(job: _Job, picture: PictureCondition) -> Floats:
    """(images, *shape): each picture's own draw of the photo's latent."""
    options, factor = job.options, job.networks.settings.scaling_factor
    mean, logvar = job.networks.moments(picture.encoded(), options.tile)
    draws = (seeds.posterior(options.seed + number, job.shape) for number in range(options.images))
    return np.stack([autoencoder.sample(mean, logvar, draw, factor) for draw in draws])


def _denoised(job: _Job, told: Conditioning, times: Floats, known: Floats | None, watch: _Watch) -> Floats:
    """(images, *shape) clean latents."""
    networks, images, sampler = job.networks, job.options.images, job.course.sampler
    parts = []
    with networks.stage("step", *watch.engines):
        batch = job.options.batch or (images if networks.step.device == "cuda" else 1)
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


class _Watch:
    """Who is told of the steps of all batches, and shown what they are going to be."""

    def __init__(self, job: _Job, on_step: StepCallback | None, on_preview: OnPreview | None, every: int) -> None:
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
    job: _Job, images: Pictures, latents: Floats, similarity: Floats | None, timings_ms: dict[str, float]
) -> Generation:
    order = np.arange(len(images))
    if similarity is not None and job.options.keep is not None:
        order = np.argsort(-similarity, kind="stable")[: job.options.keep]  # NaN comes last
        similarity = similarity[order]
    faces = tuple(job.reading.faces)
    return Generation(
        images=images[order],
        seeds=job.options.seed + order.astype(np.int64),
        similarity=similarity,
        latents=latents[order],
        faces=faces,
        method=job.reading.method,
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
