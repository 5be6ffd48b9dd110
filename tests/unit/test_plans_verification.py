"""A plan against the fp32 engine: judged once on a GPU, remembered, and not used where it is too far."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facesdk.bundle import Bundle
from facesdk.engine import Tensor
from facesdk.errors import ToleranceExceeded, UsageError
from facesdk.nvidia import Gpu
from facesdk.plans import gpu, verification
from facesdk.plans.verification import COSINE, FP16, FP32, Verdict, verified_shapes
from facesdk.verify import deviation
from tests import trt_execution
from tests.plan_bundles import CARD, WEIGHTS, make_bundle, put_plan, save_step

pytest.importorskip("onnx")
SaveWrong = Callable[..., Path]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FACESDK_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch) -> Iterator[trt_execution.Execution]:
    half = trt_execution.install(monkeypatch)
    yield half
    half.check()


@pytest.fixture
def bundle(save_graph: Any, tmp_path: Path) -> Bundle:
    return make_bundle(save_graph, tmp_path / "demo")


@pytest.fixture
def wrong(save_graph: Any) -> SaveWrong:
    """A graph whose weights are this much off, in their standard deviation."""

    def save(by: float, value: float | None = None) -> Path:
        weights = WEIGHTS + by * WEIGHTS.std() * np.random.default_rng(1).normal(size=WEIGHTS.shape)
        if value is not None:
            weights[0, 0] = value
        return save_step(save_graph, "wrong", weights)

    return save


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The plans that were run to be judged."""
    names, judge = [], verification.judged

    def record(backend: Any, found: Any, reference: Path) -> list[Verdict]:
        names.append(found.plan.name)
        return judge(backend, found, reference)

    monkeypatch.setattr(verification, "judged", record)
    return names


# -- once ---------------------------------------------------------------------------------------------------------


