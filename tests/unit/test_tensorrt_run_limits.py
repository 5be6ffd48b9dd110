"""What calls an engine with as much as there is keeps within what its plan takes."""

from __future__ import annotations

import dataclasses
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facesdk.annotation.annotator import Annotator
from facesdk.annotation.region import Region
from facesdk.backends.rtx_provider import PROVIDER, RtxProvider
from facesdk.bundle import Bundle
from facesdk.diffusion.generate import generate
from facesdk.diffusion.networks import DiffusionNetworks
from facesdk.diffusion.options import GenerateOptions
from facesdk.engine import Engine
from facesdk.plans.library import PLUGIN_MODULE
from tests import engine_calls
from tests import trt_execution as execution
from tests.ort_fake import FakeOrt
from tests.trt_demo import PROFILE, open_plan, step_graph
from tests.trt_stub import RTX, VERSIONS

pytest.importorskip("onnx")

BANK = {"bank": ((1, 1, 4, 8, 8), (1, 1, 4, 8, 8), (4, 8, 4, 8, 8))}


@pytest.mark.parametrize("version", [VERSIONS[-1], RTX])
def test_a_plan_says_its_largest_sizes(
    monkeypatch: pytest.MonkeyPatch, save_graph: Any, tmp_path: Path, version: str
) -> None:
    half, graph = execution.install(monkeypatch, version), step_graph(save_graph)
    with open_plan(half, graph, tmp_path / "step.plan") as engine:
        assert {tensor.name: tensor.largest for tensor in engine.inputs} == {
            "x": (8, 4), "noise": (8, 4), "k": None, "index": None,
        }  # fmt: skip
        assert [engine.at_most(wanted, "x") for wanted in (1, 8, 9)] == [1, 8, 8]
        assert engine.at_most(9, "x", axis=1) == 4
        assert engine.at_most(9, "k") == 4  # no free axis
    with Engine.open(graph, "cpu") as engine:
        assert engine.at_most(1000, "x") == 1000
    half.check()


def test_without_a_plan_the_profile_says_them(monkeypatch: pytest.MonkeyPatch, save_graph: Any) -> None:
    plugin = types.ModuleType(PLUGIN_MODULE)
    plugin.__dict__.update(get_ep_name=lambda: PROVIDER, get_library_path=lambda: "plugin.so")
    monkeypatch.setitem(sys.modules, PLUGIN_MODULE, plugin)
    FakeOrt().install(monkeypatch)
    backend = RtxProvider(step_graph(save_graph), PROFILE, None)
    assert [tensor.largest for tensor in backend.inputs] == [(8, 4), (8, 4), None, None]


@pytest.mark.parametrize(("options", "batches"), [({}, [4, 2]), ({"batch": 6}, [4, 2]), ({"batch": 3}, [3, 3])])
def test_pictures_are_denoised_in_the_batches_of_the_plan(
    monkeypatch: pytest.MonkeyPatch, diffusion_bundle: Bundle, tmp_path: Path, options: Any, batches: list[int]
) -> None:
    half, chosen = execution.install(monkeypatch), GenerateOptions(images=6, steps=3, **options)
    plan = open_plan(half, diffusion_bundle.forms("step")["default"], tmp_path / "step.plan", BANK)
    with DiffusionNetworks(diffusion_bundle, "cpu") as networks:
        expected = generate(networks, "a man eating", options=chosen)
    with DiffusionNetworks(diffusion_bundle, "cpu") as networks:
        networks.engines._engines["step"] = plan
        with engine_calls.recorded() as calls:
            made = generate(networks, "a man eating", options=chosen)
    assert [call.shapes["bank"][0] for call in calls if call.engine == "step"] == batches
    np.testing.assert_array_equal(made.images, expected.images)
    np.testing.assert_array_equal(made.latents, expected.latents)
    half.check()


def test_faces_are_marked_in_the_batches_of_the_plan(annotator_478: Annotator, monkeypatch: pytest.MonkeyPatch) -> None:
    mesh, picture = annotator_478.mesh, np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
    regions = [Region(20 + 20 * number, 48, 40, 40, 0) for number in range(5)]
    expected = mesh.landmarks(picture, regions)
    engine = mesh._engine
    (image,) = engine.inputs
    monkeypatch.setattr(engine, "device", "tensorrt")
    monkeypatch.setattr(engine, "inputs", (dataclasses.replace(image, largest=(2, *image.shape[1:])),))
    with engine_calls.recorded() as calls:
        found = mesh.landmarks(picture, regions)
    assert [call.shapes["image"][0] for call in calls] == [2, 2, 1]
    for (points, presence), (wanted, certainty) in zip(found, expected, strict=True):
        np.testing.assert_allclose(points, wanted, atol=1e-2)
        assert presence == pytest.approx(certainty, abs=1e-4)
