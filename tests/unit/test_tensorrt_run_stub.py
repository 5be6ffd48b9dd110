"""The stand-in that runs plans is strict: what a GPU would punish with garbage, it calls by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facesdk.cuda.memory import Buffer
from facesdk.cuda.stream import CaptureFailed, Stream, capture
from facesdk.errors import EngineError
from tests import trt_execution as execution

pytest.importorskip("onnx")

PROFILE = {"x": ((1,), (4,), (8,))}
X = np.array([1, 2, 3, 4], np.float32)


class Bare:
    """One context, driven by hand."""

    def __init__(self, half: Any, plan: Path) -> None:
        trt = half.trt
        self.half, self.stream = half, Stream()
        logger = trt.ILogger()
        engine = trt.Runtime(logger).deserialize_cuda_engine(plan.read_bytes())
        self.context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        self.buffers = {name: Buffer(16) for name in ("x", "y")}
        self.memory = Buffer(4096)
        self.stream.upload(self.buffers["x"].pointer, X)

    def bind(self, *left_out: str) -> None:
        if "shape" not in left_out:
            assert self.context.set_input_shape("x", (4,))
        for name in self.buffers.keys() - left_out:
            assert self.context.set_tensor_address(name, self.buffers[name].pointer)
        if "memory" not in left_out:
            self.context.set_device_memory(self.memory.pointer, 4096)

    def run(self) -> bool:
        return bool(self.context.execute_async_v3(self.stream.handle))

    def result(self) -> Any:
        self.stream.synchronize()
        return self.half.cuda.array(self.buffers["y"].pointer, (4,), np.float32).tolist()


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, save_graph: Any, tmp_path: Path) -> Bare:
    graph = save_graph([("Neg", ["x"], ["y"])], {"x": ["n"]}, {"y": ["n"]}, name="neg")
    return Bare(execution.install(monkeypatch), execution.write_plan(tmp_path / "a.plan", graph, PROFILE))


def test_a_run_computes_when_the_stream_gets_there(bare: Bare) -> None:
    bare.bind()
    assert bare.run()
    assert np.isnan(bare.half.cuda.array(bare.buffers["y"].pointer, (4,), np.float32)).all()
    assert bare.result() == [-1, -2, -3, -4]
    assert bare.half.faults == []


@pytest.mark.parametrize("missing", ["shape", "x", "y", "memory"])
def test_a_run_without(bare: Bare, missing: str) -> None:
    bare.bind(missing)
    assert not bare.run()
    assert len(bare.half.faults) == 1


def test_memory_for_other_shapes(bare: Bare) -> None:
    told = bare.context.update_device_memory_size_for_shapes
    assert told() == 0  # no shapes yet
    bare.bind()
    assert told() == 2048  # of 4096 with 8 values
    bare.context.set_device_memory(bare.memory.pointer, 2048)
    assert bare.run()
    assert bare.context.set_input_shape("x", (2,))  # and nobody asks again
    assert not bare.run()
    assert told() == 1024
    assert bare.run()
    bare.context.set_device_memory(bare.memory.pointer, 1023)
    assert not bare.run()
    misused = "update_device_memory_size_for_shapes", "execute_async_v3", "set_device_memory", "execute_async_v3"
    for fault, member in zip(bare.half.faults, misused, strict=True):
        assert fault.startswith(member)


def test_a_run_on_the_default_stream_or_on_a_second_one(bare: Bare) -> None:
    bare.bind()
    assert not bare.context.execute_async_v3(0)
    assert bare.run()
    assert not bare.context.execute_async_v3(Stream().handle)
    assert len(bare.half.faults) == 2


@pytest.mark.parametrize("name", ["x", "y", "memory"])
def test_memory_that_was_freed(bare: Bare, name: str) -> None:
    bare.bind()
    assert bare.run()
    bare.result()
    (bare.memory if name == "memory" else bare.buffers[name]).close()
    assert bare.run()
    with pytest.raises(EngineError, match="IllegalAddress"):
        bare.stream.synchronize()


def test_a_capture_before_the_first_plain_run(bare: Bare) -> None:
    def work() -> None:
        if not bare.run():
            raise EngineError("it failed")

    bare.bind()
    with pytest.raises(CaptureFailed):
        capture(bare.stream, work)
    assert bare.run()
    capture(bare.stream, work).launch(bare.stream)
    assert bare.result() == [-1, -2, -3, -4]
    assert bare.half.runs == [False, True]


def _rebind(bare: Bare) -> None:
    bare.bind()


def _forget(bare: Bare) -> None:
    del bare.context


@pytest.mark.parametrize("change", [_rebind, _forget])
def test_a_graph_after_its_context_changed(bare: Bare, change: Callable[[Bare], None]) -> None:
    bare.bind()
    assert bare.run()
    graph = capture(bare.stream, lambda: bare.run() and None)
    bare.result()
    change(bare)
    graph.launch(bare.stream)
    with pytest.raises(EngineError):
        bare.stream.synchronize()
    assert bare.half.faults == ["a graph ran after its context had changed or gone"]
