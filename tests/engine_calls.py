"""The shapes that the SDK calls engines with, and whether plans of a bundle would take them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from facesdk.bundle import Bundle
from facesdk.card import Card
from facesdk.engine import Engine
from facesdk.graph import Graph, Value
from facesdk.plans.profiles import Profile, profile, said

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Call:
    """One run of a graph; of a scan, its first."""

    engine: str
    shapes: dict[str, Shape]


@contextmanager
def recorded() -> Iterator[list[Call]]:
    """The calls of all engines in the block."""
    calls: list[Call] = []
    run, scan = Engine.__call__, Engine.scan

    def noted_run(engine: Engine, **arrays: Any) -> Any:
        calls.append(Call(engine.card.engine, {name: np.shape(array) for name, array in arrays.items()}))
        return run(engine, **arrays)

    def noted_scan(engine: Engine, carry: Any, xs: Any, constants: Any = None, *more: Any, **named: Any) -> Any:
        first = {**(constants or {}), **carry, **{name: series[0] for name, series in xs.items()}}
        calls.append(Call(engine.card.engine, {name: np.shape(array) for name, array in first.items()}))
        return scan(engine, carry, xs, constants, *more, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "__call__", noted_run)
        patch.setattr(Engine, "scan", noted_scan)
        yield calls


def assert_served(bundle: Bundle, calls: Collection[Call], engines: Collection[str]) -> None:
    """Every call lies in the profile that `facesdk build` takes with no file given; these engines were called."""
    assert {call.engine for call in calls} == set(engines)
    for call in calls:
        shapes = profile_of(bundle, call.engine)
        for value in inputs_of(bundle, call.engine):
            if value.name in shapes:
                lowest, _, highest = shapes[value.name]
                for axis, least, size, most in zip(value.shape, lowest, call.shapes[value.name], highest, strict=True):
                    # sizes that are not free are the engine's own to check
                    assert isinstance(axis, int) or least <= size <= most, f"{call.engine}: {axis} is {size} in {value}"


def assert_all_said(bundle: Bundle) -> None:
    """The bundle names every free axis of every engine, and no other."""
    for engine in bundle.engine_names:
        axes = {axis for value in inputs_of(bundle, engine) for axis in value.shape if isinstance(axis, str)}
        assert {axis for axis in axes if axis.isidentifier()} == set(said(bundle.folder, engine)), engine
        assert profile_of(bundle, engine).keys() <= {value.name for value in inputs_of(bundle, engine)}


def profile_of(bundle: Bundle, engine: str) -> Profile:
    forms = bundle.forms(engine)
    examples = Card.read(forms["default"]).example_shapes
    return profile(engine, inputs_of(bundle, engine), said(bundle.folder, engine), examples)


def inputs_of(bundle: Bundle, engine: str) -> tuple[Value, ...]:
    forms = bundle.forms(engine)
    return Graph.read(forms.get("tensorrt", forms["default"])).inputs
