"""New identities: their law, their distance from each other, and from a set that they must not leak."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from facesdk.errors import UsageError
from facesdk.synthesis import sampling
from facesdk.synthesis.sampling import POOL, sample_vectors
from facesdk.synthesis.separability import leakage, prefix_counts, separable
from facesdk.synthesis.vectors import open_vectors


def units(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)


def crowd(rows: int, seed: int = 0, spread: float = 1.0) -> np.ndarray:
    """Vectors about ten directions: many cosines on both sides of 0.4."""
    rng = np.random.default_rng(seed)
    middles = rng.normal(0, 1, (10, 512))
    return (middles[rng.integers(0, 10, rows)] + spread * rng.normal(0, 1, (rows, 512))).astype(np.float32)


def centres(rows: int = 800, seed: int = 0) -> np.ndarray:
    """Vectors of length about 22 whose values are correlated, and not about 0."""
    rng = np.random.default_rng(seed)
    rows_ = rng.normal(0, 1, (rows, 512)) @ (np.eye(512) + 0.5 * rng.normal(0, 1 / np.sqrt(512), (512, 512)))
    return (rows_ * np.linspace(0.5, 1.2, 512) + 0.1).astype(np.float32)


# -- the laws -----------------------------------------------------------------------------------------------


def test_normal_vectors_are_as_the_generator_wants_them() -> None:
    rows = sample_vectors(3000, 1)
    assert rows.shape == (3000, 512)
    assert rows.dtype == np.float32
    assert abs(rows.mean()) < 0.004
    assert rows.std() == pytest.approx(1, abs=0.004)
    assert separable(rows).all()


def test_pca_vectors_have_mean_and_covariance_of_the_centres() -> None:
    given = centres()
    rows = sample_vectors(2 * POOL, 1, "pca", given, None)
    np.testing.assert_allclose(rows.mean(axis=0), given.mean(axis=0), atol=0.1)
    # seen in the frame in which the centres' covariance is the identity; deviations of 4096 draws: 0.022 and 0.016
    variances, directions = np.linalg.eigh(np.cov(given, rowvar=False))
    np.testing.assert_allclose(np.cov(rows @ (directions / np.sqrt(variances)), rowvar=False), np.eye(512), atol=0.12)


def test_mean_and_covariance_of_a_file_are_exact(tmp_path: Path) -> None:
    np.save(tmp_path / "centres.npy", centres(POOL + 300))
    given = open_vectors(tmp_path / "centres.npy")
    mean, root = sampling._gaussian(given, unusual=False)
    np.testing.assert_allclose(mean, given.mean(axis=0, dtype=np.float64), atol=1e-12)
    np.testing.assert_allclose(root @ root, np.cov(given, rowvar=False, dtype=np.float64), atol=1e-9)
    np.testing.assert_allclose(root, root.T, atol=1e-12)


def test_centres_are_checked() -> None:
    with pytest.raises(UsageError, match="nothing to be fitted to"):
        sample_vectors(5, 1, "pca")
    with pytest.raises(UsageError, match="511 centres are too few"):
        sample_vectors(5, 1, "pca", centres(511))
    assert len(sample_vectors(5, 1, "pca", centres(512))) == 5
    with pytest.raises(UsageError, match="normal law has none"):
        sample_vectors(5, 1, "normal", centres())
    broken = centres(2 * POOL)
    broken[POOL + 7, 3] = np.nan
    with pytest.raises(UsageError, match=f"row {POOL + 7} of the centres"):
        sample_vectors(5, 1, "pca", broken)
    normalised = units(centres(600))
    with pytest.raises(UsageError, match="normalised"):
        sample_vectors(5, 1, "pca", normalised)
    assert np.linalg.norm(sample_vectors(5, 1, "pca", normalised, None, unusual=True), axis=1).max() < 2


# -- seeds --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [None, 0.4, 0.1475])
def test_fewer_vectors_are_the_first_of_more(threshold: float | None) -> None:
    many = sample_vectors(POOL + 700, 3, threshold=threshold)
    for count in (0, 1, 50, POOL, POOL + 1):
        np.testing.assert_array_equal(sample_vectors(count, 3, threshold=threshold), many[:count])


def test_seeds_differ() -> None:
    assert not np.isin(sample_vectors(10, 1), sample_vectors(10, 2)).any()


def test_what_a_seed_means_does_not_change() -> None:
    np.testing.assert_allclose(
        sample_vectors(2, 7)[:, :2], [[0.55509216, -0.36712882], [0.96471608, 0.98198462]], rtol=1e-6
    )


# -- separation ---------------------------------------------------------------------------------------------


def one_by_one(candidates: np.ndarray, threshold: float) -> np.ndarray:
    """The rule as it is said: a vector too near to an accepted one is dropped."""
    accepted: list[np.ndarray] = []
    for vector in units(candidates).astype(np.float32):
        if not accepted or (np.stack(accepted) @ vector).max() <= threshold:
            accepted.append(vector)
    return np.stack(accepted)


def test_the_filter_is_the_sequential_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small pools, so that there are many; a threshold that drops about half."""
    monkeypatch.setattr(sampling, "POOL", 64)
    candidates = sample_vectors(640, 5, threshold=None)
    expected = one_by_one(candidates, 0.11)
    assert 200 < len(expected) < 500
    got = sample_vectors(len(expected), 5, threshold=0.11)
    np.testing.assert_allclose(units(got), expected, atol=1e-6)


