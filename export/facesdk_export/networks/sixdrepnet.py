"""6DRepNet: head pose from one picture by a RepVGG-B1g2, under the entry names of its published checkpoint.

Trained, a block is three branches (3x3, 1x1, identity, a batch norm each); published, they are one 3x3
convolution: `fold_training_form` turns the first form's entries into those of the second ("deploy").
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

#: RepVGG-B1g2: blocks and widths of layer1..4, and the running block indices (layer0 is 0) of two groups
BLOCKS = (4, 6, 16, 1)
WIDTHS = (128, 256, 512, 2048)
GROUPED = range(2, 27, 2)
_NORM_EPS = 1e-5


class SixDRepNet(nn.Module):
    """(B, 3, 3) rotation matrices of pictures (B, 3, H, W).

    The published preprocessing is RGB, 224 x 224, ImageNet mean and deviation; Vec2Face feeds its 112 x 112
    picture as BGR in [0, 1] to the same weights.  `deploy=False` is the three-branch training form.
    Source: thohemp/6DRepNet (arXiv 2202.12555), sixdrepnet 0.1.6.
    """

    def __init__(
        self,
        blocks: Sequence[int] = BLOCKS,
        widths: Sequence[int] = WIDTHS,
        *,
        stem: int = 64,
        groups: int = 2,
        grouped: Collection[int] = GROUPED,
        deploy: bool = True,
    ) -> None:
        super().__init__()
        block = DeployBlock if deploy else TrainingBlock
        self.layer0 = block(3, stem, 2, 1)
        index, before = 0, stem
        for i, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            stage = []
            for k in range(count):
                index += 1
                stage.append(block(before, width, 1 if k else 2, groups if index in grouped else 1))
                before = width
            self.add_module(f"layer{i + 1}", nn.Sequential(*stage))
        self.stages = len(blocks)
        self.linear_reg = nn.Linear(before, 6)

    def forward(self, image: Tensor) -> Tensor:
        return rotation_matrix(self.six(self.stage_maps(image)[-1]))

    def stage_maps(self, image: Tensor) -> list[Tensor]:
        """The feature map after layer0 and after each stage; every one halves the side."""
        maps = [self.layer0(image)]
        for i in range(self.stages):
            maps.append(self.get_submodule(f"layer{i + 1}")(maps[-1]))
        return maps

    def six(self, features: Tensor) -> Tensor:
        """(B, 6) numbers that determine the rotation, of the last stage's map."""
        numbers: Tensor = self.linear_reg(features.mean((2, 3)))
        return numbers


class DeployBlock(nn.Module):
    """One 3x3 convolution with bias, ReLU."""

    def __init__(self, before: int, width: int, stride: int, groups: int) -> None:
        super().__init__()
        self.rbr_reparam = nn.Conv2d(before, width, 3, stride, 1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.rbr_reparam(x))


class TrainingBlock(nn.Module):
    """The sum of up to three branches, ReLU; the identity branch exists where width and side do not change."""

    def __init__(self, before: int, width: int, stride: int, groups: int) -> None:
        super().__init__()
        self.rbr_identity = nn.BatchNorm2d(width, _NORM_EPS) if before == width and stride == 1 else None
        self.rbr_dense = _Branch(before, width, 3, stride, groups)
        self.rbr_1x1 = _Branch(before, width, 1, stride, groups)

    def forward(self, x: Tensor) -> Tensor:
        total = self.rbr_dense(x) + self.rbr_1x1(x)
        return torch.relu(total if self.rbr_identity is None else total + self.rbr_identity(x))


