"""Folders of identities into centres, labels, masks and LMDB sets, and back."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from facesdk.errors import ImageError, MissingDependency, OutputError, UsageError
from facesdk.image import read_image
from facesdk.synthesis import training_set_writing
from facesdk.synthesis.centres import read_feature, write_centres
from facesdk.synthesis.labels import identity_mask, write_labels, write_mask
from facesdk.synthesis.training_set import TrainingSet

#: in the order of paths as text: a slash comes after a hyphen
IDENTITIES = ("anna-b", "anna", "zoe")
NAMES = {"anna-b": ("0", "1"), "anna": ("0-1", "0", "10", "2"), "zoe": ("9",)}


def jpeg(shade: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), shade, np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Pictures, and features of 512 values: all those of picture k are drawn with seed k."""
    pictures, features = tmp_path / "pictures", tmp_path / "features"
    number = 0
    for identity in IDENTITIES:
        for root in (pictures, features):
            (root / identity).mkdir(parents=True)
        for name in NAMES[identity]:
            (pictures / identity / f"{name}.jpg").write_bytes(jpeg(20 * number))
            np.save(features / identity / f"{name}.npy", feature(number))
            number += 1
    (pictures / "readme.txt").write_text("not an identity")
    (pictures / "anna" / ".hidden.jpg").write_bytes(b"")
    (pictures / "empty").mkdir()
    return pictures, features


def feature(number: int) -> np.ndarray:
    return np.random.default_rng(number).standard_normal(512).astype(np.float32)


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -- centres ----------------------------------------------------------------------------------------------


def test_centres_are_means_in_order_with_the_names_beside(folders: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "new" / "centres.npy"
    calls: list[tuple[int, int]] = []
    names = write_centres(folders[1], out, on_identity=lambda *call: calls.append(call))
    assert names == list(IDENTITIES)
    rows = np.load(out)
    assert (rows.dtype, rows.shape) == (np.float32, (3, 512))
    for row, members in zip(rows, (range(2), range(2, 6), range(6, 7)), strict=True):
        np.testing.assert_allclose(row, np.mean([feature(k) for k in members], axis=0), rtol=0, atol=1e-6)
    assert out.with_suffix(".txt").read_text() == "anna-b\nanna\nzoe\n"
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert listing(out.parent) == ["centres.npy", "centres.txt"]


def saved(value: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, value, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (saved(np.zeros(256, np.float32)), r"float32 of shape \(256,\)"),
        (saved(np.zeros((1, 512))), r"\(1, 512\)"),
        (saved(np.zeros(512, int)), "int64"),
        (saved(np.full(512, np.nan)), "not finite"),
        (saved(np.full(512, np.inf)), "not finite"),
        (saved(np.zeros(512))[:-1], "cannot be read"),
        (b"", "cannot be read"),
        (saved(np.array([None]), allow_pickle=True), "cannot be read"),
        (b"\x80\x04K\x01.", "cannot be read"),
    ],
)
def test_a_bad_feature_is_named_and_nothing_is_written(
    folders: tuple[Path, Path], tmp_path: Path, data: bytes, text: str
) -> None:
    bad = folders[1] / "anna" / "2.npy"
    bad.write_bytes(data)
    with pytest.raises(UsageError, match=text) as caught:
        write_centres(folders[1], tmp_path / "out" / "centres.npy")
    assert str(bad) in str(caught.value)
    assert listing(tmp_path / "out") == []


def test_features_of_any_float_and_any_width_can_be_had() -> None:
    assert read_feature(saved(np.ones(512, np.float16))).dtype == np.float32
    assert read_feature(saved(np.ones(7)), None).shape == (7,)
    with pytest.raises(UsageError, match="positive width"):
        write_centres("features", "centres.npy", width=0)


