"""LPIPS, the learned perceptual distance of Zhang et al. 2018, on VGG16; entry names of the package lpips 0.1.4."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

#: widths of the 3x3 convolutions of each slice: relu1_2, relu2_2, relu3_3, relu4_3, relu5_3
VGG16_SLICES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
#: mean and deviation of ImageNet for pictures in [-1, 1] (lpips 0.1.4 `ScalingLayer`)
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)


class ScalingLayer(nn.Module):
    """(picture - shift) / scale."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor(SHIFT)[None, :, None, None])
        self.register_buffer("scale", torch.tensor(SCALE)[None, :, None, None])

    def forward(self, picture: Tensor) -> Tensor:
        return (picture - self.shift) / self.scale


class VGG16Slices(nn.Module):
    """Features after each of the five slices; modules keep their index in torchvision's `vgg16().features`."""

    def __init__(self, slices: Sequence[Sequence[int]] = VGG16_SLICES) -> None:
        super().__init__()
        self.count = len(slices)
        before, index = 3, 0
        for number, widths in enumerate(slices):
            modules: list[nn.Module] = [nn.MaxPool2d(2)] if number else []
            for width in widths:
                modules += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
                before = width
            part = nn.Sequential()
            for module in modules:
                part.add_module(str(index), module)
                index += 1
            self.add_module(f"slice{number + 1}", part)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for number in range(self.count):
            x = self.get_submodule(f"slice{number + 1}")(x)
            features.append(x)
        return features


class Head(nn.Module):
    """Weighted sum over channels (n, c, h, w) -> (n, 1, h, w); dropout acts in training mode only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Dropout(), nn.Conv2d(channels, 1, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x)
        return out


class LPIPS(nn.Module):
    """Distance (n, 1, 1, 1) of two pictures (n, 3, h, w), made for the range [-1, 1].

    floor        least length that features are divided by; None adds 1e-10 to the length instead, as lpips has it.
    named_twice  register every head as `linN` and in `lins`, as lpips 0.1.4 does; else as `linN` alone.
    """

    def __init__(self, floor: float | None = None, *, named_twice: bool = True) -> None:
        super().__init__()
        self.floor = floor
        self.scaling_layer = ScalingLayer()
        self.net = VGG16Slices()
        heads = [Head(widths[-1]) for widths in VGG16_SLICES]
        for number, head in enumerate(heads):
            self.add_module(f"lin{number}", head)
        if named_twice:
            self.lins = nn.ModuleList(heads)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        pairs = zip(*(self.net(self.scaling_layer(picture)) for picture in (first, second)), strict=True)
        distances = [
            self.get_submodule(f"lin{number}")((_unit(a, self.floor) - _unit(b, self.floor)) ** 2)
            for number, (a, b) in enumerate(pairs)
        ]
        return torch.stack([distance.mean((2, 3), keepdim=True) for distance in distances]).sum(0)


def _unit(features: Tensor, floor: float | None) -> Tensor:
    """Channels at length 1."""
    if floor is None:
        return features / ((features**2).sum(1, keepdim=True).sqrt() + 1e-10)
    lengths: Tensor = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    return features / lengths.clamp(min=floor)
