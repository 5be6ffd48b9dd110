"""Autograd as a plain graph: every rule against autograd itself, rows by themselves, and the step on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from facesdk.engine import Engine
from facesdk.errors import ConversionError, ToleranceExceeded
from facesdk_export import gradient_rules
from facesdk_export.attribute_step import (
    AttributeStep,
    IdentityTerm,
    PoseTerm,
    QualityTerm,
    Term,
    angles,
    attribute_step,
)
from facesdk_export.gradients import plain_graph
from facesdk_export.networks import IResNet, SixDRepNet, euler_angles, iresnet_engines, vec2face_engines
from facesdk_export.networks.vec2face import Generator, ImageDecoder
from facesdk_export.onnx_export import trace

OUTPUTS = ("gradient", "image", "values", "losses")


class Gradient(nn.Module):
    """Gradient of sum(network(x) * direction) with respect to x, and network(x)."""

    def __init__(self, network: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            out = self.network(x)
            (gradient,) = torch.autograd.grad((out * direction).sum(), x)
        return gradient, out.detach()


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seeded(module: nn.Module) -> nn.Module:
    """Frozen, in float64, its parameters not what a rule could get right by accident."""
    for seed, parameter in enumerate(module.parameters()):
        parameter.data = 0.3 * random(*parameter.shape, seed=seed)
    return module.double().eval().requires_grad_(False)


def held_against_autograd(network: Callable[[Tensor], Tensor], *shape: int) -> torch.fx.GraphModule:
    """The plain graph of the network's gradient, after comparing both on other rows than it was traced with."""
    step = Gradient(network)
    graph = plain_graph(step, {"x": random(2, *shape), "direction": network(random(2, *shape, seed=1))})
    assert isinstance(graph, torch.fx.GraphModule)
    x = random(3, *shape, seed=2)
    direction = torch.randn_like(network(x))
    for got, want in zip(graph(x, direction), step(x, direction), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)
    return graph


def transposed_convolutions(graph: torch.fx.GraphModule) -> int:
    calls = [node for node in graph.graph.nodes if node.target == torch.ops.aten.convolution.default]
    return sum(node.args[6] for node in calls)


# -- rules ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "groups", "dilation"),
    [(3, 1, 1, 1, 1), (3, 1, 0, 2, 1), (3, 1, 2, 1, 2), (1, 1, 0, 1, 1), (3, 2, 1, 1, 1), (3, 2, 1, 2, 1),
     (1, 2, 0, 1, 1), (2, 3, 0, 1, 1), ((3, 1), 2, (1, 0), 1, 1)],
)  # fmt: skip
def test_a_convolutions_gradient_is_an_ordinary_convolution(
    kernel: int, stride: int, padding: int, groups: int, dilation: int
) -> None:
    graph = held_against_autograd(seeded(nn.Conv2d(4, 6, kernel, stride, padding, dilation, groups)), 4, 9, 8)
    assert not transposed_convolutions(graph)


