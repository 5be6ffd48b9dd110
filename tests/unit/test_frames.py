"""Several pictures in one file: counts, durations, marks, the grid's layout, and what cannot be written."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from facesdk.errors import MissingDependency, OutputError, UsageError
from facesdk.frames import check_frames_file, grid, write_frames
from facesdk.image import read_image
from facesdk.provenance import PictureFile, Provenance, parse_xmp

MARK = Provenance("swapped", "hififace-256", "1")
SWAPPED = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
FRAMES = [np.full((31, 45, 3), (40 * i, 200 - 40 * i, 90), np.uint8) for i in range(5)]
av_here = pytest.mark.skipif(importlib.util.find_spec("av") is None, reason="PyAV is not installed")


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
@pytest.mark.parametrize("mark", [MARK, None])
def test_an_animation(tmp_path: Path, suffix: str, mark: Provenance | None) -> None:
    path = tmp_path / f"a{suffix}"
    write_frames(path, FRAMES, frame_ms=120, provenance=mark)
    with Pillow.open(path) as picture:
        assert picture.n_frames == 5
        assert picture.info["loop"] == 0
        for index, frame in enumerate(FRAMES):
            picture.seek(index)
            picture.load()
            assert picture.info["duration"] == 120
            assert np.abs(np.asarray(picture.convert("RGB")).astype(int) - frame).max() <= 4
    assert PictureFile.read(path).provenance.get("DigitalSourceType") == (SWAPPED if mark else None)
    assert [child.name for child in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_strip(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write_frames(path, FRAMES, provenance=MARK)
    strip = read_image(path)
    assert strip.shape == (31 + 4, 5 * (45 + 2) + 2, 3)
    assert np.abs(strip[17, 47 * 3 + 20].astype(int) - FRAMES[3][0, 0]).max() <= 6
    assert PictureFile.read(path).provenance["DigitalSourceType"] == SWAPPED


@av_here
@pytest.mark.parametrize(("frame_ms", "seconds"), [(40, 0.2), (300, 1.5), (1500, 7.5)])
def test_a_film(tmp_path: Path, frame_ms: int, seconds: float) -> None:
    import av

    path = tmp_path / "a.mp4"
    write_frames(path, FRAMES, frame_ms=frame_ms, provenance=MARK)
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.duration / av.time_base == pytest.approx(seconds, rel=0.02)
    assert [frame.shape for frame in frames] == [(30, 44, 3)] * 5  # even sides
    for frame, wanted in zip(frames, FRAMES, strict=True):
        assert np.abs(frame[15, 22].astype(int) - wanted[0, 0]).max() <= 12


@av_here
def test_a_film_is_marked_in_a_box_of_its_own(tmp_path: Path) -> None:
    """ISO 16684-3: a top-level uuid box; the boxes before it still end where it begins."""
    marked, plain = tmp_path / "a.mp4", tmp_path / "b.mp4"
    write_frames(marked, FRAMES, provenance=MARK)
    write_frames(plain, FRAMES)
    data, position, kinds = marked.read_bytes(), 0, []
    while position < len(data):
        size, kind = struct.unpack_from(">I4s", data, position)
        kinds.append(kind)
        position += size
    assert position == len(data)
    assert kinds[-1] == b"uuid"
    packet = data[-size + 8 :]
    assert packet[:16].hex() == "be7acfcb97a942e89c71999491e3afac"
    assert parse_xmp(packet[16:])["DigitalSourceType"] == SWAPPED
    assert b"xmpmeta" not in plain.read_bytes()


def test_the_layout_of_a_grid() -> None:
    """As torchvision's make_grid: two pixels around each picture, row by row, black where there is none."""
    pictures = [np.full((10, 20, 3), value, np.uint8) for value in (10, 20, 30, 40, 50)]
    made = grid(pictures, 3)
    assert made.shape == (2 * 12 + 2, 3 * 22 + 2, 3)
    for index, picture in enumerate(pictures):
        row, column = divmod(index, 3)
        y, x = 2 + 12 * row, 2 + 22 * column
        np.testing.assert_array_equal(made[y : y + 10, x : x + 20], picture)
        made[y : y + 10, x : x + 20] = 0
    assert not made.any()


@pytest.mark.parametrize("frames", [[], [FRAMES[0], FRAMES[1][1:]]])
def test_frames_that_do_not_fit(tmp_path: Path, frames: list[Any]) -> None:
    with pytest.raises(UsageError, match="missing or differ"):
        write_frames(tmp_path / "a.gif", frames)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "ms"), [("a.avi", 300), ("a", 300), ("a.gif", 0), ("a.mp4", -1), ("a.webp", 60_001)])
def test_files_that_cannot_be_written_so(tmp_path: Path, name: str, ms: int) -> None:
    """Said before the frames are made, and by the writer."""
    with pytest.raises(UsageError):
        check_frames_file(tmp_path / name, ms)
    with pytest.raises(UsageError):
        write_frames(tmp_path / name, FRAMES, frame_ms=ms)
    assert list(tmp_path.iterdir()) == []


def test_without_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency) as caught:
        write_frames(tmp_path / "a.mp4", FRAMES)
    assert caught.value.remedy == "pip install av"
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_file_survives_a_failure(tmp_path: Path) -> None:
    (tmp_path / "a.gif").write_text("old")
    with pytest.raises(OutputError):
        write_frames(tmp_path / "a.gif" / "b.gif", FRAMES)
    with pytest.raises(UsageError):
        write_frames(tmp_path / "a.gif", [])
    assert (tmp_path / "a.gif").read_text() == "old"