def test_folders_of_another_form(folders: tuple[Path, Path], tmp_path: Path) -> None:
    pictures, features = folders
    for root, text in (
        (pictures, "no identities"),
        (features / "zoe", "no identities"),
        (tmp_path, "holds the folder"),
    ):
        with pytest.raises(UsageError, match=text):
            write_centres(root, tmp_path / "centres.npy")
    for root in (tmp_path / "absent", features / "zoe" / "9.npy"):
        with pytest.raises(UsageError, match="cannot be read"):
            write_centres(root, tmp_path / "centres.npy")
    with pytest.raises(UsageError, match=r"ends in \.npy"):
        write_centres(features, tmp_path / "centres.txt")


# -- labels and masks -------------------------------------------------------------------------------------


def test_labels_count_identities_in_the_order_of_paths(folders: tuple[Path, Path], tmp_path: Path) -> None:
    assert write_labels(folders[0], tmp_path / "labels.txt") == (7, 3)
    assert (tmp_path / "labels.txt").read_text() == "0\n0\n1\n1\n1\n1\n2\n"
    paths = sorted(str(path) for path in folders[0].glob("*/*.jpg") if not path.name.startswith("."))
    assert [Path(path).parent.name for path in paths] == ["anna-b"] * 2 + ["anna"] * 4 + ["zoe"]


def test_mask_is_the_published_draw() -> None:
    """As numpy draws names with its global generator."""
    counts = np.random.default_rng(0).integers(1, 6, 40)
    groups, at = {}, 0
    for number, count in enumerate(counts):
        groups[f"id{number:03}"] = list(range(at, at + count))
        at += count
    chosen = np.random.RandomState(0).choice(list(groups), 12, replace=False)
    want = [index for name in chosen for index in groups[name]]
    got = identity_mask(counts, 12)
    assert got.dtype == np.int64
    np.testing.assert_array_equal(got, want)
    assert not np.array_equal(identity_mask(counts, 12, 1), want)


