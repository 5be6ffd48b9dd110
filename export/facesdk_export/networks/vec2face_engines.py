"""Vec2Face's generator rewritten for engines: the same function up to rounding, with less work."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from .vec2face import Block, Doubling, Generator, ResidualBlock


def export_form(generator: Generator) -> nn.Module:
    """A copy that shares the weights it does not change.

    A doubling and its convolution are four convolutions with 2x2 kernels: 4 products a pixel instead of 9.  A
    shortcut on the branch's own output is part of the convolution before it.  Transformer blocks work on rows, so
    that products and biases are one operator.
    """
    return _rewritten(copy.deepcopy(generator, {id(tensor): tensor for tensor in _tensors(generator)}))


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _rewritten(module: nn.Module) -> nn.Module:
    for name, child in module.named_children():
        if isinstance(child, Doubling):
            setattr(module, name, PhasedDoubling(child.conv))
        elif isinstance(child, Block):
            setattr(module, name, RowBlock(child))
        elif isinstance(child, ResidualBlock) and child.nin_shortcut is not None:
            setattr(module, name, ChangingBlock(child, child.nin_shortcut))
        else:
            _rewritten(child)
    return module


class PhasedDoubling(nn.Module):
    """`Doubling`: each of the four pixels that become of one sees a 2x2 window of the small map."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        assert conv.bias is not None
        self.bias = conv.bias
        kernel = conv.weight.detach()
        halves = [[_folded(_folded(kernel, 2, row), 3, column) for column in (0, 1)] for row in (0, 1)]
        self.kernels = nn.ParameterList(nn.Parameter(each) for pair in halves for each in pair)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        upper_left, upper_right, lower_left, lower_right = (
            functional.conv2d(functional.pad(x, (1 - right, right, 1 - down, down)), kernel, self.bias)
            for kernel, (down, right) in zip(self.kernels, ((0, 0), (0, 1), (1, 0), (1, 1)), strict=True)
        )
        upper, lower = torch.stack((upper_left, upper_right), 4), torch.stack((lower_left, lower_right), 4)
        return torch.stack((upper, lower), 3).reshape(b, c, 2 * h, 2 * w)


def _folded(kernel: Tensor, axis: int, second: int) -> Tensor:
    """A kernel's three taps on the doubled map as two on the small one, for its first or second pixel."""
    first, middle, last = kernel.unbind(axis)
    return torch.stack((first + middle, last) if second else (first, middle + last), axis)


class ChangingBlock(nn.Module):
    """`ResidualBlock` where the width changes: shortcut(branch) + branch is one convolution."""

    def __init__(self, block: ResidualBlock, shortcut: nn.Conv2d) -> None:
        super().__init__()
        self.norm1, self.conv1, self.norm2 = block.norm1, block.conv1, block.norm2
        kernel = block.conv2.weight.detach().double()
        mixed = torch.einsum("oi,icxy->ocxy", shortcut.weight.detach().double()[:, :, 0, 0], kernel) + kernel
        self.kernel = nn.Parameter(mixed.float())

    def forward(self, x: Tensor) -> Tensor:
        branch = functional.silu(self.norm2(self.conv1(functional.silu(self.norm1(x)))))
        return functional.conv2d(branch, self.kernel, padding=1)


class RowBlock(nn.Module):
    """`Block`, its linear layers on (B * N, dim)."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = block.norm1, block.attn, block.norm2, block.mlp

    def forward(self, x: Tensor) -> Tensor:
        batch, count, dim = x.shape
        rows = x.reshape(-1, dim)
        rows = rows + self._attention(self.norm1(rows), batch, count)
        rows = rows + self.mlp.fc2(_gelu(self.mlp.fc1(self.norm2(rows))))
        return rows.reshape(batch, count, dim)

    def _attention(self, rows: Tensor, batch: int, count: int) -> Tensor:
        attention = self.attn
        heads = attention.qkv(rows).reshape(batch, count, 3, attention.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = heads.unbind(0)
        mixed = torch.softmax((q * attention.scale) @ k.transpose(-2, -1), -1) @ v
        out: Tensor = attention.proj(mixed.transpose(1, 2).reshape(batch * count, -1))
        return out


def _gelu(x: Tensor) -> Tensor:
    # in the order in which ONNX Runtime recognises it as one operator
    return 0.5 * (x * (1 + torch.erf(x / math.sqrt(2))))
