"""Pictures at the border: every kind decoded right, every damage named, every write whole or not there."""

from __future__ import annotations

import io
import struct
import threading
import time
import tracemalloc
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow
from PIL.PngImagePlugin import PngImageFile

from facesdk.errors import FaceSDKError, ImageAnimated, ImageArrayError, ImageError, ImageTooLarge, OutputError
from facesdk.files import atomic_path, write_bytes, write_text
from facesdk.image import MAX_SIDE, Picture, check_picture, read_image, write_image

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (12, 18, 3), np.uint8)
SMOOTH = np.stack(np.broadcast_arrays(*np.ogrid[:48, :64], 90), axis=-1).astype(np.uint8) * np.uint8(2)
WHITE = 255


def encoded(picture: Pillow.Image | np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    (picture if isinstance(picture, Pillow.Image) else Pillow.fromarray(picture)).save(file, kind, **options)
    return file.getvalue()


def in_mode(mode: str, samples: np.ndarray) -> Pillow.Image:
    return Pillow.frombytes(mode, (samples.shape[1], samples.shape[0]), samples.tobytes())


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *before: bytes) -> bytes:
    """A PNG made by hand: `rows` are filter byte and samples of every line."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *before, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def deep_png(samples: np.ndarray, colour: int) -> bytes:
    """16 bits a sample, (H, W, channels)."""
    height, width = samples.shape[:2]
    return png(width, height, 16, colour, b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples))


def error_of(source: Any, kind: type[FaceSDKError] = ImageError, **options: Any) -> FaceSDKError:
    with pytest.raises(kind) as caught:
        read_image(source, **options)
    assert caught.value.remedy
    return caught.value


# -- sources ------------------------------------------------------------------------------------------------


def test_every_kind_of_source_gives_the_same_pixels(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(RGB))
    with path.open("rb") as file, Pillow.open(path) as opened:
        sources = [
            path, str(path), path.read_bytes(), bytearray(path.read_bytes()), memoryview(path.read_bytes()),
            io.BytesIO(path.read_bytes()), file, opened, Pillow.fromarray(RGB), RGB,
        ]  # fmt: skip
        for source in sources:
            picture = read_image(source)  # type: ignore[arg-type]
            np.testing.assert_array_equal(picture, RGB)
            assert picture.dtype == np.uint8


@pytest.mark.parametrize("source", [None, 5, 1.5, [1, 2], {"a": 1}])
def test_what_is_no_source(source: object) -> None:
    error = error_of(source, ImageArrayError)
    assert type(source).__name__ in error.fact
    assert isinstance(error, TypeError)


@pytest.mark.parametrize("lossless", ["BMP", "TIFF", "PPM", "TGA", "GIF"])
def test_lossless_formats(lossless: str) -> None:
    few = RGB // 100 * 100  # colours that fit a palette
    np.testing.assert_array_equal(read_image(encoded(few, lossless)), few)


@pytest.mark.parametrize("lossy", ["JPEG", "WEBP"])
def test_lossy_formats(lossy: str) -> None:
    assert np.abs(read_image(encoded(SMOOTH, lossy, quality=95)).astype(int) - SMOOTH).max() <= 12


# -- kinds of pixels, against expected values -----------------------------------------------------------------


def test_one_bit() -> None:
    bits = RGB[..., 0] > 127
    expected = np.repeat(np.where(bits, 255, 0).astype(np.uint8)[..., None], 3, axis=2)
    np.testing.assert_array_equal(read_image(encoded(Pillow.fromarray(bits))), expected)


def test_gray() -> None:
    np.testing.assert_array_equal(read_image(encoded(RGB[..., 0])), np.repeat(RGB[..., :1], 3, axis=2))


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return np.asarray(colour * share + WHITE * (1 - share))


def test_transparency_lies_over_white() -> None:
    alpha = RNG.integers(0, 256, RGB.shape[:2], np.uint8)
    alpha[0], alpha[1] = 0, 255
    picture = read_image(encoded(np.dstack([RGB, alpha])))
    assert np.abs(picture - over_white(RGB, alpha)).max() <= 1
    assert (picture[0] == WHITE).all()
    np.testing.assert_array_equal(picture[1], RGB[1])


def test_gray_with_alpha() -> None:
    alpha = RNG.integers(0, 256, RGB.shape[:2], np.uint8)
    picture = read_image(encoded(in_mode("LA", np.dstack([RGB[..., 0], alpha]))))
    assert np.abs(picture - over_white(RGB[..., :1], alpha)).max() <= 1


def test_premultiplied_alpha() -> None:
    alpha = RNG.integers(100, 256, RGB.shape[:2], np.uint8)
    source = Pillow.fromarray(np.dstack([RGB, alpha])).convert("RGBa")
    assert np.abs(read_image(source) - over_white(RGB, alpha)).max() <= 3


def test_palette_with_a_transparent_entry() -> None:
    index = (RGB[..., 0] // 64).astype(np.uint8)
    colours = np.array([(10, 20, 30), (200, 0, 0), (0, 200, 0), (0, 0, 200)], np.uint8)
    picture = in_mode("P", index)
    picture.putpalette(colours.reshape(-1).tolist())
    np.testing.assert_array_equal(read_image(encoded(picture)), colours[index])
    expected = colours[index].copy()
    expected[index == 2] = WHITE
    for transparency in (2, bytes([255, 255, 0, 255])):
        np.testing.assert_array_equal(read_image(encoded(picture, transparency=transparency)), expected)


def test_one_transparent_colour() -> None:
    expected = RGB.copy()
    expected[3, 4] = WHITE
    key = tuple(int(v) for v in RGB[3, 4])
    np.testing.assert_array_equal(read_image(encoded(RGB, transparency=key)), expected)


@pytest.mark.parametrize("values", [np.arange(0, 65536, 257), RNG.integers(0, 65536, 300)])
def test_sixteen_bit_gray_is_scaled_and_rounded(values: np.ndarray) -> None:
    picture = read_image(deep_png(values.reshape(-1, 4, 1) if len(values) % 4 == 0 else values[None, :, None], 0))
    assert (picture[..., 0] == picture[..., 2]).all()
    np.testing.assert_array_equal(picture[..., 0].reshape(-1), np.rint(values / 257))


def test_sixteen_bit_gray_in_other_byte_orders(tmp_path: Path) -> None:
    values = RNG.integers(0, 65536, (5, 7))
    path = tmp_path / "deep.tif"
    Pillow.fromarray(values.astype(np.uint16)).save(path)
    for source in (path, in_mode("I;16B", values.astype(">u2")), integers(values)):
        np.testing.assert_array_equal(read_image(source)[..., 1], np.rint(values / 257))


def integers(values: np.ndarray) -> Pillow.Image:
    return Pillow.fromarray(values.astype(np.int32))


def test_sixteen_bit_colour() -> None:
    samples = RNG.integers(0, 65536, (6, 5, 3))
    assert np.abs(read_image(deep_png(samples, 2)) - samples / 257).max() <= 1


def test_sixteen_bit_alpha() -> None:
    samples = RNG.integers(0, 65536, (6, 5, 4))
    expected = over_white(samples[..., :3] / 257, samples[..., 3] / 257)
    assert np.abs(read_image(deep_png(samples, 6)) - expected).max() <= 2


@pytest.mark.parametrize("values", [[[70000]], [[-1]]])
def test_integers_beyond_sixteen_bits(values: list[list[int]]) -> None:
    assert "outside 16 bits" in error_of(integers(np.array(values))).fact


def test_floating_point_pixels_are_refused() -> None:
    """Nobody can tell whether 1.0 is white; black would be the silent answer."""
    assert "floating-point" in error_of(Pillow.fromarray(np.ones((4, 4), np.float32))).fact


def test_cmyk_jpeg() -> None:
    """Smooth patches of known ink; JPEG is lossy, so within a few levels."""
    ink = np.zeros((32, 64, 4), np.uint8)
    ink[:, 16:32, 0], ink[:, 32:48, 1], ink[:, 48:, 3] = 255, 128, 255
    picture = read_image(encoded(in_mode("CMYK", ink), "JPEG", quality=100, subsampling=0))
    for x, colour in ((8, (255, 255, 255)), (24, (0, 255, 255)), (40, (255, 127, 255)), (56, (0, 0, 0))):
        assert np.abs(picture[16, x].astype(int) - colour).max() <= 6


def test_ycbcr_and_lab() -> None:
    source = Pillow.fromarray(SMOOTH)
    assert np.abs(read_image(source.convert("YCbCr")).astype(int) - SMOOTH).max() <= 3
    gray = np.stack([np.arange(256, dtype=np.uint8)[None], *2 * [np.zeros((1, 256), np.uint8)]], axis=-1)
    picture = read_image(encoded(in_mode("LAB", gray), "TIFF")).astype(int)  # a and b are signed in the file
    assert np.abs(picture - picture.mean(axis=-1, keepdims=True)).max() <= 3  # without a or b it is gray
    assert picture[0, 0].max() < 5
    assert picture[0, -1].min() > 250
    assert (np.diff(picture[0, :, 1]) >= 0).all()


# -- orientation ----------------------------------------------------------------------------------------------

TURNED = {
    1: lambda p: p, 2: lambda p: p[:, ::-1], 3: lambda p: p[::-1, ::-1], 4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2), 6: lambda p: np.rot90(p, -1), 7: lambda p: np.rot90(p, 2).transpose(1, 0, 2),
    8: lambda p: np.rot90(p),
}  # fmt: skip


def exif_of(orientation: int) -> Pillow.Exif:
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
def test_exif_orientation(kind: str, orientation: int) -> None:
    data = encoded(SMOOTH, kind, exif=exif_of(orientation))
    plain = encoded(SMOOTH, kind)
    np.testing.assert_array_equal(read_image(data), TURNED[orientation](read_image(plain)))


def test_a_pillow_image_is_turned_too_and_stays_as_it_was() -> None:
    with Pillow.open(io.BytesIO(encoded(SMOOTH, exif=exif_of(6)))) as source:
        np.testing.assert_array_equal(read_image(source), np.rot90(SMOOTH, -1))
        assert source.size == (64, 48)


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_orientations_that_mean_nothing(orientation: int) -> None:
    np.testing.assert_array_equal(read_image(encoded(RGB, exif=exif_of(orientation))), RGB)


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0garbage",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x04abcd\0\0\0\0",
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_damaged_exif_does_not_cost_the_picture(kind: str, exif: bytes) -> None:
    np.testing.assert_array_equal(read_image(encoded(RGB, kind, exif=exif)), read_image(encoded(RGB, kind)))


# -- several frames -------------------------------------------------------------------------------------------


def animation(kind: str) -> bytes:
    frames = [Pillow.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, loop=0)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF"])
def test_a_frame_has_to_be_chosen(kind: str) -> None:
    error = error_of(animation(kind), ImageAnimated)
    assert "3 frames" in error.fact
    assert "--frame 0" in error.remedy
    for number, colour in enumerate([(255, 0, 0), (0, 255, 0), (0, 0, 255)]):
        assert (read_image(animation(kind), frame=number) == colour).all()


@pytest.mark.parametrize(("data", "frame"), [(animation("GIF"), 3), (animation("GIF"), -1), (encoded(RGB), 1)])
def test_a_frame_that_is_not_there(data: bytes, frame: int) -> None:
    error = error_of(data, frame=frame)
    assert f"no frame {frame}" in error.fact
    assert "choose 0 to" in error.remedy


def test_frame_0_of_a_still_picture() -> None:
    np.testing.assert_array_equal(read_image(encoded(RGB), frame=0), RGB)


def test_a_multi_picture_jpeg_is_one_photo() -> None:
    data = encoded(SMOOTH, "MPO", save_all=True, append_images=[Pillow.new("RGB", (8, 6))], quality=95)
    assert np.abs(read_image(data).astype(int) - SMOOTH).max() <= 12


# -- damage ---------------------------------------------------------------------------------------------------


def test_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.jpg"
    path.touch()
    error = error_of(path)
    assert error.code == "image-unreadable"
    assert str(path) in error.fact
    assert "empty" in error.fact
    error_of(b"")


def test_files_that_are_not_there_or_no_files(tmp_path: Path) -> None:
    assert "does not exist" in error_of(tmp_path / "absent.png").fact
    assert "cannot be read" in error_of(tmp_path).fact
    assert "cannot be read" in error_of("a\0b.png").fact
    closed = io.BytesIO()
    closed.close()
    assert "cannot be read" in error_of(closed).fact


def test_a_file_of_something_else() -> None:
    assert "not a picture" in error_of(b"%PDF-1.7 hello").fact


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_truncated_files(kind: str, share: float) -> None:
    data = encoded(RNG.integers(0, 256, (40, 60, 3), np.uint8), kind)
    assert read_image(data).shape == (40, 60, 3)
    error = error_of(data[: int(share * len(data))])
    assert error.code == "image-unreadable"
    assert "again" in error.remedy


def test_a_pillow_image_that_breaks_only_when_it_is_decoded() -> None:
    data = encoded(RGB, "JPEG")
    error_of(Pillow.open(io.BytesIO(data[: len(data) - 200])))
    closed = Pillow.open(io.BytesIO(data))
    closed.close()
    error_of(closed)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO"])
def test_whatever_is_damaged_the_error_is_an_image_error(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(1)
    whole = encoded(RGB, kind)
    outcomes = set()
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(rng.integers(1, 6)):
            data[rng.integers(0, len(data))] = rng.integers(0, 256)
        try:
            outcomes.add(read_image(bytes(data)).ndim)
        except ImageError as error:
            outcomes.add(type(error).__name__)
    assert outcomes >= {"ImageError"}
    capfd.readouterr()  # libtiff writes what it thinks to standard error


# -- sizes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(30000, 30000), (2**31 - 1, 2**31 - 1), (20000, 8000), (40000, 2)])
def test_a_header_that_announces_too_much_is_refused_before_decoding(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = png(*size, 8, 2, b"\0" * 1000)
    # pixels are allocated by load(), where tracemalloc does not look
    monkeypatch.setattr(PngImageFile, "load", lambda self: pytest.fail("decoded"))
    tracemalloc.start()
    error = error_of(bomb, ImageTooLarge)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert error.code == "image-too-large"
    assert peak < 1 << 20


def test_the_longest_side() -> None:
    assert read_image(png(MAX_SIDE, 1, 8, 0, b"\0" * (MAX_SIDE + 1))).shape == (1, MAX_SIDE, 3)
    error = error_of(png(1, MAX_SIDE + 1, 8, 0, b"\0\0" * (MAX_SIDE + 1)), ImageTooLarge)
    assert f"{MAX_SIDE:,} a side" in error.cause
    error_of(np.zeros((1, MAX_SIDE + 1, 3), np.uint8), ImageTooLarge)


def test_a_picture_of_no_width() -> None:
    assert error_of(png(0, 5, 8, 2, b"")).code == "image-unreadable"


def test_one_pixel() -> None:
    np.testing.assert_array_equal(read_image(encoded(RGB[:1, :1])), RGB[:1, :1])


def test_a_large_but_allowed_header_warns_nobody() -> None:
    """Between Pillow's warning and our limit; under -W error a warning would be the exception."""
    error = error_of(png(10_000, 10_000, 8, 2, b"\0" * 100))
    assert "truncated" in error.cause