class _Branch(nn.Sequential):
    def __init__(self, before: int, width: int, kernel: int, stride: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, width, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(width, _NORM_EPS)


def rotation_matrix(six: Tensor) -> Tensor:
    """(B, 3, 3) rotations of (B, 6) numbers by Gram-Schmidt; columns x, y, z.

    x follows the first three numbers, z = x cross the others, y = z cross x; norms are floored at 1e-8, so
    zeros give the zero matrix.  Source: 6DRepNet section 3.1, `utils.py`.
    """
    x = _unit(six[:, :3])
    z = _unit(_cross(x, six[:, 3:]))
    return torch.stack((x, _cross(z, x), z), 2)


def euler_angles(rotation: Tensor) -> Tensor:
    """(B, 3) pitch, yaw, roll in radians of (B, 3, 3) rotations; yaw in [-pi/2, pi/2].

    In gimbal lock (the cosine of the yaw below 1e-6) the roll is 0.  Source: 6DRepNet `utils.py`.
    """
    cosine = torch.sqrt(rotation[:, 0, 0] ** 2 + rotation[:, 1, 0] ** 2)
    locked = cosine < 1e-6
    pitch = torch.where(
        locked,
        torch.atan2(-rotation[:, 1, 2], rotation[:, 1, 1]),
        torch.atan2(rotation[:, 2, 1], rotation[:, 2, 2]),
    )
    yaw = torch.atan2(-rotation[:, 2, 0], cosine)
    roll = torch.atan2(rotation[:, 1, 0], rotation[:, 0, 0])
    return torch.stack((pitch, yaw, torch.where(locked, torch.zeros_like(roll), roll)), 1)


def _unit(vectors: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return vectors / norms.clamp_min(1e-8)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    # written out: ONNX has no cross product
    (a0, a1, a2), (b0, b1, b2) = a.unbind(1), b.unbind(1)
    return torch.stack((a1 * b2 - a2 * b1, a2 * b0 - a0 * b2, a0 * b1 - a1 * b0), 1)


# -- training form -> deploy form -------------------------------------------------------------------------


def is_training_form(entries: Collection[str]) -> bool:
    """Whether a checkpoint's entry names are those of the three-branch form."""
    return any(".rbr_dense." in name for name in entries)


def fold_training_form(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The deploy form's entries, computed in float64, with the dtype and the name prefix that they had.

    Entries outside the blocks (`linear_reg`) are passed on.
    """
    deploy: dict[str, Tensor] = {}
    for name, value in state.items():
        root, found, rest = name.partition(".rbr_")
        if not found:
            deploy[name] = value
        elif rest == "dense.conv.weight":
            weight, bias = _folded(state, root)
            deploy[f"{root}.rbr_reparam.weight"] = weight.to(value.dtype)
            deploy[f"{root}.rbr_reparam.bias"] = bias.to(value.dtype)
    return deploy


def _folded(state: Mapping[str, Tensor], root: str) -> tuple[Tensor, Tensor]:
    """Kernel and bias of one block: every branch is a 3x3 kernel, then a batch norm; their sum is one of both."""
    dense = state[f"{root}.rbr_dense.conv.weight"].double()
    point = nn.functional.pad(state[f"{root}.rbr_1x1.conv.weight"].double(), (1, 1, 1, 1))
    parts = [_normed(dense, state, f"{root}.rbr_dense.bn"), _normed(point, state, f"{root}.rbr_1x1.bn")]
    if f"{root}.rbr_identity.weight" in state:
        identity = torch.zeros_like(dense)
        channels = torch.arange(len(dense))
        # within its group, each channel takes itself
        identity[channels, channels % dense.shape[1], 1, 1] = 1
        parts.append(_normed(identity, state, f"{root}.rbr_identity"))
    weights, biases = zip(*parts, strict=True)
    return torch.stack(weights).sum(0), torch.stack(biases).sum(0)


def _normed(kernel: Tensor, state: Mapping[str, Tensor], norm: str) -> tuple[Tensor, Tensor]:
    weight, bias, mean, variance = (
        state[f"{norm}.{entry}"].double() for entry in ("weight", "bias", "running_mean", "running_var")
    )
    scale = weight / torch.sqrt(variance + _NORM_EPS)
    return kernel * scale[:, None, None, None], bias - mean * scale
