"""`facesdk swap`: files, marks, reports and exit codes; what fails writes nothing."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from facesdk import cli
from facesdk.image import read_image, write_image
from facesdk.provenance import PictureFile
from tests.bundles import DATA
from tests.photos import MEMBERS, group, stranger
from tests.swap_bundle import NAME, SIZE, write_swap_bundle

PHOTO, NO_FACE = DATA / "astronaut.png", DATA / "no_face.png"
SWAPPED = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
Ran = subprocess.CompletedProcess[str]
Run = Callable[..., Ran]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "source.png"
    write_image(path, stranger())
    return path


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "five.png"
    write_image(path, group())
    return path


@pytest.fixture
def run(swap_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Run:
    """`facesdk swap` with these words, in this process."""

    def call(*words: object, home: Path = swap_home) -> Ran:
        monkeypatch.setenv("FACESDK_HOME", str(home))
        try:
            status = cli.main(["swap", "--device", "cpu", "--threads", "1", *map(str, words)])
        except SystemExit as exit_:
            status = int(exit_.code or 0)
        captured = capsys.readouterr()
        return subprocess.CompletedProcess([], status, captured.out, captured.err)

    return call


def changed(path: Path, picture: np.ndarray) -> list[int]:
    """Which heads of `group` hold changed pixels."""
    different = (read_image(path) != picture).any(axis=2)
    return [i for i, (x, y, side, _) in enumerate(MEMBERS) if different[y : y + side, x : x + side].any()]


# -- one picture ----------------------------------------------------------------------------------------------


def test_from_two_photos_to_a_picture(swap_home: Path, source: Path, tmp_path: Path) -> None:
    """In a process of its own, with nothing but files and a store."""
    out = tmp_path / "new" / "out.png"
    command = [sys.executable, "-m", "facesdk.cli", "swap", "--source", source, "--target", PHOTO, "-o", out]
    environment = {**os.environ, "FACESDK_HOME": str(swap_home), "FACESDK_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 face(s) swapped" in done.stdout
    assert "cosines" in done.stdout
    picture, before = read_image(out), read_image(PHOTO)
    assert picture.shape == before.shape
    different = (picture != before).any(axis=2)
    assert 0.01 < different.mean() < 0.2
    assert [path.name for path in out.parent.iterdir()] == ["out.png"]


def test_json(run: Run, source: Path, five: Path, tmp_path: Path) -> None:
    done = run("--source", source, "--target", five, "-o", tmp_path / "a.png", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report["file"] == str(tmp_path / "a.png")
    assert len(report["faces"]) == 5
    for face in report["faces"]:
        assert len(face["box"]) == 4
        assert 0.7 < face["similarity_source"] <= 1
        assert -1 <= face["similarity_target"] <= 1
    assert report["timings_ms"].keys() == {"align", "infer", "paste", "similarity"}
    done = run("--source", source, "--target", PHOTO, "-o", tmp_path / "b.png", "--json", "--no-similarity")
    assert json.loads(done.stdout)["faces"][0]["similarity_source"] is None


@pytest.mark.parametrize(
    ("words", "members"),
    [([], [0, 1, 2, 3, 4]), (["--faces", "largest"], [0]), (["--faces", "2"], [3]), (["--faces", "1130,240"], [4])],
)
def test_which_faces(run: Run, source: Path, five: Path, tmp_path: Path, words: list[str], members: list[int]) -> None:
    assert run("--source", source, "--target", five, "-o", tmp_path / "a.png", *words).returncode == 0
    assert changed(tmp_path / "a.png", group()) == members


def test_the_face_that_is_like_a_photo(run: Run, source: Path, five: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    assert run("--source", source, "--target", five, "-o", out, "--like", PHOTO).returncode == 0
    (member,) = changed(out, group())
    assert not MEMBERS[member][3]  # not one of the mirrored


def test_several_photos_and_all_options(run: Run, source: Path, tmp_path: Path) -> None:
    plain, out = tmp_path / "plain.png", tmp_path / "a.webp"
    options = ["--strength", "0.8", "--iterations", "2", "--boost", "2", "--template", "arcface", "--mask", "both",
               "--feather", "0.1", "--colour", "0.5", "--keep-detail", "0.5"]  # fmt: skip
    assert run("--source", source, DATA / "astronaut_rot35.png", "--target", PHOTO, "-o", out, *options).returncode == 0
    assert run("--source", source, "--target", PHOTO, "-o", plain).returncode == 0
    assert (read_image(out) != read_image(plain)).any()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_results_are_marked_unless_it_is_switched_off(run: Run, source: Path, tmp_path: Path, suffix: str) -> None:
    marked, plain = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    assert run("--source", source, "--target", PHOTO, "-o", marked).returncode == 0
    assert run("--source", source, "--target", PHOTO, "-o", plain, "--no-mark").returncode == 0
    found = PictureFile.read(marked).provenance
    assert (found["DigitalSourceType"], found["bundle"], found["bundle_version"]) == (SWAPPED, NAME, "tiny 1")
    assert PictureFile.read(plain).provenance == {}
    np.testing.assert_array_equal(read_image(marked), read_image(plain))


# -- series and grids -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_a_series(run: Run, source: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"a{suffix}"
    words = ["--source", source, "--target", PHOTO, "-o", out, "--interpolate", "all", "--frames", "4"]
    done = run(*words, "--frame-ms", "150", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {"file": str(out), "frames": 4}
    with Pillow.open(out) as picture:
        picture.load()
        assert (picture.n_frames, picture.info["duration"], picture.size) == (4, 150, (512, 512))
    assert PictureFile.read(out).provenance["DigitalSourceType"] == SWAPPED


def test_a_strip_between_two_sources(run: Run, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.png"
    words = ["--source", source, "--target", PHOTO, "-o", out, "--interpolate", "identity", "--frames", "3"]
    assert run(*words, "--source2", DATA / "astronaut_rot35.png", "--mask", "region").returncode == 0
    strip = read_image(out)
    assert strip.shape == (516, 3 * 514 + 2, 3)
    frames = [strip[2:514, 2 + 514 * i : 514 + 514 * i] for i in range(3)]
    assert all((one != other).any() for one, other in itertools.pairwise(frames))


def test_a_film(run: Run, source: Path, tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="PyAV is not installed")
    out = tmp_path / "a.mp4"
    words = ["--source", source, "--target", PHOTO, "-o", out, "--interpolate", "3d", "--frames", "3"]
    assert run(*words).returncode == 0
    with av.open(str(out)) as container:
        assert len(list(container.decode(video=0))) == 3
    assert SWAPPED.encode() in out.read_bytes()


def test_a_grid_of_all_pairs(run: Run, source: Path, tmp_path: Path) -> None:
    """Twice: its own result in the folder is no photo."""
    folder = tmp_path / "people"
    folder.mkdir()
    for name, photo in (("b.png", source), ("a.png", PHOTO)):
        shutil.copy(photo, folder / name)
    for _ in range(2):
        done = run("--grid", folder, "-o", folder / "grid.png", "--json")
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout)["photos"] == [str(folder / "a.png"), str(folder / "b.png")]
    assert read_image(folder / "grid.png").shape == (2 * (SIZE + 2) + 2, 2 * (SIZE + 2) + 2, 3)
    assert PictureFile.read(folder / "grid.png").provenance["DigitalSourceType"] == SWAPPED


# -- failures -------------------------------------------------------------------------------------------------

PAIR = ["--source", PHOTO, "--target", PHOTO]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([*PAIR, "--faces", "9"], "the picture shows 1"),
        ([*PAIR, "--faces", "nobody"], "from the left"),
        ([*PAIR, "--strength", "2"], "strength"),
        ([*PAIR, "--boost", "3"], "1, 2, 4"),
        ([*PAIR, "--iterations", "0"], "iterations"),
        ([*PAIR, "--template", "mine"], "ffhq"),
        ([*PAIR, "--feather", "0.9"], "feather"),
        ([*PAIR, "--mask", "none"], "--mask"),
        ([*PAIR, "--interpolate", "all", "--frames", "1"], "frames is 1"),
        ([*PAIR, "--interpolate", "all", "--frame-ms", "0"], "0 ms"),
        ([*PAIR, "--interpolate", "all", "--strength", "0.5"], "leave out --strength"),
        ([], "nothing to swap"),
        (["--source", PHOTO], "--grid FOLDER"),
        (["--target", PHOTO], "nothing to swap"),
        ([*PAIR, "--grid", DATA], "nothing to swap"),
        (["--grid", DATA, "--interpolate", "all"], "exclude each other"),
        (["--grid", DATA / "absent"], "cannot be listed"),
        (["--grid", DATA, "--boost", "2"], "--boost"),
    ],
)
def test_wrong_usage(run: Run, tmp_path: Path, words: list[object], says: str) -> None:
    done = run(*words, "-o", tmp_path / "a.png")
    assert done.returncode == 2
    assert says in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_has_no_pairs(run: Run, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    done = run("--grid", tmp_path / "none", "-o", tmp_path / "a.png")
    assert (done.returncode, "holds no pictures" in done.stderr) == (2, True)


def test_a_series_to_a_file_of_another_kind_fails_before_the_work(run: Run, tmp_path: Path) -> None:
    done = run(*PAIR, "-o", tmp_path / "a.avi", "--interpolate", "all", "--bundle", "absent")
    assert done.returncode == 2
    assert ".gif, .webp, .mp4" in done.stderr


@pytest.mark.parametrize(
    ("words", "status", "code"),
    [
        (["--source", NO_FACE, "--target", PHOTO], 3, "no-face"),
        (["--source", PHOTO, "--target", NO_FACE], 3, "no-face"),
        (["--source", PHOTO, "--target", DATA / "absent.png"], 1, "image-unreadable"),
        ([*PAIR, "--bundle", "annotation-478"], 1, "bundle"),
        ([*PAIR, "--bundle", "absent"], 4, "model-not-found"),
        ([*PAIR, "--interpolate", "all", "--source2", NO_FACE], 3, "no-face"),
    ],
)
def test_failures(run: Run, tmp_path: Path, words: list[object], status: int, code: str) -> None:
    out = tmp_path / "a.png"
    done = run(*words, "-o", out)
    assert (done.returncode, done.stdout) == (status, "")
    assert f"[{code}]" in done.stderr
    done = run(*words, "-o", out, "--json")
    assert (done.returncode, done.stderr) == (status, "")
    error = json.loads(done.stdout)["error"]
    assert error["code"] == code
    assert error["remedy"]
    assert not out.exists()


def test_without_a_bundle_the_way_to_one_is_told(run: Run, bundle_478: Any, tmp_path: Path) -> None:
    shutil.copytree(bundle_478.folder, tmp_path / "home" / "bundles" / "annotation-478")
    done = run(*PAIR, "-o", tmp_path / "a.png", home=tmp_path / "home")
    assert done.returncode == 4
    assert "facesdk export hififace --checkpoint hififace_opensouce_299999.ckpt -o bundle" in done.stderr
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("series", [[], ["--interpolate", "all", "--frames", "2"]], ids=["picture", "series"])
@pytest.mark.parametrize("output", ["swapped", "mask"])
def test_a_network_that_gives_nan(run: Run, tmp_path: Path, series: list[str], output: str) -> None:
    bundle = write_swap_bundle(tmp_path / "broken", broken=output)
    done = run(*PAIR, "-o", tmp_path / "a.png", "--bundle", bundle, *series)
    assert done.returncode == 1
    assert f"NaN or infinite values in {output}" in done.stderr
    assert "[engine]" in done.stderr
    assert not (tmp_path / "a.png").exists()


def test_an_earlier_result_survives_a_failure(run: Run, source: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("old")
    assert run("--source", NO_FACE, "--target", PHOTO, "-o", tmp_path / "a.png").returncode == 3
    assert run("--source", source, "--target", PHOTO, "-o", tmp_path / "a.png" / "b.png").returncode == 1
    assert run("--source", source, "--target", PHOTO, "-o", tmp_path / "a.xyz").returncode == 1
    assert (tmp_path / "a.png").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
