"""The verification test against a slow one, test sets on disk, and the margin heads of training."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facesdk.errors import UsageError
from facesdk.recognition.evaluation import PICTURE, Protocol, evaluate, flip_sum, read_verification_set

Floats = np.ndarray


def unit(rows: Floats) -> Floats:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def pairs() -> tuple[Floats, Floats]:
    """Embeddings of 53 pairs, half of them of one person, and the answers."""
    rng = np.random.default_rng(0)
    same = rng.random(53) < 0.5
    first, noise, other = (rng.standard_normal((53, 16)) for _ in range(3))
    second = np.where(same[:, None], first + 1.1 * noise, other)
    rows = np.stack([first, second], 1).reshape(-1, 16) + 0.4  # not centred: the cosine variant has to
    return unit(rows), same


def slow(embeddings: Floats, same: Floats, protocol: Protocol) -> tuple[list[float], list[float]]:
    """Accuracy and threshold of each fold, pair by pair."""
    count, folds = len(same), protocol.folds
    edges = np.cumsum([0] + [count // folds + (i < count % folds) for i in range(folds)])
    accuracies, chosen = [], []
    for low, high in itertools.pairwise(edges):
        test = list(range(low, high))
        others = [k for k in range(count) if k not in test]
        mean = np.mean([embeddings[row] for k in others for row in (2 * k, 2 * k + 1)], axis=0)

        def distance(k: int, mean: Floats = mean) -> float:
            a, b = embeddings[2 * k], embeddings[2 * k + 1]
            if not protocol.cosine:
                return float(((a - b) ** 2).sum())
            a, b = a - mean, b - mean
            return math.acos(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) / math.pi

        def accuracy(threshold: float, members: list[int], distance: Callable[[int], float] = distance) -> float:
            return float(np.mean([(distance(k) < threshold) == same[k] for k in members]))

        best = max(protocol.thresholds, key=lambda threshold: accuracy(threshold, others))  # the first of equals
        accuracies.append(accuracy(best, test))
        chosen.append(best)
    return accuracies, chosen


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("folds", [2, 10])
def test_evaluate_judges_as_the_slow_one(pairs: tuple[Floats, Floats], cosine: bool, folds: int) -> None:
    protocol = Protocol(folds, 0, 4, 0.05, cosine)
    result = evaluate(*pairs, protocol)
    accuracies, chosen = slow(*pairs, protocol)
    np.testing.assert_allclose(result.accuracies, accuracies, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(result.best_thresholds, chosen)
    assert result.accuracy == pytest.approx(np.mean(accuracies))
    assert result.deviation == pytest.approx(np.std(accuracies))
    assert 0.6 < result.accuracy < 1
    assert len(result.true_positive_rate) == len(result.thresholds) == 80


def test_rates_grow_with_the_threshold_from_none_to_all(pairs: tuple[Floats, Floats]) -> None:
    result = evaluate(*pairs, Protocol(threshold_stop=4.02))
    for rate in (result.true_positive_rate, result.false_positive_rate):
        assert rate[0] == 0
        assert rate[-1] == 1
        assert (np.diff(rate) >= 0).all()


def test_a_distance_at_the_threshold_is_a_different_person() -> None:
    rows = np.tile([[1.0, 0.0], [1.0, 0.5]], (4, 1))  # squared distance 0.25, exactly
    result = evaluate(rows, np.ones(4, bool), Protocol(2, 0, 1, 0.25))
    np.testing.assert_array_equal(result.true_positive_rate, [0, 0, 1, 1])
    np.testing.assert_array_equal(result.best_thresholds, [0.5, 0.5])


def test_folds_without_pairs_of_one_kind_have_rate_zero() -> None:
    rows = np.zeros((8, 3))
    result = evaluate(rows, np.zeros(4, bool), Protocol(2))
    assert (result.true_positive_rate == 0).all()
    assert (result.accuracies == 1).all()


def test_precision_is_that_of_float64() -> None:
    """Two distances that float32 cannot tell apart."""
    rows = np.zeros((8, 1))
    rows[1::2, 0] = [1, 1 + 1e-9, 1, 1 + 1e-9]
    same = np.array([True, False, True, False])
    result = evaluate(rows, same, Protocol(2, 1 + 1e-9, 1 + 2e-9, 1e-9))
    assert (result.accuracies == 1).all()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda rows, same: (rows[:-1], same), "two rows for each"),
        (lambda rows, same: (rows[:6], same[:3]), "3 pairs in 10 folds"),
        (lambda rows, same: (np.where(np.arange(106)[:, None] == 7, np.nan, rows), same), "embedding 7"),
    ],
)
def test_embeddings_that_cannot_be_judged(pairs: tuple[Floats, Floats], change: Any, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        evaluate(*change(*pairs))


@pytest.mark.parametrize("wrong", [{"folds": 1}, {"threshold_step": 0}, {"threshold_stop": 0}])
def test_protocols_that_cannot_be_run(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        dataclasses.replace(Protocol(), **wrong)


def test_flip_sum_is_the_direction_of_the_sum() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 5, 8)).astype(np.float32)
    got = flip_sum(a, b)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, unit(a.astype(np.float64) + b), rtol=1e-14)
    with pytest.raises(UsageError, match="same order"):
        flip_sum(a, b[:4])
    b[3] = -a[3]
    with pytest.raises(UsageError, match="embedding 3 "):
        flip_sum(a, b)


# -- test sets --------------------------------------------------------------------------------------------


def write_set(root: Path, pictures: Any, answers: str) -> None:
    (root / "lfw").mkdir()
    np.save(root / "lfw" / "lfw.npy", pictures)
    (root / "lfw" / "issame.txt").write_text(answers)


def test_a_set_is_read_and_its_pictures_stay_on_disk(tmp_path: Path) -> None:
    pictures = np.random.default_rng(2).integers(0, 256, (6, *PICTURE), np.uint8)
    write_set(tmp_path, pictures, "1\n0\n1.000000000000000000e+00\n")
    got = read_verification_set(tmp_path, "lfw")
    assert got.name == "lfw"
    assert isinstance(got.pictures, np.memmap)
    np.testing.assert_array_equal(got.pictures, pictures)
    np.testing.assert_array_equal(got.same, [True, False, True])


@pytest.mark.parametrize(
    ("shape", "kind", "answers", "text"),
    [
        ((4, *PICTURE), np.uint8, "1\n", "4 pictures and 1 pairs"),
        ((2, *PICTURE), np.float32, "1\n", "holds float32"),
        ((2, 112, 112, 3), np.uint8, "1\n", r"\(2, 112, 112, 3\)"),
        ((2, *PICTURE), np.uint8, "2\n", "other numbers than 0 and 1"),
        ((2, *PICTURE), np.uint8, "yes\n", "issame.txt is no list"),
    ],
)
def test_sets_of_another_form(tmp_path: Path, shape: Any, kind: Any, answers: str, text: str) -> None:
    write_set(tmp_path, np.zeros(shape, kind), answers)
    with pytest.raises(UsageError, match=text):
        read_verification_set(tmp_path, "lfw")


def test_damaged_sets(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"lfw\.npy cannot be read"):
        read_verification_set(tmp_path, "lfw")
    write_set(tmp_path, np.zeros((2, *PICTURE), np.uint8), "1\n")
    path = tmp_path / "lfw" / "lfw.npy"
    whole = path.read_bytes()
    for data in (whole[:-1000], whole[:20], b"", b"\x80\x04K\x01."):
        path.write_bytes(data)
        with pytest.raises(UsageError, match=r"lfw\.npy cannot be read as an array"):
            read_verification_set(tmp_path, "lfw")
    with path.open("wb") as file:
        np.savez(file, a=np.zeros(3))
    with pytest.raises(UsageError, match="archive of arrays"):
        read_verification_set(tmp_path, "lfw")
    path.write_bytes(whole)
    (tmp_path / "lfw" / "issame.txt").unlink()
    with pytest.raises(UsageError, match=r"issame\.txt"):
        read_verification_set(tmp_path, "lfw")


# -- margin heads -----------------------------------------------------------------------------------------

LABELS = [0, 3, -1, 9, 5]


@pytest.fixture
def heads() -> Any:
    pytest.importorskip("torch", reason="the export room needs torch")
    from facesdk_export.networks import margin_heads

    return margin_heads


def cosines() -> Any:
    import torch

    generator = torch.Generator().manual_seed(0)
    return torch.rand(5, 10, generator=generator) * 1.8 - 0.9


def gradient(head: Any, x: Any, embeddings: Any = None) -> tuple[Any, Any]:
    """Logits, and the gradient of their sum weighted by place."""
    import torch

    x = x.clone().requires_grad_()
    logits = head(x, torch.tensor(LABELS), embeddings)
    (logits * torch.linspace(-1, 1, x.numel()).reshape(x.shape)).sum().backward()
    return logits.detach().numpy(), x.grad.numpy()


OWN = [(row, label) for row, label in enumerate(LABELS) if label >= 0]


@pytest.mark.parametrize(
    ("build", "own"),
    [
        (lambda h: h.ArcFace(), lambda c: math.cos(math.acos(c) + 0.5)),
        (lambda h: h.ArcFace(30, 0.2), lambda c: math.cos(math.acos(c) + 0.2)),
        (lambda h: h.CosFace(), lambda c: c - 0.4),
        (lambda h: h.SphereFace(), lambda c: math.cos(1.7 * math.acos(c))),
        (lambda h: h.combined(m3=0.35), lambda c: c - 0.35),
        (lambda h: h.combined(m1=1.0, m2=0.3, m3=0.0), lambda c: math.cos(math.acos(c) + 0.3)),
    ],
)
def test_margins_move_the_own_class_and_leave_gradients_straight(heads: Any, build: Any, own: Any) -> None:
    head, x = build(heads), cosines()
    logits, slope = gradient(head, x)
    want = x.numpy().astype(np.float64)
    for place in OWN:
        want[place] = own(want[place])
    np.testing.assert_allclose(logits, head.scale * want, rtol=0, atol=1e-4)
    np.testing.assert_allclose(slope, head.scale * np.linspace(-1, 1, 50).reshape(5, 10), rtol=1e-5)


def test_labels_may_be_a_column_and_the_input_stays(heads: Any) -> None:
    import torch

    x, labels, embeddings = cosines(), torch.tensor(LABELS), torch.randn(5, 8)
    for build in (heads.ArcFace, heads.CosFace, heads.SphereFace, heads.MagFace, heads.CurricularFace):
        before = x.clone()
        flat, column = (build()(x, each, embeddings) for each in (labels, labels[:, None]))
        assert torch.equal(flat, column)
        assert torch.equal(x, before)


def test_beyond_the_clamp_there_is_no_gradient(heads: Any) -> None:
    import torch

    x = torch.full((5, 10), 1.0)
    assert (gradient(heads.ArcFace(), x)[1] == 0).all()
    assert np.isfinite(gradient(heads.ArcFace(), x)[0]).all()


def test_combined_margins_without_a_published_form(heads: Any) -> None:
    for margins in ((0.9, 0.4, 0.0), (1.0, 0.0, -0.1)):
        with pytest.raises(UsageError, match="published form"):
            heads.combined(64, *margins)


def test_magface_margin_grows_with_the_norm(heads: Any) -> None:
    import torch

    x, lengths = cosines(), np.array([5.0, 10, 50, 60, 200])
    embeddings = torch.from_numpy(unit(np.random.default_rng(3).standard_normal((5, 7))) * lengths[:, None])
    head = heads.MagFace()
    logits = head(x.double(), torch.tensor(LABELS), embeddings).numpy()
    clamped = lengths.clip(10, 110)
    margins = 0.45 + 0.35 * (clamped - 10) / 100
    for row, label in OWN:
        want = 64 * math.cos(math.acos(float(x[row, label])) + margins[row])
        assert logits[row, label] == pytest.approx(want, abs=1e-4)
    rows = [row for row, _ in OWN]
    want = np.mean(clamped[rows] / 110**2 + 1 / clamped[rows])
    assert float(head.regulariser(embeddings, torch.tensor(LABELS))) == pytest.approx(want)
    assert float(head.regulariser(embeddings, torch.full((5,), -1))) == 0


def test_magface_gradient_is_the_true_one(heads: Any) -> None:
    import torch

    labels, head = torch.tensor(LABELS), heads.MagFace()
    x = cosines().double().requires_grad_()
    embeddings = (10 * torch.randn(5, 6, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda c, e: head(c, labels, e), (x, embeddings))


def test_curricularface_hardens_what_is_above_the_own_cosine(heads: Any) -> None:
    import torch

    head, x = heads.CurricularFace(start=0.3), cosines()
    labels = torch.tensor(LABELS)
    logits = head(x, labels).numpy()
    c = x.numpy().astype(np.float64)
    t = 0.01 * c[[row for row, _ in OWN]].mean() + 0.99 * 0.3
    assert float(head.t) == pytest.approx(t, abs=1e-6)
    want = c.copy()
    hard = 0
    for row, label in OWN:
        moved = math.cos(math.acos(c[row, label]) + 0.5)
        above = c[row] > moved
        want[row, above] = (c[row] * (t + c[row]))[above]
        hard += above.sum()
        fallen = c[row, label] <= math.cos(math.pi - 0.5)
        want[row, label] = c[row, label] - math.sin(0.5) * 0.5 if fallen else moved
    assert 0 < hard < 40
    np.testing.assert_allclose(logits, 64 * want, rtol=0, atol=1e-4)
    assert {"t"} == set(head.state_dict())


def test_curricularface_falls_linearly_beyond_pi_minus_margin(heads: Any) -> None:
    import torch

    head = heads.CurricularFace()
    logits = head(torch.tensor([[-0.99, 0.5]]), torch.tensor([0]))
    assert float(logits[0, 0]) == pytest.approx(64 * (-0.99 - math.sin(0.5) * 0.5), abs=1e-4)


def test_a_shard_without_the_classes_of_a_batch_changes_nothing(heads: Any) -> None:
    import torch

    head, x = heads.CurricularFace(start=0.2), cosines()
    assert torch.equal(head(x, torch.full((5,), -1)), 64 * x)
    assert float(head.t) == pytest.approx(0.2)
