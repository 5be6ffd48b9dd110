"""Vec2Face's recipe: reduced networks in the published files' form become a bundle whose engines agree with torch."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facesdk.bundle import Bundle
from facesdk.card import Card
from facesdk.encoder import Encoder
from facesdk.errors import ConversionError
from facesdk.files import sha256
from facesdk.synthesis.attributes import AttributeOptions
from facesdk.synthesis.dataset import write_dataset
from facesdk.synthesis.generate import SynthesisOptions
from facesdk.synthesis.masks import MaskLaw, token_masks
from facesdk.synthesis.networks import SynthesisNetworks
from tests.engine_calls import assert_all_said, assert_served, recorded

torch = pytest.importorskip("torch", reason="the export room needs torch")
pytest.importorskip("onnxscript", reason="the export room needs onnxscript")

from torch import Tensor  # noqa: E402

from facesdk_export.attribute_step import IdentityTerm, PoseTerm, QualityTerm, Term, attribute_step  # noqa: E402
from facesdk_export.bundles import export  # noqa: E402
from facesdk_export.checkpoints import read_checkpoint  # noqa: E402
from facesdk_export.networks import IResNet, SixDRepNet, euler_angles  # noqa: E402
from facesdk_export.networks.vec2face import Generator, ImageDecoder  # noqa: E402
from facesdk_export.networks.vec2face_plus import ALPHA, PosedGenerator  # noqa: E402
from facesdk_export.recipes import geometry  # noqa: E402
from facesdk_export.recipes import vec2face as recipe  # noqa: E402

SIZES = {"dim": 48, "depth": 1, "heads": 12, "decoder_dim": 48, "decoder_depth": 1, "decoder_heads": 16, "mlp_ratio": 2}
RANK = 2


def generator(kind: type[Generator] = Generator) -> Any:
    torch.manual_seed(0)
    network = kind(ImageDecoder(z=8, ch=32, ch_mult=(1,) * 5, blocks_per_level=1), **SIZES).eval()
    network.im_decoder.conv_out.weight.data.mul_(0.3)  # few pixels at the edge of clipping, where gradients jump
    return network


def iresnet(*_: Any) -> IResNet:
    return IResNet((1, 1), (4, 8))


def headpose(**more: Any) -> SixDRepNet:
    return SixDRepNet((1,), (8,), stem=8, grouped=(1,), **more)


class Sketch(torch.nn.Module):
    """A generator in little: of all that it computes, a picture of its encoder's input."""

    def __init__(self, generator: Any) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, vector: Tensor, keep: Tensor, masked: Tensor) -> Tensor:
        seen = self.generator._chosen(keep, vector.dtype).sum(1)[..., None]
        row = torch.where(masked[..., None], 0.1, seen * self.generator.rows(vector)).sum(1)
        row = row[:, None, :, None].repeat(1, 3, 3, 112)
        return torch.tanh(row[:, :, :112])


