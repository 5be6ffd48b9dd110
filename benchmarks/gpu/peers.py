"""The same networks in torch: each engine's module as the export reads it, and the UNet of diffusers in a loop."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from facesdk_export.checkpoints import read_checkpoint
from facesdk_export.onnx_export import Part
from facesdk_export.recipes import RECIPES

from .cases import Denoising, Place, inputs_of

Tensors = Mapping[str, Tensor]
Run = Callable[[nn.Module, Tensors], Tensors]


@dataclasses.dataclass(frozen=True)
class Peer:
    """A network in fp32 on the processor, and how it is called.   half  whether it is to be had in fp16."""

    network: nn.Module
    run: Run
    arrays: Mapping[str, Any]
    half: bool = True

    def on(self, device: str, half: bool) -> tuple[nn.Module, dict[str, Tensor]]:
        """A copy of the network, and its inputs, there and so."""
        dtype = torch.float16 if half else torch.float32
        network = copy.deepcopy(self.network).requires_grad_(False).eval().to(device, dtype)
        arrays = {name: _cast(torch.from_numpy(array).to(device), dtype) for name, array in self.arrays.items()}
        if half:
            _take_halves(network, lambda: self.run(network, arrays))
        return network, arrays


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """The value in this dtype where it is a tensor of floats."""
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _take_halves(network: nn.Module, call: Callable[[], Any]) -> None:
    """Let layers that are given float32, as by networks that make floats of bytes, cast it; others have no hook."""
    given_floats = dict[nn.Module, None]()

    def cast(layer: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        if any(isinstance(value, Tensor) and value.dtype == torch.float32 for value in given):
            given_floats[layer] = None
        return tuple(_cast(value, torch.float16) for value in given)

    layers = [layer for layer in network.modules() if next(layer.parameters(recurse=False), None) is not None]
    hooks = [layer.register_forward_pre_hook(cast) for layer in layers]
    call()
    for hook in hooks:
        hook.remove()
    for layer in given_floats:
        layer.register_forward_pre_hook(cast)


class Peers:
    """Of one bundle, whose files are read when the first is asked for."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def peer(self, case: str) -> Peer | None:
        """None where torch has no such network, or its files are not known."""
        if case == "denoise":
            return self._loop()
        part = self._parts.get(case)
        if not isinstance(part, Part):
            return None

        def run(network: nn.Module, arrays: Tensors) -> Tensors:
            made = network(*(arrays[name] for name in part.inputs))
            return dict(zip(part.outputs, made if isinstance(made, tuple) else (made,), strict=True))

        return Peer(part.reference or part.module, run, inputs_of(self._place.bundle, case), part.half)

    def _loop(self) -> Peer | None:
        known = self._read.get("stable_diffusion")
        job = Denoising.of(self._place.bundle)
        return known and Peer(known.unet, functools.partial(_denoised, job), {"latent": job.latent, "text": job.text})

    @functools.cached_property
    def _read(self) -> dict[str, Any]:
        if not self._place.recipe:
            return {}
        readers = RECIPES[self._place.recipe].readers
        return {name: readers.get(name, read_checkpoint)(path) for name, path in self._place.files.items()}

    @functools.cached_property
    def _parts(self) -> Mapping[str, Part | bytes]:
        return RECIPES[self._place.recipe].parts(**self._read) if self._place.recipe else {}


def _denoised(job: Denoising, unet: nn.Module, arrays: Tensors) -> Tensors:
    """All steps of the loop, as a pipeline of diffusers runs them: both conditions in one batch, the rest beside it."""
    latent, text = arrays["latent"], arrays["text"]
    times = torch.from_numpy(job.sampler.timesteps).to(latent)
    for step, (scale, matrix) in enumerate(zip(job.sampler.scales, job.sampler.matrices, strict=True)):
        without, told = unet(torch.cat([latent, latent]) * float(scale), times[step], text).sample.chunk(2)
        guided = without + job.guidance * (told - without)
        latent = float(matrix[0, 0]) * latent + float(matrix[0, 1]) * guided
    return {"latent": latent}
