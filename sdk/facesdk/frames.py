"""Several pictures in one file: GIF, WebP, a strip, a film."""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow

from .errors import MissingDependency, UsageError
from .files import atomic_path
from .image import Picture, write_image
from .provenance import Provenance, save_marked

SUFFIXES = (".gif", ".webp", ".mp4", ".png", ".jpg")
_LONGEST_MS = 60_000  # GIF counts hundredths of a second in 16 bits
_XMP_BOX = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")  # of the box that holds XMP in MP4, ISO 16684-3
_PADDING_PX = 2  # between the pictures of a grid, as torchvision's make_grid has it


def write_frames(
    path: str | Path, frames: Sequence[Picture], *, frame_ms: int = 300, provenance: Provenance | None = None
) -> None:
    """Write pictures of one size: .gif and .webp (endless), .mp4 (needs PyAV), .png and .jpg as one strip.

    Raises UsageError for another suffix, sizes that differ or no time, MissingDependency, OutputError.
    """
    path = Path(path)
    check_frames_file(path, frame_ms)
    if not frames or any(frame.shape != frames[0].shape for frame in frames):
        raise UsageError("frames are missing or differ in size", remedy="give at least one, all of one size")
    if path.suffix.lower() in (".gif", ".webp"):
        _write_animation(path, frames, frame_ms, provenance)
    elif path.suffix.lower() == ".mp4":
        _write_film(path, frames, frame_ms, provenance)
    else:
        write_image(path, grid(frames, len(frames)), provenance=provenance)


def check_frames_file(path: Path, frame_ms: int = 300) -> None:
    """Raise what `write_frames` would, before the frames are made: UsageError, MissingDependency."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path.name}: frames cannot be written so", remedy=f"use {', '.join(SUFFIXES)}")
    if not 1 <= frame_ms <= _LONGEST_MS:
        raise UsageError(f"a frame of {frame_ms} ms", remedy=f"give 1 to {_LONGEST_MS} milliseconds")
    if path.suffix.lower() == ".mp4" and importlib.util.find_spec("av") is None:
        raise MissingDependency("writing .mp4 needs PyAV", remedy="pip install av")


def grid(pictures: Sequence[Picture], columns: int) -> Picture:
    """One picture of many, row by row, on black with a margin of 2 px around each."""
    height, width = pictures[0].shape[:2]
    rows = -(-len(pictures) // columns)
    step_y, step_x = height + _PADDING_PX, width + _PADDING_PX
    canvas = np.zeros((rows * step_y + _PADDING_PX, columns * step_x + _PADDING_PX, 3), np.uint8)
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        y, x = row * step_y + _PADDING_PX, column * step_x + _PADDING_PX
        canvas[y : y + height, x : x + width] = picture
    return canvas


def _write_animation(path: Path, frames: Sequence[Picture], frame_ms: int, provenance: Provenance | None) -> None:
    first, *rest = (Pillow.fromarray(frame) for frame in frames)
    options: dict[str, Any] = {"save_all": True, "append_images": rest, "duration": frame_ms, "loop": 0, "quality": 95}
    with atomic_path(path) as temporary:
        if provenance is None:
            first.save(temporary, **options)
        else:
            save_marked(first, temporary, provenance, **options)


def _write_film(path: Path, frames: Sequence[Picture], frame_ms: int, provenance: Provenance | None) -> None:
    import av

    height, width = (size - size % 2 for size in frames[0].shape[:2])  # H.264's 4:2:0 wants even sides
    with atomic_path(path) as temporary:
        with av.open(str(temporary), "w") as container:
            stream = container.add_stream("libx264", rate=Fraction(1000, frame_ms))
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for frame in frames:
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24")
                container.mux(stream.encode(picture))
            container.mux(stream.encode())
        if provenance is not None:
            packet = provenance.to_xmp().encode()
            with temporary.open("ab") as file:
                file.write(struct.pack(">I4s", 8 + len(_XMP_BOX) + len(packet), b"uuid") + _XMP_BOX + packet)
