"""The verification test: are two pictures of one person?  Accuracy over folds, on LFW and sets of its form.

Protocol and defaults of HaiyuWu/SOTA-Face-Recognition-Train-and-Test, `verification.py`; computed in float64.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..arrays import read_array
from ..errors import UsageError

Floats = npt.NDArray[np.float64]
#: channels, height and width of the pictures of a published test set
PICTURE = (3, 112, 112)


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How pairs are judged.  Defaults: as published.

    cosine  distance is the angle, as a share of pi, between vectors centred by the other folds' mean.
    """

    folds: int = 10
    threshold_start: float = 0.0
    threshold_stop: float = 4.0
    threshold_step: float = 0.01
    cosine: bool = False

    def __post_init__(self) -> None:
        if self.folds < 2:
            raise UsageError(f"a test of {self.folds} folds", remedy="give at least 2: one is judged by the others")
        if not (self.threshold_step > 0 and self.threshold_start < self.threshold_stop):
            raise UsageError(
                f"thresholds from {self.threshold_start} to {self.threshold_stop} in steps of {self.threshold_step}",
                remedy="give a positive step and an end above the start",
            )

    @property
    def thresholds(self) -> Floats:
        """Candidates, the end not included."""
        return np.arange(self.threshold_start, self.threshold_stop, self.threshold_step)


@dataclasses.dataclass(frozen=True, eq=False)
class Verification:
    """Accuracy and chosen threshold of each fold; rates at each threshold, mean over the folds."""

    accuracies: Floats
    best_thresholds: Floats
    thresholds: Floats
    true_positive_rate: Floats
    false_positive_rate: Floats

    @property
    def accuracy(self) -> float:
        return float(self.accuracies.mean())

    @property
    def deviation(self) -> float:
        """Standard deviation of the accuracy over the folds."""
        return float(self.accuracies.std())


@dataclasses.dataclass(frozen=True, eq=False)
class VerificationSet:
    """`pictures` uint8 (2P, 3, 112, 112) RGB, memory-mapped; pair k is 2k and 2k + 1, `same` (P,) of them bool."""

    name: str
    pictures: npt.NDArray[np.uint8]
    same: npt.NDArray[np.bool_]


def evaluate(
    embeddings: npt.NDArray[np.floating], same: npt.NDArray[np.bool_], protocol: Protocol = Protocol()
) -> Verification:
    """How well distances of pairs tell whether they are of one person.

    embeddings  (2P, d), pair k in rows 2k and 2k + 1, of unit length as `flip_sum` makes them.      same  (P,)
    Each fold, contiguous, is judged at the threshold that is best on the others; of equals the lowest.
    """
    first, second, same = _pairs(embeddings, same, protocol.folds)
    thresholds = protocol.thresholds
    distances = ((first - second) ** 2).sum(1)
    folds = []
    for test in np.array_split(np.arange(len(same)), protocol.folds):
        others = np.ones(len(same), bool)
        others[test] = False
        if protocol.cosine:
            centre = np.concatenate([first[others], second[others]]).mean(0)
            distances = _angles(first - centre, second - centre)
        best = int(_rates(distances[others], same[others], thresholds)[0].argmax())
        accuracy, true_positive, false_positive = _rates(distances[test], same[test], thresholds)
        folds.append((accuracy[best], thresholds[best], true_positive, false_positive))
    accuracies, chosen, *rates = (np.array(column) for column in zip(*folds, strict=True))
    return Verification(accuracies, chosen, thresholds, *(rate.mean(0) for rate in rates))


