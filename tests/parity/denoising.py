"""The denoising step as engines, and the way of the cases that are about the UNet alone through them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from facesdk.card import Card
from facesdk.engine import Engine
from facesdk_export.networks.denoising_step import (
    ContextKeys,
    Denoiser,
    DenoisingStep,
    TimeRows,
    context_names,
)
from facesdk_export.onnx_export import Part, write_part

from .exporting import onnx_outputs
from .hififace_networks import Arrays, Step
from .stable_diffusion import unet_of
from .vec2face import Wrong, wrong

_LATENT = {0: "batch", 2: "height", 3: "width"}
_FREE = {
    "bank": {0: "batch", 1: "memory", 3: "height", 4: "width"}, "matrix": {0: "memory", 1: "memory + 2"},
    "weights": {0: "conditions"}, **dict.fromkeys(("noise", "blend_noise", "known", "mask"), _LATENT),
}  # fmt: skip


def step_engines(unet: Any, folder: Path) -> dict[str, Path]:
    """The files of the engines `step`, `time` and `context` of a UNet, written to `folder`."""
    names, text = context_names(unet), _normal(2, 5, unet.config.cross_attention_dim)
    timestep = torch.tensor([0.0, 964.5517, 999.0])
    with torch.no_grad():
        pairs, rows = ContextKeys(unet)(text), TimeRows(unet)(timestep)
    tokens = {0: "rows", 1: "tokens"}
    inputs = {**step_inputs(unet.config.in_channels), "time": rows[1], **dict(zip(names, pairs, strict=True))}
    ordered = {name: inputs[name] for name in (*_ORDER, *names)}
    free = {**_FREE, **dict.fromkeys(names, tokens)}
    parts = {
        "step": Part(DenoisingStep(unet), ordered, ("next_bank",), Card(engine="step"), free),
        "time": Part(TimeRows(unet), {"timestep": timestep}, ("rows",), Card(engine="time")),
        "context": Part(ContextKeys(unet), {"text": text}, names, Card(engine="context"), tokens),
    }
    return {name: folder / write_part(part, folder / f"{name}.onnx")[1]["default"] for name, part in parts.items()}


_ORDER = ("bank", "scale", "time", "matrix", "weights", "noise", "level", "blend_noise", "known", "mask")


def step_inputs(channels: int) -> dict[str, Tensor]:
    """Three pictures, a memory of one, two conditions; no two axes of equal size."""
    latent = _normal(5, 3, channels, 8, 10)
    return {
        "bank": torch.stack([latent[0], latent[1]], 1), "scale": torch.tensor([0.7]), "matrix": _normal(2, 4),
        "weights": torch.tensor([-6.0, 7.0]), "noise": latent[2], "level": torch.tensor([0.8, 0.6]),
        "blend_noise": latent[3], "known": latent[4], "mask": (_normal(3, 1, 8, 10) > 0.3).float(),
    }  # fmt: skip


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


class Predictions:
    """The network's prediction alone, through the three engines: one condition, and a matrix that hands it out."""

    def __init__(self, files: dict[str, Path]) -> None:
        self.engines = {name: Engine.open(path, "cpu") for name, path in files.items()}

    def __call__(self, x: np.ndarray, timesteps: Sequence[float], text: np.ndarray) -> np.ndarray:
        """(n, 4, h, w) for latents, with one time step for all or one for each, and a text (n, tokens, width)."""
        rows = self.engines["time"](timestep=np.float32(timesteps))["rows"]
        if len(rows) == 1:
            return self._step(x, rows[0], text)
        each = zip(x, rows, text, strict=True)
        return np.concatenate([self._step(latent[None], row, words[None]) for latent, row, words in each])

    def _step(self, x: np.ndarray, row: np.ndarray, text: np.ndarray) -> np.ndarray:
        nothing = np.zeros_like(x)
        return self.engines["step"](
            bank=x[:, None], scale=np.ones(1, np.float32), time=row, matrix=np.float32([[0, 1, 0]]),
            weights=np.ones(1, np.float32), noise=nothing, level=np.zeros(2, np.float32), blend_noise=nothing,
            known=nothing, mask=np.ones_like(x[:, :1]), **self.engines["context"](text=text),
        )["next_bank"][:, 0]  # fmt: skip

    def close(self) -> None:
        for engine in self.engines.values():
            engine.close()


class Stages(Denoiser):
    """What comes out of every stage of the UNet, in the order of `names`."""

    def __init__(self, unet: Any) -> None:
        super().__init__(unet)
        down, up = (range(len(blocks)) for blocks in (unet.down_blocks, unet.up_blocks))
        self.names = ("conv_in", *(f"down{i}" for i in down), "mid", *(f"up{i}" for i in up))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor, time: Tensor, *context: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        self.seen = []
        super().forward(x, time, context)
        seen, self.seen = self.seen, []
        return tuple(seen)

    def down(self, block: Any, x: Tensor, *rest: Any) -> Tensor:
        self.seen += [] if self.seen else [x]
        return self._keep(super().down(block, x, *rest))

    def middle(self, block: Any, x: Tensor, *rest: Any) -> Tensor:
        return self._keep(super().middle(block, x, *rest))

    def up(self, block: Any, x: Tensor, *rest: Any) -> Tensor:
        return self._keep(super().up(block, x, *rest))

    def _keep(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return x


def unet(case: Any) -> Wrong:
    network = unet_of(case)
    timestep, several = case.scalars["timestep"], case.scalars["batch_timesteps"]
    x, odd, text = (case.inputs[name] for name in ("x", "x_odd", "ctx"))
    got: Arrays = {}
    with tempfile.TemporaryDirectory(prefix="facesdk-parity-") as folder:
        predictions = Predictions(step_engines(network, Path(folder)))
        got["out"] = predictions(x, [timestep], text)
        got["out_batch_t"] = predictions(x, several, text)
        got["out_odd"] = predictions(odd, [timestep], text[: len(odd)])
        row = predictions.engines["time"](timestep=np.float32([timestep]))["rows"][0]
        pairs = predictions.engines["context"](text=text)
        predictions.close()
    stages = Stages(network)
    seen = onnx_outputs(stages, {"x": x, "time": row, **pairs}, stages.names)
    got |= {name: value for name, value in seen.items() if name in case.facts["outputs"]}
    embedded = Step(lambda rows, timestep: rows.embedded(timestep), TimeRows(network))
    got |= onnx_outputs(embedded, {"timestep": np.full(len(x), timestep, np.float32)}, ("temb",))
    return wrong(case, got)


FACE2DIFFUSION = {"unet": {"onnx": unet}}
