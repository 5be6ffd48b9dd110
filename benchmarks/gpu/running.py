"""A case on engines: an engine by itself, or the whole verb of its system, opened on a device to be called."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from facesdk.annotation.annotator import Annotator
from facesdk.backends.onnxruntime import OnnxRuntime
from facesdk.bundle import Bundle
from facesdk.card import Card
from facesdk.diffusion.networks import DiffusionNetworks
from facesdk.engine import Arrays, Device, Engine, Precision
from facesdk.image import read_image
from facesdk.swap.networks import SwapNetworks
from facesdk.synthesis.generate import SynthesisOptions
from facesdk.synthesis.networks import SynthesisNetworks
from facesdk.synthesis.synthesizer import Synthesizer

from .cases import PICTURES, Denoising, inputs_of

PHOTO = Path(__file__).parents[2] / "tests" / "data" / "astronaut.png"
Close = Callable[[], None]


@dataclasses.dataclass(frozen=True)
class Running:
    """call      everything, arrays on the host in and out.   resident  an engine alone, nothing moved; or None.
    deviation output -> what the engine's card says.
    """

    call: Callable[[], Arrays]
    close: Close
    backend: str
    resident: Callable[[], None] | None = None
    deviation: Mapping[str, float] = dataclasses.field(default_factory=dict)


def start(bundle: Bundle, case: str, device: Device, precision: Precision = "fp32", *, graph: bool = False) -> Running:
    """The case, opened; `graph`: ONNX Runtime's own CUDA graphs, of the verb `denoise` or an engine."""
    if case in _VERBS:
        return _VERBS[case](bundle, device, precision, graph)
    engine, arrays = opened(bundle, case, device, precision, graph), inputs_of(bundle, case)
    call = functools.partial(engine, **arrays)
    return Running(call, engine.close, engine.description, engine.prepare(**arrays), engine.card.deviation)


def opened(bundle: Bundle, name: str, device: Device, precision: Precision, graph: bool) -> Engine:
    """An engine of the bundle; with `graph` as `Bundle.open` opens it on cuda, but for the graphs."""
    if not graph:
        return bundle.open(name, device, precision=precision, openvino=False)
    forms = bundle.forms(name)
    path = forms["fp16" if precision == "fp16" else "default"]
    return Engine(OnnxRuntime(path, "cuda", None, graph=True), Card.read(path), path, "asked for")


# -- verbs --------------------------------------------------------------------------------------------------------


def _annotate(bundle: Bundle, device: Device, precision: Precision, graph: bool) -> Running:
    annotator, picture = Annotator(bundle, device), read_image(PHOTO)

    def call() -> Arrays:
        return {"landmarks": np.stack([face.landmarks for face in annotator(picture).faces])}

    return Running(call, lambda: None, f"{bundle.name} on {device}")


def _swap(bundle: Bundle, device: Device, precision: Precision, graph: bool) -> Running:
    networks = SwapNetworks(bundle, device, precision=precision)
    sides = networks.size, networks.size, 3
    face, crop = (np.random.default_rng(seed).random(sides, np.float32) for seed in (0, 1))

    def call() -> Arrays:
        picture, mask = networks.swap(networks.source(face), networks.target(crop))
        return {"swapped": picture, "mask": mask}

    return Running(call, networks.close, networks.description)


def _synthesize(bundle: Bundle, device: Device, precision: Precision, graph: bool) -> Running:
    networks = SynthesisNetworks(bundle, device, precision=precision)
    vectors = np.random.default_rng(0).standard_normal((PICTURES, networks.width)).astype(np.float32)
    options = SynthesisOptions(kind="reference", measured=0)  # nothing is optimised: that is the engine `step`

    def call() -> Arrays:
        made = Synthesizer(networks).synthesize(vectors, 1, options=options, unusual=True)
        return {"pictures": made.pictures}

    return Running(call, networks.close, networks.description)


def _denoise(bundle: Bundle, device: Device, precision: Precision, graph: bool) -> Running:
    job = Denoising.of(bundle)
    with DiffusionNetworks(bundle, "cpu") as networks:
        constants = {**networks.context(job.text), **_untouched(job)}
        rows = networks.time_rows(job.sampler.timesteps)
    series = {"scale": job.sampler.scales[:, None].astype(np.float32), "time": rows}
    series["matrix"] = job.sampler.matrices.astype(np.float32)
    step = opened(bundle, "step", device, precision, graph)

    def call() -> Arrays:
        bank = step.scan({"bank": job.latent[:, None]}, series, constants)["bank"]
        return {"latent": job.share_of_the_network(bank[:, 0])}

    return Running(call, step.close, step.description)


def _untouched(job: Denoising) -> dict[str, Any]:
    """Guidance, and a blend that keeps everything: inputs of the step."""
    zeros = np.zeros_like(job.latent)
    blend = {"noise": zeros, "blend_noise": zeros, "known": zeros, "mask": np.ones_like(job.latent[:, :1])}
    weights = np.array([1 - job.guidance, job.guidance], np.float32)
    return {**blend, "level": np.zeros(2, np.float32), "weights": weights}


_VERBS: Mapping[str, Callable[[Bundle, Device, Precision, bool], Running]] = {
    "annotate": _annotate, "swap": _swap, "synthesize": _synthesize, "denoise": _denoise,
}  # fmt: skip
