"""What a generation is asked for, checked before any engine opens, and the random numbers that each picture needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import UsageError
from ..image import Picture
from . import autoencoder, seeds
from .conditioning import PlacedPrompt, read_prompt
from .face_tokens import FaceTokens
from .loop import Blend
from .networks import DiffusionNetworks
from .options import Course, GenerateOptions, course
from .picture_conditions import PictureCondition, asked_size, picture_condition

Floats = npt.NDArray[np.float32]
Pictures = npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """A generation that was checked.

    shape  of one latent.   latents, noise  (images, *shape), (steps, images, *shape) in place of the seeds' own.
    """

    networks: DiffusionNetworks
    options: GenerateOptions
    prompt: PlacedPrompt
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


def job_of(
    networks: DiffusionNetworks,
    prompt: str,
    faces: Mapping[str, FaceTokens],
    options: GenerateOptions,
    image: Picture | None,
    mask: npt.NDArray[Any] | None,
    latents: Floats | None,
    noise: Floats | None,
) -> Job:
    """What `generate` is asked for, checked.  Raises UsageError, ImageError, EmbeddingSpaceMismatch."""
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
    placed = read_prompt(networks, prompt, faces, options)
    way = course(options, settings, placed.method, len(faces), picture=picture is not None, mask=mask is not None)
    latents = _given("latents", latents, (options.images, *shape))
    noise = _given("noise", noise, (len(way.sampler), options.images, *shape))
    return Job(networks, options, placed, way, picture, shape, latents, noise)


def _given(name: str, values: Floats | None, shape: tuple[int, ...]) -> Floats | None:
    if values is None:
        return None
    array = np.asarray(values)
    if array.shape != shape or array.dtype.kind != "f" or not np.isfinite(array).all():
        got = f"{array.dtype} of shape {array.shape}"
        raise UsageError(f"{name} are {got}, not finite floats {shape}", remedy="give unit normal values of that shape")
    return array.astype(np.float32)
