"""IR-SE50: the recognition network of TreB1eN's InsightFace_Pytorch, under the entry names of `model_ir_se50.pth`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from .iresnet import WIDTHS, SqueezeExcitation

#: depth -> blocks per stage
LAYERS = {50: (3, 4, 14, 3), 100: (3, 13, 30, 3), 152: (3, 8, 36, 3)}


class IRSE(nn.Module):
    """(B, embedding) vector of L2 norm 1 of aligned RGB faces (B, 3, input_size, input_size) in [-1, 1].

    The published input is (RGB - 127.5) / 127.5 at 112 pixels.  `dropout` acts in training only.
    Source: TreB1eN InsightFace_Pytorch `model.py`; every batch norm has eps 1e-5.
    """

    def __init__(
        self,
        layers: Sequence[int] = LAYERS[50],
        widths: Sequence[int] = WIDTHS,
        *,
        embedding: int = 512,
        input_size: int = 112,
        attention: bool = True,
        reduction: int = 16,
        dropout: float = 0.6,
    ) -> None:
        super().__init__()
        stem = widths[0]
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, stem, 3, padding=1, bias=False), nn.BatchNorm2d(stem), nn.PReLU(stem)
        )
        blocks = []
        for before, width, count in zip((stem, *widths), widths, layers, strict=False):
            blocks.append(Bottleneck(before, width, 2, reduction if attention else 0))
            blocks += [Bottleneck(width, width, 1, reduction if attention else 0) for _ in range(count - 1)]
        self.body = nn.Sequential(*blocks)
        side = -(-input_size // 2 ** len(layers))
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(widths[-1]),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(widths[-1] * side * side, embedding),
            nn.BatchNorm1d(embedding),
        )

    def forward(self, image: Tensor) -> Tensor:
        return self.embedding(self.body(self.input_layer(image)))

    def embedding(self, features: Tensor) -> Tensor:
        """The unit vector of the map that the body ends in."""
        return functional.normalize(self.output_layer(features))


class Bottleneck(nn.Module):
    """Residual block without an activation at its end; the gate acts on the branch.

    Equal widths: the shortcut takes every `stride`-th pixel.
    """

    def __init__(self, before: int, width: int, stride: int, reduction: int) -> None:
        super().__init__()
        self.shortcut_layer: nn.Module = nn.MaxPool2d(1, stride)
        if before != width:
            self.shortcut_layer = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        layers: list[nn.Module] = [
            nn.BatchNorm2d(before),
            nn.Conv2d(before, width, 3, padding=1, bias=False),
            nn.PReLU(width),
            nn.Conv2d(width, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
        ]
        if reduction:
            layers.append(SqueezeExcitation(width, reduction))
        self.res_layer = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.res_layer(x)
        shortcut: Tensor = self.shortcut_layer(x)
        return branch + shortcut
