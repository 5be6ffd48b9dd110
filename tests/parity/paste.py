"""Way of the paste-back case: what peers compute, by the functions that FaceSDK's paste is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from facesdk.swap.crop import CropTemplate
from facesdk.swap.masks import box_mask, soft_erosion
from facesdk.swap.warp import Matrix, inverse, pixel_matrix, warp

from .reference import compare

Wrong = list[str]


def paste_sdk(case: Any) -> Wrong:
    scalars, frame = case.scalars, case.inputs["in_frame"]
    size, points = scalars["crop_size"], case.inputs["in_kps"].astype(np.float64)
    frontal = _fit(np.array(scalars["frontal_template_112"]) / 112, points, size)
    mtcnn = _fit(np.array(scalars["mtcnn_512_normalised"]), points, size)
    erosion, box = scalars["soft_erosion"], scalars["box_mask"]
    soft, hard = soft_erosion(case.inputs["in_mask"], **erosion)
    border = box_mask(size, blur=box["blur"], padding=tuple(box["padding"]))
    crop = warp(frame, frontal, (size, size), border="zero", cubic=False, antialias=False)
    got = {
        "out_M_xuehy": pixel_matrix(frontal),
        "out_M_inverse": pixel_matrix(inverse(frontal))[None],
        "out_crop": np.rint(crop),
        "out_soft_mask": soft[None, None],
        "out_hard_mask": hard[None, None],
        "out_box_mask": border,
        "out_M_facefusion_mtcnn": pixel_matrix(mtcnn),
        "out_facefusion_pasted": _composited(frame, case.inputs["in_swapped_crop"], border, mtcnn),
    }
    assert got.keys() == case.facts["outputs"].keys()
    wrong = [compare(case, name, value) for name, value in got.items()]
    return [text for text in wrong if text]


def _fit(shares: Any, points: Any, size: int) -> Matrix:
    """Picture -> crop; the case's points count pixel centres as whole numbers."""
    return CropTemplate("of the case", tuple(map(tuple, shares.tolist()))).fit(points + 0.5, size)


def _composited(frame: Any, crop: Any, mask: Any, matrix: Matrix) -> Any:
    """A crop laid over the frame as facefusion does: plain bilinear, and truncated."""
    back, size = inverse(matrix), (frame.shape[1], frame.shape[0])
    weight = warp(mask, back, size, border="zero", cubic=False, antialias=False)[..., None]
    seen = warp(crop, back, size, cubic=False, antialias=False)
    return np.clip(frame * (1 - weight) + seen * weight, 0, 255).astype(np.uint8)


WAYS: dict[str, dict[str, Callable[[Any], Wrong]]] = {"paste": {"sdk": paste_sdk}}