class Brightness(Term):
    """An estimator of one's own."""

    names = ("brightness",)

    def forward(self, image: Tensor, reference: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        found = image.mean((1, 2, 3))[:, None]
        return found, (found - targets).abs()


@pytest.fixture(autouse=True, scope="module")
def _reduced() -> Any:
    """Files do not tell the widths of these networks, so that the recipe builds the published ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "iresnet_of", iresnet)
        patch.setattr(geometry, "SixDRepNet", headpose)
        yield


@pytest.fixture(scope="module")
def networks() -> dict[str, Any]:
    found = {
        "generator": generator(), "arcface": iresnet(), "magface": iresnet(), "headpose": headpose(),
        "pose_generator": generator(PosedGenerator),
    }  # fmt: skip
    with torch.no_grad():
        found["headpose"].linear_reg.bias.normal_(generator=torch.Generator().manual_seed(3))
    return {name: network.eval() for name, network in found.items()}


def split(weight: Tensor) -> dict[str, Tensor]:
    """A weight as Vec2Face+ stores it: base and low-rank update."""
    a, b = torch.randn(RANK, weight.shape[1]), torch.randn(len(weight), RANK)
    return {"base.weight": weight - ALPHA / RANK * b @ a, "A": a, "B": b}


def pose_file(network: Any) -> dict[str, Any]:
    face: dict[str, Tensor] = {"decoder_embed.weight": torch.zeros(1)}
    pose = {}
    for name, value in network.state_dict().items():
        root, _, kind = name.rpartition(".")
        if name.startswith("pose_model."):
            pose[name.removeprefix("pose_model.")] = value
        elif root.endswith(("qkv", "proj")) and "attn" in root:
            face |= (
                {f"{root}.{key}": part for key, part in split(value).items()}
                if kind == "weight"
                else {f"{root}.base.bias": value}
            )
        else:
            face[name] = value
    return {"model_vec2face": face, "pose_model": pose, "epoch": 30}


@pytest.fixture(scope="module")
def files(networks: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    paths = {name: folder / f"{name}.pth" for name in networks}
    unused = {"center_token.weight": torch.zeros(1), "extra.weight": torch.zeros(1)}
    torch.save({"model_vec2face": {**networks["generator"].state_dict(), **unused}}, paths["generator"])
    for name in ("arcface", "magface", "headpose"):
        torch.save(networks[name].state_dict(), paths[name])
    torch.save(pose_file(networks["pose_generator"]), paths["pose_generator"])
    return paths


@pytest.fixture(scope="module")
def bundle(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Of all files, with an estimator of one's own."""
    mine = dataclasses.replace(recipe.VEC2FACE, parts=partial(recipe.vec2face_parts, terms=[Brightness()]))
    folder = tmp_path_factory.mktemp("out") / "bundle"
    with pytest.MonkeyPatch.context() as patch:  # a whole generator's step takes the exporter most of a minute
        patch.setattr(recipe, "attribute_step", lambda generator, terms: attribute_step(Sketch(generator), terms))
        export(mine, files, folder)
    return Bundle(folder)


def test_plans_serve_every_call(bundle: Bundle, synthesis_bundle: Bundle, tmp_path: Path) -> None:
    """Calls of a bundle with the same signatures, whose engines take no time."""
    assert_all_said(bundle)
    vectors = np.random.default_rng(2).normal(0, 1.2, (40, 512)).astype(np.float32)
    with SynthesisNetworks(synthesis_bundle, "cpu") as networks, recorded() as calls:
        write_dataset(networks, vectors, tmp_path, "a", SynthesisOptions(images=2), AttributeOptions(steps=2))
    assert max(call.shapes["vector"][0] for call in calls if call.engine == "step") == SynthesisOptions().step_batch
    assert_served(bundle, calls, {"generator", "step", "encoder", "quality", "pose"})


def run(bundle: Bundle, engine: str, **inputs: Any) -> dict[str, Any]:
    with bundle.open(engine, "cpu", threads=1) as opened:
        return opened(**{name: np.asarray(value) for name, value in inputs.items()})


def masks(count: int, law: MaskLaw) -> dict[str, Tensor]:
    rng = np.random.default_rng(7)
    found = token_masks(rng.random((count, 49)), np.linspace(law.minimum, law.maximum, count), law)
    return {"keep": torch.from_numpy(found.keep), "masked": torch.from_numpy(found.masked)}


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(11))


def pictures(count: int) -> Any:
    return np.random.default_rng(2).integers(0, 256, (count, 112, 112, 3), np.uint8)


def faces(count: int) -> Tensor:
    return torch.from_numpy(pictures(count).transpose(0, 3, 1, 2) / np.float32(127.5) - 1)


def close(got: Any, want: Tensor, tolerance: float = 1e-4) -> None:
    """Within so many standard deviations."""
    np.testing.assert_allclose(got, want.numpy(), rtol=0, atol=tolerance * float(want.std()))


# -- the bundle -----------------------------------------------------------------------------------------------


def test_engines_constants_and_origin(bundle: Bundle, files: dict[str, Path]) -> None:
    bundle.verify()
    assert bundle.engine_names == ("generator", "step", "encoder", "quality", "pose", "pose_generator")
    assert (bundle.about["system"], bundle.about["licence"]) == ("vec2face", "MIT AND LicenseRef-unknown")
    assert bundle.constants["synthesis"] == {
        "size": 112, "vector": 512, "tokens": 50,
        "mask_minimum": 0.1, "mask_maximum": 1.0, "mask_mu": 0.15, "mask_std": 0.25,
    }  # fmt: skip
    assert bundle.constants["attributes"] == {"terms": ["identity", "quality", "yaw", "pitch", "roll", "brightness"]}
    digests = {name: sha256(path) for name, path in files.items()}
    made_of = {
        "generator": ["generator"], "step": ["generator", "arcface", "magface", "headpose"], "encoder": ["arcface"],
        "quality": ["magface"], "pose": ["headpose"], "pose_generator": ["pose_generator"],
    }  # fmt: skip
    for engine, names in made_of.items():
        card = Card.read(bundle.forms(engine)["default"])
        assert card.source_sha256 == " + ".join(digests[name] for name in names)
        assert card.licence == ("LicenseRef-unknown" if engine == "pose_generator" else "MIT")
        with bundle.open(engine, "cpu") as opened:
            assert {tensor.name for tensor in opened.inputs} == card.inputs.keys() == card.example_shapes.keys()
            assert {tensor.name for tensor in opened.outputs} == card.outputs.keys() == card.deviation.keys()
            assert {tensor.shape[0] for tensor in (*opened.inputs, *opened.outputs)} == {"batch"}


@pytest.mark.parametrize("count", [1, 3])
def test_the_generator(bundle: Bundle, networks: dict[str, Any], count: int) -> None:
    inputs = {"vector": normal(count, 512), **masks(count, MaskLaw())}
    with torch.no_grad():
        want = networks["generator"](*inputs.values())
    close(run(bundle, "generator", **inputs)["image"], want)


