"""Pictures at the border of the SDK: any file that Pillow reads -> (H, W, 3) RGB uint8, and back."""

from __future__ import annotations

import io
import os
import struct
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow
from PIL import ImageOps, UnidentifiedImageError

from .errors import ImageAnimated, ImageArrayError, ImageError, ImageTooLarge
from .files import atomic_path

Picture = npt.NDArray[np.uint8]
PictureSource = str | os.PathLike[str] | bytes | Pillow.Image | npt.NDArray[np.uint8]

#: 400 MB of RGB; a header that announces more is refused before anything is decoded
MAX_PIXELS = 1 << 27
#: OpenCV's remap addresses its source with 16 bits
MAX_SIDE = (1 << 15) - 2

_QUALITY = 95  # of JPEG and WebP; Pillow's 75 shows on faces


def read_image(source: PictureSource, *, frame: int | None = None) -> Picture:
    """(H, W, 3) RGB uint8 with the EXIF orientation applied.

    source  a path, the bytes of a file, a Pillow image, or an array that is already (H, W, 3) RGB uint8.
    frame   which frame of an animated file.
    16-bit pictures are scaled to 8 bits, CMYK and palettes become RGB, transparency is laid over white.
    Raises ImageError (unreadable, truncated, empty), ImageTooLarge, ImageAnimated, ImageArrayError.
    """
    if isinstance(source, np.ndarray):
        return check_picture(source)
    if isinstance(source, Pillow.Image):
        return _to_rgb(source, "the picture", frame)
    name = f"{len(source)} bytes" if isinstance(source, bytes) else str(source)
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        if not data:
            raise ImageError(f"{name} is empty", remedy="check how the file was written or copied")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own size warning; ours below is an error, and EXIF chatter
            with Pillow.open(io.BytesIO(data)) as picture:
                return _to_rgb(picture, name, frame)
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is not a picture that Pillow reads", remedy="convert it to PNG or JPEG") from error
    except Pillow.DecompressionBombError as error:
        raise ImageTooLarge(f"{name} is too large", cause=str(error), remedy="scale it down first") from error
    except FileNotFoundError as error:
        raise ImageError(f"{name} does not exist", remedy="check the path") from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(
            f"{name} cannot be decoded", cause=str(error), remedy="the file is damaged: get it again"
        ) from error


def check_picture(array: npt.NDArray[np.generic]) -> Picture:
    """The array itself, if it is (H, W, 3) uint8 with at least one pixel and within the size limits.

    Raises ImageArrayError, ImageTooLarge.
    """
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        nan = " with NaN" if array.dtype.kind == "f" and np.isnan(array).any() else ""
        raise ImageArrayError(
            f"the array is {array.dtype}{nan} of shape {array.shape}, not uint8 (H, W, 3) RGB",
            remedy="scale floats to 0..255 and cast to uint8; repeat one channel three times; drop alpha",
        )
    if 0 in array.shape:
        raise ImageArrayError(f"the array has no pixels: shape {array.shape}", remedy="give at least one pixel")
    _check_size(array.shape[1], array.shape[0], "the array")
    return array.astype(np.uint8, copy=False)


def write_image(path: str | os.PathLike[str], picture: Picture) -> None:
    """Write an RGB or one-channel uint8 picture, whole or not at all; the suffix chooses the format.

    Raises OutputError, ImageError for a suffix that Pillow does not write.
    """
    path = Path(path)
    with atomic_path(path) as temporary:
        try:
            Pillow.fromarray(picture).save(temporary, quality=_QUALITY)
        except ValueError as error:
            raise ImageError(
                f"{path.name}: no picture format for suffix {path.suffix!r}", remedy="use .png, .jpg or .webp"
            ) from error


def _to_rgb(picture: Pillow.Image, name: str, frame: int | None) -> Picture:
    _check_size(*picture.size, name)
    frames = getattr(picture, "n_frames", 1)
    # a multi-picture JPEG (MPO) is one photo with depth or preview pictures behind it
    if frame is None and frames > 1 and picture.format != "MPO":
        raise ImageAnimated(
            f"{name} has {frames} frames",
            remedy="choose one (frame=0, on the command line --frame 0), or read all of them with FaceSDK.track",
        )
    if frame is not None:
        if not 0 <= frame < frames:
            raise ImageError(f"{name} has no frame {frame}", remedy=f"choose 0 to {frames - 1}")
        picture.seek(frame)
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I") or picture.mode == "F":
        return _from_deep_gray(np.asarray(picture), name)
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Pillow.new("RGBA", picture.size, "white")
        picture = Pillow.alpha_composite(white, picture)
    return np.array(picture.convert("RGB"))


def _from_deep_gray(values: npt.NDArray[np.generic], name: str) -> Picture:
    """16 bits to 8 by dividing by 257 and rounding, one channel three times."""
    deep = values.astype(np.float64)
    if not np.isfinite(deep).all() or deep.min() < 0 or deep.max() > 65535:
        raise ImageError(f"{name} holds values outside 16 bits", remedy="convert it to 8 bits a channel first")
    gray = np.rint(deep / 257).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=2)


def _check_size(width: int, height: int, name: str) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"{name} has no pixels ({width} x {height})", remedy="give a picture of at least one pixel")
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise ImageTooLarge(
            f"{name} is {width} x {height}",
            cause=f"the limits are {MAX_PIXELS:,} pixels and {MAX_SIDE:,} a side",
            remedy="scale it down or cut it into parts first",
        )
