"""Vec2Face's generator in the sizes of a checkpoint: widths and depths are read off its entries."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor

from facesdk.errors import ConversionError

from .vec2face import DECODER_DEPTH, DECODER_HEADS, DEPTH, DIM, HEADS, Generator, ImageDecoder

#: width -> heads of the encoders of Vec2Face's code that have other than 12 (ViT-L, ViT-H): no file tells heads
_HEADS = {1024: 16, 1280: 16}
_GROUPS = 32
_PUBLISHED_LEVELS = (128, 128, 256, 256, 512)

AnyGenerator = TypeVar("AnyGenerator", bound=Generator)


def generator_of(entries: Mapping[str, Tensor], kind: type[AnyGenerator]) -> AnyGenerator:
    """The network of a checkpoint's entries on the meta device; what they do not say has the published size.

    Raises ConversionError for widths that its heads or normalisation groups do not divide.
    """
    sizes = _Sizes(entries)
    dim, decoder_dim = sizes.of("latent_prior_proj_f.weight", 0, DIM), sizes.of("decoder_norm.weight", 0, DIM)
    heads, levels = _HEADS.get(dim, HEADS), sizes.levels()
    _check(dim, heads)
    _check(decoder_dim, DECODER_HEADS)
    for width in levels:
        _check(width, _GROUPS)
    with torch.device("meta"):
        image_decoder = ImageDecoder(
            sizes.of("im_decoder.conv_in.weight", 1, 256), 1, levels,
            sizes.count(r"im_decoder\.up\.0\.block\.(\d+)\.", 2), _GROUPS,
        )  # fmt: skip
        return kind(
            image_decoder, dim=dim, depth=sizes.count(r"blocks\.(\d+)\.", DEPTH), heads=heads, decoder_dim=decoder_dim,
            decoder_depth=sizes.count(r"decoder_blocks\.(\d+)\.", DECODER_DEPTH), decoder_heads=DECODER_HEADS,
            mlp_ratio=sizes.of("blocks.0.mlp.fc1.weight", 0, 4 * dim) // dim,
        )  # fmt: skip


class _Sizes:
    """What the names and shapes of entries tell."""

    def __init__(self, entries: Mapping[str, Tensor]) -> None:
        self._shapes = {name: tuple(value.shape) for name, value in entries.items()}

    def of(self, name: str, axis: int, published: int) -> int:
        shape = self._shapes.get(name, ())
        return shape[axis] if axis < len(shape) and shape[axis] else published

    def count(self, pattern: str, published: int) -> int:
        """How many numbers there are at the place of the group in the names that begin so."""
        numbers = {found[1] for name in self._shapes if (found := re.match(pattern, name))}
        return len(numbers) or published

    def levels(self) -> tuple[int, ...]:
        """Width of each level of the image decoder."""
        count = self.count(r"im_decoder\.up\.(\d+)\.", len(_PUBLISHED_LEVELS))
        names = [f"im_decoder.up.{level}.block.0.conv2.weight" for level in range(count)]
        return tuple(self.of(name, 0, _PUBLISHED_LEVELS[min(i, 4)]) for i, name in enumerate(names))


def _check(width: int, parts: int) -> None:
    if width % parts:
        raise ConversionError(
            f"the file's network has a layer of width {width}",
            cause=f"Vec2Face's generator divides it into {parts} heads or groups",
            remedy="check that it is the file of a generator: vec2face_generator.pth",
        )
