"""Data sets: the same bytes however they are cut, batched or interrupted; what fails is said, and before the work."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from facesdk.bundle import Bundle
from facesdk.errors import EngineError, OutputError, UsageError
from facesdk.image import read_image
from facesdk.provenance import PictureFile
from facesdk.synthesis import generate as generation
from facesdk.synthesis import report as reporting
from facesdk.synthesis.attributes import AttributeOptions
from facesdk.synthesis.dataset import write_dataset
from facesdk.synthesis.generate import SynthesisOptions, generate
from facesdk.synthesis.networks import SynthesisNetworks
from facesdk.synthesis.report import Report
from facesdk.synthesis.vectors import open_vectors
from tests.synthesis_bundle import NAME, write_synthesis_bundle

COUNT, IMAGES, SEED = 5, 6, 7
KINDS = ("image", "pose", "reference")
PLACES = {"image": "generated_images/a", "pose": "generated_pose_images/a-40", "reference": "generated_images_ref/a"}
OPTIONS = SynthesisOptions(kind="image", images=IMAGES, batch=32, step_batch=32, measured=3)
TURNED = AttributeOptions(yaw=40.0)
BYTES = dict[str, bytes]


@pytest.fixture(scope="module")
def networks(synthesis_bundle: Bundle) -> Iterator[SynthesisNetworks]:
    with SynthesisNetworks(synthesis_bundle, "cpu", 1) as opened:
        yield opened


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(COUNT, 512)).astype(np.float32)


def attributes_of(kind: str) -> AttributeOptions | None:
    return TURNED if kind == "pose" else None


def write(
    networks: SynthesisNetworks, vectors: np.ndarray, folder: Path, kind: str = "image", **changes: Any
) -> Report:
    fields = {field.name for field in dataclasses.fields(SynthesisOptions)}
    options = dataclasses.replace(OPTIONS, kind=kind, **{k: v for k, v in changes.items() if k in fields})
    rest = {"attributes": attributes_of(kind), **{k: v for k, v in changes.items() if k not in fields}}
    return write_dataset(networks, vectors, folder, "a", options, **{"seed": SEED, **rest})


def contents(folder: Path, pattern: str = "*") -> BYTES:
    """Path below the folder -> bytes, hidden files too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob(pattern) if path.is_file()}


