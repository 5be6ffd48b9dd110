"""Kernels that TensorRT-RTX compiles when a plan runs: kept from one start to the next, compiled anew if need be."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from facesdk.backends.tensorrt import TensorRt
from facesdk.card import Card
from facesdk.engine import Engine
from facesdk.nvidia import Gpu
from facesdk.plans import gpu
from tests import trt_execution as execution
from tests.trt_demo import PROFILE, arrays, same, step_graph
from tests.trt_stub import RTX

pytest.importorskip("onnx")

Start = Callable[..., Engine]


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("FACESDK_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "rtx-cache"


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch) -> Iterator[execution.Execution]:
    half = execution.install(monkeypatch, RTX)
    yield half
    half.check()


@pytest.fixture
def start(half: execution.Execution, save_graph: Any, tmp_path: Path) -> Start:
    """A new start: the plan is opened, and nothing was compiled yet."""
    graph = step_graph(save_graph)
    plan = execution.write_plan(tmp_path / "step.plan", graph, PROFILE)

    def start() -> Engine:
        half.compiled.clear()
        key = execution.key_of(plan, PROFILE)
        return Engine(TensorRt(plan, key, graph, "tensorrt-rtx"), Card(engine="step"), graph, "test")

    return start


def run(engine: Engine, *rows: int) -> None:
    cpu = Engine.open(engine.path, "cpu")
    for seed, count in enumerate(rows):
        same(engine(**arrays(count, seed)), cpu(**arrays(count, seed)))


def test_the_next_start_compiles_what_is_new_alone(half: Any, start: Start, home: Path) -> None:
    for rows, compiled in (((1, 2), 2), ((1, 2), 0), ((3, 2, 2), 1), ((1, 2, 3), 0)):
        with start() as engine:
            run(engine, *rows)
        assert len(half.compiled) == compiled
    (file,) = home.iterdir()
    assert file.name.startswith("step-")
    assert file.suffix == ".kernels"


def test_what_has_not_changed_is_not_written_again(start: Start, home: Path) -> None:
    with start() as engine:
        run(engine, 1, 2)
    (file,) = home.iterdir()
    before = file.stat().st_ino  # a file that is written has another
    with start() as engine:
        run(engine, 2, 1, 1, 2)
    assert file.stat().st_ino == before


def test_kernels_are_kept_while_the_engine_runs(half: Any, start: Start, home: Path) -> None:
    engine = start()
    run(engine, 1)
    assert not home.exists()
    run(engine, 1)  # a program that is ended now has lost nothing
    (file,) = home.iterdir()
    kept = file.read_bytes()
    run(engine, 2)
    assert file.read_bytes() == kept
    del engine  # nobody closes it
    gc.collect()
    assert file.read_bytes() != kept


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-3], lambda data: b"\x00" + data])
def test_a_damaged_file_is_done_without(
    half: Any, start: Start, home: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    with start() as engine:
        run(engine, 1)
    (file,) = home.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    with caplog.at_level(logging.INFO, "facesdk"), start() as engine:
        run(engine, 1)
    assert len(half.compiled) == 1
    assert str(file) in caplog.text
    assert file.read_bytes() == whole


def test_another_driver_compiles_anew_and_another_gpu_keeps_its_own(
    half: Any, start: Start, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with start() as engine:
        run(engine, 1)
    half.driver = "590.10"
    for compiled in (1, 0):
        with start() as engine:
            run(engine, 1)
        assert len(half.compiled) == compiled
    assert len(list(home.iterdir())) == 1
    monkeypatch.setattr(gpu, "first_gpu", lambda *advice: Gpu("NVIDIA GeForce RTX 4090", "8.9", 24_564))
    with start() as engine:
        run(engine, 1)
    assert len(half.compiled) == 1
    assert len(list(home.iterdir())) == 2


def test_a_folder_that_cannot_be_made_is_told_and_nothing_else(
    half: Any, start: Start, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home.parent.write_bytes(b"")  # a file in its place
    for _ in range(2):
        caplog.clear()
        with start() as engine:
            run(engine, 1, 1, 1)
        assert len(half.compiled) == 1
        (told,) = [record.getMessage() for record in caplog.records if "kernels" in record.getMessage()]
        assert "compiled again at every start" in told


def test_tensorrt_itself_keeps_none(
    monkeypatch: pytest.MonkeyPatch, save_graph: Any, tmp_path: Path, home: Path
) -> None:
    half = execution.install(monkeypatch)
    graph = step_graph(save_graph)
    plan = execution.write_plan(tmp_path / "step.plan", graph, PROFILE)
    backend = TensorRt(plan, execution.key_of(plan, PROFILE), graph, "tensorrt")
    for _ in range(3):
        backend.run(arrays())
    backend.close()
    assert not home.exists()
    half.check()