def test_mask_of_folders(folders: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "mask.npy"
    records, identities = write_mask(folders[0], out, 2)
    groups = [[0, 1], [2, 3, 4, 5], [6]]
    first, second = np.random.RandomState(0).choice(3, 2, replace=False)
    np.testing.assert_array_equal(np.load(out), groups[first] + groups[second])
    assert (records, identities) == (len(np.load(out)), 2)
    for wrong in ({"chosen": 4}, {"chosen": 0}, {"chosen": 1, "seed": -1}):
        with pytest.raises(UsageError):
            write_mask(folders[0], tmp_path / "other.npy", **wrong)
    assert not (tmp_path / "other.npy").exists()


# -- LMDB -------------------------------------------------------------------------------------------------


@pytest.fixture
def libraries() -> tuple[Any, Any]:
    return pytest.importorskip("lmdb"), pytest.importorskip("msgpack")


@pytest.fixture
def write(folders: tuple[Path, Path], tmp_path: Path, libraries: Any) -> Callable[..., Path]:
    def write(*, features: bool = True, **options: Any) -> Path:
        path = tmp_path / "sets" / "some.lmdb"
        training_set_writing.write_training_set(folders[0], path, folders[1] if features else None, **options)
        return path

    return write


def test_a_set_of_the_generator_comes_back(write: Callable[..., Path]) -> None:
    path = write()
    assert listing(path.parent) == ["some.lmdb"]
    with TrainingSet(path) as records:
        assert (len(records), records.classes) == (7, 3)
        # "0-1" comes before "0": the suffix belongs to the path
        shades = [int(read_image(record.picture)[0, 0, 0]) for record in records]
        assert shades == [0, 20, 40, 60, 80, 100, 120]
        for number, record in enumerate(records):
            np.testing.assert_array_equal(record.feature, feature(number))
        assert [record.label for record in records] == [0, 0, 1, 1, 1, 1, 2]


def test_the_file_is_what_the_published_loaders_read(
    write: Callable[..., Path], folders: tuple[Path, Path], libraries: Any
) -> None:
    lmdb, msgpack = libraries
    first = folders[0] / "anna-b" / "0.jpg", folders[1] / "anna-b" / "0.npy"
    for features in (True, False):
        path = write(features=features)
        with lmdb.open(str(path), subdir=False, readonly=True, lock=False) as environment, environment.begin() as txn:
            keys = msgpack.loads(txn.get(b"__keys__"))
            assert keys == [b"0", b"1", b"2", b"3", b"4", b"5", b"6"]
            assert msgpack.loads(txn.get(b"__len__")) == 7
            assert msgpack.loads(txn.get(b"__classnum__")) == 3
            assert txn.stat()["entries"] == 10
            value = msgpack.loads(txn.get(keys[0]))
            assert value == [file.read_bytes() for file in first[: 1 + features]] + [0]


def test_sets_for_recognition_have_no_features(write: Callable[..., Path]) -> None:
    with TrainingSet(write(features=False)) as records:
        assert records[6].feature is None
        assert records[6].label == 2


def test_sets_grow_beyond_their_first_size(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_set_writing, "_FIRST_MAP_BYTES", 1 << 14)
    monkeypatch.setattr(training_set_writing, "_BATCH", 2)
    with TrainingSet(write()) as records:
        assert [record.label for record in records] == [0, 0, 1, 1, 1, 1, 2]


def test_a_mask_chooses_and_orders(write: Callable[..., Path], tmp_path: Path) -> None:
    path, mask = write(), np.array([6, 2, 2])
    np.save(tmp_path / "mask.npy", mask)
    for given in (mask, tmp_path / "mask.npy"):
        with TrainingSet(path, given) as records:
            assert len(records) == 3
            assert [record.label for record in records] == [2, 1, 1]
    for wrong in (np.array([7]), np.array([-1]), np.array([0.5]), np.array([[0]]), np.array([], int)):
        with pytest.raises(UsageError):
            TrainingSet(path, wrong)
    with pytest.raises(UsageError, match=r"no\.npy"):
        TrainingSet(path, tmp_path / "no.npy")


def test_parts_share_the_file_that_opens_once(write: Callable[..., Path]) -> None:
    path = write()
    with TrainingSet(path, np.array([6])) as records:
        with pytest.raises(UsageError, match="open in this process already"):
            TrainingSet(path)
        part = records.part(np.array([2, 0, 1]))
        assert [record.label for record in part] == [1, 0, 0]
        assert len(records) == 1
        with pytest.raises(UsageError, match="a set of 7"):
            records.part(np.array([7]))
    assert len(TrainingSet(path)) == 7


def test_records_outside_are_no_records(write: Callable[..., Path]) -> None:
    with TrainingSet(write()) as records:
        for number in (7, -1):
            with pytest.raises(IndexError):
                records[number]


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_a_set_serves_forked_and_unpickled_readers(write: Callable[..., Path]) -> None:
    with TrainingSet(write(), np.array([6, 0])) as records:
        data = pickle.dumps(records)
        read, write_end = os.pipe()
        child = multiprocessing.get_context("fork").Process(
            target=lambda: os.write(write_end, bytes(record.label for record in records))
        )
        child.start()
        child.join(30)
        assert child.exitcode == 0
        assert os.read(read, 9) == bytes([2, 0])
        os.close(read)
        os.close(write_end)
    with pickle.loads(data) as copy:
        assert [record.label for record in copy] == [2, 0]


def put(lmdb: Any, msgpack: Any, path: Path, entries: dict[bytes, Any], *, subdir: bool = False) -> None:
    with lmdb.open(str(path), subdir=subdir, lock=False) as environment, environment.begin(write=True) as transaction:
        for key, value in entries.items():
            transaction.put(key, msgpack.dumps(value))


def test_a_set_in_a_folder_and_with_landmarks(tmp_path: Path, libraries: Any) -> None:
    lmdb, msgpack = libraries
    entries = {
        b"0": [b"picture", saved(feature(5)), 3, b"landmarks"], b"__len__": 1, b"__classnum__": 4,
    }  # fmt: skip
    put(lmdb, msgpack, tmp_path / "set.lmdb", entries, subdir=True)
    with TrainingSet(tmp_path / "set.lmdb") as records:
        assert records[0].picture == b"picture"
        assert records[0].label == 3
        np.testing.assert_array_equal(records[0].feature, feature(5))


def test_files_that_are_no_sets(write: Callable[..., Path], tmp_path: Path, libraries: Any) -> None:
    path = write()
    whole, bad = path.read_bytes(), tmp_path / "bad.lmdb"
    for data, text in ((whole[:-4096], "cut short"), (whole[:100], ""), (b"", ""), (b"x" * 9000, "")):
        bad.write_bytes(data)
        with pytest.raises(UsageError, match="is no training set") as caught:
            TrainingSet(bad)
        assert text in str(caught.value)
    with pytest.raises(UsageError, match="does not exist"):
        TrainingSet(tmp_path / "absent.lmdb")
    lmdb, msgpack = libraries
    other = tmp_path / "other.lmdb"
    put(lmdb, msgpack, other, {b"0": ["a path", 1], b"1": [b"picture", b"no array", 1], b"2": 5, b"__len__": 4})
    with pytest.raises(UsageError, match="no entry __classnum__"):
        TrainingSet(other)
    put(lmdb, msgpack, other, {b"__classnum__": 1})
    with TrainingSet(other) as records:
        for number, text in enumerate(("neither", "feature of record 1", "no training set", "no entry 3")):
            with pytest.raises(UsageError, match=text):
                records[number]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda p, f: (f / "anna" / "2.npy").unlink(), r"2 is in .*pictures/anna, but not in .*features/anna"),
        (lambda p, f: (p / "anna" / "2.jpg").unlink(), r"2 is in .*features/anna, but not in .*pictures/anna"),
        (lambda p, f: (f / "anna" / "2.npy").rename(f / "anna" / "3.npy"), "2 files are on one side"),
        (lambda p, f: (f / "zoe").rename(f / "zoey"), "2 identities are on one side"),
        (lambda p, f: (p / "anna" / "2.png").write_bytes(jpeg(0)), "two pictures called 2"),
    ],
)
def test_pictures_and_features_have_to_agree(
    folders: tuple[Path, Path], write: Callable[..., Path], tmp_path: Path, change: Any, text: str
) -> None:
    change(*folders)
    with pytest.raises(UsageError, match=text):
        write()
    assert not (tmp_path / "sets").exists() or listing(tmp_path / "sets") == []


