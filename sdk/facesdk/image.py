"""Pictures at the border of the SDK: any file that Pillow reads -> (H, W, 3) RGB uint8, and back."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, UnidentifiedImageError
from PIL import Image as Pillow

from .errors import ImageAnimated, ImageArrayError, ImageError, ImageTooLarge
from .files import atomic_path
from .provenance import Provenance, save_marked

Picture = npt.NDArray[np.uint8]
PictureSource = str | os.PathLike[str] | bytes | BinaryIO | Pillow.Image | npt.NDArray[np.uint8]

#: 400 MB of RGB; a header that announces more is refused before anything is decoded
MAX_PIXELS = 1 << 27
#: OpenCV's remap addresses its source with 16 bits
MAX_SIDE = (1 << 15) - 2

QUALITY = 95  # of JPEG and WebP; Pillow's 75 shows on faces
# what Pillow's readers raise on damaged files
_DAMAGE = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, EOFError,
           struct.error, zlib.error)  # fmt: skip
_UPRIGHT = {
    2: Pillow.Transpose.FLIP_LEFT_RIGHT,
    3: Pillow.Transpose.ROTATE_180,
    4: Pillow.Transpose.FLIP_TOP_BOTTOM,
    5: Pillow.Transpose.TRANSPOSE,
    6: Pillow.Transpose.ROTATE_270,
    7: Pillow.Transpose.TRANSVERSE,
    8: Pillow.Transpose.ROTATE_90,
}
_warning_filters = threading.Lock()


def read_image(source: PictureSource, *, frame: int | None = None) -> Picture:
    """(H, W, 3) RGB uint8 with the EXIF orientation applied.

    source  a path, the bytes of a file, an open binary file, a Pillow image, or an array already (H, W, 3) RGB uint8.
    frame   which frame of an animated file.
    16-bit pictures are scaled to 8 bits, CMYK and palettes become RGB, transparency is laid over white.
    Raises ImageError (unreadable, truncated, empty), ImageTooLarge, ImageAnimated, ImageArrayError.
    """
    if isinstance(source, np.ndarray):
        return check_picture(source)
    if isinstance(source, Pillow.Image):
        with _decoding("the picture"):
            return _to_rgb(source, "the picture", frame)
    name, data = _read(source)
    if not data:
        raise ImageError(f"{name} is empty", remedy="check how the file was written or copied")
    with _decoding(name), _opened(data) as picture:
        return _to_rgb(picture, name, frame)


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


def write_image(
    path: str | os.PathLike[str], picture: Picture, provenance: Provenance | None = None, *, quality: int = QUALITY
) -> None:
    """Write an RGB or one-channel uint8 picture, whole or not at all; the suffix chooses the format.

    provenance  marks what a model made (PNG, JPEG, WebP, TIFF, GIF, AVIF); None writes no mark.
    quality     1 to 100, of JPEG and WebP.
    Raises OutputError, ImageArrayError, ImageError for a suffix that Pillow does not write or that carries no mark.
    """
    path = Path(path)
    if picture.dtype != np.uint8 or not (picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] == 3)):
        raise ImageArrayError(
            f"the array is {picture.dtype} of shape {picture.shape}, not uint8 (H, W) or (H, W, 3)",
            remedy="scale to 0..255 and cast to uint8",
        )
    with atomic_path(path) as temporary:
        try:
            if provenance is None:
                Pillow.fromarray(picture).save(temporary, quality=quality)
            else:
                save_marked(Pillow.fromarray(picture), temporary, provenance, quality=quality)
        except ImageError:
            raise
        except (ValueError, KeyError) as error:
            raise ImageError(
                f"{path.name} cannot be written as {path.suffix!r}", cause=str(error), remedy="use .png or .jpg"
            ) from error


def _read(source: str | os.PathLike[str] | bytes | BinaryIO) -> tuple[str, bytes]:
    """What to call a source in messages, and its bytes."""
    if isinstance(source, bytes | bytearray | memoryview):
        return f"the file of {len(source)} bytes", bytes(source)
    if not isinstance(source, str | os.PathLike) and not hasattr(source, "read"):
        raise ImageArrayError(
            f"{type(source).__name__} is not a picture",
            remedy="give a path, the bytes of a file, an open binary file, a Pillow image or an RGB array",
        )
    try:
        if isinstance(source, str | os.PathLike):
            return str(source), Path(source).read_bytes()
        return str(getattr(source, "name", "the open file")), source.read()
    except FileNotFoundError as error:
        raise ImageError(f"{source} does not exist", remedy="check the path") from error
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte, a file that was closed
        raise ImageError(
            f"{source} cannot be read", cause=str(error), remedy="give a picture file that you may read"
        ) from error


@contextlib.contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Pillow's errors in the block become ImageErrors."""
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{name} is not a picture that Pillow reads", remedy="convert it to PNG or JPEG") from error
    except Pillow.DecompressionBombError as error:
        raise ImageTooLarge(f"{name} is too large", cause=str(error), remedy="scale it down first") from error
    except _DAMAGE as error:
        raise ImageError(
            f"{name} cannot be decoded", cause=str(error), remedy="the file is damaged: get it again"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence Pillow's size warning, ours being an error, and its chatter about EXIF.

    One thread at a time: filters belong to the process, and overlapping blocks would leave it silenced for good.
    """
    with _warning_filters, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _opened(data: bytes) -> Pillow.Image:
    with _quiet():
        return Pillow.open(io.BytesIO(data))


def _to_rgb(picture: Pillow.Image, name: str, frame: int | None) -> Picture:
    _check_size(*picture.size, name)
    with _quiet():
        _choose_frame(picture, name, frame)
    # the TIFF reader is one that warns in decoding; it also turns the pixels itself, and then withdraws the tag
    with _quiet() if picture.format == "TIFF" else contextlib.nullcontext():
        picture.load()
    with _quiet():
        orientation = _orientation(picture)
    if orientation in _UPRIGHT:
        picture = picture.transpose(_UPRIGHT[orientation])
    if picture.mode.startswith("I"):
        return _from_deep_gray(np.asarray(picture), name)
    if picture.mode == "F":
        raise ImageError(
            f"{name} holds floating-point pixels", cause="their range is not known", remedy="convert it to 8 bits"
        )
    if picture.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Pillow.new("RGBA", picture.size, "white")
        picture = Pillow.alpha_composite(white, picture)
    return np.array(picture.convert("RGB"))


def _choose_frame(picture: Pillow.Image, name: str, frame: int | None) -> None:
    frames = getattr(picture, "n_frames", 1)
    # a multi-picture JPEG (MPO) is one photo with depth or preview pictures behind it
    if frame is None and frames > 1 and picture.format != "MPO":
        raise ImageAnimated(
            f"{name} has {frames} frames",
            remedy="choose one (frame=0, on the command line --frame 0), or read each with read_image(path, frame=i)",
        )
    if frame is not None:
        if not 0 <= frame < frames:
            raise ImageError(f"{name} has no frame {frame}", remedy=f"choose 0 to {frames - 1}")
        picture.seek(frame)


def _orientation(picture: Pillow.Image) -> int:
    """EXIF orientation; 1 (upright) where there is none, or where the EXIF data are damaged and the pixels are not."""
    try:
        return int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except _DAMAGE:
        return 1


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
