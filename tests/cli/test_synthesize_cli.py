"""`facesdk synthesize`: files, reports, exit statuses; what cannot be is said before any work."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facesdk import cli
from facesdk.bundle import Bundle
from facesdk.image import read_image, write_image
from facesdk.provenance import PictureFile
from tests.bundles import DATA
from tests.photos import stranger
from tests.synthesis_bundle import NAME, SIZE

PHOTO, NO_FACE = DATA / "astronaut.png", DATA / "no_face.png"
Ran = subprocess.CompletedProcess[str]
Run = Callable[..., Ran]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, synthesis_bundle: Bundle, bundle_478: Bundle) -> Path:
    """A store with the synthesis bundle and the annotation of 478 points."""
    folder = tmp_path_factory.mktemp("home")
    for bundle in (synthesis_bundle, bundle_478):
        shutil.copytree(bundle.folder, folder / "bundles" / bundle.name)
    return folder


@pytest.fixture
def run(synthesis_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Run:
    """`facesdk synthesize` with these words, in this process."""

    def call(*words: object, home: Path = synthesis_home) -> Ran:
        monkeypatch.setenv("FACESDK_HOME", str(home))
        try:
            status = cli.main(["synthesize", "--device", "cpu", "--threads", "1", *map(str, words)])
        except SystemExit as exit_:
            status = int(exit_.code or 0)
        captured = capsys.readouterr()
        return subprocess.CompletedProcess([], status, captured.out, captured.err)

    return call


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vectors") / "v.npy"
    np.save(path, np.random.default_rng(0).normal(size=(4, 512)).astype(np.float32))
    return path


def pictures(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.jpg")}


# -- data sets --------------------------------------------------------------------------------------------


def test_from_a_file_to_a_folder(synthesis_home: Path, vectors: Path, tmp_path: Path) -> None:
    """In a process of its own, with nothing but a file and a store."""
    words = ["--vectors", vectors, "--images", "3", "-o", tmp_path / "out", "--name", "set"]
    command = [sys.executable, "-m", "facesdk.cli", "synthesize", *map(str, words)]
    environment = {**os.environ, "FACESDK_HOME": str(synthesis_home), "FACESDK_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "12 of 12 pictures" in done.stdout
    assert "cosine to the vector asked for" in done.stdout
    folder = tmp_path / "out" / "generated_images" / "set"
    assert len(pictures(folder)) == 12
    assert read_image(folder / "0003" / "002.jpg").shape == (SIZE, SIZE, 3)


def test_json_is_the_report_and_the_speed(run: Run, vectors: Path, tmp_path: Path) -> None:
    words = ["--vectors", vectors, "--kind", "pose", "--yaw", "30", "--images", "2", "-o", tmp_path, "--name", "set"]
    done = run(*words, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    said = json.loads(done.stdout)
    folder = tmp_path / "generated_pose_images" / "set-30"
    assert said.pop("folder") == str(folder)
    assert said.pop("made") == 8
    assert said.pop("images_per_second") > 0
    assert said.pop("failed") == []
    assert said == json.loads((folder / "identities-0-4.report.json").read_text())
    assert said["settings"]["attributes"]["yaw"] == 30


def test_slices_and_resuming(run: Run, vectors: Path, tmp_path: Path) -> None:
    words = ["--vectors", vectors, "--images", "3", "--name", "set"]
    assert run(*words, "-o", tmp_path / "one").returncode == 0
    for part in ("2:4", "0:2"):
        assert run(*words, "-o", tmp_path / "two", "--start-end", part, "--batch", "2").returncode == 0
    assert pictures(tmp_path / "one") == pictures(tmp_path / "two")
    done = run(*words, "-o", tmp_path / "one")
    assert (done.returncode, "--resume" in done.stderr) == (2, True)
    lost = next((tmp_path / "one").rglob("*.jpg"))
    lost.unlink()
    done = run(*words, "-o", tmp_path / "one", "--resume", "--json")
    assert (done.returncode, json.loads(done.stdout)["made"]) == (0, 1)
    assert pictures(tmp_path / "one") == pictures(tmp_path / "two")
    done = run(*words, "-o", tmp_path / "one", "--resume", "--seed", "5")
    assert (done.returncode, "seed was 0, is now 5" in done.stderr) == (2, True)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGINT for another process")
def test_an_interruption_says_how_to_go_on(synthesis_home: Path, tmp_path: Path) -> None:
    words = [
        "synthesize",
        "--sample",
        "9",
        "--images",
        "200",
        "--batch",
        "2",
        "-o",
        tmp_path / "out",
        "--name",
        "a set",
    ]
    command = [sys.executable, "-m", "facesdk.cli", *map(str, words)]
    environment = {**os.environ, "FACESDK_HOME": str(synthesis_home), "FACESDK_OFFLINE": "1"}
    # what a shell runs in the background ignores SIGINT, and so would this process's children
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    while process.poll() is None and len(list(tmp_path.rglob("[0-9]*.jpg"))) < 50:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    there = pictures(tmp_path)
    assert 50 <= len(there) < 1800
    assert "--name 'a set' --resume\n" in said
    go_on = [sys.executable, "-m", "facesdk.cli", *map(str, words), "--resume"]
    subprocess.run(go_on, env=environment, check=True, capture_output=True)
    assert len(pictures(tmp_path)) == 1800
    assert there.items() <= pictures(tmp_path).items()


def test_drawn_identities_are_those_of_the_seed(run: Run, tmp_path: Path) -> None:
    saved = tmp_path / "v.npy"
    words = ["--images", "2", "--seed", "3", "-o", tmp_path]
    assert run("--sample", "3", *words, "--name", "a", "--save-vectors", saved).returncode == 0
    assert run("--vectors", saved, *words, "--name", "b").returncode == 0
    place = tmp_path / "generated_images"
    assert pictures(place / "a") == pictures(place / "b")
    assert len(pictures(place / "a")) == 6


def test_the_law_of_given_centres(run: Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    np.save(tmp_path / "centres.npy", (rng.normal(size=(600, 512)) + 0.5 * rng.normal(size=512)).astype(np.float32))
    words = ["--sample", "2", "--law", "pca", "--images", "1", "-o", tmp_path, "--name", "a"]
    saved = ["--save-vectors", tmp_path / "v.npy", "--separation", "0.5"]
    assert run(*words, "--centres", tmp_path / "centres.npy", *saved).returncode == 0
    assert np.load(tmp_path / "v.npy").shape == (2, 512)
    done = run(*words)
    assert (done.returncode, "centres" in done.stderr) == (2, True)


# -- photos -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    shutil.copy(PHOTO, folder / "ann.png")
    write_image(folder / "bob.png", stranger())
    return folder


def test_a_folder_of_photos(run: Run, home: Path, photos: Path, tmp_path: Path) -> None:
    done = run("--photos", photos, "--images", "2", "-o", tmp_path, "--name", "set", "--unusual", "--json", home=home)
    assert (done.returncode, done.stderr) == (0, "")
    names = sorted(pictures(tmp_path / "generated_images_ref" / "set"))
    assert names == [f"{stem}/00{image}.jpg" for stem in ("ann", "bob") for image in range(2)]
    report = json.loads(done.stdout)
    assert report["settings"]["attributes"] is None
    assert report["settings"]["photos"] == ["ann", "bob"]


def test_a_list_and_a_photo_without_a_face(run: Run, home: Path, photos: Path, tmp_path: Path) -> None:
    """The others are made; the status says that one was not."""
    shutil.copy(NO_FACE, tmp_path / "wall.png")
    (tmp_path / "list.txt").write_text(f"wall.png\n\n{photos / 'ann.png'}\n")
    words = ["--photos", tmp_path / "list.txt", "--images", "1", "-o", tmp_path / "out", "--name", "set", "--unusual"]
    done = run(*words, home=home)
    assert done.returncode == 3
    assert f"{tmp_path / 'wall.png'}: " in done.stderr
    assert "[no-face]" in done.stderr
    assert [path.parts[-2] for path in (tmp_path / "out").rglob("*.jpg")] == ["ann"]
    done = run("--photos", tmp_path / "wall.png", "-o", tmp_path / "none", "--name", "set", "--json", home=home)
    assert done.returncode == 3
    assert json.loads(done.stdout)["failed"][0]["error"]["code"] == "no-face"
    assert not (tmp_path / "none").exists()


def test_crops_that_are_aligned_already_need_no_annotation(run: Run, tmp_path: Path) -> None:
    crop = np.random.default_rng(0).integers(0, 256, (56, 56, 3), np.uint8)
    write_image(tmp_path / "ann.png", crop)
    words = ["--photos", tmp_path / "ann.png", "--aligned", "--unusual", "--images", "1", "-o", tmp_path]
    done = run(*words, "--name", "set")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "generated_images_ref" / "set" / "ann" / "000.jpg").is_file()
    done = run(*(word for word in words if word != "--aligned"), "--name", "other")
    assert (done.returncode, "[model-not-found]" in done.stderr) == (4, True)


def test_photos_of_one_name_are_refused_before_any_work(run: Run, photos: Path, tmp_path: Path) -> None:
    """Before a bundle is looked for."""
    (tmp_path / "more").mkdir()
    shutil.copy(PHOTO, tmp_path / "more" / "ann.jpg")
    words = ["--photos", photos, tmp_path / "more", "-o", tmp_path / "out", "--name", "set", "--bundle", "absent"]
    done = run(*words)
    assert (done.returncode, "several photos are called ann" in done.stderr) == (2, True)
    assert not (tmp_path / "out").exists()


# -- grids ------------------------------------------------------------------------------------------------


def test_a_grid_shows_what_a_data_set_would_hold(run: Run, vectors: Path, tmp_path: Path) -> None:
    words = ["--vectors", vectors, "--images", "3", "--start-end", "1:4", "--format", "png"]
    done = run(*words, "-o", tmp_path / "grid.png", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    said = json.loads(done.stdout)
    assert said == {"file": str(tmp_path / "grid.png"), "identities": 3, "rejected": 0, "failed": []}
    assert run(*words, "-o", tmp_path, "--name", "set").returncode == 0
    picture, step = read_image(tmp_path / "grid.png"), SIZE + 2
    assert picture.shape == (3 * step + 2, 3 * step + 2, 3)
    single = read_image(tmp_path / "generated_images" / "set" / "0003" / "001.png")
    np.testing.assert_array_equal(picture[2 * step + 2 : 3 * step, step + 2 : 2 * step], single)
    mark = PictureFile.read(tmp_path / "grid.png").provenance
    assert (mark["bundle"], mark["DigitalSourceType"].rsplit("/")[-1]) == (NAME, "trainedAlgorithmicMedia")


# -- failures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["image", "pose"])
@pytest.mark.parametrize("output", ["folder", "grid.png"])
def test_an_impossible_quality_ends_and_says_so(
    run: Run, vectors: Path, tmp_path: Path, kind: str, output: str
) -> None:
    words = ["--vectors", vectors, "--kind", kind, "--images", "2", "--quality", "90", "-o", tmp_path / output]
    words += ["--name", "set"] if output == "folder" else []
    done = run(*words)
    assert (done.returncode, done.stderr) == (1, "")
    assert "missed their attributes" in done.stdout
    if output == "folder":
        assert "0 of 8 pictures" in done.stdout
        assert "less than 89" in done.stdout
        report = json.loads(next(tmp_path.rglob("*.report.json")).read_text())
        assert all(row["steps"] == 30 for row in report["rejected"])
        assert pictures(tmp_path) == {}


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.ones((3, 256), np.float32), "256"),
        (np.ones((3, 512), np.int32), "int32"),
        (np.array([[np.nan] * 512, [1.0] * 512], np.float32), "row"),
        (np.zeros((2, 512), np.float32), "zero"),
        (np.full((2, 512), 512**-0.5, np.float32), "length"),
    ],
)
def test_wrong_vectors(run: Run, tmp_path: Path, array: np.ndarray, says: str) -> None:
    np.save(tmp_path / "v.npy", array)
    for output in (["-o", tmp_path / "out", "--name", "set"], ["-o", tmp_path / "grid.png"]):
        done = run("--vectors", tmp_path / "v.npy", *output)
        assert (done.returncode, done.stdout) == (2, "")
        assert says in done.stderr
        assert "remedy" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["v.npy"]


def test_vectors_of_an_empty_or_missing_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty.npy").write_bytes(b"")
    for name in ("empty.npy", "absent.npy"):
        done = run("--vectors", tmp_path / name, "-o", tmp_path / "out", "--name", "set")
        assert (done.returncode, name in done.stderr) == (2, True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--sample", "2"], "--name"),
        (["--name", "a"], "--vectors"),
        (["--sample", "2", "--photos", PHOTO, "--name", "a"], "not allowed"),
        (["--sample", "0", "--name", "a"], "--sample is 0"),
        (["--sample", "2", "--name", "a/b"], "a/b"),
        (["--sample", "2", "--name", "a", "--start-end", "1"], "A:B"),
        (["--sample", "2", "--name", "a", "--start-end", "1:3"], "of 2"),
        (["--sample", "2", "--name", "a", "--start-end", "1:1"], "of 2"),
        (["--sample", "2", "--name", "a", "--images", "0"], "images is 0"),
        (["--sample", "2", "--name", "a", "--seed", "-1"], "seed is -1"),
        (["--sample", "2", "--name", "a", "--kind", "video"], "--kind"),
        (["--sample", "2", "--name", "a", "--kind", "reference", "--yaw", "30"], "not optimised"),
        (["--sample", "2", "--name", "a", "--yaw", "100"], "yaw is 100"),
        (["--sample", "2", "--name", "a", "--aligned"], "--photos"),
        (["--vectors", "v.npy", "--name", "a", "--law", "pca"], "--sample"),
        (["--sample", "2", "--name", "a", "--save-vectors", "v.txt"], ".npy"),
        (["--photos", "absent.txt", "--name", "a"], "absent.txt"),
    ],
)
def test_wrong_usage(run: Run, tmp_path: Path, words: list[object], says: str) -> None:
    done = run(*words, "-o", tmp_path / "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [(["--name", "a"], "no name"), (["--resume"], "nothing to resume"), (["--images", "99999"], "too large")],
)
def test_wrong_usage_of_a_grid(run: Run, tmp_path: Path, words: list[str], says: str) -> None:
    done = run("--sample", "2", "-o", tmp_path / "grid.png", *words)
    assert (done.returncode, says in done.stderr) == (2, True)
    assert list(tmp_path.iterdir()) == []


def test_errors_as_json(run: Run, vectors: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for words, status, code in (
        (["--name", "a", "-o", tmp_path, "--bundle", "absent"], 4, "model-not-found"),
        (["--name", "a", "-o", tmp_path / "file"], 1, "output"),
        (["-o", tmp_path / "file" / "grid.png"], 1, "output"),
    ):
        done = run("--vectors", vectors, "--images", "1", *words, "--json")
        assert (done.returncode, done.stderr) == (status, "")
        error = json.loads(done.stdout)["error"]
        assert (error["code"], bool(error["remedy"])) == (code, True)
