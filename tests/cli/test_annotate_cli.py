"""`facesdk annotate`: files, output, exit codes; the way of every failure, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from facesdk import cli
from facesdk.annotation import labels
from facesdk.annotation.annotator import AnnotateOptions
from facesdk.bundle import Bundle
from facesdk.cli.annotate import _targets
from facesdk.errors import UsageError
from facesdk.image import read_image
from tests.bundles import DATA

PHOTO, NO_FACE = DATA / "astronaut.png", DATA / "no_face.png"
Ran = subprocess.CompletedProcess[str]
Run = Callable[..., Ran]


@pytest.fixture
def run(models_home: Path, bundle_478: Bundle, tmp_path: Path) -> Run:
    """`facesdk annotate` with these words, in an empty folder, offline."""

    def call(*words: object, home: Path = models_home) -> Ran:
        environment = {**os.environ, "FACESDK_HOME": str(home), "FACESDK_OFFLINE": "1"}
        command = [sys.executable, "-c", "import sys; from facesdk.cli import main; sys.exit(main())", "annotate"]
        folder = tmp_path / "cwd"
        folder.mkdir(exist_ok=True)
        return subprocess.run(
            [*command, *map(str, words)], env=environment, cwd=folder, capture_output=True, text=True, check=False
        )

    return call


@pytest.fixture
def here(models_home: Path, bundle_478: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Run:
    """The same in this process: quicker, for what needs no process of its own."""

    def call(*words: object, home: Path = models_home) -> Ran:
        monkeypatch.setenv("FACESDK_HOME", str(home))
        try:
            status = cli.main(["annotate", "--device", "cpu", *map(str, words)])
        except SystemExit as exit_:
            status = int(exit_.code or 0)
        captured = capsys.readouterr()
        return subprocess.CompletedProcess([], status, captured.out, captured.err)

    return call


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# -- what is written ------------------------------------------------------------------------------------------


def test_three_files_and_a_summary(run: Run, tmp_path: Path) -> None:
    done = run(PHOTO, "-o", tmp_path / "out", "--bundle", "annotation-478")
    assert (done.returncode, done.stderr) == (0, "")
    assert names(tmp_path / "out") == ["astronaut.json", "astronaut.overlay.png", "astronaut.regions.png"]
    assert "1 face(s)" in done.stdout
    assert "478 landmarks" in done.stdout
    assert "(approximate)" in done.stdout
    table = json.loads((tmp_path / "out" / "astronaut.json").read_text())
    assert np.shape(table["faces"][0]["landmarks"]) == (478, 3)
    assert table["image_size"] == [512, 512]
    regions = labels.from_colours(read_image(tmp_path / "out" / "astronaut.regions.png"))
    assert set(np.unique(regions)) >= {0, 1, 2, 3, 4, 5, 6}
    x, y = np.array(table["faces"][0]["five_points"][2]).astype(int)
    assert regions[y, x] == labels.NAMES.index("nose")
    overlay = read_image(tmp_path / "out" / "astronaut.overlay.png")
    assert overlay.shape[0] % 512 == 0


def test_one_json_document_of_all_photos(run: Run, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.jpg"
    damaged.write_bytes(b"\xff\xd8\xff")
    done = run(PHOTO, damaged, NO_FACE, "-o", tmp_path / "out", "--json")
    assert done.returncode == 1  # a failure outweighs a photo without a face
    assert done.stderr == ""
    first, second, third = json.loads(done.stdout)
    assert len(first["faces"]) == 1
    assert first["photo"] == str(PHOTO)
    assert all(Path(file).is_file() for file in first["files"])
    assert second["error"]["code"] == "image-unreadable"
    assert third["error"]["code"] == "no-face"
    assert all(error["remedy"] for error in (second["error"], third["error"]))
    assert names(tmp_path / "out") == ["astronaut.json", "astronaut.overlay.png", "astronaut.regions.png"]


def test_results_of_an_earlier_run_are_replaced(here: Run, tmp_path: Path) -> None:
    (tmp_path / "astronaut.json").write_text("old")
    assert here(PHOTO, "-o", tmp_path).returncode == 0
    assert len(names(tmp_path)) == 3
    assert len(json.loads((tmp_path / "astronaut.json").read_text())["faces"]) == 1


def test_a_folder_and_two_photos_of_one_name(here: Run, tmp_path: Path) -> None:
    photos, other = tmp_path / "photos", tmp_path / "other"
    for folder in (photos, other):
        folder.mkdir()
        (folder / "a.png").write_bytes(PHOTO.read_bytes())
    (photos / "b.JPG").write_bytes(PHOTO.read_bytes())
    (photos / "notes.txt").write_text("no picture")
    (photos / "folder.png").mkdir()
    assert here(photos, other / "a.png", photos / "a.png", "-o", tmp_path / "out").returncode == 0
    stems = {name.split(".")[0] for name in names(tmp_path / "out")}
    assert stems == {"a", "a-2", "b"}
    assert len(names(tmp_path / "out")) == 9


def test_no_two_photos_share_their_results() -> None:
    photos = [Path(name) for name in ("x/a.png", "y/a.png", "a-2.png", "z/a.jpg", "x/a.png", "w/a-2.png")]
    targets = _targets(photos, Path("out"))
    assert list(targets) == list(dict.fromkeys(photos))
    assert len(set(targets.values())) == 5
    assert targets[Path("a-2.png")] == Path("out/a-2")
    assert targets[Path("x/a.png")] == Path("out/a")


def test_names_with_dots_stay_whole(here: Run, tmp_path: Path) -> None:
    photo = tmp_path / "me.at.work.png"
    photo.write_bytes(PHOTO.read_bytes())
    assert here(photo, "-o", tmp_path / "out").returncode == 0
    assert "me.at.work.overlay.png" in names(tmp_path / "out")


def test_a_frame_of_an_animation(here: Run, tmp_path: Path) -> None:
    path = tmp_path / "moving.gif"
    frames = [Pillow.new("RGB", (512, 512), "gray"), Pillow.open(PHOTO).convert("RGB")]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    refused = here(path, "-o", tmp_path / "out")
    assert refused.returncode == 1
    assert "--frame 0" in refused.stderr
    assert here(path, "--frame", 0, "-o", tmp_path / "out").returncode == 3
    assert here(path, "--frame", 1, "-o", tmp_path / "out").returncode == 0
    assert here(path, "--frame", 2, "-o", tmp_path / "out2").returncode == 1
    assert not (tmp_path / "out2").exists()


def test_options_reach_the_search(here: Run, tmp_path: Path) -> None:
    words = ("-o", tmp_path, "--json", PHOTO)
    (result,) = json.loads(here(*words, "--search", "thorough", "--max-faces", 1).stdout)
    assert len(result["passes"]) > 3
    assert len(result["faces"]) == 1
    assert here(*words, "--min-score", 0.999, "--search", "fast").returncode == 3


def test_verbose_says_where_each_engine_runs(run: Run, tmp_path: Path) -> None:
    done = run(PHOTO, "-o", tmp_path / "out", "--verbose", "--device", "cpu", "--search", "fast")
    assert done.returncode == 0
    for engine in ("detector_short", "landmarks"):
        assert f"{engine}.onnx runs on" in done.stderr


# -- Dense-Face -----------------------------------------------------------------------------------------------


def test_dense_face_files(here: Run, tmp_path: Path) -> None:
    photo = tmp_path / "large.png"
    Pillow.open(PHOTO).resize((1024, 1024)).save(photo)
    done = here(photo, "-o", tmp_path / "out", "--dense-face", 7, "--json", "--bundle", "annotation-478")
    assert done.returncode == 0, done.stdout + done.stderr
    (result,) = json.loads(done.stdout)
    written = {name: Path(path) for name, path in result["dense_face"].items()}
    assert set(written) == {"image", "landmarks", "cropped_face", "mask", "pose_hint"}
    assert all(path.is_file() for path in written.values())
    assert {"index.csv", "subjects.txt"} <= {path.name for path in written["image"].parents[3].iterdir()}
    assert read_image(written["cropped_face"]).shape == (512, 512, 3)


def test_dense_face_without_irises_names_the_bundle(here: Run, tmp_path: Path, bundle_468: Bundle) -> None:
    done = here(PHOTO, "-o", tmp_path / "out", "--dense-face", 7, "--bundle", "annotation")
    assert done.returncode == 1
    assert "annotation-478" in done.stderr


# -- failures -------------------------------------------------------------------------------------------------


def test_no_face_is_3(run: Run, tmp_path: Path) -> None:
    done = run(NO_FACE, "-o", tmp_path / "out")
    assert done.returncode == 3
    assert "[no-face]" in done.stderr
    assert "remedy:" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_no_bundle_is_4_and_names_the_command(run: Run, tmp_path: Path, words: tuple[str, ...]) -> None:
    done = run(PHOTO, "-o", tmp_path / "out", *words, home=tmp_path / "home")
    assert done.returncode == 4
    if words:
        error = json.loads(done.stdout)["error"]
        assert (error["code"], error["remedy"]) == ("model-not-found", "facesdk models pull annotation")
    else:
        assert "facesdk models pull annotation" in done.stderr
        assert done.stdout == ""
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "home").exists()


def test_an_output_that_cannot_be_written_is_1_and_nothing_is_half_written(run: Run, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("before")
    done = run(PHOTO, "-o", blocked / "out")
    assert done.returncode == 1
    assert "[output]" in done.stderr
    assert "Traceback" not in done.stderr
    assert blocked.read_text() == "before"
    assert {path.name for path in tmp_path.iterdir()} == {"file", "cwd"}


def test_one_result_that_cannot_be_written(here: Run, tmp_path: Path) -> None:
    """A folder where the table belongs: said, and the folder stays; no temporary file is left."""
    (tmp_path / "astronaut.json").mkdir()
    done = here(PHOTO, "-o", tmp_path)
    assert done.returncode == 1
    assert "astronaut.json cannot be written" in done.stderr
    assert not [name for name in names(tmp_path) if name.startswith(".")]
    assert (tmp_path / "astronaut.json").is_dir()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--min-score", "2"), "min_score is 2.0"),
        (("--min-score", "much"), "invalid float value"),
        (("--search", "foo"), "invalid choice: 'foo'"),
        (("--max-faces", "0"), "max_faces is 0"),
        (("--smallest-px", "nan"), "smallest_px is nan"),
        (("--threads", "0"), "threads is 0"),
        (("--device", "gpu"), "invalid choice: 'gpu'"),
        (("--unknown",), "unrecognized arguments"),
    ],
)
def test_options_without_meaning_are_2(here: Run, tmp_path: Path, words: tuple[str, ...], says: str) -> None:
    done = here(PHOTO, "-o", tmp_path / "out", *words)
    assert done.returncode == 2
    assert says in done.stderr
    assert not (tmp_path / "out").exists()


def test_missing_arguments_are_2(here: Run, tmp_path: Path) -> None:
    assert here("-o", tmp_path).returncode == 2
    assert here(PHOTO).returncode == 2


def test_an_empty_folder_is_2(here: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = here(tmp_path / "empty", "-o", tmp_path / "out")
    assert done.returncode == 2
    assert "no pictures" in done.stderr


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(UsageError, match="Permission denied"):
        _targets([tmp_path], tmp_path / "out")


def test_a_photo_that_is_not_there_is_1(here: Run, tmp_path: Path) -> None:
    done = here(tmp_path / "absent.png", "-o", tmp_path / "out")
    assert done.returncode == 1
    assert "does not exist" in done.stderr


def test_a_bundle_that_is_not_there_is_4(here: Run, tmp_path: Path) -> None:
    assert here(PHOTO, "-o", tmp_path / "out", "--bundle", "other").returncode == 4


# -- options --------------------------------------------------------------------------------------------------


def test_every_field_of_the_options_is_on_the_command_line(here: Run) -> None:
    text = " ".join(here("--help").stdout.split())
    for name, field in AnnotateOptions.__dataclass_fields__.items():
        assert f"--{name.replace('_', '-')}" in text
        assert field.metadata["help"].split(":")[0] in text
        assert f"(default: {field.default})" in text


def test_results_beside_the_photos_are_not_annotated_again(here: Run, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PHOTO.read_bytes())
    for _ in range(2):
        done = here(tmp_path, "-o", tmp_path, "--json")
        assert [Path(result["photo"]).name for result in json.loads(done.stdout)] == ["a.png"]


def test_dense_face_goes_on_counting(here: Run, tmp_path: Path) -> None:
    for number in (1, 2):
        done = here(PHOTO, "-o", tmp_path, "--dense-face", 7, "--json")
        (result,) = json.loads(done.stdout)
        assert Path(result["dense_face"]["image"]).name == f"{number:03d}.jpg"
    rows = (tmp_path / "dense_face" / "CASIA" / "index.csv").read_text().splitlines()
    assert len(rows) == 3
