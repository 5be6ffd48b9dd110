"""Writing faces where Dense-Face looks for them: samples of a data set, inputs of its inference."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import cv2
import numpy as np

from ..annotation import labels
from ..errors import UsageError
from ..face import Face
from ..image import Picture, write_image
from .aligned import LABEL_SIZE, AlignedFace, face_box
from .index import IndexRow, subject_name
from .landmark_file import save_landmarks
from .pose_hint import draw_pose_axes

LARGE_SIZE = 512  # px; images_v2 and cropped_face


@dataclasses.dataclass(frozen=True, eq=False)
class InferenceInputs:
    """The files of one face, and the face itself: its `matrix` leads from the photo to the crop of `size` px."""

    cropped_face: Path
    mask: Path
    pose_hint: Path
    face: AlignedFace


def write_inference_inputs(
    folder: str | os.PathLike[str],
    prompt: int,
    sub: int,
    number: int,
    picture: Picture,
    face: Face,
    *,
    padding: float = 0.0,
) -> InferenceInputs:
    """The files cropped_face, mask and pose_hint/prompt_<prompt>_<sub>_<number>.png below `folder`.

    512 px RGB; 32 px gray, 0 = generate, 255 = keep; 256 px RGB axes of the (approximate) pose in the crop.
    Raises as `crop` does, UsageError for negative numbers, OutputError.
    """
    if min(prompt, sub, number) < 0:
        raise UsageError(f"numbers {prompt}, {sub}, {number}", remedy="give 0 or more")
    aligned = AlignedFace.cut(picture, face, padding=padding)
    name = f"prompt_{prompt}_{sub}_{number:02d}.png"
    cropped_face, mask, pose_hint = (Path(folder) / part / name for part in ("cropped_face", "mask", "pose_hint"))
    pose = aligned.pose
    write_image(mask, aligned.keep_mask())
    write_image(pose_hint, draw_pose_axes(pose.yaw_deg, pose.pitch_deg, pose.roll_deg))
    write_image(cropped_face, _large(picture, aligned))
    return InferenceInputs(cropped_face, mask, pose_hint, aligned)


def next_number(root: str | os.PathLike[str], subject_id: int) -> int:
    """The first number, from 1, behind all pictures that a subject has below `root`."""
    images = Path(root, "CASIA", "CASIAFaces", subject_name(subject_id), "images")
    return 1 + max((int(path.stem) for path in images.glob("*.jpg") if path.stem.isdecimal()), default=0)


def write_sample(
    root: str | os.PathLike[str],
    subject_id: int,
    number: int,
    picture: Picture,
    face: Face,
    *,
    caption: str | None = None,
    padding: float = 0.0,
) -> IndexRow:
    """The row for `append_index`, after writing images, images_v2, landmarks and masks of one face.

    They lie in <root>/CASIA/CASIAFaces/<subject>/<folder>/<number>.*, each whole or not there.
    Raises as `crop` and `save_landmarks` do, UsageError for numbers out of range, OutputError.
    """
    if not 0 <= number <= 999:
        raise UsageError(f"picture number {number}", remedy="give 0 to 999")
    aligned = AlignedFace.cut(picture, face, padding=padding)
    casia, subject = Path(root) / "CASIA", Path("CASIAFaces", subject_name(subject_id))
    image, large, landmarks, mask = (
        subject / folder / f"{number:03d}{suffix}"
        for folder, suffix in (("images", ".jpg"), ("images_v2", ".png"), ("landmarks", ".csv"), ("masks", ".png"))
    )
    save_landmarks(casia / landmarks, aligned.landmarks)
    write_image(casia / mask, labels.to_colours(aligned.region_labels()))
    write_image(casia / large, _large(picture, aligned))
    write_image(casia / image, aligned.picture)
    pose = aligned.pose
    return IndexRow(
        face_file=image.as_posix(),
        depth_range=aligned.depth_range,
        landmark_file=landmarks.as_posix(),
        mask_file=mask.as_posix(),
        annot_size=LABEL_SIZE,
        aligned_size=aligned.size,
        src_nose_xy=tuple(np.rint(face.five_points[2]).tolist()),
        bbox=tuple(face_box(aligned.landmarks).tolist()),
        subject_id=subject_id,
        caption=caption,
        # shortest text of a float32, as the published rows have it
        head_pose=tuple(str(np.float32(angle)) for angle in (pose.pitch_deg, pose.yaw_deg, pose.roll_deg)),
    )


def _large(picture: Picture, aligned: AlignedFace) -> Picture:
    """The crop at 512 px, pixel centres as cv2.resize has them."""
    size = (LARGE_SIZE, LARGE_SIZE)
    if aligned.size >= LARGE_SIZE:
        return np.asarray(cv2.resize(aligned.picture, size, interpolation=cv2.INTER_AREA), np.uint8)
    # from the photo again: rounding its side down has cost the crop up to half of the detail
    scale = LARGE_SIZE / aligned.size
    matrix = np.array([[scale, 0, (scale - 1) / 2], [0, scale, (scale - 1) / 2], [0, 0, 1]]) @ aligned.matrix
    large = cv2.warpPerspective(picture, matrix, size, flags=cv2.INTER_CUBIC, borderValue=(0, 0, 0))
    return np.asarray(large, np.uint8)
