"""Bundles with plans that the stand-in of tests/trt_execution.py runs: an engine `step`, in fp32 and fp16."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

import facesdk.backends.onnxruntime  # noqa: F401  before a test puts something in the place of what it imports
from facesdk.bundle import Bundle
from facesdk.card import Card
from facesdk.files import sha256
from facesdk.nvidia import Gpu
from facesdk.plans.key import Key, write_key
from facesdk.plans.names import plan_name
from tests import trt_execution

H200 = Gpu("NVIDIA H200", "9.0", 143_771)
RTX_4090 = Gpu("NVIDIA GeForce RTX 4090", "8.9", 24_564)
PROFILE = {"x": [[1, 4], [2, 4], [3, 4]]}
CARD = Card(system="demo", engine="step", example_shapes={"x": (8, 4)})
WEIGHTS = np.random.default_rng(5).normal(size=(4, 6)).astype(np.float32)


def save_step(save_graph: Any, name: str = "step", weights: Any = WEIGHTS, card: Card = CARD) -> Path:
    """A graph of vector = tanh(x) @ w, and score = the mean of each row's squares."""
    nodes = [
        ("Tanh", ["x"], ["t"]), ("MatMul", ["t", "w"], ["vector"]), ("Mul", ["vector", "vector"], ["s"]),
        ("ReduceMean", ["s"], ["score"], {"axes": [1]}),
    ]  # fmt: skip
    values = {"w": np.asarray(weights, np.float32)}
    outputs = {"vector": ["n", 6], "score": ["n", 1]}
    path: Path = save_graph(nodes, {"x": ["n", 4]}, outputs, name=name, weights=values, card=card)
    return path


def make_bundle(save_graph: Any, folder: Path, card: Card = CARD) -> Bundle:
    """The bundle; the weights of its fp16 form are rounded to halves."""
    from facesdk_engines.writing import write_manifest

    folder.mkdir()
    files = {"default": "step.onnx", "fp16": "step.fp16.onnx"}
    for form, file in files.items():
        weights = WEIGHTS.astype(np.float16) if form == "fp16" else WEIGHTS
        save_step(save_graph, Path(file).stem, weights, card).rename(folder / file)
    write_manifest(folder, {"name": "demo", "system": "demo", "licence": "MIT"}, {"step": files}, {})
    return Bundle(folder)


def put_plan(
    graph: Path, device: str = "tensorrt", *, computes: Path | None = None, folder: Path | None = None, **facts: Any
) -> Path:
    """A plan of an ONNX file with its side-car; `facts` replace those of the key.

    computes  the file that the plan really computes.
    """
    precision = "fp16" if ".fp16" in graph.name else "fp32"
    hardware = facts.get("hardware", "this")
    folder = folder or graph.parent
    name = plan_name("step", device, precision, capability=H200.capability, hardware=hardware)
    plan = trt_execution.write_plan(folder / name, computes or graph, PROFILE)
    rtx = device == "tensorrt-rtx"
    key = Key(
        engine="step", files={graph.name: sha256(graph)}, builder="tensorrt_rtx" if rtx else "tensorrt",
        version=trt_execution.RTX if rtx else trt_execution.VERSIONS[-1], device=device, precision=precision,
        hardware=hardware, capabilities=("8.6", "8.9", "12.0") if rtx else ("9.0",), gpu="" if rtx else H200.name,
        profile=PROFILE, flags=(), plan_size=plan.stat().st_size, plan_sha256=sha256(plan),
        command=f"facesdk build {graph.parent} --engine step --device {device} --precision {precision}",
    )  # fmt: skip
    write_key(plan, dataclasses.replace(key, **facts))
    return plan