def test_threads_leave_the_warning_filters_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """Filters are the process's: while one thread has silenced them, no other may save or restore them."""
    data, before, inside, most = encoded(RGB), list(warnings.filters), [], []
    original = Pillow.open

    def slow_open(file: io.BytesIO) -> Pillow.Image:
        inside.append(file)
        time.sleep(0.01)
        most.append(len(inside))
        inside.remove(file)
        return original(file)

    monkeypatch.setattr(Pillow, "open", slow_open)
    threads = [threading.Thread(target=read_image, args=(data,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1, 1]
    assert warnings.filters == before


# -- arrays ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.full((4, 4, 3), np.nan), "float64 with NaN"),
        (np.zeros((4, 4, 3), np.float32), "float32 of shape (4, 4, 3)"),
        (np.zeros((4, 4, 3), np.uint16), "uint16"),
        (np.zeros((4, 4, 3), bool), "bool"),
        (np.zeros((4, 4), np.uint8), "(4, 4)"),
        (np.zeros((4, 4, 4), np.uint8), "(4, 4, 4)"),
        (np.zeros((1, 4, 4, 3), np.uint8), "(1, 4, 4, 3)"),
        (np.zeros((3, 0, 3), np.uint8), "no pixels"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
        (np.zeros(0, np.uint8), "(0,)"),
        (np.array("picture"), "<U7"),
    ],
)
def test_arrays_that_are_no_pictures(array: np.ndarray, says: str) -> None:
    error = error_of(array, ImageArrayError)
    assert error.code == "image-array"
    assert says in error.fact


def test_a_good_array_is_handed_on_uncopied() -> None:
    view = RGB[::-1, :, ::-1]
    assert np.shares_memory(check_picture(view), RGB)
    read_only = RGB.copy()
    read_only.flags.writeable = False
    assert read_image(read_only) is read_only or np.shares_memory(read_image(read_only), read_only)


# -- writing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("picture", [RGB, RGB[..., 0], RGB[::-1, ::2, ::-1]])
def test_pictures_come_back(tmp_path: Path, picture: Picture) -> None:
    path = tmp_path / "new" / "folder" / "picture.png"
    write_image(path, picture)
    expected = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)
    np.testing.assert_array_equal(read_image(path), expected)
    assert [child.name for child in path.parent.iterdir()] == ["picture.png"]