def test_a_bad_picture_or_feature_leaves_the_old_set(folders: tuple[Path, Path], write: Callable[..., Path]) -> None:
    path = write()
    before = path.read_bytes()
    np.save(folders[1] / "zoe" / "9.npy", np.full(512, np.nan))
    with pytest.raises(UsageError, match=r"9\.npy"):
        write()
    (folders[0] / "zoe" / "9.jpg").write_bytes(b"GIF8 no more")
    with pytest.raises(ImageError, match=r"9\.jpg"):
        write(features=False)
    assert path.read_bytes() == before
    assert listing(path.parent) == ["some.lmdb"]


def test_a_failure_of_lmdb_is_an_output_error(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, libraries: Any
) -> None:
    lmdb, _ = libraries

    def full(*_: Any) -> None:
        raise lmdb.DiskError("no space left on device")

    monkeypatch.setattr(training_set_writing, "_put", full)
    with pytest.raises(OutputError, match="no space left"):
        write()


@pytest.mark.parametrize("package", ["lmdb", "msgpack"])
def test_missing_packages_are_named(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    for call in (
        lambda: TrainingSet(tmp_path / "some.lmdb"),
        lambda: training_set_writing.write_training_set(folders[0], tmp_path / "some.lmdb"),
    ):
        with pytest.raises(MissingDependency, match="pip install lmdb msgpack"):
            call()
