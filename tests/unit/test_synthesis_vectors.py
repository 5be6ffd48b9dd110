"""Identity vectors as files and arrays: what passes, and what is said of the rest."""

from __future__ import annotations

import json
import math
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from facesdk.errors import UsageError
from facesdk.synthesis.vectors import NORMS, check_vectors, open_vectors, unit_vectors


def vectors(rows: int = 40, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (rows, 512)).astype(np.float32)


def saved(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vectors.npy"


# -- files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4", ">f8"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_a_file_of_floats_is_mapped_not_read(path: Path, dtype: str, order: str, version: tuple[int, int]) -> None:
    array = np.array(vectors(), dtype, order=order)  # type: ignore[call-overload]
    with path.open("wb") as file:
        np.lib.format.write_array(file, array, version)
    rows = open_vectors(path)
    assert isinstance(rows, np.memmap)
    assert not rows.flags.writeable
    np.testing.assert_array_equal(rows, array)
    np.testing.assert_array_equal(check_vectors(rows[3:7], 3), array[3:7].astype(np.float32))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 256), np.float32), "wants 512 values, these vectors have 256: another encoder"),
        (np.zeros(512, np.float32), r"shape is \(512,\).*vector\[None\]"),
        (np.zeros((2, 5, 512), np.float32), r"shape is \(2, 5, 512\)"),
        (np.float32(1), r"shape is \(\)"),
        (np.zeros((0, 512), np.float32), "no rows"),
        (np.zeros((3, 512), np.int64), "are int64, not float16"),
        (np.zeros((3, 512), np.complex64), "are complex64"),
        (np.zeros((3, 512), bool), "are bool"),
        (np.zeros((3, 512), "U4"), "are <U4"),
        (np.zeros((3, 512), [("a", "f4")]), "not float16"),
    ],
)
def test_other_arrays_are_refused(path: Path, array: np.ndarray, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        open_vectors(saved(path, array))
    assert str(path) in caught.value.fact
    assert "numpy.save" in caught.value.remedy


@pytest.mark.skipif(np.dtype(np.longdouble).itemsize == 8, reason="long doubles are doubles here")
def test_long_doubles_are_refused(path: Path) -> None:
    with pytest.raises(UsageError, match="not float16"):
        open_vectors(saved(path, np.zeros((3, 512), np.longdouble)))


def test_pickled_objects_are_refused_unread(path: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.mkdir, (tmp_path / "sprung",)  # type: ignore[return-value]

    np.save(path, np.array([Trap()], object), allow_pickle=True)
    with pytest.raises(UsageError, match="pickled Python objects, which are never read"):
        open_vectors(path)
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UsageError, match=r"not a \.npy file.*\n.*a pickle"):
        open_vectors(path)
    assert not (tmp_path / "sprung").exists()


def test_other_files_are_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no file"):
        open_vectors(path)
    with pytest.raises(UsageError, match="is a folder"):
        open_vectors(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(UsageError, match="the file is empty"):
        open_vectors(path)
    with path.open("wb") as file:
        np.savez(file, a=vectors(2))
    with pytest.raises(UsageError, match=r"several arrays \(\.npz\)"):
        open_vectors(path)


@pytest.mark.parametrize("length", [3, 6, 7, 9, 30, 127])
def test_a_header_cut_short_is_a_damaged_file(path: Path, length: int) -> None:
    saved(path, vectors(2))
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UsageError, match=r"is damaged|not a \.npy file"):
        open_vectors(path)


@pytest.mark.parametrize("change", [-1, -512 * 4, 1, 100])
def test_a_file_of_another_length_than_announced_is_damaged(path: Path, change: int) -> None:
    data = saved(path, vectors(3)).read_bytes()
    path.write_bytes(data[:change] if change < 0 else data + bytes(change))
    with pytest.raises(UsageError, match=f"announces {len(data)} bytes, there are {len(data) + change}"):
        open_vectors(path)


def test_no_damage_to_the_header_gives_another_error(path: Path) -> None:
    """Headers with a few bytes changed: each is refused as such, or still describes the file."""
    data, rng = saved(path, vectors(2)).read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        damaged = bytearray(data)
        for place in rng.integers(0, 80, rng.integers(1, 4)):
            damaged[place] = rng.choice(np.frombuffer(b"()[]{}'\",:0123456789<>fO \n\\#-\x00\xff\x80", np.uint8))
        path.write_bytes(damaged)
        try:
            assert open_vectors(path).shape == (2, 512)
        except UsageError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("shape", [(-1, 512), (1 << 70, 512), (2, -512)])
def test_a_header_with_an_impossible_shape_is_refused(path: Path, shape: tuple[int, int]) -> None:
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        file.write(bytes(4 * 512))
    with pytest.raises(UsageError):
        open_vectors(path)


HUGE = """
import json, os, sys
from pathlib import Path
from facesdk.synthesis.vectors import check_vectors, open_vectors

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

before = resident()
rows = open_vectors(sys.argv[1])
slice_ = check_vectors(rows[4_000_000:4_000_100], 4_000_000)
print(json.dumps([len(rows), float(slice_.sum()), resident() - before]))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc on this system")
def test_ten_gigabytes_are_not_read(path: Path) -> None:
    """A sparse file: 5 million rows of zeros, but for a hundred."""
    count, some = 5_000_000, vectors(100)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (count, 512)})
        start = file.tell()
        file.truncate(start + count * 512 * 4)
        file.seek(start + 4_000_000 * 512 * 4)
        file.write(some.tobytes())
    assert path.stat().st_size > 10e9
    run = subprocess.run([sys.executable, "-c", HUGE, str(path)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    rows, total, grown_mb = json.loads(run.stdout)
    assert rows == count
    assert total == pytest.approx(float(some.sum()))
    assert grown_mb < 20


# -- rows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_vectors_as_trained_on_pass(dtype: type) -> None:
    rows = (vectors(500) * 0.967 + 0.0046).astype(dtype)
    checked = check_vectors(rows)
    assert checked.dtype == np.float32
    np.testing.assert_array_equal(checked, rows.astype(np.float32))


def test_no_rows_are_rows() -> None:
    assert check_vectors(np.zeros((0, 512))).shape == (0, 512)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_values_that_are_not_finite_are_named_by_row(value: float) -> None:
    rows = vectors().astype(np.float64)
    rows[[3, 17], [0, 511]] = value
    for unusual in (False, True):
        with pytest.raises(UsageError, match="rows 1003, 1017 of the centres: NaN or infinite"):
            check_vectors(rows, 1000, unusual=unusual, what="centres")


def test_rows_of_zeros_are_named_and_long_lists_cut() -> None:
    rows = vectors()
    rows[4] = 0
    with pytest.raises(UsageError, match="row 4 of the identity vectors: nothing but zeros"):
        check_vectors(rows, unusual=True)
    with pytest.raises(UsageError, match="rows 0, 1, 2, 3, 4 and 35 more"):
        check_vectors(np.zeros_like(rows))


def test_normalised_vectors_are_told_so() -> None:
    rows = vectors()
    rows[5:7] /= np.linalg.norm(rows[5:7], axis=1, keepdims=True)
    with pytest.raises(UsageError, match=r"rows 5, 6 .* normalised") as caught:
        check_vectors(rows.astype(np.float16))
    assert "ArcFace's raw output" in caught.value.cause
    assert "multiply them by 22" in caught.value.remedy
    rows[5:7] *= 22
    check_vectors(rows)


@pytest.mark.parametrize("length", [0.5, 10.9, 44.1, 64, 1e4])
def test_unusual_lengths_pass_only_on_demand(length: float) -> None:
    rows = vectors()
    rows[2] *= length / np.linalg.norm(rows[2])
    with pytest.raises(UsageError, match=rf"row 2 .*of length {re.escape(f'{length:.3g}')}") as caught:
        check_vectors(rows)
    assert "11 to 44 pass" in caught.value.cause
    assert "unusual=True" in caught.value.remedy
    np.testing.assert_array_equal(check_vectors(rows, unusual=True), rows)


def test_lengths_within_a_factor_of_two_pass() -> None:
    rows = vectors(2)
    rows *= np.array([[NORMS[0] + 0.1], [NORMS[1] - 0.1]]) / np.linalg.norm(rows, axis=1, keepdims=True)
    check_vectors(rows)


@pytest.mark.parametrize(
    "rows", [np.zeros((2, 256), np.float32), np.zeros(512), np.zeros((2, 512), np.int32), np.full((1, 512), None)]
)
def test_arrays_that_are_no_vectors_are_refused(rows: np.ndarray) -> None:
    for unusual in (False, True):
        with pytest.raises(UsageError, match="no identity vectors"):
            check_vectors(rows, unusual=unusual)


def test_unit_vectors_keep_direction() -> None:
    rows = vectors() * np.logspace(-6, 6, 40)[:, None]
    units = unit_vectors(rows)
    assert units.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(units, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(units, rows / np.linalg.norm(rows, axis=1, keepdims=True), atol=1e-7)
    assert math.isclose(float(np.linalg.norm(rows[0])), 22e-6, rel_tol=0.1)
