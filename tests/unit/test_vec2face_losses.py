"""Vec2Face's training: discriminator entries, losses term by term, where gradients go, learning rates."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from facesdk.errors import UsageError
from tests.parity.reference import ROOT

torch = pytest.importorskip("torch", reason="the export room needs torch")

from torch import nn  # noqa: E402

from facesdk_export.networks.lpips import LPIPS  # noqa: E402
from facesdk_export.networks.vec2face_discriminator import Discriminator  # noqa: E402
from facesdk_export.networks.vec2face_losses import (  # noqa: E402
    GeneratorLoss,
    GeneratorTerms,
    LossWeights,
    Schedule,
    Ssim,
    adversarial_weight,
    discriminator_loss,
    generator_scores,
    learning_rate_of,
)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def small_discriminator() -> Discriminator:
    return Discriminator((16, 16, 24), groups=8)


# -- discriminator ----------------------------------------------------------------------------------------


@pytest.mark.skipif(not ROOT.is_dir(), reason=f"no reference folder at {ROOT}; set FACESDK_REFERENCE")
def test_discriminator_has_the_published_entries_and_no_others() -> None:
    files = json.loads((ROOT / "vec2face" / "state_dict.json").read_text(encoding="utf-8"))
    want = {name: tuple(shape) for name, shape in files["checkpoint-*.pth:model_disc"]["entries"].items()}
    with torch.device("meta"):
        entries = Discriminator().state_dict()
    assert {name: tuple(value.shape) for name, value in entries.items()} == want
    assert sum(value.numel() for value in entries.values()) == 6_139_393


@pytest.mark.skipif(not ROOT.is_dir(), reason=f"no reference folder at {ROOT}; set FACESDK_REFERENCE")
def test_lpips_has_the_entries_of_the_published_file() -> None:
    files = json.loads((ROOT / "vec2face" / "state_dict.json").read_text(encoding="utf-8"))
    want = {name: tuple(shape) for name, shape in files["lpips/vgg.pth"]["entries"].items() if name.startswith("lin")}
    with torch.device("meta"):
        entries = GeneratorLoss(nn.Identity()).lpips.state_dict()
    heads = {name: tuple(value.shape) for name, value in entries.items() if name.startswith("lin")}
    assert heads == want


def test_discriminator_scores_patches() -> None:
    with torch.device("meta"):
        assert Discriminator()(torch.empty(2, 3, 112, 112)).shape == (2, 1, 11, 11)
    widths = [conv.out_channels for conv in Discriminator((30, 32)).layers[0][0].convs]
    assert widths == [15, 7, 8]


# -- LPIPS ------------------------------------------------------------------------------------------------


def test_lpips_floor_changes_short_features_only() -> None:
    lpips, floored = LPIPS().eval(), LPIPS(1e-4, named_twice=False).eval()
    floored.load_state_dict({name: value for name, value in lpips.state_dict().items() if "lins." not in name})
    first, second = torch.rand(2, 1, 3, 16, 16) * 2 - 1
    torch.testing.assert_close(floored(first, second), lpips(first, second), rtol=1e-4, atol=0)
    floored.floor = 1e3
    assert float(floored(first, second).detach()) != pytest.approx(float(lpips(first, second).detach()), rel=0.5)


# -- SSIM -------------------------------------------------------------------------------------------------


def slow_ssim(a: np.ndarray, b: np.ndarray, window: int, sigma: float) -> float:
    """Over every place where the window fits, one at a time."""
    line = np.exp(-((np.arange(window) - window // 2) ** 2) / (2 * sigma**2))
    weights = np.outer(line, line) / np.outer(line, line).sum()
    values = []
    for channel in range(len(a)):
        for top in range(a.shape[1] - window + 1):
            for left in range(a.shape[2] - window + 1):
                x, y = (picture[channel, top : top + window, left : left + window] for picture in (a, b))
                mx, my = (weights * x).sum(), (weights * y).sum()
                vx, vy = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum()
                cov = (weights * (x - mx) * (y - my)).sum()
                c1, c2 = 0.01**2, 0.03**2
                values.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return float(np.mean(values))


@pytest.mark.parametrize(("window", "sigma"), [(11, 1.5), (7, 2.0)])
def test_ssim_is_that_of_the_definition(window: int, sigma: float) -> None:
    rng = np.random.default_rng(0)
    a = rng.random((3, 15, 17))
    b = 0.7 * a + 0.3 * rng.random(a.shape)
    got = Ssim(window, sigma)(*(torch.from_numpy(x[None]).float() for x in (a, b)))
    assert float(got) == pytest.approx(slow_ssim(a, b, window, sigma), abs=1e-5)


def test_ssim_is_computed_in_float32_under_autocast() -> None:
    a, b = torch.rand(2, 2, 3, 20, 20)
    want = Ssim()(a, b)
    with torch.autocast("cpu", torch.bfloat16):
        got = Ssim()(a, b)
    assert got.dtype == torch.float32
    assert torch.equal(got, want)


# -- generator --------------------------------------------------------------------------------------------


class Identity(nn.Module):
    """A linear encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 16 * 16, 8)

    def forward(self, picture: Any) -> Any:
        return self.layer(picture.flatten(1))


@pytest.fixture(scope="module")
def loss() -> GeneratorLoss:
    torch.manual_seed(0)
    return GeneratorLoss(Identity()).requires_grad_(False).eval()