def test_the_encoder_is_one_of_the_sdk(bundle: Bundle, networks: dict[str, Any], files: dict[str, Path]) -> None:
    encoder = Encoder(bundle, "cpu", 1)
    assert encoder.space.model == f"arcface-{sha256(files['arcface'])[:8]}"
    with torch.no_grad():
        close(encoder.vectors(list(pictures(3))), networks["arcface"](faces(3)))
    encoder.close()


def test_measures(bundle: Bundle, networks: dict[str, Any]) -> None:
    """Quality: the length of the vector.  Pose: of the picture as BGR in [0, 1]."""
    with torch.no_grad():
        lengths = networks["magface"](faces(3)).norm(dim=1)
        angles = euler_angles(networks["headpose"]((faces(3).flip(1) + 1) / 2)) * (180 / torch.pi)
    np.testing.assert_allclose(run(bundle, "quality", image=pictures(3))["quality"], lengths, rtol=1e-5)
    np.testing.assert_allclose(run(bundle, "pose", image=pictures(3))["angles"], angles, atol=1e-3)


@pytest.mark.parametrize("count", [1, 3])
def test_the_step(bundle: Bundle, networks: dict[str, Any], count: int) -> None:
    measured = IdentityTerm(networks["arcface"]), QualityTerm(networks["magface"]), PoseTerm(networks["headpose"])
    step = attribute_step(Sketch(networks["generator"]), [*measured, Brightness()])
    inputs = {
        "vector": normal(count, 512), "reference": normal(count, 512).flip(1), **masks(count, MaskLaw()),
        "targets": 30 + normal(count, 6), "weights": 1 + normal(count, 6).abs(),
    }  # fmt: skip
    got = run(bundle, "step", **inputs)
    names = ("gradient", "image", "values", "losses")
    for name, want in zip(names, step(*inputs.values()), strict=True):
        close(got[name], want, recipe.GRADIENT_TOLERANCE if name == "gradient" else 1e-4)


def test_the_pose_generator(bundle: Bundle, networks: dict[str, Any]) -> None:
    """Low-rank updates folded, its own masks, the landmarks as one more input."""
    assert bundle.constants["pose_synthesis"] == {
        "mask_minimum": 0.8, "mask_maximum": 0.9, "mask_mu": 0.85, "mask_std": 0.05,
    }  # fmt: skip
    landmarks = normal(2, 3, 112, 112).clamp(-1, 1)
    inputs = {"vector": normal(2, 512), **masks(2, recipe.POSE_LAW), "landmarks": landmarks}
    assert inputs["keep"].shape == (2, 10)
    with torch.no_grad():
        want = networks["pose_generator"](*inputs.values())
    close(run(bundle, "pose_generator", **inputs)["image"], want, 2e-3)  # the stored base is rounded


def test_the_step_of_a_whole_generator(files: dict[str, Path]) -> None:
    """What is traced computes what autograd does with the published networks, for another count of rows too."""
    part = parts_of(files, "generator", "arcface", "magface", "headpose")["step"]
    inputs = {name: torch.cat((value, value.flip(0)))[:3] for name, value in part.inputs.items()}
    assert part.reference is not None
    with torch.no_grad():
        got = part.module(*inputs.values())
        for name, value, want in zip(part.outputs, got, part.reference(*inputs.values()), strict=True):
            close(value, want, part.tolerances.get(name, 1e-4))


# -- what the files decide ------------------------------------------------------------------------------------


@pytest.fixture
def untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "plain_graph", lambda step, inputs: step)


def parts_of(files: dict[str, Path], *names: str) -> Any:
    return recipe.vec2face_parts(**{name: read_checkpoint(files[name]) for name in names})


@pytest.mark.usefixtures("untraced")
def test_without_a_head_pose_file(files: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    found = parts_of(files, "generator", "arcface", "magface")
    assert list(found) == ["generator", "step", "encoder", "quality"]
    assert found["step"].constants == {"attributes": {"terms": ["identity", "quality"]}}
    assert found["step"].inputs["targets"].shape == found["step"].inputs["weights"].shape == (2, 2)
    assert not found["step"].half
    assert "unused: extra.weight" in caplog.text
    assert "center_token" not in caplog.text


@pytest.mark.usefixtures("untraced")
def test_example_masks_drop_five_and_hide_several(files: dict[str, Path]) -> None:
    inputs = parts_of(files, "generator", "arcface", "magface")["generator"].inputs
    assert inputs["keep"].shape == (2, 45)
    hidden = inputs["masked"].sum(1).tolist()
    assert 5 < hidden[0] < hidden[1]


@pytest.mark.parametrize(
    ("name", "instead", "says"),
    [
        ("generator", "arcface", "are missing: .*latent_prior_proj_f"),
        ("generator", "pose_generator", "are missing: .*attn.qkv.weight"),
        ("arcface", "generator", "are missing: conv1.weight"),
        ("headpose", "arcface", "are missing: layer0"),
        ("pose_generator", "generator", "holds no table 'pose_model'"),
    ],
)
def test_another_file_than_the_published(files: dict[str, Path], name: str, instead: str, says: str) -> None:
    with pytest.raises(ConversionError, match=says):
        parts_of({**files, name: files[instead]}, "generator", "arcface", "magface", "headpose", "pose_generator")