def test_a_dropped_vector_drops_no_other() -> None:
    """The second is too near to the first; the third to the second only."""
    plane = np.zeros((3, 512), np.float32)
    angles = np.radians([0, 50, 100])
    plane[:, 0], plane[:, 1] = np.cos(angles), np.sin(angles)
    assert sampling._separated(plane, plane[:0], 0.4).tolist() == [True, False, True]
    assert sampling._separated(plane[1:], plane[:1], 0.4).tolist() == [False, True]
    assert separable(plane).tolist() == [True, False, False]


def test_sampling_gives_up_where_there_is_no_room() -> None:
    with pytest.raises(UsageError, match=r"(\d+) of 5000 vectors .* cosine of 0.08") as caught:
        sample_vectors(5000, 1, threshold=0.08)
    found = int(caught.value.fact.split()[0])
    assert f"ask for {found} or fewer" in caught.value.remedy
    assert len(sample_vectors(found, 1, threshold=0.08)) == found


def test_one_centre_over_and_over_is_no_endless_loop() -> None:
    with pytest.raises(UsageError, match="1 of 2 vectors"):
        sample_vectors(2, 1, "pca", np.repeat(centres(1), 600, axis=0))


@pytest.mark.parametrize("threshold", [0, -0.4, 1.1, float("nan")])
def test_a_threshold_that_is_none_is_refused(threshold: float) -> None:
    for call in (lambda: sample_vectors(5, 1, threshold=threshold), lambda: separable(crowd(5), threshold)):
        with pytest.raises(UsageError, match="threshold"):
            call()
    with pytest.raises(UsageError, match="threshold"):
        leakage(crowd(5), crowd(5), threshold)


def test_other_counts_and_laws_are_refused() -> None:
    with pytest.raises(UsageError, match="-1 vectors"):
        sample_vectors(-1, 1)
    with pytest.raises(UsageError, match="normal, pca"):
        sample_vectors(1, 1, "uniform")  # type: ignore[arg-type]


def test_progress_counts_up_to_all() -> None:
    seen: list[tuple[int, int]] = []
    sample_vectors(POOL + 1, 1, on_progress=lambda *done: seen.append(done))
    assert seen == [(POOL, POOL + 1), (POOL + 1, POOL + 1)]
    seen.clear()
    separable(crowd(30), block=20, on_progress=lambda *done: seen.append(done))
    leakage(crowd(3), crowd(30), block=20, on_progress=lambda *done: seen.append(done))
    assert seen == [(20, 30), (30, 30)] * 2


# -- separability and leakage -------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 7, 64, 300, 1000])
def test_separable_is_what_all_pairs_say(block: int) -> None:
    rows = crowd(300)
    cosines = units(rows) @ units(rows).T
    expected = ~(np.tril(cosines, -1) > 0.5).any(axis=1)
    assert 20 < expected.sum() < 280
    np.testing.assert_array_equal(separable(rows, 0.5, block), expected)


def test_separable_vectors_are_counted_by_prefix() -> None:
    alone = np.random.default_rng(0).random(2500) < 0.7
    counts = prefix_counts(alone)
    assert counts == [(end, int(alone[:end].sum())) for end in (1000, 2000, 2500)]
    assert prefix_counts(alone[:2000])[-1][0] == 2000
    assert prefix_counts(alone[:3], 2) == [(2, int(alone[:2].sum())), (3, int(alone[:3].sum()))]
    assert prefix_counts(alone[:0]) == []
    assert separable(crowd(0)).shape == (0,)


@pytest.mark.parametrize("block", [1, 13, 500])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_leakage_finds_the_nearest_of_a_file(tmp_path: Path, block: int, dtype: type) -> None:
    rows, reference = crowd(40, 1), crowd(300, 0).astype(dtype)
    rows[5] = 3 * reference[200]
    np.save(tmp_path / "reference.npy", reference)
    report = leakage(rows, open_vectors(tmp_path / "reference.npy"), 0.4, block)
    cosines = units(rows) @ units(reference).T
    np.testing.assert_allclose(report.cosines, cosines.max(axis=1), atol=1e-6)
    np.testing.assert_array_equal(report.rows, cosines.argmax(axis=1))
    assert report.rows[5] == 200
    assert report.over == (cosines.max(axis=1) > 0.4).sum()
    assert 1 <= report.over < 40


def test_leakage_names_the_first_of_equals_and_bad_rows() -> None:
    rows = crowd(3)
    assert leakage(rows, np.concatenate([rows, rows]), block=2).rows.tolist() == [0, 1, 2]
    with pytest.raises(UsageError, match="no vectors"):
        leakage(rows, rows[:0])
    broken = crowd(30)
    broken[25] = 0
    with pytest.raises(UsageError, match="row 25 of the reference vectors"):
        leakage(rows, broken, block=10)
    with pytest.raises(UsageError, match="row 25 of the identity vectors"):
        separable(broken, block=10)