@pytest.fixture
def batch() -> dict[str, Any]:
    return {
        "vector": torch.randn(2, 8), "rows": torch.randn(2, 50, 6), "tokens": torch.randn(2, 50, 6),
        "picture": 0.8 * torch.randn(2, 3, 16, 16), "truth": torch.rand(2, 3, 16, 16) * 2 - 1,
    }  # fmt: skip


def test_terms_are_those_of_the_definition(loss: GeneratorLoss, batch: dict[str, Any]) -> None:
    scores = torch.randn(2, 1, 3, 3)
    terms = loss(**batch, scores=scores)
    picture, truth = batch["picture"], batch["truth"]
    assert float(terms.reconstruction) == pytest.approx(float(((picture - truth) ** 2).mean()))
    torch.testing.assert_close(terms.perceptual, 2 * loss.lpips(picture, truth)[:, 0, 0, 0])
    assert float(terms.ssim) == pytest.approx(1 - float(Ssim()((picture + 1) / 2, (truth + 1) / 2)))
    token = ((batch["tokens"] - batch["rows"]) ** 2)[:, 1:].mean()
    assert float(terms.token) == pytest.approx(float(token))
    a, b = batch["vector"], loss.identity(picture)
    cosines = (a * b).sum(1) / a.norm(dim=1) / b.norm(dim=1)
    assert float(terms.feature) == pytest.approx(float((1 - cosines).mean()), abs=1e-6)
    assert float(terms.adversarial) == pytest.approx(-float(scores.mean()))
    assert float(loss(**batch).adversarial) == 0


def test_total_weighs_as_published() -> None:
    terms = GeneratorTerms(*map(torch.tensor, (1.0, [10.0, 30.0], 3.0, 4.0, 5.0, 6.0)))
    assert float(terms.total(LossWeights())) == pytest.approx(1 + 0.1 * 20 + 0.1 * 3 + 4 + 5 + 6)
    assert float(terms.total(LossWeights(adversarial=0))) == pytest.approx(12.3)
    first_release = LossWeights(perceptual=1, ssim=1)
    assert float(terms.total(first_release)) == pytest.approx(1 + 20 + 3 + 4 + 5 + 6)


def test_rows_are_a_target_without_gradient(loss: GeneratorLoss, batch: dict[str, Any]) -> None:
    for name in ("rows", "tokens", "picture"):
        batch[name].requires_grad_()
    loss(**batch).total(LossWeights()).backward()
    assert batch["rows"].grad is None
    assert batch["tokens"].grad[:, 0].abs().max() == 0
    assert batch["tokens"].grad[:, 1:].abs().min() > 0
    assert batch["picture"].grad.abs().max() > 0


# -- adversarial ------------------------------------------------------------------------------------------


def test_scores_reach_the_picture_and_not_the_discriminator_unless_they_leak() -> None:
    network = small_discriminator()
    pictures = [torch.rand(1, 3, 16, 16, requires_grad=True) for _ in range(2)]
    pictures[1].data.copy_(pictures[0])
    fixed = generator_scores(network, pictures[0])
    fixed.mean().backward()
    assert all(weight.grad is None for weight in network.parameters())
    leaking = generator_scores(network, pictures[1], leak=True)
    leaking.mean().backward()
    assert torch.equal(fixed, leaking)
    assert torch.equal(pictures[0].grad, pictures[1].grad)
    assert pictures[0].grad.abs().max() > 0
    assert all(weight.grad is not None for weight in network.parameters())
    assert all(weight.requires_grad for weight in network.parameters())


def test_discriminator_loss() -> None:
    real, fake = torch.tensor([0.5, 1.0]), torch.tensor([0.5, -1.0])
    assert float(discriminator_loss(real, fake)) == pytest.approx(0.5 * (0.125 + 0.625))
    assert float(discriminator_loss(real, fake, 0)) == 0


def test_the_discriminator_judges_from_its_epoch_on() -> None:
    assert [adversarial_weight(epoch, 3) for epoch in range(5)] == [0, 0, 0, 1, 1]
    assert [adversarial_weight(epoch) for epoch in (79, 80)] == [0, 1]


# -- learning rate ----------------------------------------------------------------------------------------


def test_schedule_of_the_readme() -> None:
    schedule = Schedule()
    assert schedule.lr == pytest.approx(4.5714e-5, rel=1e-4) == learning_rate_of(4e-5, 128)
    assert [schedule(epoch) / schedule.lr for epoch in (0, 1, 2.5, 5)] == pytest.approx([0, 0.2, 0.5, 1])
    assert schedule(5 + 95 / 2) == pytest.approx(schedule.lr / 2)
    assert schedule(100) == pytest.approx(0, abs=1e-20)
    assert schedule(5 + 95 / 3) == pytest.approx(schedule.lr * (1 + math.cos(math.pi / 3)) / 2)


def test_schedule_ends_at_the_least_rate() -> None:
    schedule = Schedule(1e-3, 0, 10, 1e-5)
    assert schedule(0) == 1e-3
    assert schedule(10) == pytest.approx(1e-5)
    assert all(schedule(k / 10) >= schedule((k + 1) / 10) for k in range(100))


@pytest.mark.parametrize(("warmup", "epochs"), [(10, 10), (-1, 10), (5, 0)])
def test_schedules_that_cannot_be_run(warmup: float, epochs: float) -> None:
    with pytest.raises(UsageError):
        Schedule(1e-3, warmup, epochs)
