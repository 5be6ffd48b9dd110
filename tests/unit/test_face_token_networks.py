"""Face2Diffusion's networks beside Stable Diffusion: published files become engines; other files are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facesdk.annotation.alignment import align, arcface_template, five_of_68
from facesdk.bundle import Bundle
from facesdk.card import Card
from facesdk.encoder import Encoder
from facesdk.errors import ConversionError, UsageError
from facesdk.files import sha256
from tests.parity.reference import ROOT

torch = pytest.importorskip("torch", reason="the export room needs torch")
pytest.importorskip("onnxscript", reason="the export room needs onnxscript")

from torch import Tensor, nn  # noqa: E402

from facesdk_export.bundles import Recipe, export  # noqa: E402
from facesdk_export.checkpoints import Checkpoint, read_checkpoint  # noqa: E402
from facesdk_export.networks import MSID, BiSeNet, MappingNetwork, PostFusion, mapping_of, msid_of  # noqa: E402
from facesdk_export.networks.cgdr import class_guided_loss, latent_mask  # noqa: E402
from facesdk_export.networks.msid import UNUSED  # noqa: E402
from facesdk_export.networks.postfuse import scattered  # noqa: E402
from facesdk_export.networks.recognition_training import PolynomialSchedule, cross_entropy  # noqa: E402
from facesdk_export.recipes.face_tokens import face_token_parts  # noqa: E402

DIM, TOKEN, EXPRESSION = 24, 20, 8
MF2D_MSID = "arcface_torch/work_dirs/msid_config/model.pt"
needs_reference = pytest.mark.skipif(not ROOT.is_dir(), reason=f"no reference folder at {ROOT}; set FACESDK_REFERENCE")


def normal(*shape: int, seed: int = 11) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random(module: nn.Module, seed: int) -> Any:
    """Every entry away from what a new module has, so that no step of it can be left out unseen."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator) * 0.3
            value.copy_(noise.abs() + 0.5 if name.endswith("running_var") else noise)
    return module.eval()


def encoder(**more: Any) -> MSID:
    return random(MSID((0, 1, 2, 3), patch=28, dim=DIM, depth=4, hidden=40, **more), 1)


def mapper(seed: int = 2, identity: int = 4 * DIM) -> MappingNetwork:
    return random(MappingNetwork(identity, 30, TOKEN, layers=2, expression=EXPRESSION), seed)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """As they are published: flat tables, the encoder's with the normalisation that it does not use."""
    folder = tmp_path_factory.mktemp("files")
    names = {"msid": "msid.pt", "mapping": "mapping.pt", "mf2d": "fmap_epoch49.pth"}
    unused = {"norm.weight": torch.ones(DIM), "norm.bias": torch.zeros(DIM)}
    entries = {"msid": encoder().state_dict() | unused, "mapping": mapper().state_dict(),
               "mf2d": mapper(3).state_dict()}  # fmt: skip
    for key, name in names.items():
        torch.save(entries[key], folder / name)
    return {key: folder / name for key, name in names.items()}


