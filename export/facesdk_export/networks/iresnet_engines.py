"""IResNet rewritten for engines: the same function up to rounding, nearly without batch norms."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from .iresnet import Block, IResNet

#: a norm whose shift is more than this many times its scale stays: the sum with x would cost x its digits
LARGEST_OFFSET = 64.0


def export_form(network: IResNet) -> nn.Module:
    """A copy that computes what `network` does in evaluation mode.

    Norms behind a convolution, and those around the flattened map, become part of their linear neighbour.  The norm
    before a zero-padded convolution, scale * (x + offset), does too: the trunk carries x + offset, and what one block
    adds for the next is in the bias of its last convolution.
    """
    return FoldedIResNet(network).eval()


class FoldedIResNet(nn.Module):
    """(B, embedding) of faces (B, 3, side, side)."""

    def __init__(self, network: IResNet) -> None:
        super().__init__()
        stages = [network.get_submodule(f"layer{i + 1}") for i in range(network.stages)]
        blocks = [block for stage in stages for block in stage.children() if isinstance(block, Block)]
        offsets = [_offset(block.bn1) for block in blocks]
        self.conv1, self.prelu = _folded(network.conv1, network.bn1), network.prelu
        self.offset = nn.Parameter(_column(offsets[0]))
        nothing = torch.zeros_like(network.bn2.running_mean, dtype=torch.float64)  # type: ignore[arg-type]
        ends = list(pairwise([*offsets, nothing]))
        self.blocks = nn.Sequential(*(FoldedBlock(block, *pair) for block, pair in zip(blocks, ends, strict=True)))
        self.fc = _flat_linear(network)

    def forward(self, image: Tensor) -> Tensor:
        x = self.blocks(self.prelu(self.conv1(image)) + self.offset)
        vector: Tensor = self.fc(x.flatten(1))
        return vector


class FoldedBlock(nn.Module):
    """`Block` on a trunk that carries x + before, for one that carries x + after."""

    def __init__(self, block: Block, before: Tensor, after: Tensor) -> None:
        super().__init__()
        scale, shift = _affine(block.bn1)
        self.norm: nn.Module = nn.Identity()
        first = block.conv1.weight.detach().double()
        if before.any() or not shift.any():
            first = first * scale[:, None, None]
        else:
            self.norm = block.bn1
        self.conv1, self.prelu = _folded(_convolution(block.conv1, first), block.bn2), block.prelu
        self.conv2 = _folded(block.conv2, block.bn3)
        self.shortcut, self.gates = _shortcut(block.downsample, before), block.attn
        carried = before if isinstance(self.shortcut, nn.Identity) else 0
        _add_to_bias(self.conv2, after - carried)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.conv2(self.prelu(self.conv1(self.norm(x))))
        total: Tensor = branch + self.gates(self.shortcut(x))
        return total


def _shortcut(downsample: nn.Module, before: Tensor) -> nn.Module:
    """What becomes of x on its way around the branch, given x + before; an Identity passes that on."""
    if isinstance(downsample, nn.Identity):
        return downsample
    conv = _folded(*downsample.children())
    _add_to_bias(conv, -(conv.weight.detach().double()[:, :, 0, 0] @ before))
    return conv


def _offset(norm: nn.BatchNorm2d) -> Tensor:
    """What x carries before this norm; zeros where the norm has to stay."""
    scale, shift = _affine(norm)
    offset = shift / scale
    usable = bool(torch.isfinite(offset).all()) and float(offset.abs().max()) <= LARGEST_OFFSET
    return offset if usable else torch.zeros_like(offset)


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Scale and shift of a batch norm in evaluation mode, in float64."""
    weight, bias, mean, variance = (
        getattr(norm, name).detach().double() for name in ("weight", "bias", "running_mean", "running_var")
    )
    scale = weight / torch.sqrt(variance + norm.eps)
    return scale, bias - mean * scale


def _folded(conv: nn.Conv2d, norm: nn.Module) -> nn.Conv2d:
    """A convolution followed by its norm, as one with a bias."""
    scale, shift = _affine(norm)
    if conv.bias is not None:
        shift = shift + scale * conv.bias.detach().double()
    return _convolution(conv, conv.weight.detach().double() * scale[:, None, None, None], shift)


def _convolution(like: nn.Conv2d, weight: Tensor, bias: Tensor | None = None) -> nn.Conv2d:
    with torch.device("meta"):
        conv = nn.Conv2d(
            like.in_channels, like.out_channels, like.kernel_size, like.stride, like.padding, bias=bias is not None
        )
    conv.weight = nn.Parameter(weight.float())
    if bias is not None:
        conv.bias = nn.Parameter(bias.float())
    return conv


def _add_to_bias(conv: nn.Conv2d, values: Tensor) -> None:
    assert conv.bias is not None
    conv.bias = nn.Parameter((conv.bias.detach().double() + values).float())


def _flat_linear(network: IResNet) -> nn.Linear:
    """The last norm of the map, the linear layer and the norm of its output, as one linear layer."""
    scale, shift = _affine(network.bn2)
    weight = network.fc.weight.detach().double().unflatten(1, (len(scale), -1))
    bias = network.fc.bias.detach().double() + torch.einsum("ocs,c->o", weight, shift)
    after, moved = _affine(network.features)
    with torch.device("meta"):
        linear = nn.Linear(network.fc.in_features, network.fc.out_features)
    linear.weight = nn.Parameter(((weight * scale[:, None]).flatten(1) * after[:, None]).float())
    linear.bias = nn.Parameter((bias * after + moved).float())
    return linear


def _column(values: Tensor) -> Tensor:
    return values.float()[:, None, None]
