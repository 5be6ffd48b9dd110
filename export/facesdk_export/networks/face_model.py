"""The parametric face model, Basel Face Model 2009 as Deep3DFaceRecon prepares it: coefficients -> mesh and colours.

For losses, meshes and evaluation; a swap never needs it.  Source: sicxu/Deep3DFaceRecon_pytorch `bfm.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional


class Coefficients(NamedTuple):
    """The 257 coefficients by meaning."""

    identity: Tensor  # (n, 80)
    expression: Tensor  # (n, 64)
    texture: Tensor  # (n, 80)
    angles: Tensor  # (n, 3) radians about x, y, z
    light: Tensor  # (n, 27) spherical harmonics, 9 per colour
    translation: Tensor  # (n, 3)


def split_coefficients(coefficients: Tensor) -> Coefficients:
    """(n, 257) by meaning."""
    return Coefficients(*coefficients.split((80, 64, 80, 3, 27, 3), 1))


class Face(NamedTuple):
    """What the model makes of coefficients."""

    vertices: Tensor  # (n, v, 3) in camera space: x right, y up, z the distance from the camera
    texture: Tensor  # (n, v, 3) RGB, about 0..1
    colour: Tensor  # (n, v, 3) the texture under the light
    landmarks: Tensor  # (n, 68, 2) pixels of the frame, y up


def rotation(angles: Tensor) -> Tensor:
    """(n, 3, 3), to be multiplied from the right: points @ rotation = (Rz Ry Rx points^T)^T."""
    zero, one = torch.zeros_like(angles[:, 0]), torch.ones_like(angles[:, 0])
    (sx, sy, sz), (cx, cy, cz) = angles.sin().T, angles.cos().T
    about_x = [one, zero, zero, zero, cx, -sx, zero, sx, cx]
    about_y = [cy, zero, sy, zero, one, zero, -sy, zero, cy]
    about_z = [cz, -sz, zero, sz, cz, zero, zero, zero, one]
    rx, ry, rz = (torch.stack(entries, 1).reshape(-1, 3, 3) for entries in (about_x, about_y, about_z))
    return (rz @ ry @ rx).transpose(1, 2)


class FaceModel(nn.Module):
    """Coefficients (n, 257) -> `Face`.

    fields  the arrays of BFM_model_front.mat: meanshape, meantex (1, 3v), idBase, exBase, texBase (3v, k), tri (t, 3),
            point_buf (v, 8), keypoints (1, 68); indices count from 1, and t + 1 in point_buf means no triangle.
    The camera is `camera_distance` away and has a focal length of `focal` pixels around `centre`.
    """

    def __init__(
        self,
        fields: Mapping[str, NDArray[Any]],
        *,
        camera_distance: float = 10.0,
        focal: float = 1015.0,
        centre: float = 112.0,
        dc_light: float = 0.8,
        recentre_mean_shape: bool = True,
    ) -> None:
        super().__init__()
        self.camera_distance, self.focal, self.centre = camera_distance, focal, centre
        self.dc_light = dc_light
        mean = np.asarray(fields["meanshape"], np.float32).reshape(-1, 3)
        values = {
            "mean_shape": mean - mean.mean(0) if recentre_mean_shape else mean,
            "mean_texture": np.asarray(fields["meantex"], np.float32).reshape(-1, 3),
            **{name: np.asarray(fields[name], np.float32) for name in ("idBase", "exBase", "texBase")},
            "triangles": np.asarray(fields["tri"], np.int64) - 1,
            "around": np.asarray(fields["point_buf"], np.int64) - 1,
            "keypoints": np.asarray(fields["keypoints"], np.int64).reshape(-1) - 1,
        }
        for name, value in values.items():
            self.register_buffer(name, torch.from_numpy(value), persistent=False)

    def shape(self, identity: Tensor, expression: Tensor) -> Tensor:
        """(n, v, 3) vertices before rotation and translation."""
        moved = identity @ self.get_buffer("idBase").T + expression @ self.get_buffer("exBase").T
        return moved.reshape(len(moved), -1, 3) + self.get_buffer("mean_shape")

    def texture(self, texture: Tensor) -> Tensor:
        """(n, v, 3) RGB, about 0..1, not clamped."""
        varied = texture @ self.get_buffer("texBase").T
        return (varied.reshape(len(varied), -1, 3) + self.get_buffer("mean_texture")) / 255

    def normals(self, shape: Tensor) -> Tensor:
        """(n, v, 3) unit normals: the mean direction of the triangles around each vertex."""
        a, b, c = (shape[:, corner] for corner in self.get_buffer("triangles").T)
        faces = functional.normalize(torch.linalg.cross(a - b, b - c), dim=-1, eps=1e-12)
        faces = functional.pad(faces, (0, 0, 0, 1))  # the triangle that is none
        return functional.normalize(faces[:, self.get_buffer("around")].sum(2), dim=-1, eps=1e-12)

    def camera_space(self, shape: Tensor, angles: Tensor, translation: Tensor) -> Tensor:
        """(n, v, 3) rotated, moved, and with z as the distance from the camera."""
        moved = shape @ rotation(angles) + translation[:, None]
        return torch.cat([moved[..., :2], self.camera_distance - moved[..., 2:]], -1)

    def project(self, vertices: Tensor) -> Tensor:
        """(..., 2) pixels of the frame, y up."""
        return self.focal * vertices[..., :2] / vertices[..., 2:] + self.centre

    def landmarks(self, coefficients: Tensor) -> Tensor:
        """(n, 68, 2) pixels of the frame, y up."""
        parts = split_coefficients(coefficients)
        shape = self.shape(parts.identity, parts.expression)[:, self.get_buffer("keypoints")]
        return self.project(self.camera_space(shape, parts.angles, parts.translation))

    def forward(self, coefficients: Tensor) -> Face:
        parts = split_coefficients(coefficients)
        shape = self.shape(parts.identity, parts.expression)
        vertices = self.camera_space(shape, parts.angles, parts.translation)
        texture = self.texture(parts.texture)
        light = illumination(self.normals(shape) @ rotation(parts.angles), parts.light, self.dc_light)
        return Face(vertices, texture, texture * light, self.project(vertices[:, self.get_buffer("keypoints")]))


def illumination(normals: Tensor, light: Tensor, dc_light: float = 0.8) -> Tensor:
    """(n, v, 3) light on unit normals (n, v, 3) from spherical harmonics (n, 27) of order two, 9 per colour."""
    per_colour = light.reshape(-1, 3, 9)
    offset = functional.pad(per_colour.new_full((1,), dc_light), (0, 8))
    return _harmonics(normals) @ (per_colour + offset).transpose(1, 2)


def _harmonics(normals: Tensor) -> Tensor:
    """(n, v, 9) real spherical harmonics weighted for a diffuse surface (Ramamoorthi and Hanrahan 2001)."""
    x, y, z = normals.unbind(-1)
    constant = math.pi / math.sqrt(4 * math.pi)
    linear = 2 * math.pi / math.sqrt(3) * math.sqrt(3) / math.sqrt(4 * math.pi)
    square = 2 * math.pi / math.sqrt(8) * 3 * math.sqrt(5) / math.sqrt(12 * math.pi)
    parts = [
        constant * torch.ones_like(x), -linear * y, linear * z, -linear * x,
        square * x * y, -square * y * z, square * (3 * z**2 - 1) / (2 * math.sqrt(3)), -square * x * z,
        square * (x**2 - y**2) / 2,
    ]  # fmt: skip
    return torch.stack(parts, -1)
