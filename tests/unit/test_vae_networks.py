"""The autoencoder's two engines against diffusers' own passes, at any size and batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facesdk.card import Card
from facesdk.engine import Engine

torch = pytest.importorskip("torch", reason="the export room needs torch")
pytest.importorskip("onnxscript", reason="the export room needs onnxscript")
pytest.importorskip("diffusers", reason="Stable Diffusion's networks are those of diffusers")

from torch import Tensor, nn  # noqa: E402

from facesdk_export.networks.vae import Decoder, Encoder  # noqa: E402
from facesdk_export.onnx_export import Part, write_part  # noqa: E402
from facesdk_export.stable_diffusion_networks import vae_of  # noqa: E402

Axes = dict[int, str]

SIZES = {
    "block_out_channels": [32, 32, 64], "layers_per_block": 1, "scaling_factor": 0.25, "norm_num_groups": 16,
    "down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def vae() -> Any:
    vae = vae_of(SIZES).to_empty(device="cpu")
    torch.manual_seed(0)
    for value in vae.parameters():
        nn.init.normal_(value, 0, 1.4 / value[0].numel() ** 0.5) if value.ndim > 1 else nn.init.normal_(value, 1, 0.2)
    return vae


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def pictures(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(2), dtype=torch.uint8)


def close(got: Any, want: Tensor) -> None:
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * float(want.std()))


def test_decoder_divides_by_the_scaling_factor(vae: Any) -> None:
    latent = random(2, 4, 6, 5)
    with torch.inference_mode():
        close(Decoder(vae)(latent), vae.decode(latent / 0.25).sample)


def test_encoder_takes_pictures(vae: Any) -> None:
    image = pictures(2, 24, 20, 3)
    with torch.inference_mode():
        posterior = vae.encode(image.permute(0, 3, 1, 2) / 127.5 - 1).latent_dist
        mean, logvar = Encoder(vae)(image)
    close(mean, posterior.mean)
    close(logvar, posterior.logvar)
    assert mean.shape == logvar.shape == (2, 4, 6, 5)


def test_log_variance_is_clamped(vae: Any) -> None:
    image = pictures(1, 16, 16, 3)
    with torch.inference_mode():
        _, free = Encoder(vae, (-1e9, 1e9))(image)
        _, clamped = Encoder(vae, (-0.5, 0.25))(image)
    assert free.min() < -0.5
    assert free.max() > 0.25
    torch.testing.assert_close(clamped, free.clamp(-0.5, 0.25))
    assert Encoder(vae).logvar_range == (-30, 20)


def run(module: nn.Module, example: Tensor, given: Tensor, outputs: tuple[str, ...], axes: Axes, path: Path) -> Any:
    """Outputs for `given` of the engine that was made with `example`, and that fitted torch there."""
    write_part(Part(module, {"given": example}, outputs, Card("vae", "half"), axes), path)
    with Engine.open(path, "cpu") as engine:
        got = engine(given=given.numpy())
    return [got[name] for name in outputs]


def test_decoder_engine_at_another_size(tmp_path: Path, vae: Any) -> None:
    latent = random(3, 4, 7, 10)
    free = {0: "batch", 2: "height", 3: "width"}
    (image,) = run(Decoder(vae), random(2, 4, 4, 6), latent, ("image",), free, tmp_path / "decoder.onnx")
    with torch.inference_mode():
        close(image, Decoder(vae)(latent))
    assert image.shape == (3, 3, 28, 40)


def test_encoder_engine_at_another_size(tmp_path: Path, vae: Any) -> None:
    image = pictures(3, 28, 40, 3)
    free = {0: "batch", 1: "height", 2: "width"}
    got = run(Encoder(vae), pictures(2, 16, 24, 3), image, ("mean", "logvar"), free, tmp_path / "encoder.onnx")
    with torch.inference_mode():
        for mine, want in zip(got, Encoder(vae)(image), strict=True):
            close(mine, want)


def test_the_engines_hold_no_second_copy(vae: Any) -> None:
    """Both halves share the autoencoder's own tensors."""
    own = {id(value) for value in vae.parameters()}
    halves = [*Decoder(vae).parameters(), *Encoder(vae).parameters()]
    assert {id(value) for value in halves} == own
