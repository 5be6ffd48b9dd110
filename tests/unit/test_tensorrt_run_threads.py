"""Plans in several threads: a stream and a memory each, freed with the engine or with the thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from facesdk.engine import Engine
from facesdk.errors import EngineClosed
from tests import trt_execution as execution
from tests.trt_demo import arrays, open_plan, same, series, step_graph

pytest.importorskip("onnx")


@pytest.fixture
def graph(save_graph: Any) -> Path:
    return step_graph(save_graph)


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch) -> Iterator[execution.Execution]:
    """The library; whatever a test leaves alive, or has misused, fails it."""
    half = execution.install(monkeypatch)
    yield half
    half.check()


def together(count: int, work: Callable[[int], None]) -> None:
    """Run work(0), work(1) ... at once, each in a new thread that ends; errors are raised here."""
    start = threading.Barrier(count)

    def begin(index: int) -> None:
        start.wait(10)
        work(index)

    with ThreadPoolExecutor(count) as pool:
        for future in [pool.submit(begin, index) for index in range(count)]:
            future.result(30)


def streams(half: Any) -> int:
    return half.cuda.calls["cudaStreamCreateWithFlags"] - half.cuda.calls["cudaStreamDestroy"]


def test_threads_run_two_engines_at_once(half: Any, graph: Path, tmp_path: Path) -> None:
    cpu = Engine.open(graph, "cpu")
    wanted = [cpu(**arrays(1 + seed % 3, seed)) for seed in range(24)]
    scanned = [cpu.scan(**series(steps)) for steps in range(1, 5)]
    with (
        open_plan(half, graph, tmp_path / "a.plan") as small,
        open_plan(half, graph, tmp_path / "b.plan", memory=1 << 16) as large,
    ):
        ready = threading.Barrier(4)

        def work(index: int) -> None:
            small(**arrays()), large(**arrays())
            ready.wait(10)
            assert streams(half) == 4
            ready.wait(10)
            for seed in range(index, 24, 2):
                same((small, large)[seed % 2](**arrays(1 + seed % 3, seed)), wanted[seed])
            for steps, last in enumerate(scanned, 1):
                same(small.scan(**series(steps)), last)

        together(4, work)
        assert half.cuda.used == 0
        assert streams(half) == 0
        assert not half.contexts
        same(small(**arrays(1, 0)), wanted[0])


def test_closing_frees_what_living_threads_hold(half: Any, graph: Path, tmp_path: Path) -> None:
    engine = open_plan(half, graph, tmp_path / "a.plan")
    other = open_plan(half, graph, tmp_path / "b.plan")
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: engine(**arrays())).result(10)
        calls = pool.submit(lambda: engine.prepare(**arrays())).result(10)
        engine(**arrays())
        assert len(half.contexts) == 3
        engine.close()
        assert len(half.contexts) == 0
        assert streams(half) == 0
        assert half.cuda.used == 0
        for used in (calls, lambda: engine(**arrays())):
            with pytest.raises(EngineClosed):
                pool.submit(used).result(10)
        pool.submit(lambda: other(**arrays())).result(10)  # the thread goes on
        other.close()


def test_closing_waits_for_no_call_and_cuts_none_short(half: Any, graph: Path, tmp_path: Path) -> None:
    cpu = Engine.open(graph, "cpu")
    engine = open_plan(half, graph, tmp_path / "a.plan")
    backend = engine._open_backend()
    inside, closed = threading.Event(), threading.Event()

    def look(step: int, steps: int) -> None:
        inside.set()
        assert closed.wait(10)

    with ThreadPoolExecutor(1) as pool:
        scan = pool.submit(lambda: engine.scan(**series(4), on_step=look))
        assert inside.wait(10)
        engine.close()
        assert half.contexts
        closed.set()
        same(scan.result(10), cpu.scan(**series(4)))
        assert not half.contexts
        with pytest.raises(EngineClosed):
            backend.run(arrays())


@pytest.mark.parametrize("repeat", range(3))
def test_closing_while_threads_run(half: Any, graph: Path, tmp_path: Path, repeat: int) -> None:
    cpu = Engine.open(graph, "cpu")
    engine = open_plan(half, graph, tmp_path / "a.plan")
    wanted = cpu(**arrays())
    ended = []

    def run() -> bool:
        try:
            same(engine(**arrays()), wanted)
        except EngineClosed:
            return False
        return True

    def work(index: int) -> None:
        if index == 0:
            engine.close()
            return
        while run():
            pass
        ended.append(index)

    together(3, work)
    assert sorted(ended) == [1, 2]
    assert half.cuda.used == 0


def test_closing_again_does_nothing(half: Any, graph: Path, tmp_path: Path) -> None:
    backend = open_plan(half, graph, tmp_path / "a.plan")._open_backend()
    backend.run(arrays())
    for _ in range(2):
        backend.close()
    assert half.cuda.used == 0


def test_an_engine_that_is_dropped_takes_everything_along(half: Any, graph: Path, tmp_path: Path) -> None:
    engine = open_plan(half, graph, tmp_path / "a.plan")
    engine(**arrays())
    del engine
    assert half.cuda.used == 0
    assert not half.contexts
