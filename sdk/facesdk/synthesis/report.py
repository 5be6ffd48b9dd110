"""What became of a data set: identities, attributes, rejected rows, as JSON that two runs of one data set share."""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .attributes import AttributeOptions
from .ledger import Json, RowRecord
from .networks import Floats, Pictures, SynthesisNetworks
from .vectors import Vectors

_MEASURED = 16  # pictures of one call of the networks that measure
_BLOCK = 1 << 24  # cosines that are held at once, 64 MB


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """What was asked for and what there is.

    images      numbers of pictures: asked, written (all that are there), rejected.
    similarity  `within` identities and `between` them; None where nothing was measured.
    attributes  term -> spread: `optimised` of the rows that passed, `pictures` of the files that were measured.
    rejected    rows that missed their attributes, with the reasons.
    made, seconds  of this run alone: not in the file, which is the same however often a run was interrupted.
    """

    folder: Path
    settings: Json
    images: dict[str, int]
    similarity: Json | None
    attributes: Json
    rejected: tuple[Json, ...]
    made: int = 0
    seconds: float = 0.0

    @property
    def images_per_second(self) -> float | None:
        """Pictures that this run made in a second, rejected ones too; None where it made none."""
        return self.made / self.seconds if self.made and self.seconds > 0 else None

    def as_dict(self) -> Json:
        """The fields of the file, ready for JSON."""
        return {
            "settings": self.settings,
            "images": self.images,
            "similarity": self.similarity,
            "attributes": self.attributes,
            "rejected": list(self.rejected),
        }


def rejections(rows: Iterable[RowRecord], attributes: AttributeOptions) -> tuple[Json, ...]:
    """Each row that failed, with a reason for each attribute that it missed."""
    failed = [row for row in rows if row.failed]
    return tuple(
        {**_rounded(row), "reasons": [_reason(term, row, attributes) for term in row.failed]} for row in failed
    )


def row_spreads(rows: Iterable[RowRecord]) -> Json:
    """Term -> mean, least and greatest value, and `steps`, of the rows that passed."""
    passed = [row for row in rows if not row.failed]
    if not passed:
        return {}
    spreads = {term: _term_spread(term, [row.values[term] for row in passed]) for term in passed[0].values}
    return {**spreads, "steps": spread([row.steps for row in passed])}


def measure(
    networks: SynthesisNetworks, pictures: Iterable[tuple[int, Pictures]], vectors: Vectors, threshold: float
) -> tuple[Json | None, Json]:
    """Cosines `within` identities and `between` them, None without pictures; and term -> spread over all pictures.

    pictures  (identity, picture), those of one identity together; they are read as they are needed.
    Held in memory: one vector for each identity.
    """
    to_vector: list[float] = []
    to_others: list[float] = []
    means: dict[int, Floats] = {}
    terms: dict[str, list[float]] = {}
    for identity, found in itertools.groupby(_encoded(networks, pictures, terms), key=operator.itemgetter(0)):
        units = unit(np.stack([vector for _, vector in found]))
        to_vector += (units @ unit(np.asarray(vectors[identity], np.float32)[None])[0]).tolist()
        to_others += (units @ units.T)[np.triu_indices(len(units), 1)].tolist()
        means[identity] = unit(units.mean(axis=0, keepdims=True))[0]
    if not means:
        return None, {}
    within = {"pictures": len(to_vector), "to_vector": spread(to_vector), "to_each_other": spread(to_others)}
    similarity = {"within": within, "between": between(np.stack(list(means.values())), list(means), threshold)}
    return similarity, {term: _term_spread(term, values) for term, values in terms.items()}


def between(means: Floats, identities: Sequence[int], threshold: float) -> Json | None:
    """How alike each identity and its nearest other one are; None for a single one.

    means  (n, d) of unit length.   share_above  of identities whose nearest is beyond the threshold.
    """
    if len(means) < 2:
        return None
    cosines, places = nearest(means)
    first = int(cosines.argmax())
    return {
        "identities": len(means),
        "to_nearest": spread(cosines.tolist()),
        "nearest_pair": [identities[first], identities[int(places[first])]],
        "threshold": threshold,
        "share_above": round(float((cosines > threshold).mean()), 6),
    }


def nearest(units: Floats) -> tuple[Floats, npt.NDArray[np.intp]]:
    """(n,) greatest cosine of each row with another one, and (n,) that row's place; blockwise."""
    cosines, places = np.empty(len(units), np.float32), np.empty(len(units), np.intp)
    height = max(1, _BLOCK // len(units))
    for start in range(0, len(units), height):
        block = units[start : start + height] @ units.T
        rows = np.arange(len(block))
        block[rows, rows + start] = -np.inf
        places[start : start + height] = block.argmax(axis=1)
        cosines[start : start + height] = block.max(axis=1)
    return cosines, places


def unit(vectors: Floats) -> Floats:
    """The rows divided by their lengths; a row of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12), np.float32)


def spread(values: Sequence[float]) -> Json | None:
    """Mean, least and greatest; None of nothing."""
    if not values:
        return None
    found = {"mean": sum(values) / len(values), "least": min(values), "greatest": max(values)}
    return {name: round(float(value), 6) for name, value in found.items()}


def _term_spread(term: str, values: Sequence[float]) -> Json | None:
    """Of yaw without its sign, which no target has."""
    return spread([abs(value) for value in values] if term == "yaw" else values)


def _encoded(
    networks: SynthesisNetworks, pictures: Iterable[tuple[int, Pictures]], terms: dict[str, list[float]]
) -> Iterator[tuple[int, Floats]]:
    """(Identity, vector) of each picture; what else is measured is added to `terms`."""
    waiting = iter(pictures)
    while batch := list(itertools.islice(waiting, _MEASURED)):
        stack = np.stack([picture for _, picture in batch])
        for term, values in networks.measure(stack).items():
            terms.setdefault(term, []).extend(values.tolist())
        yield from zip((identity for identity, _ in batch), networks.encoder.vectors(stack), strict=True)


def _rounded(row: RowRecord) -> dict[str, Any]:
    return {**row.as_dict(), "values": {term: round(value, 6) for term, value in row.values.items()}}


def _reason(term: str, row: RowRecord, attributes: AttributeOptions) -> str:
    value = row.values[term]
    if attributes.rule == "batch":
        return f"the mean of its batch missed {term}; it has {value:.3f}"
    if term == "identity":
        return f"cosine to the identity is {value:.3f}, less than {1 - attributes.identity_limit:g}"
    target = getattr(attributes, term)
    if term == "quality":
        return f"quality is {value:.3f}, less than {target - attributes.quality_limit:g}"
    return f"{term} is {value:.3f} degrees, more than {attributes.angle_limit:g} off {target:g}"
