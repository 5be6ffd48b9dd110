"""What recipes share: example inputs, networks without memory until they are loaded, pictures as inputs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from facesdk.plans.profiles import Sizes

from ..checkpoints import Checkpoint, load_into

log = logging.getLogger("facesdk")

CROP = "float32 RGB (n, 3, size, size) in 0..1, an aligned crop"
#: rows of a plan: always one; one face, or as many as facesdk.encoder puts into one call
ALONE: Mapping[str, Sizes] = {"batch": (1, 1, 1)}
CROPS: Mapping[str, Sizes] = {"batch": (1, 1, 16)}
COEFFICIENTS = "(n, 257) identity 80, expression 64, texture 80, angles 3, light 27, translation 3"


class Pictures(nn.Module):
    """A network of scaled NCHW floats as one of uint8 (n, size, size, 3) RGB pictures: scale * picture + offset."""

    def __init__(self, network: nn.Module, scale: Tensor, offset: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("scale", scale.reshape(-1, 1, 1))
        self.register_buffer("offset", offset.reshape(-1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        # floats first: TensorRT transposes no uint8
        out: Tensor = self.network(image.float().permute(0, 3, 1, 2) * self.scale + self.offset)
        return out


def example_picture(size: int, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)


def example_crop(size: int, seed: int, count: int = 1) -> Tensor:
    return torch.rand((count, 3, size, size), generator=torch.Generator().manual_seed(seed))


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build()


def loaded(module: nn.Module, checkpoint: Checkpoint, prefix: str = "", ignore: tuple[str, ...] = ()) -> nn.Module:
    report = load_into(module, checkpoint, prefix, ignore=ignore)
    if report.unused:
        log.warning("%s: %s", checkpoint.path.name, report)
    return module.eval()