@pytest.fixture(scope="module")
def whole(
    networks: SynthesisNetworks, vectors: np.ndarray, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Kind -> folder of a data set that was made in one piece."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    for kind, folder in folders.items():
        write(networks, vectors, folder, kind)
    return folders


# -- a picture depends on nothing beside it ---------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_batches_change_no_byte(
    networks: SynthesisNetworks, vectors: np.ndarray, whole: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    pictures = contents(whole[kind], "*.jpg")
    assert len(pictures) == len(set(pictures.values())) == COUNT * IMAGES
    for size in (1, 4):
        write(networks, vectors, tmp_path / str(size), kind, batch=size, step_batch=size)
        assert contents(tmp_path / str(size)) == contents(whole[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_slices_make_the_whole(
    networks: SynthesisNetworks, vectors: np.ndarray, whole: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    """In any order, into one folder; a slice knows nothing of the rows outside it."""
    for start, stop in ((3, 5), (0, 1), (1, 3)):
        alone = vectors.copy()
        alone[:start], alone[stop:] = np.nan, np.nan
        report = write(networks, alone, tmp_path, kind, identities=range(start, stop), batch=4)
        assert report.images["asked"] == (stop - start) * IMAGES
    assert contents(tmp_path, "*.jpg") == contents(whole[kind], "*.jpg")


@pytest.mark.parametrize("kind", KINDS)
def test_more_pictures_begin_with_the_same(
    networks: SynthesisNetworks, vectors: np.ndarray, whole: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    write(networks, vectors, tmp_path, kind, images=2)
    few, all_of_them = contents(tmp_path, "*.jpg"), contents(whole[kind], "*.jpg")
    assert len(few) == COUNT * 2
    assert few.items() <= all_of_them.items()


@pytest.mark.parametrize("change", [{"seed": 8}, {"masks": "fixed"}])
@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_and_the_masks_change_every_picture(
    networks: SynthesisNetworks,
    vectors: np.ndarray,
    whole: dict[str, Path],
    tmp_path: Path,
    kind: str,
    change: dict[str, Any],
) -> None:
    write(networks, vectors, tmp_path, kind, **change)
    now, before = contents(tmp_path, "*.jpg"), contents(whole[kind], "*.jpg")
    assert now.keys() == before.keys()
    assert not set(now.values()) & set(before.values())


def test_a_fixed_mask_is_one_for_all(
    networks: SynthesisNetworks, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[np.ndarray]] = {"fixed": [], "seeded": []}
    pictures = networks.pictures
    for masks, found in seen.items():
        monkeypatch.setattr(networks, "pictures", lambda v, m, f=found: (f.extend(m.masked), pictures(v, m))[1])
        options = SynthesisOptions(kind="reference", images=8, masks=masks)  # type: ignore[arg-type]
        list(generate(networks, vectors, range(COUNT), options))
    assert len({mask.tobytes() for mask in seen["fixed"]}) == 1
    assert len({mask.tobytes() for mask in seen["seeded"]}) == COUNT * 8
    shares = [mask.mean() for mask in seen["seeded"]]
    assert min(shares) < seen["fixed"][0].mean() < max(shares)


def test_perturbations_are_those_of_the_kind(networks: SynthesisNetworks, vectors: np.ndarray) -> None:
    """Of the published sigmas in their shares, at the length of the identity's vector."""
    options = SynthesisOptions(kind="image", images=200, keep_failed=True)
    easy = AttributeOptions(quality=None)
    made = list(generate(networks, vectors, range(COUNT), options, easy))
    base = {row.identity: row.reached.vector for row in made if row.reached is not None}
    for identity in range(COUNT):
        rows = np.stack([row.vector for row in made if row.identity == identity])
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), np.linalg.norm(base[identity]), rtol=1e-5)
        cosines = rows @ base[identity] / np.linalg.norm(base[identity]) ** 2
        scale = np.linalg.norm(base[identity]) / np.sqrt(512)
        sigmas = scale * np.sqrt(1 / cosines**2 - 1)
        counts = [int(((sigmas > low) & (sigmas <= high)).sum()) for low, high in ((0.2, 0.4), (0.4, 0.6), (0.6, 0.8))]
        assert sum(counts) == 200
        assert all(abs(count / 200 - share) < 0.12 for count, share in zip(counts, (0.4, 0.4, 0.2), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_one_vector_under_two_numbers_gives_other_pictures(
    networks: SynthesisNetworks, vectors: np.ndarray, kind: str
) -> None:
    options = dataclasses.replace(OPTIONS, kind=kind)
    made = list(generate(networks, vectors[[0, 0]], range(2), options, attributes_of(kind), SEED))
    assert len({row.vector.tobytes() for row in made}) == 2 * IMAGES


def test_each_pose_is_held_to_the_vector_that_was_asked_for(
    networks: SynthesisNetworks, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[np.ndarray] = []
    step = networks.step
    monkeypatch.setattr(
        networks, "step", lambda v, reference, *rest: (asked.extend(reference), step(v, reference, *rest))[1]
    )
    list(generate(networks, vectors, range(2, 4), dataclasses.replace(OPTIONS, kind="pose"), TURNED))
    assert {row.tobytes() for row in asked} == {vectors[2].tobytes(), vectors[3].tobytes()}


def test_memory_is_that_of_a_few_batches(networks: SynthesisNetworks) -> None:
    """Rows are read when their turn comes: a file of any length can be mapped."""
    read: list[int] = []

    class Vectors:
        def __getitem__(self, row: int) -> np.ndarray:
            read.append(row)
            return np.random.default_rng(row).normal(size=512)

    for kind, batches in (("reference", 2), ("image", 8), ("pose", 8)):
        read.clear()
        options = SynthesisOptions(kind=kind, images=4, batch=8, step_batch=8)  # type: ignore[arg-type]
        stream = generate(networks, Vectors(), range(10**6), options, None)  # type: ignore[arg-type]
        next(stream)
        assert len(set(read)) <= batches * 8


def test_batches_are_full_across_identities(
    networks: SynthesisNetworks, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    pictures = networks.pictures
    monkeypatch.setattr(networks, "pictures", lambda v, m: (sizes.append(len(v)), pictures(v, m))[1])
    for kind in ("reference", "image"):
        sizes.clear()
        options = SynthesisOptions(kind=kind, images=6, batch=8)  # type: ignore[arg-type]
        assert len(list(generate(networks, vectors, range(COUNT), options))) == 30
        assert sizes == [8, 8, 8, 6]


# -- files ------------------------------------------------------------------------------------------------


def test_folders_are_those_of_the_scripts(whole: dict[str, Path]) -> None:
    digits = {"image": 4, "pose": 6, "reference": 4}
    for kind, folder in whole.items():
        expected = {
            f"{PLACES[kind]}/{identity:0{digits[kind]}d}/{image:03d}.jpg"
            for identity in range(COUNT)
            for image in range(IMAGES)
        }
        assert contents(folder, "*.jpg").keys() == expected


def test_numbers_are_global_and_can_start_elsewhere(
    networks: SynthesisNetworks, vectors: np.ndarray, whole: dict[str, Path], tmp_path: Path
) -> None:
    write(networks, vectors, tmp_path, "pose", identities=range(3, 5), start_class_id=1000)
    folders = sorted(path.name for path in (tmp_path / PLACES["pose"]).iterdir() if path.is_dir())
    assert folders == ["001003", "001004"]
    now, before = contents(tmp_path / PLACES["pose"], "*.jpg"), contents(whole["pose"] / PLACES["pose"], "*.jpg")
    assert now["001004/002.jpg"] == before["000004/002.jpg"]


def test_photos_give_their_names(networks: SynthesisNetworks, vectors: np.ndarray, tmp_path: Path) -> None:
    report = write_dataset(networks, vectors[:2], tmp_path, "a", SynthesisOptions(images=1), stems=["ann", "bob"])
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.jpg")}
    assert names == {f"generated_images_ref/a/{stem}/000.jpg" for stem in ("ann", "bob")}
    assert report.settings["options"]["kind"] == "reference"
    assert report.settings["photos"] == ["ann", "bob"]


@pytest.mark.parametrize("stems", [["a", "b", "a"], ["A", "b", "a"]])
def test_photos_of_one_name_are_refused(
    networks: SynthesisNetworks, vectors: np.ndarray, tmp_path: Path, stems: list[str]
) -> None:
    with pytest.raises(UsageError, match="several photos are called") as caught:
        write_dataset(networks, vectors[:3], tmp_path, "a", stems=stems)
    assert "rename" in caught.value.remedy
    assert list(tmp_path.iterdir()) == []


def test_jpeg_has_the_published_quality_and_its_mark(
    networks: SynthesisNetworks, vectors: np.ndarray, whole: dict[str, Path], tmp_path: Path
) -> None:
    written = whole["image"] / PLACES["image"] / "0000" / "000.jpg"
    Pillow.fromarray(read_image(written)).save(tmp_path / "75.jpg")
    Pillow.fromarray(read_image(written)).save(tmp_path / "50.jpg", quality=50)
    with Pillow.open(written) as ours, Pillow.open(tmp_path / "75.jpg") as published:
        assert ours.quantization == published.quantization  # type: ignore[attr-defined]
    mark = PictureFile.read(written).provenance
    assert mark["DigitalSourceType"].endswith("/trainedAlgorithmicMedia")
    assert (mark["bundle"], mark["bundle_version"]) == (NAME, "tiny 1")
    write(networks, vectors, tmp_path, identities=range(1), mark=False, jpeg_quality=50)
    plain = tmp_path / PLACES["image"] / "0000" / "000.jpg"
    assert PictureFile.read(plain).provenance == {}
    with Pillow.open(plain) as ours, Pillow.open(tmp_path / "50.jpg") as coarse:
        assert ours.quantization == coarse.quantization  # type: ignore[attr-defined]


def test_png_holds_every_value(networks: SynthesisNetworks, vectors: np.ndarray, tmp_path: Path) -> None:
    write(networks, vectors, tmp_path, "pose", format="png", identities=range(1, 3))
    options = dataclasses.replace(OPTIONS, kind="pose")
    for made in generate(networks, vectors, range(1, 3), options, TURNED, SEED):
        path = tmp_path / PLACES["pose"] / f"{made.identity:06d}" / f"{made.image:03d}.png"
        np.testing.assert_array_equal(read_image(path), made.picture)


# -- interruptions ----------------------------------------------------------------------------------------

_KILLED = """
import sys
import numpy as np
from facesdk.bundle import Bundle
from facesdk.synthesis.attributes import AttributeOptions
from facesdk.synthesis.dataset import write_dataset
from facesdk.synthesis.generate import SynthesisOptions
from facesdk.synthesis.networks import SynthesisNetworks

bundle, folder, kind = sys.argv[1:]
vectors = np.random.default_rng(0).normal(size=(5, 512)).astype(np.float32)
options = SynthesisOptions(kind=kind, images=60, batch=2, step_batch=2, measured=3)
attributes = AttributeOptions(yaw=40.0) if kind == "pose" else None
with SynthesisNetworks(Bundle(bundle), "cpu", 1) as networks:
    write_dataset(networks, vectors, folder, "a", options, attributes, 7)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_is_finished_as_if_it_had_never_stopped(
    networks: SynthesisNetworks, vectors: np.ndarray, synthesis_bundle: Bundle, tmp_path: Path, kind: str
) -> None:
    killed, place = tmp_path / "killed", tmp_path / "killed" / PLACES[kind]
    words = [sys.executable, "-c", _KILLED, str(synthesis_bundle.folder), str(killed), kind]
    process = subprocess.Popen(words, env={**os.environ, "FACESDK_OFFLINE": "1"})
    while process.poll() is None and len(list(killed.rglob("[0-9]*.jpg"))) < 100:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    there = contents(killed, "[0-9]*.jpg")
    assert 100 <= len(there) < 300
    first = next(path for path in place.iterdir() if path.is_dir())
    (first / ".0123456789ab.jpg").write_bytes(b"half")  # and what a kill may leave besides
    if kind != "reference":
        with (place / "identities-0-5.rows.jsonl").open("a") as lines:
            lines.write('{"identity": 4, "im')

    resumed = write(networks, vectors, killed, kind, images=60, resume=True)
    write(networks, vectors, tmp_path / "one", kind, images=60)
    assert contents(killed) == contents(tmp_path / "one")
    assert there.items() <= contents(killed).items()
    assert resumed.made < 300


@pytest.mark.parametrize("kind", KINDS)
def test_resuming_makes_only_what_is_missing(
    networks: SynthesisNetworks, vectors: np.ndarray, whole: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    write(networks, vectors, tmp_path, kind)
    paths = sorted(tmp_path.rglob("*.jpg"))
    stamps = {path: path.stat().st_mtime_ns for path in paths}
    for lost in (paths[3], paths[17]):
        lost.unlink()
    assert write(networks, vectors, tmp_path, kind, resume=True, batch=5).made == 2
    assert contents(tmp_path) == contents(whole[kind])
    assert sum(path.stat().st_mtime_ns != stamp for path, stamp in stamps.items()) == 2
    again = write(networks, vectors, tmp_path, kind, resume=True)
    assert (again.made, again.images_per_second) == (0, None)
    assert contents(tmp_path) == contents(whole[kind])


def test_resuming_does_not_try_again_what_was_rejected(
    networks: SynthesisNetworks, vectors: np.ndarray, tmp_path: Path
) -> None:
    impossible = AttributeOptions(quality=90.0, steps=3)
    first = write(networks, vectors, tmp_path, attributes=impossible)
    again = write(networks, vectors, tmp_path, attributes=impossible, resume=True)
    assert (first.made, again.made) == (COUNT * IMAGES, 0)
    assert again.rejected == first.rejected


def test_the_batch_rule_is_resumed_in_whole_batches(
    networks: SynthesisNetworks, vectors: np.ndarray, tmp_path: Path
) -> None:
    rule = AttributeOptions(yaw=40.0, rule="batch")
    for name in ("one", "two"):
        write(networks, vectors, tmp_path / name, "pose", attributes=rule, step_batch=7)
    sorted((tmp_path / "two").rglob("*.jpg"))[9].unlink()
    write(networks, vectors, tmp_path / "two", "pose", attributes=rule, step_batch=7, resume=True)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    with pytest.raises(UsageError) as caught:
        write(networks, vectors, tmp_path / "two", "pose", attributes=rule, step_batch=5, resume=True)
    assert "options.step_batch was 7, is now 5" in caught.value.cause


def test_resuming_with_other_settings_says_which(
    networks: SynthesisNetworks, vectors: np.ndarray, tmp_path: Path
) -> None:
    write(networks, vectors, tmp_path, identities=range(2))
    before = contents(tmp_path)
    others = vectors.copy()
    others[1, 0] += 1
    bundle = Bundle(write_synthesis_bundle(tmp_path.with_name("other"), mask_mu=0.2))
    with SynthesisNetworks(bundle, "cpu", 1) as other:
        for changes, given, says in (
            ({"seed": 8}, {}, "seed was 7, is now 8"),
            ({"images": 9}, {}, "options.images was 6, is now 9"),
            ({"attributes": TURNED}, {}, "attributes.yaw was null, is now 40.0"),
            ({}, {"vectors": others}, "vectors.sha256 was "),
            ({}, {"networks": other}, 'bundle.name was "vec2face-tiny"'),
        ):
            arrays = {"networks": networks, "vectors": vectors, **given}
            with pytest.raises(UsageError) as caught:
                write(folder=tmp_path, resume=True, identities=range(2), **arrays, **changes)  # type: ignore[arg-type]
            assert says in caught.value.cause
            assert "--name" in caught.value.remedy
    assert contents(tmp_path) == before
    write(networks, others[:3], tmp_path, identities=range(2, 3))  # rows outside a slice are not its affair


def test_nothing_is_written_over(networks: SynthesisNetworks, vectors: np.ndarray, tmp_path: Path) -> None:
    write(networks, vectors, tmp_path, identities=range(1, 3))
    before = contents(tmp_path)
    for identities in (range(1, 3), range(2), range(5)):
        with pytest.raises(UsageError, match="already holds") as caught:
            write(networks, vectors, tmp_path, identities=identities)
        assert "--resume" in caught.value.remedy
    with pytest.raises(UsageError) as caught:
        write(networks, vectors, tmp_path, identities=range(2), resume=True)
    assert "nothing there says how" in caught.value.cause
    assert contents(tmp_path) == before


def test_damaged_records_are_told(networks: SynthesisNetworks, vectors: np.ndarray, tmp_path: Path) -> None:
    write(networks, vectors, tmp_path, identities=range(1))
    place = tmp_path / PLACES["image"]
    for name, text in (("rows.jsonl", "{}\n"), ("rows.jsonl", "nonsense\n"), ("settings.json", "{")):
        path = place / f"identities-0-1.{name}"
        before = path.read_text()
        path.write_text(text)
        with pytest.raises(UsageError, match=f"{re.escape(str(path))} cannot be read"):
            write(networks, vectors, tmp_path, identities=range(1), resume=True)
        path.write_text(before)


# -- failures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (np.zeros((0, 512), np.float32), "no vectors"),
        (np.ones((3, 256), np.float32), "256"),
        (np.full((3, 512), np.nan, np.float32), "NaN"),
        (np.zeros((3, 512), np.float32), "zero"),
        (np.full((3, 512), 512**-0.5, np.float32), "length"),
    ],
)
def test_vectors_are_checked_before_anything_is_written(
    networks: SynthesisNetworks, tmp_path: Path, rows: np.ndarray, says: str
) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        write(networks, rows, tmp_path)
    assert caught.value.remedy
    assert list(tmp_path.iterdir()) == []


def test_one_bad_row_is_named_however_far_it_is(networks: SynthesisNetworks, tmp_path: Path) -> None:
    path = tmp_path / "v.npy"
    rows = np.random.default_rng(0).normal(size=(9000, 512)).astype(np.float32)
    rows[8765, 3] = np.nan
    np.save(path, rows)
    with pytest.raises(UsageError, match="8765"):
        write(networks, open_vectors(path), tmp_path / "out", identities=range(100, 9000))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("identities", [range(6), range(3, 3), range(-1, 2), range(0, 4, 2), range(7, 9)])
def test_slices_that_are_not_there(
    networks: SynthesisNetworks, vectors: np.ndarray, tmp_path: Path, identities: range
) -> None:
    with pytest.raises(UsageError, match="of 5"):
        write(networks, vectors, tmp_path, identities=identities)


@pytest.mark.parametrize("name", ["", "..", "a/b", "/a"])
def test_names_that_are_no_folders(networks: SynthesisNetworks, vectors: np.ndarray, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="name"):
        write_dataset(networks, vectors, tmp_path, name, OPTIONS)


@pytest.mark.parametrize(
    "wrong",
    [{"kind": "video"}, {"images": 0}, {"batch": 0}, {"step_batch": 0}, {"masks": "none"}, {"format": "bmp"},
     {"jpeg_quality": 0}, {"jpeg_quality": 101}, {"measured": -1}, {"separation": 2.0}, {"start_class_id": -1}],
)  # fmt: skip
def test_options_without_meaning(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong)).replace("separation", "threshold")) as caught:
        SynthesisOptions(**wrong)
    assert caught.value.remedy


@pytest.mark.parametrize("kind", ["image", "pose"])
def test_what_cannot_be_reached_is_told_and_not_written(
    networks: SynthesisNetworks, vectors: np.ndarray, tmp_path: Path, kind: str
) -> None:
    impossible = AttributeOptions(quality=90.0, steps=4, yaw=40.0 if kind == "pose" else None)
    report = write(networks, vectors, tmp_path, kind, attributes=impossible)
    assert contents(tmp_path, "*.jpg") == {}
    assert report.images == {"asked": 30, "written": 0, "rejected": 30}
    assert len(report.rejected) == (COUNT if kind == "image" else COUNT * IMAGES)
    for row in report.rejected:
        assert row["steps"] == 4
        assert row["values"]["quality"] < 89
        assert any(reason.startswith("quality is ") and "less than 89" in reason for reason in row["reasons"])
    kept = write(networks, vectors, tmp_path / "kept", kind, attributes=impossible, keep_failed=True)
    assert len(contents(tmp_path / "kept", "*.jpg")) == 30
    assert kept.images == {"asked": 30, "written": 30, "rejected": 30}


def test_what_a_bundle_cannot_do_is_told_before_anything_is_written(
    synthesis_bundle_without_pose: Bundle, networks: SynthesisNetworks, vectors: np.ndarray, tmp_path: Path
) -> None:
    with SynthesisNetworks(synthesis_bundle_without_pose, "cpu", 1) as flat:
        with pytest.raises(UsageError, match="cannot control yaw"):
            write(flat, vectors, tmp_path, "pose")
        with pytest.raises(UsageError, match="not optimised"):
            write(flat, vectors, tmp_path, "reference", attributes=TURNED)
        with pytest.raises(UsageError, match="seed"):
            write(flat, vectors, tmp_path, seed=-1)
        assert list(tmp_path.iterdir()) == []
        report = write(flat, vectors, tmp_path, identities=range(2))
    assert report.attributes["optimised"].keys() == {"identity", "quality", "steps"}
    assert report.attributes["pictures"].keys() == {"quality"}


def test_a_network_that_gives_nan_leaves_nothing_in_the_way(
    networks: SynthesisNetworks, vectors: np.ndarray, tmp_path: Path
) -> None:
    bundle = Bundle(write_synthesis_bundle(tmp_path / NAME, broken="image"))
    with SynthesisNetworks(bundle, "cpu", 1) as broken, pytest.raises(EngineError, match="NaN"):
        write(broken, vectors, tmp_path / "out", identities=range(1))
    assert write(networks, vectors, tmp_path / "out", identities=range(1)).made == IMAGES


def test_what_was_written_before_a_failure_stays(
    networks: SynthesisNetworks, vectors: np.ndarray, whole: dict[str, Path], tmp_path: Path
) -> None:
    """A file stands where the third identity's folder belongs."""
    obstacle = tmp_path / PLACES["reference"] / "0002"
    obstacle.parent.mkdir(parents=True)
    obstacle.write_text("in the way")
    with pytest.raises(OutputError, match=r"0002.000\.jpg cannot be written") as caught:
        write(networks, vectors, tmp_path, "reference", batch=1)
    assert "--resume" in caught.value.remedy
    assert len(contents(tmp_path, "*.jpg")) == 2 * IMAGES
    obstacle.unlink()
    assert write(networks, vectors, tmp_path, "reference", resume=True).made == 3 * IMAGES
    assert contents(tmp_path) == contents(whole["reference"])


# -- the report -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_report_is_of_the_files(
    networks: SynthesisNetworks, vectors: np.ndarray, whole: dict[str, Path], kind: str
) -> None:
    place = whole[kind] / PLACES[kind]
    report = json.loads((place / "identities-0-5.report.json").read_text())
    folders = sorted(path for path in place.iterdir() if path.is_dir())
    pictures = [[read_image(path) for path in sorted(folder.iterdir())[:3]] for folder in folders]
    found = networks.encoder.vectors([picture for each in pictures for picture in each])
    units = (found / np.linalg.norm(found, axis=1, keepdims=True)).reshape(COUNT, 3, 512)
    asked = np.einsum("imd,id->im", units, vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    within = report["similarity"]["within"]
    assert within["pictures"] == COUNT * 3
    assert within["to_vector"]["mean"] == pytest.approx(asked.mean(), abs=2e-6)
    assert within["to_vector"]["least"] == pytest.approx(asked.min(), abs=2e-6)
    others = [units[i, a] @ units[i, b] for i in range(COUNT) for a, b in ((0, 1), (0, 2), (1, 2))]
    assert within["to_each_other"]["mean"] == pytest.approx(np.mean(others), abs=2e-6)
    means = units.mean(axis=1)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    cosines = means @ means.T - 9 * np.eye(COUNT)
    between = report["similarity"]["between"]
    assert between["to_nearest"]["greatest"] == pytest.approx(cosines.max(), abs=2e-6)
    assert set(between["nearest_pair"]) == set(np.unravel_index(cosines.argmax(), cosines.shape))
    assert (between["threshold"], between["share_above"]) == (0.4, 0.0)
    quality = networks.measure(np.stack([picture for each in pictures for picture in each]))["quality"]
    assert report["attributes"]["pictures"]["quality"]["mean"] == pytest.approx(quality.mean(), abs=1e-4)
    assert (report["attributes"]["optimised"] == {}) == (kind == "reference")
    assert report["images"] == {"asked": 30, "written": 30, "rejected": 0}


def test_identities_that_are_too_alike_are_counted(
    networks: SynthesisNetworks, vectors: np.ndarray, tmp_path: Path
) -> None:
    twins = vectors.copy()
    twins[3] = twins[0] + 0.1 * twins[1]
    between = (write(networks, twins, tmp_path, "reference").similarity or {})["between"]
    assert between["share_above"] == pytest.approx(2 / 5)
    assert sorted(between["nearest_pair"]) == [0, 3]


def test_there_is_no_nan_where_there_is_nothing_to_compare(
    networks: SynthesisNetworks, vectors: np.ndarray, tmp_path: Path
) -> None:
    report = write(networks, vectors, tmp_path, "reference", images=1, identities=range(1))
    assert (report.similarity or {})["between"] is None
    assert (report.similarity or {})["within"]["to_each_other"] is None
    none = write(networks, vectors, tmp_path, "reference", measured=0, identities=range(1, 2))
    assert none.similarity is None
    for path in tmp_path.rglob("*.json"):
        assert "NaN" not in path.read_text()


def test_the_nearest_is_found_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    units = reporting.unit(np.random.default_rng(3).normal(size=(37, 20)).astype(np.float32))
    cosines = units @ units.T - 9 * np.eye(37, dtype=np.float32)
    for block in (1, 5 * 37, 1 << 20):
        monkeypatch.setattr(reporting, "_BLOCK", block)
        greatest, places = reporting.nearest(units)
        np.testing.assert_allclose(greatest, cosines.max(axis=1), atol=1e-6)
        np.testing.assert_array_equal(places, cosines.argmax(axis=1))


def test_progress_counts_pictures_and_steps(networks: SynthesisNetworks, vectors: np.ndarray, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    write(networks, vectors, tmp_path, "pose", identities=range(2), on_progress=lambda *call: calls.append(call))
    for what, total in (("image", 12), ("measured image", 6)):
        counts = [done for name, done, of in calls if name == what and of == total]
        assert counts == list(range(1, total + 1))
    steps = [done for name, done, of in calls if name == "step" and of == 12 * TURNED.steps]
    assert steps == sorted(steps)
    assert 0 < steps[-1] <= 12 * TURNED.steps
    assert calls[0][0] == "step"


def test_published_values_are_the_defaults() -> None:
    options = SynthesisOptions()
    assert (options.images, options.batch, options.jpeg_quality, options.masks) == (50, 64, 75, "seeded")
    goal = generation.attributes_of("pose", None)
    assert goal is not None
    assert (goal.yaw, goal.quality) == (85.0, 27.0)
