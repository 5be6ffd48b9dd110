"""Vec2Face+'s pose model: the generator with a picture of five landmarks as a second condition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from . import vec2face
from .vec2face import DIM, Generator, ImageDecoder

#: the published training's; its rank is read off the file (8 in the published one)
ALPHA = 32
#: entries of `model_vec2face` in the published file that its network never uses
UNUSED = (*vec2face.UNUSED, "decoder_embed.")
WIDTHS = (32, 64, 128, 256)


class PoseCondModel(nn.Module):
    """(B, dim) vector of a landmark picture (B, 3, size, size) in [-1, 1]."""

    def __init__(self, dim: int = DIM, size: int = 112) -> None:
        super().__init__()
        for i, (before, width) in enumerate(zip((3, *WIDTHS), WIDTHS, strict=False)):
            self.add_module(f"conv{i + 1}", nn.Conv2d(before, width, 3, 2, 1))
        side = -(-size // 2 ** len(WIDTHS))
        self.linear = nn.Linear(WIDTHS[-1] * side * side, dim)

    def forward(self, landmarks: Tensor) -> Tensor:
        x = landmarks
        for i in range(len(WIDTHS)):
            x = self.get_submodule(f"conv{i + 1}")(x).relu()
        vector: Tensor = self.linear(x.flatten(1))
        return vector


class PosedGenerator(Generator):
    """Pictures (B, 3, 112, 112) of identity vectors in the pose of landmark pictures (B, 3, 112, 112) in [-1, 1].

    Hidden rows reach the decoder as the pose's vector, kept ones straight from the encoder.
    Source: Vec2Face+ (Haiyu Wu et al.), whose decoder skips `decoder_embed`.
    """

    def __init__(self, image_decoder: ImageDecoder, **sizes: Any) -> None:
        super().__init__(image_decoder, **sizes)
        del self.decoder_embed
        self.pose_model = PoseCondModel(self.decoder_pos_embed_learned.shape[2])

    def forward(self, vector: Tensor, keep: Tensor, masked: Tensor, landmarks: Tensor) -> Tensor:  # type: ignore[override]
        latent = self.encode(self.rows(vector), keep, masked)
        picture: Tensor = self.im_decoder(self.feature_map(self.decode(latent, keep, masked, landmarks)))
        return picture

    def decode(self, latent: Tensor, keep: Tensor, masked: Tensor, landmarks: Tensor) -> Tensor:  # type: ignore[override]
        """(B, 50, decoder_dim): kept rows in their places, hidden ones filled with the pose's vector, decoded."""
        return self._decoded(latent, self.pose_model(landmarks)[:, None], keep, masked)


def fold_lora(entries: Mapping[str, Tensor], alpha: float = ALPHA) -> dict[str, Tensor]:
    """The entries with every low-rank update added to the weight that it updates, in float64, in the weight's type.

    A layer `base.weight`, `base.bias`, `A` (r, in), `B` (out, r) computes base(x) + alpha / r * (x A^T) B^T.
    Layers without a fitting update keep their entries.
    """
    roots = [name.removesuffix(".A") for name in entries if name.endswith(".A")]
    folded = dict(entries)
    for root in (root for root in roots if _fits(entries, root)):
        base, a, b = (folded.pop(f"{root}.{part}") for part in ("base.weight", "A", "B"))
        folded[f"{root}.weight"] = (base.double() + alpha / len(a) * b.double() @ a.double()).to(base.dtype)
        if f"{root}.base.bias" in folded:
            folded[f"{root}.bias"] = folded.pop(f"{root}.base.bias")
    return folded


def _fits(entries: Mapping[str, Tensor], root: str) -> bool:
    parts = (entries.get(f"{root}.{part}") for part in ("base.weight", "A", "B"))
    base, a, b = (() if part is None else tuple(part.shape) for part in parts)
    return len(a) == len(b) == 2 and a[0] == b[1] > 0 and base == (b[0], a[1])
