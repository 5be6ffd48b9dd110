"""fp16 engines derived from fp32 ones: half precision with explicit casts, float32 where half loses the result."""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import onnx

from facesdk.card import Card
from facesdk.engine import Arrays
from facesdk.errors import ToleranceExceeded
from facesdk.verify import Deviation

from .precision_graph import Halved, halved, prepared, types_of
from .precision_islands import ISLANDS, STATISTICS, Islands
from .range_audit import audited, far_values
from .simulation import Outputs, deviations
from .weights import fill, has_file, load_graph, write
from .writing import write_engine

__all__ = ["ISLANDS", "MIN_COSINE", "STATISTICS", "Islands", "derive_fp16", "to_fp16"]

#: smallest cosine between an output and the fp32 engine's with which a derived engine is written
MIN_COSINE = 0.999

log = logging.getLogger("facesdk")


def to_fp16(model: onnx.ModelProto, islands: Islands | None = None) -> onnx.ModelProto:
    """A copy whose float32 weights and arithmetic are float16, but for the islands.

    Inputs and outputs keep names, types and shapes; a value is cast once at most in each direction.  Nodes without
    a float16 form in ONNX stay float32.  Raises UnsupportedOperator for subgraphs, ToleranceExceeded for weights
    beyond float16, UsageError for islands that the graph does not have.
    """
    model, islands = prepared(model), Islands() if islands is None else islands
    half = _halved(model, islands)
    _note_flushed(half.model.graph.name, fill(half, Path()))
    onnx.checker.check_model(half.model, full_check=True)
    return half.model


def derive_fp16(
    path: Path, target: Path, arrays: Arrays, islands: Islands | None = None, others: Mapping[Path, Path] | None = None
) -> tuple[Deviation, ...]:
    """The deviations from the fp32 engine at `path`, one per output, after writing its fp16 form to `target`.

    others: further forms of that engine -> their targets in the same folder.  Weights that lie beside the engine are
    halved one by one into "<target>.data", once for all forms.  All run on the processor on `arrays`, every fp16 value
    rounded, sums inside a node in fp32; nodes with values beyond range_audit.FAR stay float32.  Raises what `to_fp16`
    raises, and ToleranceExceeded for NaN, infinite values or a cosine below MIN_COSINE; then nothing is written.
    """
    islands = Islands() if islands is None else islands
    targets = {path: target, **(others or {})}
    models = {source: prepared(load_graph(source)) for source in targets}
    expected, ranges = audited(models[path], path.parent, arrays, islands)
    far = far_values(path.name, ranges)
    halves = [_halved(model, islands, far) for model in models.values()]
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        folder = Path(scratch)
        data = folder / f"{target.name}.data" if has_file(models[path]) else None
        _note_flushed(path.name, _place_weights(halves, path.parent, data))
        found = [
            _write_form(source, half, folder / aim.name, arrays, expected)
            for (source, aim), half in zip(targets.items(), halves, strict=True)
        ]
        for written in folder.iterdir():
            written.replace(target.parent / written.name)
    return found[0]


def _halved(model: onnx.ModelProto, islands: Islands, far: Collection[str] = ()) -> Halved:
    return halved(model, islands.of(model.graph, types_of(model), far), islands.operators)


def _place_weights(halves: Sequence[Halved], originals: Path, data: Path | None) -> int:
    return write(halves, originals, data) if data else sum(fill(half, originals) for half in halves)


def _write_form(source: Path, half: Halved, target: Path, arrays: Arrays, expected: Outputs) -> tuple[Deviation, ...]:
    """The deviations of one form after writing it, beside its weights."""
    found = deviations(half.model, target.parent, arrays, expected)
    _check(source.name, found)
    errors = {each.output: each.max_in_std for each in found}
    write_engine(target, half.model, dataclasses.replace(Card.read(source), precision="fp16", deviation=errors))
    return found


def _note_flushed(name: str, flushed: int) -> None:
    if flushed:
        log.info("%s: %d weights are zero in fp16", name, flushed)


def _check(name: str, found: Sequence[Deviation]) -> None:
    broken = [each for each in found if each.nan or each.infinite or not each.cosine >= MIN_COSINE]
    if broken:
        worst = max(broken, key=lambda each: (each.nan + each.infinite, -each.cosine))
        raise ToleranceExceeded(
            f"{name} in fp16 differs from fp32 in {', '.join(each.output for each in broken)}",
            cause=f"{worst.output}: {worst.nan} NaN, {worst.infinite} infinite values, cosine {worst.cosine:.5f} "
            f"(the limit is {MIN_COSINE})",
            remedy="use the fp32 engine: export without --fp16",
        )