@pytest.mark.parametrize("suffix", [".foo", "", ".psd"])
def test_suffixes_that_nothing_writes(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"picture{suffix}"
    path.write_text("before")
    with pytest.raises(ImageError, match=r"\.png"):
        write_image(path, RGB)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_picture_that_is_too_wide_for_its_format(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="16383") as caught:
        write_image(tmp_path / "wide.webp", np.zeros((1, 17000, 3), np.uint8))
    assert ".png" in caught.value.remedy
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("array", [np.zeros((4, 4, 3)), np.zeros((4, 4, 2), np.uint8), np.zeros(4, np.uint8)])
def test_arrays_that_cannot_be_written(tmp_path: Path, array: np.ndarray) -> None:
    with pytest.raises(ImageArrayError):
        write_image(tmp_path / "x.png", array)
    assert not list(tmp_path.iterdir())


def unwritable(folder: Path) -> Path:
    """A folder that cannot be made, for root neither: its parent is a file."""
    (folder / "file").write_text("before")
    return folder / "file" / "below"


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    target = unwritable(tmp_path)
    for write in (
        lambda: write_image(target / "x.png", RGB),
        lambda: write_text(target / "x.txt", "text"),
        lambda: write_bytes(target, b"bytes"),
    ):
        with pytest.raises(OutputError) as caught:
            write()
        assert caught.value.code == "output"
        assert isinstance(caught.value, OSError)
        assert caught.value.cause
    assert (tmp_path / "file").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_target_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "x.png").mkdir()
    with pytest.raises(OutputError):
        write_image(tmp_path / "x.png", RGB)
    with pytest.raises(OutputError):
        write_text("/", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


@pytest.mark.parametrize("failure", [RuntimeError("network"), KeyboardInterrupt(), OSError(28, "No space left")])
def test_an_exception_in_the_middle_leaves_the_old_file_and_no_temporary(tmp_path: Path, failure: Any) -> None:
    path = tmp_path / "result.json"
    path.write_text("before")

    def write() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise failure

    with pytest.raises(OutputError if isinstance(failure, OSError) else type(failure)):
        write()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failing_encoder_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.png"
    write_image(path, RGB)
    before = path.read_bytes()

    def fail(self: Pillow.Image, file: Path, **options: object) -> None:
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Pillow.Image, "save", fail)
    with pytest.raises(OutputError, match="No space left"):
        write_image(path, RGB)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_names_of_the_greatest_length(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 251 + ".txt")
    write_text(path, "text")
    assert path.read_text() == "text"


def test_a_relative_path_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_text("x.txt", "one\ntwo\n")
    assert (tmp_path / "x.txt").read_bytes() == b"one\ntwo\n"