@pytest.fixture(scope="module")
def bundle(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    about = dict.fromkeys(("msid", "mapping", "mf2d"), "a file")
    recipe = Recipe("encoder", "faces as words", "LicenseRef-unknown", "unknown", face_token_parts, {}, about)
    folder = tmp_path_factory.mktemp("out") / "bundle"
    export(recipe, files, folder)
    return Bundle(folder)


def checkpoints(files: dict[str, Path]) -> dict[str, Checkpoint]:
    return {name: read_checkpoint(path) for name, path in files.items()}


def changed(checkpoint: Checkpoint, **entries: Tensor) -> Checkpoint:
    return Checkpoint(checkpoint.path, {**checkpoint.entries, **entries})


def without(checkpoint: Checkpoint, beginning: str) -> Checkpoint:
    kept = {name: value for name, value in checkpoint.entries.items() if not name.startswith(beginning)}
    assert len(kept) < len(checkpoint.entries)
    return Checkpoint(checkpoint.path, kept)


# -- the bundle -------------------------------------------------------------------------------------------


def test_engines_and_what_they_are_made_of(bundle: Bundle, files: dict[str, Path]) -> None:
    bundle.verify()
    assert bundle.engine_names == ("encoder", "mapping", "mapping_mf2d")
    assert bundle.constants == {
        "encoder": {"size": 112, "template": "arcface", "space": "msid", "preprocessing": "arcface-112 rgb [-1, 1]",
                    "normalised": False},
    }  # fmt: skip
    for engine, file in {"encoder": "msid", "mapping": "mapping", "mapping_mf2d": "mf2d"}.items():
        card = Card.read(bundle.forms(engine)["default"])
        assert card.source_sha256 == sha256(files[file])
        with bundle.open(engine, "cpu") as opened:
            assert {tensor.shape[0] for tensor in (*opened.inputs, *opened.outputs)} == {"batch"}


@pytest.mark.parametrize("count", [1, 3])
def test_the_encoder_is_one_of_the_sdk(bundle: Bundle, files: dict[str, Path], count: int) -> None:
    crops = np.random.default_rng(0).integers(0, 256, (count, 112, 112, 3), np.uint8)
    opened = Encoder(bundle, "cpu", 1)
    got = opened.vectors(list(crops))
    opened.close()
    with torch.no_grad():
        want = encoder()(torch.from_numpy(crops.transpose(0, 3, 1, 2) / np.float32(255)).sub(0.5).div(0.5))
    assert (opened.space.model, opened.space.width) == (f"msid-{sha256(files['msid'])[:8]}", 4 * DIM)
    assert not opened.space.normalised
    np.testing.assert_allclose(got, want, atol=1e-4 * float(want.std()))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(("engine", "seed"), [("mapping", 2), ("mapping_mf2d", 3)])
def test_mapping_with_and_without_an_expression(bundle: Bundle, engine: str, seed: int, count: int) -> None:
    network, identity, expression = mapper(seed), normal(count, 4 * DIM), normal(count, EXPRESSION, seed=12)
    with torch.no_grad():
        expected = {0.0: network(identity), 1.0: network(identity, expression)}
    assert (expected[0.0][0] - expected[1.0][0]).abs().max() > 0.1
    with bundle.open(engine, "cpu", threads=1) as opened:
        for given, want in expected.items():
            weight = np.full(count, given, np.float32)
            got = opened(identity=identity.numpy(), expression=expression.numpy(), given=weight)
            for name, tensor in zip(("first", "last"), want, strict=True):
                np.testing.assert_allclose(got[name], tensor, atol=1e-5)


def test_without_a_file_of_mf2d(files: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    found = checkpoints(files)
    del found["mf2d"]
    assert list(face_token_parts(**found)) == ["encoder", "mapping"]
    assert not caplog.records  # the unused normalisation is known


# -- other files ------------------------------------------------------------------------------------------


def test_an_entry_that_nothing_takes_is_named(files: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    found = checkpoints(files)
    face_token_parts(changed(found["msid"], head=torch.zeros(1)), found["mapping"])
    assert "unused: head" in caplog.text
    assert "norm.weight" not in caplog.text


@pytest.mark.parametrize(
    ("file", "entry"),
    [("msid", "cls_token"), ("msid", "norms.layer_1.1.bias"), ("msid", "blocks.2.attn.qkv.bias"),
     ("msid", "patch_embed.proj.weight"), ("mapping", "null_exp"), ("mf2d", "i2t_last.fc_out.weight"),
     ("mapping", "i2t_first.layers.0.0.weight")],
)  # fmt: skip
def test_a_missing_entry(files: dict[str, Path], file: str, entry: str) -> None:
    found = checkpoints(files)
    found[file] = without(found[file], entry)
    with pytest.raises(ConversionError, match=f"missing: .*{entry}") as caught:
        face_token_parts(**found)
    assert str(found[file].path) in caught.value.fact


def test_an_encoder_without_shallow_norms(files: dict[str, Path]) -> None:
    """As MF2D's own training saves it."""
    found = checkpoints(files)
    for tap in (0, 1, 2):
        found["msid"] = without(found["msid"], f"norms.layer_{tap}.")
        with pytest.raises(ConversionError, match=f"{3 - tap} of 4 taps: at depth .*3") as caught:
            face_token_parts(**found)
        assert "MF2D" in caught.value.cause
        assert "msid.pt" in caught.value.remedy


@pytest.mark.parametrize("file", ["mapping", "mf2d"])
def test_widths_that_do_not_fit_together(files: dict[str, Path], file: str) -> None:
    found = checkpoints(files)
    found[file] = Checkpoint(Path("other.pt"), mapper(identity=3 * DIM).state_dict())
    with pytest.raises(ConversionError, match=r"other\.pt maps identities of 72 numbers") as caught:
        face_token_parts(**found)
    assert "96" in caught.value.cause


@pytest.mark.parametrize(("file", "instead"), [("msid", "mapping"), ("mapping", "msid"), ("mf2d", "msid")])
def test_another_file(files: dict[str, Path], file: str, instead: str) -> None:
    found = checkpoints(files)
    with pytest.raises(ConversionError, match="are missing"):
        face_token_parts(**{**found, file: found[instead]})


def test_a_width_that_the_heads_do_not_divide(files: dict[str, Path]) -> None:
    found = checkpoints(files)["msid"]
    with pytest.raises(ConversionError, match="tokens of width 20"):
        msid_of(changed(found, **{"patch_embed.proj.weight": torch.zeros(20, 3, 28, 28)}).entries)


@pytest.mark.parametrize("shape", [(), (1,), (1, 0, DIM), (1, 18, DIM)])
def test_positions_of_no_square(files: dict[str, Path], shape: tuple[int, ...]) -> None:
    found = checkpoints(files)
    with pytest.raises(ConversionError, match=r"pos_embed is \["):
        face_token_parts(changed(found["msid"], pos_embed=torch.zeros(shape)), found["mapping"])


# -- published sizes --------------------------------------------------------------------------------------


def published(file: str, prefix: str = "") -> dict[str, Tensor]:
    files = json.loads((ROOT / "face2diffusion" / "state_dict.json").read_text(encoding="utf-8"))
    entries = files[file]["entries"]
    entries = files["mapping.pt"]["entries"] if entries == "same as mapping.pt" else entries
    return {
        name.removeprefix(prefix): torch.empty(shape, device="meta", dtype=_dtype(name))
        for name, shape in entries.items()
        if name.startswith(prefix)
    }


def _dtype(name: str) -> torch.dtype:
    return torch.int64 if name.endswith("num_batches_tracked") else torch.float32


def shapes(entries: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in entries.items() if not name.startswith(UNUSED)}


@needs_reference
def test_published_entries() -> None:
    with torch.device("meta"):
        parsing, fusion = BiSeNet(), PostFusion()
    assert shapes(parsing.state_dict()) == shapes(published("res/cp/79999_iter.pth"))
    assert shapes(fusion.state_dict()) == shapes(published("fastcomposer/pytorch_model.bin", "postfuse_module."))
    assert {name for name in published("msid.pt") if name.startswith(UNUSED)} == {"norm.weight", "norm.bias"}
    for file, network_of in (("msid.pt", msid_of), ("mapping.pt", mapping_of), ("fmap/fmap_epoch9.pth", mapping_of)):
        assert shapes(network_of(published(file)).state_dict()) == shapes(published(file))
        assert shapes(network_of({}).state_dict()) == shapes(published(file))


@needs_reference
def test_parts_of_the_published_files(caplog: pytest.LogCaptureFixture) -> None:
    files = {"msid": "msid.pt", "mapping": "mapping.pt", "mf2d": "fmap/fmap_epoch49.pth"}
    found = {name: Checkpoint(Path(file), published(file)) for name, file in files.items()}
    parts = face_token_parts(**found)
    assert not caplog.records
    assert parts["encoder"].inputs["image"].shape == (2, 112, 112, 3)
    assert parts["encoder"].card.outputs["embedding"].startswith("(n, 1536)")
    for name in ("mapping", "mapping_mf2d"):
        assert [tuple(value.shape) for value in parts[name].inputs.values()] == [(2, 1536), (2, 64), (2,)]
        assert parts[name].card.outputs["last"].startswith("(n, 768)")
    with pytest.raises(ConversionError, match="1 of 4 taps: at depth 11"):
        face_token_parts(Checkpoint(Path("model.pt"), published(MF2D_MSID)), found["mapping"])


# -- networks ---------------------------------------------------------------------------------------------


def as_in_torch(block: Any) -> nn.Module:
    """The same block as torch has it."""
    layer = nn.TransformerEncoderLayer(
        DIM, block.attn.heads, 40, 0.0, nn.functional.gelu, 1e-6, batch_first=True, norm_first=True
    )  # fmt: skip
    names = {"attn.qkv.": "self_attn.in_proj_", "attn.proj": "self_attn.out_proj", "mlp.fc": "linear"}
    entries = block.state_dict()
    for ours, theirs in names.items():
        entries = {name.replace(ours, theirs): value for name, value in entries.items()}
    layer.load_state_dict(entries)
    return layer.train()  # in evaluation mode torch takes a fused kernel


def test_blocks_are_those_of_a_transformer_encoder() -> None:
    """The last one too, of which only the class token is computed."""
    network = random(MSID((3,), size=32, dim=DIM, depth=4, hidden=40), 4)
    image = normal(2, 3, 32, 32)
    with torch.no_grad():
        x = torch.cat((network.cls_token.expand(2, -1, -1), network.patches(image)), 1) + network.pos_embed
        for block, token in zip(network.blocks, network.class_tokens(image), strict=True):
            x = as_in_torch(block)(x)
            torch.testing.assert_close(token, x[:, 0], rtol=1e-4, atol=1e-4)


def test_depths_without_norms_give_the_class_token_itself() -> None:
    network = random(MSID((3,), size=32, dim=DIM, depth=4, hidden=40), 4)
    image = normal(2, 3, 32, 32)
    with torch.no_grad():
        tokens, found = network.class_tokens(image), network(image, (1, 3))
        assert torch.equal(found[:, :DIM], tokens[1])
        assert torch.equal(found[:, DIM:], network(image))
    assert (network(image) - tokens[3]).abs().max() > 0.1


def test_training_uses_and_follows_the_statistics_of_the_batch() -> None:
    network, image = encoder().train(), normal(5, 3, 112, 112)
    before = network.norms["layer_2"][0].running_mean.clone()
    taps = network(image)
    token = network.class_tokens(image)[2]
    after = network.norms["layer_2"][0].running_mean
    torch.testing.assert_close(after, 0.9 * before + 0.1 * token.mean(0), rtol=1e-4, atol=1e-5)
    assert (taps - network.eval()(image)).abs().max() > 0.1
    taps.square().sum().backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in network.parameters())


def test_an_expression_given_by_half() -> None:
    network, identity, expression = mapper(), normal(2, 4 * DIM), normal(2, EXPRESSION)
    with torch.no_grad():
        got = network(identity, expression, torch.tensor([0.5, 1.0]))
        half = network(identity, (expression + network.null_exp) / 2)
        torch.testing.assert_close(got[1][0], half[1][0])
        torch.testing.assert_close(got[0][1], network(identity, expression)[0][1])


def test_objects_go_to_flagged_tokens_in_their_order() -> None:
    text, objects = normal(2, 5, 4), normal(2, 3, 1, 4, seed=3)
    flagged = torch.tensor([[0, 1, 0, 1, 0], [1, 0, 0, 0, 1]], dtype=torch.uint8)
    counts = torch.tensor([2, 1])  # the batch's fourth flagged token has none
    want = text.clone()
    want[0, 1], want[0, 3], want[1, 0] = objects[0, 0, 0], objects[0, 1, 0], objects[1, 0, 0]
    assert torch.equal(scattered(text, objects, counts, flagged), want)
    fused = random(PostFusion(4), 6)(text, objects, counts, flagged)
    same = (fused == text).all(-1)
    assert same.tolist() == [[True, False, True, False, True], [False, True, True, True, True]]


def test_parsing_gives_scores_at_the_size_of_any_picture() -> None:
    network = random(BiSeNet(5), 7)
    with torch.no_grad():
        heads = network(normal(1, 3, 72, 104))
    assert [tuple(head.shape) for head in heads] == [(1, 5, 72, 104)] * 3
    assert all(head.isfinite().all() and head.std() > 0 for head in heads)


# -- losses -----------------------------------------------------------------------------------------------


def test_where_the_class_guided_loss_teaches() -> None:
    """Outside the face the published reproduction has no gradient; the paper's form has one towards the class."""
    parsing = torch.zeros(1, 16, 16, dtype=torch.uint8)
    parsing[:, :, :8] = 1
    mask = latent_mask(parsing, (4, 4))
    assert mask[0].unique(dim=0).tolist() == [[1, 1, 0, 0]]
    predicted, of_class, noise = (normal(1, 4, 4, 4, seed=seed) for seed in (1, 2, 3))
    slopes = {}
    for form in ("paper", "mf2d"):
        leaf = predicted.clone().requires_grad_()
        class_guided_loss(leaf, of_class, noise, mask, form).backward()
        slopes[form] = leaf.grad
    torch.testing.assert_close(slopes["paper"][..., 2:], 2 * (predicted - of_class)[..., 2:] / 64)
    torch.testing.assert_close(slopes["paper"][..., :2], slopes["mf2d"][..., :2])
    assert not slopes["mf2d"][..., 2:].any()


def test_a_hopeless_row_costs_a_bounded_loss_and_keeps_its_gradient() -> None:
    logits = torch.tensor([[0.0, 200.0], [3.0, 1.0]], requires_grad=True)
    labels = torch.tensor([0, 0])
    loss = cross_entropy(logits, labels)
    assert loss.item() == pytest.approx((30 * np.log(10) + np.log1p(np.exp(-2))) / 2, rel=1e-5)
    loss.backward()
    plain = torch.softmax(logits.detach(), 1) - torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    torch.testing.assert_close(logits.grad, plain / 2)


def test_the_learning_rate_falls_to_nothing_and_no_further() -> None:
    schedule = PolynomialSchedule(0.1, 10, 4, 2)
    assert [schedule(step) for step in (0, 1, 4, 7, 10, 11)] == pytest.approx([0.1, 0.025, 0.1, 0.025, 0, 0])
    with pytest.raises(UsageError, match="shorter"):
        PolynomialSchedule(total=4, warmup=4)


# -- five points of 68 ------------------------------------------------------------------------------------


def test_five_points_of_68() -> None:
    points = np.random.default_rng(0).uniform(0, 100, (68, 2))
    eyes = [points[36:42].mean(0), points[42:48].mean(0)]
    np.testing.assert_allclose(five_of_68(points), [*eyes, *points[[30, 48, 54]]])
    with pytest.raises(UsageError, match="68"):
        five_of_68(points[:5])


def test_a_template_of_ones_own() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (80, 80, 3), np.uint8)
    points = arcface_template(112) / 2
    crop, matrix = align(picture, points, 40, template=points - 10)
    np.testing.assert_allclose(matrix, [[1, 0, -10], [0, 1, -10]], atol=1e-12)
    np.testing.assert_array_equal(crop, picture[10:50, 10:50])
