"""The side-car of a plan: what is compared before a plan is loaded, and what is said where it differs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facesdk.errors import EngineError, EngineStale, EngineUnreadable, ModelNotFound
from facesdk.files import sha256
from facesdk.plans.key import Here, Key, check, files_of, read_key, side_car, write_key

COMMAND = "facesdk build b --engine step --device tensorrt-rtx --precision fp16"


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "step.tensorrt-rtx.fp16.plan"
    path.write_bytes(b"a plan of some length")
    return path


def key_of(plan: Path, **changes: Any) -> Key:
    key = Key(
        engine="step", files={"step.onnx": "aa", "step.onnx.data": "bb"}, builder="tensorrt_rtx", version="1.7.1",
        device="tensorrt-rtx", precision="fp16", hardware="this", capabilities=("8.6", "8.9"), gpu="",
        profile={"x": [[1, 4], [2, 4], [8, 4]]}, flags=("TF32",), plan_size=plan.stat().st_size,
        plan_sha256=sha256(plan), command=COMMAND, report={"seconds": 1.5},
    )  # fmt: skip
    return dataclasses.replace(key, **changes)


def test_a_key_comes_back_as_it_was(plan: Path) -> None:
    key = key_of(plan)
    write_key(plan, key)
    assert read_key(plan) == key
    here = Here("1.7.1", "8.6", {"step.onnx": "aa", "step.onnx.data": "bb"})
    assert check(plan, here, whole=True) == key


def test_what_is_not_known_here_is_not_compared(plan: Path) -> None:
    write_key(plan, key_of(plan))
    check(plan, Here("1.7.1"))


@pytest.mark.parametrize(
    ("here", "said"),
    [
        (Here("1.8.0"), "tensorrt_rtx 1.7.1 built it, 1.8.0 is here"),
        (Here("1.7.1", "9.0"), "it runs on compute capability 8.6, 8.9, this GPU has 9.0"),
        (Here("1.7.1", files={"step.onnx.data": "cc"}), "step.onnx.data has changed"),
        (Here("1.7.1", kernel="dd"), "it was built with another plugin library"),
    ],
)
def test_each_difference_is_named_with_the_command(plan: Path, here: Here, said: str) -> None:
    write_key(plan, key_of(plan))
    with pytest.raises(EngineError, match="built for something else") as caught:
        check(plan, here)
    assert caught.value.cause == said
    assert caught.value.remedy == COMMAND + (" --gpus 8.6,8.9,9.0" if here.capability else "")


def test_gpus_are_added_to_those_of_the_command(plan: Path) -> None:
    write_key(plan, key_of(plan, command=f"{COMMAND} --gpus 8.6,8.9 --level 1"))
    with pytest.raises(EngineStale) as caught:
        check(plan, Here("1.7.1", "12.0"))
    assert caught.value.remedy == f"{COMMAND} --level 1 --gpus 8.6,8.9,12.0"


def test_all_differences_at_once(plan: Path) -> None:
    write_key(plan, key_of(plan))
    with pytest.raises(EngineError) as caught:
        check(plan, Here("2", "7.5", {"step.onnx": "zz"}))
    assert caught.value.cause.count(";") == 2


def test_plans_for_later_versions_and_gpus(plan: Path) -> None:
    write_key(plan, key_of(plan, flags=("VERSION_COMPATIBLE",), hardware="ampere", capabilities=("8.6",)))
    check(plan, Here("2.0", "12.0"))
    with pytest.raises(EngineError, match=r"every GPU from 8\.0 on, this GPU has 7\.5"):
        check(plan, Here("2.0", "7.5"))


def test_a_plan_for_one_model_of_gpu(plan: Path) -> None:
    facts = {"device": "tensorrt", "capabilities": ("8.6",), "gpu": "NVIDIA RTX A6000"}
    here = Here("1.7.1", "8.6", gpu="NVIDIA GeForce RTX 3090")
    write_key(plan, key_of(plan, hardware="capability", **facts))
    check(plan, here)
    write_key(plan, key_of(plan, **facts))
    check(plan, dataclasses.replace(here, gpu="NVIDIA RTX A6000"))
    with pytest.raises(EngineStale, match="built for NVIDIA RTX A6000 alone, this is NVIDIA GeForce RTX 3090"):
        check(plan, here)
    write_key(plan, key_of(plan, **{**facts, "device": "tensorrt-rtx"}))
    check(plan, here)


def test_a_truncated_plan_is_found_without_reading_it(plan: Path) -> None:
    write_key(plan, key_of(plan))
    plan.write_bytes(b"a plan")
    with pytest.raises(EngineUnreadable, match="it has 6 bytes of 21") as caught:
        check(plan, Here("1.7.1"))
    assert caught.value.remedy == f"{COMMAND} --force"


def test_a_changed_plan_is_found_by_reading_it(plan: Path) -> None:
    write_key(plan, key_of(plan))
    plan.write_bytes(b"A plan of some length")
    check(plan, Here("1.7.1"))
    with pytest.raises(EngineUnreadable, match="sha256 is another"):
        check(plan, Here("1.7.1"), whole=True)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2}', '{"format": 1}', '{"format": 1, "flags": []}'])
def test_side_cars_that_are_none(plan: Path, text: str) -> None:
    side_car(plan).write_text(text)
    with pytest.raises(EngineUnreadable, match="no key of a plan"):
        read_key(plan)


def test_unknown_fields_are_refused(plan: Path) -> None:
    values = {**dataclasses.asdict(key_of(plan)), "colour": "red"}
    side_car(plan).write_text(json.dumps(values))
    with pytest.raises(EngineUnreadable, match="colour"):
        read_key(plan)


def test_a_plan_without_side_car(plan: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"plan\.json does not exist"):
        check(plan, Here("1.7.1"))
    write_key(plan, key_of(plan))
    plan.unlink()
    with pytest.raises(ModelNotFound, match=r"fp16\.plan does not exist"):
        check(plan, Here("1.7.1"))


def test_files_are_the_graph_and_its_weights(save_graph: Any, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    weights = {"w": np.ones((64, 64), np.float32)}
    path = save_graph([("MatMul", ["x", "w"], ["y"])], {"x": ["n", 64]}, {"y": ["n", 64]}, weights=weights)
    assert files_of(path, {}) == {path.name: sha256(path)}
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="graph.data", size_threshold=0)
    found = files_of(path, {"graph.data": "pinned"})
    assert found == {path.name: sha256(path), "graph.data": "pinned"}