# the last leaves a row of the odd side out
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, (2, 1), 1), (3, 1, 3), (4, 2, 1)])
def test_unusual_convolutions_stay_transposed(kernel: int, stride: tuple[int, int] | int, padding: int) -> None:
    graph = held_against_autograd(seeded(nn.Conv2d(4, 6, kernel, stride, padding)), 4, 9, 8)
    assert transposed_convolutions(graph) == 1


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(4, 2, 1), (3, 2, 1), (3, 1, 1)])
def test_transposed_convolutions_become_ordinary(kernel: int, stride: int, padding: int, groups: int) -> None:
    network = seeded(nn.ConvTranspose2d(4, 6, kernel, stride, padding, groups=groups))
    assert not transposed_convolutions(held_against_autograd(network, 4, 5, 6))


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (seeded(nn.PReLU(4)), (4, 3, 3)),
        (seeded(nn.PReLU(1)), (4,)),
        (nn.ReLU(), (4, 3)),
        (nn.GELU(), (4, 3)),
        (nn.GELU(approximate="tanh"), (4, 3)),
        (nn.SiLU(), (4, 3)),
        (nn.Softmax(-1), (4, 3)),
        (seeded(nn.LayerNorm(6)), (5, 6)),
        (nn.LayerNorm((5, 6), elementwise_affine=False), (5, 6)),
        (seeded(nn.GroupNorm(2, 6)), (6, 4, 5)),
        (nn.GroupNorm(3, 6, affine=False), (6, 4, 5)),
        (seeded(nn.BatchNorm2d(4)), (4, 3, 5)),
        (lambda x: x[:, 1:3] * x[:, 3:] * x[:, -1:], (5, 4)),
        (lambda x: x[:, 2] * x[:, -1], (5, 4)),
        (lambda x: x[:, :1] * torch.ones(5, 4, dtype=x.dtype), (5, 4)),
        (lambda x: x.sum(1) * x.mean((1, 2), keepdim=True)[:, 0], (5, 4)),
        (lambda x: torch.linalg.vector_norm(x, dim=1), (5, 4)),
    ],
)
def test_rules_agree_with_autograd(network: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
    held_against_autograd(network, *shape)


def test_an_operator_without_a_rule_is_named() -> None:
    step = Gradient(
        lambda x: functional.fractional_max_pool2d(x, 2, output_size=2, _random_samples=x[:, :, 0, :2].detach())
    )
    with pytest.raises(ConversionError, match="fractional_max_pool2d_backward"):
        plain_graph(step, {"x": random(2, 3, 6, 6), "direction": random(2, 3, 2, 2)})


def test_weights_are_not_differentiated() -> None:
    layer = nn.Conv2d(3, 3, 1)

    class Trains(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.enable_grad():
                return torch.autograd.grad(layer(x).sum(), layer.weight)[0]

    with pytest.raises(ConversionError, match="weights"):
        plain_graph(Trains(), {"x": torch.zeros(2, 3, 4, 4)})


def test_the_graph_is_held_against_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = dict(gradient_rules.rules())
    wrong[torch.ops.aten.silu_backward.default] = lambda grad, x: grad * torch.sigmoid(x)
    monkeypatch.setattr("facesdk_export.gradients.rules", lambda: wrong)
    with pytest.raises(ToleranceExceeded, match="output 0"):
        plain_graph(Gradient(nn.SiLU()), {"x": random(2, 9), "direction": random(2, 9, seed=1)})


def test_one_row_is_not_enough_to_trace() -> None:
    with pytest.raises(ConversionError, match="one row"):
        plain_graph(Gradient(nn.SiLU()), {"x": random(1, 9), "direction": random(1, 9)})


# -- the step ---------------------------------------------------------------------------------------------


class Brightness(Term):
    """An estimator that is not among the published ones."""

    names = ("brightness",)

    def forward(self, image: Tensor, reference: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        value = image.mean((1, 2, 3))[:, None]
        return value, (targets - value) ** 2


def small_step() -> AttributeStep:
    """All terms and one more, in the forms that become engines, on pictures of 28 x 28."""
    torch.manual_seed(0)
    generator = Generator(
        ImageDecoder(32, 32, (1, 2, 1), 1), dim=48, depth=1, heads=3, decoder_dim=48, decoder_depth=1, decoder_heads=4
    )
    arcface, magface = (iresnet_engines.export_form(IResNet((1, 1), (16, 32), input_size=28).eval()) for _ in range(2))
    pose = SixDRepNet((2, 1), (16, 32), stem=16, grouped=(2,))
    terms = [IdentityTerm(arcface), QualityTerm(magface), PoseTerm(pose), Brightness()]
    return attribute_step(vec2face_engines.export_form(generator.eval()), terms)


def step_inputs(rows: int) -> dict[str, Tensor]:
    rng = np.random.default_rng(0)
    keep = np.stack([np.sort(np.append(0, 1 + rng.permutation(49)[:44])) for _ in range(rows)])
    masked = np.ones((rows, 50), bool)
    np.put_along_axis(masked, keep[:, :40], False, 1)
    arrays = {
        "vector": rng.standard_normal((rows, 512), np.float32),
        "reference": rng.standard_normal((rows, 512), np.float32), "keep": keep, "masked": masked,
        "targets": np.tile(np.float32([0, 27, 45, 5, -5, 0.5]), (rows, 1)),
        "weights": np.tile(np.float32([100, 1, 1, 1, 1, 10]), (rows, 1)),
    }  # fmt: skip
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def first(inputs: dict[str, Tensor], rows: int) -> dict[str, Tensor]:
    return {name: tensor[:rows] for name, tensor in inputs.items()}


def test_rows_are_independent() -> None:
    step, inputs = small_step(), step_inputs(3)
    assert step.names == ("identity", "quality", "yaw", "pitch", "roll", "brightness")
    for among, alone in zip(step(*inputs.values()), step(*first(inputs, 1).values()), strict=True):
        assert float((among[:1] - alone).norm() / alone.norm()) < 1e-5


def test_a_term_without_weight_has_no_part_in_the_gradient() -> None:
    step, inputs = small_step(), step_inputs(2)
    inputs["weights"] = torch.tensor([[100.0, 0, 0, 0, 0, 0]]).repeat(2, 1)
    only = attribute_step(step.generator, list(step.terms)[:1])
    narrow = inputs | {name: inputs[name][:, :1] for name in ("targets", "weights")}
    torch.testing.assert_close(step(*inputs.values())[0], only(*narrow.values())[0], rtol=0, atol=0)


def test_the_exported_step_gives_a_row_the_same_bytes_in_every_batch(tmp_path: Path) -> None:
    step, inputs = small_step(), step_inputs(5)
    trace(plain_graph(step, inputs), inputs, OUTPUTS, tmp_path / "step.onnx", {0: "batch"})
    with Engine.open(tmp_path / "step.onnx", "cpu") as engine:
        results = {n: engine(**{name: t.numpy() for name, t in first(inputs, n).items()}) for n in (1, 2, 5)}
    for name, want in zip(OUTPUTS, step(*inputs.values()), strict=True):
        got = results[5][name]
        assert np.linalg.norm(got - want.numpy()) < 1e-3 * np.linalg.norm(want.numpy()), name
        for rows in (1, 2):
            np.testing.assert_array_equal(results[rows][name], got[:rows], err_msg=f"{name} of {rows}")


# -- head pose --------------------------------------------------------------------------------------------


def rotation(yaw: float, pitch: float, roll: float) -> Tensor:
    """z(roll) @ y(yaw) @ x(pitch), degrees."""
    (cy, cp, cr), (sy, sp, sr) = (f(torch.deg2rad(torch.tensor([yaw, pitch, roll]))) for f in (torch.cos, torch.sin))
    x = torch.tensor([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    y = torch.tensor([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    z = torch.tensor([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return z @ y @ x


def test_angles_are_the_euler_angles_and_differentiable_everywhere() -> None:
    locked = torch.tensor([[0.0, 0.6, 0.8], [0, 0.8, -0.6], [-1, 0, 0]])
    matrices = torch.stack([rotation(30, 10, -20), rotation(0, 0, 0), locked, torch.zeros(3, 3)]).requires_grad_()
    got = angles(matrices)
    torch.testing.assert_close(got.detach(), euler_angles(matrices.detach()), rtol=0, atol=1e-7)
    torch.testing.assert_close(got[0].detach().rad2deg(), torch.tensor([10.0, 30.0, -20.0]), rtol=0, atol=1e-4)
    (gradient,) = torch.autograd.grad(got.sum(), matrices)
    assert gradient.isfinite().all()
    assert gradient[0].any()
    assert not gradient[2:].any()


@pytest.mark.parametrize(("yaw", "loss"), [(40.0, 5.0), (-40.0, 5.0), (50.0, 5.0)])
def test_yaw_counts_to_either_side(yaw: float, loss: float) -> None:
    seen: list[Tensor] = []

    class Turned(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            seen.append(image)
            return rotation(yaw, 3, -7)[None]

    image = torch.linspace(-1, 1, 48).reshape(1, 3, 4, 4)
    values, losses = PoseTerm(Turned())(image, torch.zeros(1, 512), torch.tensor([[45.0, 5.0, -5.0]]))
    torch.testing.assert_close(values, torch.tensor([[yaw, 3.0, -7.0]]), rtol=0, atol=1e-4)
    torch.testing.assert_close(losses, torch.tensor([[loss, 2.0, 2.0]]), rtol=0, atol=1e-4)
    torch.testing.assert_close(seen[0], (image[:, [2, 1, 0]] + 1) / 2)
