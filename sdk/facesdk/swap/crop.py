"""The crop that a swap network sees: where it lies, its pixels, and which of them the picture has."""

from __future__ import annotations

import dataclasses
from types import MappingProxyType
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ..annotation.alignment import ARCFACE_112, similarity
from ..dense_face.crop import stylegan_square
from ..errors import UsageError, one_of
from ..face import Face
from ..image import Picture, check_picture
from .warp import Matrix, Pixels, inverse, scale, similarity_matrix, warp


@dataclasses.dataclass(frozen=True)
class CropTemplate:
    """Where a crop has its face.

    points  image-left eye, image-right eye, nose tip, image-left, image-right mouth corner as shares of the side, pixel
            centres counted as whole numbers, as published; None: StyleGAN's rule on the means of eyes and mouth.
    """

    name: str
    points: tuple[tuple[float, float], ...] | None

    def fit(self, five_points: npt.NDArray[Any], size: int) -> Matrix:
        """(2, 3) picture -> crop, least squares.  Raises UsageError for coinciding points or without a template."""
        if self.points is None:
            raise UsageError(f"{self.name} is fitted to landmarks, not to five points", remedy="use crop_matrix")
        if np.ptp(five_points, axis=0).max() < 1e-6 or not np.isfinite(five_points).all():
            raise UsageError("the five points coincide or are not finite", remedy="give the points of one face")
        return similarity(five_points, np.array(self.points) * size + 0.5)


def _points(array: Matrix) -> tuple[tuple[float, float], ...]:
    return tuple((float(x), float(y)) for x, y in array)


TEMPLATES = MappingProxyType({
    template.name: template
    for template in (
        CropTemplate("ffhq", None),  # what the published HifiFace samples show
        CropTemplate("arcface", _points(ARCFACE_112 / 112)),
        CropTemplate("arcface-128", _points(np.add(ARCFACE_112, (8, 0)) / 128)),  # insightface, sizes that 128 divides
        CropTemplate("ffhq_512", ((.37691676, .46864664), (.62285697, .46912813), (.50123859, .61331904),
                                  (.39308822, .72541100), (.61150205, .72490465))),  # facefusion
        CropTemplate("simswap-frontal", _points(np.array(
            [(39.730, 51.138), (72.270, 51.138), (56, 68.493), (42.463, 87.010), (69.537, 87.010)]) / 112)),
        CropTemplate("mtcnn_512", ((.36562865, .46733799), (.63305391, .46585885), (.50019127, .61942959),
                                   (.39032951, .77598822), (.61178945, .77476328))),  # facefusion
    )
})  # fmt: skip


def crop_matrix(face: Face, size: int, template: str | CropTemplate = "ffhq") -> Matrix:
    """(2, 3) float64 similarity, positions of the picture -> positions of the (size, size) crop.

    Raises UsageError for an unknown template, a size below 1, or landmarks that all coincide.
    """
    if size < 1:
        raise UsageError(f"the crop's size is {size}", remedy="give the side that the network takes, 256 for HifiFace")
    if isinstance(template, str):
        if template not in TEMPLATES:
            raise one_of("the crop template", template, tuple(TEMPLATES))
        template = TEMPLATES[template]
    if template.points is not None:
        return template.fit(face.five_points, size)
    finite = np.isfinite(face.landmarks).all()
    corner, across = stylegan_square(face.landmarks, 0.0) if finite else (0j, 0j)
    if not 1e-6 < abs(across) < 1e12:
        raise UsageError("the landmarks coincide or are not finite", remedy="give a face that was annotated")
    return similarity_matrix(size / across, -corner * size / across)


def cut_crop(picture: Picture, matrix: Matrix, size: int) -> tuple[Pixels, Pixels]:
    """The (size, size, 3) float32 crop in 0..1 and its validity (size, size), 0 beyond the picture.

    Antialiased.  Beyond the picture: its reflection, ever more blurred and towards the median colour, as in FFHQ.
    Raises UsageError where the crop shows nothing of the picture, ImageArrayError.
    """
    check_picture(picture)
    beyond = _beyond(picture, matrix, size)
    validity = (beyond <= 0).astype(np.float32)
    if not validity.any():
        raise UsageError("the crop lies outside the picture", remedy="give the face of this picture")
    crop: Pixels = np.clip(warp(picture, matrix, (size, size)) / np.float32(255), 0, 1)
    return (crop, validity) if validity.all() else (_faded(crop, beyond / np.float32(size)), validity)


def _beyond(picture: Picture, matrix: Matrix, size: int) -> Pixels:
    """(size, size) how far each pixel of the crop lies beyond the picture, in pixels of the crop; < 0 inside."""
    back, centres = inverse(matrix), np.arange(size) + 0.5
    height, width = picture.shape[:2]
    x, y = (np.add.outer(row[1] * centres + row[2], row[0] * centres) for row in back)
    distance = np.maximum(np.maximum(-x, x - width), np.maximum(-y, y - height)) * scale(matrix)
    return np.asarray(distance, np.float32)


def _faded(crop: Pixels, beyond: Pixels) -> Pixels:
    """FFHQ's padding (blur of 0.02, median from 0.3 of the side on), but for its blur within the picture."""
    blurred = cv2.GaussianBlur(crop, (0, 0), 0.02 * len(crop), borderType=cv2.BORDER_REFLECT_101)
    crop = crop + (blurred - crop) * np.clip(beyond / 0.02, 0, 1)[..., None]
    median = np.median(crop[beyond <= 0], axis=0)
    return np.asarray(crop + (median - crop) * np.clip(beyond / 0.3, 0, 1)[..., None], np.float32)