def flip_sum(embeddings: npt.NDArray[np.floating], mirrored: npt.NDArray[np.floating]) -> Floats:
    """(n, d) sums, of unit length, of the embeddings of pictures and of their mirror images."""
    if embeddings.shape != mirrored.shape or embeddings.ndim != 2:
        raise UsageError(
            f"embeddings of shape {embeddings.shape}, of the mirrored pictures {mirrored.shape}",
            remedy="give both as (n, d), in the same order",
        )
    sums = np.add(embeddings, mirrored, dtype=np.float64)
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    wrong = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
    if len(wrong):
        raise UsageError(
            f"embedding {wrong[0]} and its mirror's have no direction: NaN, infinite or zero in sum",
            remedy="check the encoder on that picture",
        )
    unit: Floats = sums / lengths
    return unit


def read_verification_set(root: str | Path, name: str, shape: tuple[int, int, int] = PICTURE) -> VerificationSet:
    """The test set of files `{root}/{name}/{name}.npy` and `issame.txt`, a 0 or 1 per pair; pictures stay on disk.

    Raises UsageError where a file is missing or of another form, or where they disagree.
    """
    folder = Path(root) / name
    pictures, same = _pictures(folder / f"{name}.npy", shape), _labels(folder / "issame.txt")
    if len(pictures) != 2 * len(same):
        raise UsageError(
            f"{folder}: {len(pictures)} pictures and {len(same)} pairs do not belong together",
            cause="pair k is pictures 2k and 2k + 1, so there are twice as many pictures",
            remedy="take both files from the same download",
        )
    return VerificationSet(name, pictures, same)


def _pairs(
    embeddings: npt.NDArray[np.floating], same: npt.NDArray[np.bool_], folds: int
) -> tuple[Floats, Floats, npt.NDArray[np.bool_]]:
    rows, same = np.asarray(embeddings, np.float64), np.asarray(same)
    if rows.ndim != 2 or same.ndim != 1 or len(rows) != 2 * len(same):
        raise UsageError(
            f"embeddings of shape {rows.shape} for answers of shape {same.shape}",
            remedy="give embeddings (2P, d), two rows for each of P answers",
        )
    if len(same) < folds:
        raise UsageError(f"{len(same)} pairs in {folds} folds", remedy="give at least one pair for each fold")
    if not np.isfinite(rows).all():
        number = int(np.flatnonzero(~np.isfinite(rows).all(1))[0])
        raise UsageError(f"embedding {number} has values that are not finite", remedy="check the encoder on it")
    return rows[0::2], rows[1::2], same.astype(bool)


def _rates(distances: Floats, same: npt.NDArray[np.bool_], thresholds: Floats) -> tuple[Floats, Floats, Floats]:
    """Accuracy, true- and false-positive rate at each threshold; a rate among no pairs at all is 0."""
    accepted = distances < thresholds[:, None]
    right, wrong = (accepted & same).sum(1), (accepted & ~same).sum(1)
    positives, negatives = same.sum(), (~same).sum()
    accuracy = (right + negatives - wrong) / len(same)
    return accuracy, right / max(positives, 1), wrong / max(negatives, 1)


def _angles(first: Floats, second: Floats) -> Floats:
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    cosines = (first * second).sum(1) / np.maximum(lengths, np.finfo(np.float64).tiny)
    angles: Floats = np.arccos(cosines.clip(-1, 1)) / np.pi
    return angles


def _pictures(path: Path, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    array = read_array(path, mapped=True)
    if array.dtype != np.uint8 or array.shape[1:] != shape:
        raise UsageError(
            f"{path} holds {array.dtype} of shape {array.shape}",
            remedy=f"give RGB pictures, uint8 of shape (2P, {', '.join(map(str, shape))})",
        )
    return array.view(np.uint8)


def _labels(path: Path) -> npt.NDArray[np.bool_]:
    try:
        # numpy.savetxt writes a 1 as 1.000000000000000000e+00
        values = np.array([float(word) for word in path.read_text(encoding="ascii").split()])
        if not np.isin(values, (0, 1)).all():
            raise ValueError("it holds other numbers than 0 and 1")
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path} is no list of answers", cause=str(error), remedy="give a text file with a 0 or 1 for each pair"
        ) from error
    return values.astype(bool)