def test_a_plan_is_judged_once_and_the_log_says_so(
    half: Any, bundle: Bundle, judged: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    put_plan(bundle.folder / "step.onnx")
    with caplog.at_level(logging.INFO, "facesdk"):
        for _ in range(2):
            bundle.open("step", "tensorrt").close()
    assert judged == ["step.tensorrt.sm90.fp32.plan"]
    assert half.runs == [False, True, True]  # with the CUDA graph that all later runs are
    lines = [line.message for line in caplog.records if "held against" in line.message]
    assert lines[0].startswith("step.tensorrt.sm90.fp32.plan is held against fp32 on NVIDIA H200, once")
    assert lines[1].startswith("step.tensorrt.sm90.fp32.plan was held against fp32 in 0.")
    assert len(lines) == 2


@pytest.mark.parametrize("what", ["plan", "gpu", "library", "rule", "record"])
def test_it_is_judged_again_where_it_is_another(
    half: Any, bundle: Bundle, judged: list[str], monkeypatch: pytest.MonkeyPatch, home: Path, what: str
) -> None:
    facts: dict[str, Any] = {"hardware": "capability", "flags": ("VERSION_COMPATIBLE",)}
    graph = bundle.folder / "step.onnx"
    put_plan(graph, **facts)
    bundle.open("step", "tensorrt").close()
    if what == "plan":
        put_plan(graph, plan_sha256="11", **facts)
    elif what == "gpu":
        monkeypatch.setattr(gpu, "first_gpu", lambda *advice: Gpu("NVIDIA H100", "9.0", 81_559))
    elif what == "library":
        half.trt.__version__ = "11.5.0"
    elif what == "rule":
        monkeypatch.setattr(verification, "FP32", 2 * FP32)
    else:
        table = home / "plan-verifications.json"
        records = json.loads(table.read_text())
        table.write_text(json.dumps({name: [{"unit": 1}] for name in records}))
    bundle.open("step", "tensorrt").close()
    assert len(judged) == 2


def test_fp16_is_held_against_the_fp32_file(half: Any, bundle: Bundle, home: Path) -> None:
    put_plan(bundle.folder / "step.fp16.onnx")
    bundle.open("step", "tensorrt", precision="fp16").close()
    (verdicts,) = json.loads((home / "plan-verifications.json").read_text()).values()
    assert [each["deviation"]["output"] for each in verdicts] == ["vector", "score"]
    assert all(0 < each["deviation"]["max_abs"] < 1e-2 and each["limit"] == FP16 for each in verdicts)


def test_where_nothing_can_be_kept(
    half: Any, bundle: Bundle, judged: list[str], home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home.write_text("a file, not a folder")
    put_plan(bundle.folder / "step.onnx")
    for _ in range(2):
        bundle.open("step", "tensorrt").close()
    assert len(judged) == 2
    assert "is held against fp32 at every start" in caplog.text


# -- refused ------------------------------------------------------------------------------------------------------


def test_an_fp32_plan_that_is_too_far(half: Any, bundle: Bundle, wrong: SaveWrong, judged: list[str]) -> None:
    graph = bundle.folder / "step.onnx"
    put_plan(graph, computes=wrong(0.02))
    for _ in range(2):
        with pytest.raises(ToleranceExceeded) as caught:
            bundle.open("step", "tensorrt")
    error = caught.value
    assert error.fact == "step.tensorrt.sm90.fp32.plan differs from the fp32 engine in vector, score"
    assert "largest difference 0.0" in error.cause
    assert f"the limit is {FP32}, the least cosine {COSINE}" in error.cause
    assert "--precision fp32 --force; or ask for device cuda" in error.remedy
    assert len(judged) == 1  # and known the second time


def test_an_fp16_plan_may_be_as_far_but_not_farther(half: Any, bundle: Bundle, wrong: SaveWrong) -> None:
    graph = bundle.folder / "step.fp16.onnx"
    put_plan(graph, computes=wrong(0.02))
    bundle.open("step", "tensorrt", precision="fp16").close()
    put_plan(graph, computes=wrong(0.2))
    with pytest.raises(ToleranceExceeded, match=f"the limit is {FP16}") as caught:
        bundle.open("step", "tensorrt", precision="fp16")
    assert caught.value.remedy.startswith("use precision fp32: facesdk build")
    assert "--precision fp32; or device cuda" in caught.value.remedy


def test_tf32_has_the_digits_of_fp16(half: Any, bundle: Bundle, wrong: SaveWrong) -> None:
    put_plan(bundle.folder / "step.onnx", computes=wrong(0.02), flags=("TF32",))
    bundle.open("step", "tensorrt").close()


def test_what_the_card_allows(half: Any, save_graph: Any, tmp_path: Path, wrong: SaveWrong) -> None:
    card = dataclasses.replace(CARD, deviation={"vector": 0.04, "score": 0.04})
    bundle = make_bundle(save_graph, tmp_path / "far", card)
    put_plan(bundle.folder / "step.onnx", computes=wrong(0.02))
    bundle.open("step", "tensorrt").close()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_is_always_refused(half: Any, bundle: Bundle, wrong: SaveWrong, value: float) -> None:
    put_plan(bundle.folder / "step.fp16.onnx", computes=wrong(0, value))
    with pytest.raises(ToleranceExceeded) as caught:
        bundle.open("step", "tensorrt", precision="fp16")
    assert f"{0 if value == np.inf else 3} NaN" in caught.value.cause


def test_auto_takes_another_and_says_why(
    half: Any, bundle: Bundle, wrong: SaveWrong, caplog: pytest.LogCaptureFixture
) -> None:
    put_plan(bundle.folder / "step.onnx", computes=wrong(1))
    with bundle.open("step", openvino=False) as engine:
        assert engine.device == "cpu"
        assert engine.reason.startswith("auto: OpenVINO is not for this engine; ")
        assert "step.tensorrt.sm90.fp32.plan differs from the fp32 engine in vector, score" in engine.reason
    assert "tensorrt is not used: step.tensorrt.sm90.fp32.plan differs" in caplog.text


# -- the inputs, and the rule -------------------------------------------------------------------------------------


def test_typical_shapes_as_far_as_the_profile_goes() -> None:
    inputs = (Tensor("x", ("n", 3), np.dtype("float32")), Tensor("y", ("n",), np.dtype("float32")))
    profile = {"x": [[2, 3], [3, 3], [4, 3]], "y": [[2], [3], [4]]}
    assert verified_shapes(inputs, {"x": (9, 3), "y": (9,)}, profile) == {"x": (4, 3), "y": (4,)}
    assert verified_shapes(inputs, {"x": (1, 3), "y": (1,)}, profile) == {"x": (2, 3), "y": (2,)}
    assert verified_shapes(inputs, {"x": (9, 3)}, profile) == {"x": (3, 3), "y": (3,)}
    with pytest.raises(UsageError, match="unknown size"):
        verified_shapes((Tensor("x", ("n", "width"), np.dtype("float32")),), {}, {})


def verdict(reference: Any, candidate: Any, limit: float = 0.1) -> Verdict:
    a, b = (np.asarray(values, np.float32) for values in (reference, candidate))
    return Verdict(deviation("y", a, b), verification._unit(a), limit)


@pytest.mark.parametrize(
    ("reference", "candidate", "broken"),
    [
        ([[20.0]], [[20.1]], False),  # a single number has no deviation
        ([[20.0]], [[21.0]], True),
        ([0, 0, 0], [0, 0, 0], False),
        ([0, 0, 0], [1e-6, 0, 0], False),
        ([0, 0, 0], [1, 0, 0], True),
        ([1, -1, 1, -1], [1.05, -1, 1, -1], False),
        ([1, -1, 1, -1], [1.2, -1, 1, -1], True),
        ([1, -1, 1, -1], [1, -1, np.nan, -1], True),
        ([1, -1, 1, -1], [1, -1, np.inf, -1], True),
        ([np.nan, 1], [np.nan, 1], True),
        ([1, 0.0, 1, 0.0], [1, 0.045, 1, -0.045], True),  # within the limit, and another direction
    ],
)
def test_the_rule(reference: Any, candidate: Any, broken: bool) -> None:
    assert verdict(reference, candidate).broken is broken
