"""`facesdk export`: reduced networks become bundles that agree with torch; what is refused leaves nothing behind."""

from __future__ import annotations

import dataclasses
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facesdk.bundle import Bundle
from facesdk.card import Card
from facesdk.engine import Engine
from facesdk.errors import ConversionError, ModelNotFound, OutputError, ToleranceExceeded, UsageError
from facesdk.facade import FaceSDK
from facesdk.face import Face
from facesdk.files import sha256
from facesdk.store import Store
from facesdk.swap.networks import SwapNetworks
from facesdk.swap.swapper import SwapOptions, Swapper
from tests.engine_calls import assert_all_said, assert_served, recorded
from tests.photos import astronaut, stranger

torch = pytest.importorskip("torch", reason="the export room needs torch")
pytest.importorskip("onnxscript", reason="the export room needs onnxscript")

from torch import nn  # noqa: E402

from facesdk_export import cli, onnx_export, recipes  # noqa: E402
from facesdk_export.bundles import Recipe, export  # noqa: E402
from facesdk_export.checkpoints import Checkpoint  # noqa: E402
from facesdk_export.networks.hififace import (  # noqa: E402
    Decoder,
    Encoder,
    Generator,
    IdentityExtractor,
    SemanticFacialFusion,
)  # fmt: skip
from facesdk_export.onnx_export import Part  # noqa: E402
from facesdk_export.recipes.hififace import HIFIFACE, _swap  # noqa: E402
from facesdk_export.recipes.parts import loaded, on_meta  # noqa: E402

SEED = 5


class Reader(nn.Module):
    """A small stand-in for a frozen network: means of a picture's patches, projected."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(48, width)

    def forward(self, x: Any) -> Any:
        return self.fc(nn.functional.adaptive_avg_pool2d(x, 4).flatten(1))


def reduced(*_: nn.Module) -> Generator:
    """The generator of the published structure with a few channels."""
    encoder = Encoder((4, 6, 8, 8, 8, 8, 8, 8))
    decoder = Decoder((8, 8, 8, 8, 8, 8))
    fusion = SemanticFacialFusion(
        sigma=(8, 8), low_mask=(8, 1), z_fuse=(8, 11), f_up=((8, 6, "up"), (6, 4, "up"), (4, 4, "none"), (4, 4, "none"))
    )
    return Generator(IdentityExtractor(Reader(257), Reader(512)), encoder, decoder, fusion).eval()


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(SEED)
    return reduced()


@pytest.fixture(scope="module")
def entries(generator: Generator) -> dict[str, Any]:
    return {f"generator.{name}": value for name, value in generator.state_dict().items()}


@pytest.fixture(scope="module")
def checkpoint(entries: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In the container and with the company of the published file."""
    path = tmp_path_factory.mktemp("ckpt") / "published.ckpt"
    company = {"discriminator.layer0.0.weight": torch.zeros(2), "g_loss.f_id.x": torch.zeros(2)}
    torch.save({"state_dict": {**entries, **company}, "epoch": 3}, path)
    return path


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(3))

    def forward(self, x: Any) -> Any:
        return x * self.factor


def _scale_parts(checkpoint: Checkpoint) -> Mapping[str, Part]:
    card = Card(about="scaled", inputs={"x": "anything"}, outputs={"y": "the same, scaled"})
    return {"scale": Part(loaded(on_meta(Scale), checkpoint), {"x": torch.rand(2, 3)}, ("y",), card)}


TINY = dataclasses.replace(HIFIFACE, parts=_swap(reduced, "generator."))
SCALE = Recipe("scale", "a factor", "MIT", "yes", _scale_parts, {"scale": {"size": 3}})


@pytest.fixture(autouse=True, scope="module")
def _recipes() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "RECIPES", {**recipes.RECIPES, "tiny": TINY, "scale": SCALE})
        patch.setattr(cli, "SYSTEMS", (*cli.SYSTEMS, "tiny", "scale"))
        yield


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("out") / "bundle"
    return (deviations := export("tiny", checkpoint, folder, "hififace-reduced")) and (Bundle(folder), deviations)


@pytest.fixture
def scale_file(tmp_path: Path) -> Path:
    path = tmp_path / "scale.pth"
    torch.save({"factor": torch.tensor([1.0, 2.0, 3.0])}, path)
    return path


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -- what is made ---------------------------------------------------------------------------------------------


def test_the_recipes_are_what_the_command_offers() -> None:
    assert set(recipes.RECIPES) == set(cli.SYSTEMS)


def test_a_complete_bundle(exported: tuple[Bundle, dict[str, Any]], checkpoint: Path) -> None:
    bundle, deviations = exported
    bundle.verify()
    assert bundle.engine_names == ("identity", "shape", "target", "decoder")
    assert left(bundle.folder) == ["bundle.toml", "decoder.onnx", "identity.onnx", "shape.onnx", "target.onnx"]
    assert left(bundle.folder.parent) == ["bundle"]
    about = bundle.about
    assert (about["name"], about["system"]) == ("hififace-reduced", "hififace")
    assert about["licence"] == HIFIFACE.licence
    assert about["commercial"] == "no"
    assert about["source_sha256"] == sha256(checkpoint)
    assert bundle.constants["swap"] == {
        "size": 256, "template": "ffhq", "shape_coefficients": 80, "renormalise_identity": True,
    }  # fmt: skip
    assert {name: [d.output for d in found] for name, found in deviations.items()} == {
        "identity": ["identity"], "shape": ["coefficients"], "target": ["skip", "bottleneck"],
        "decoder": ["swapped", "mask"],
    }  # fmt: skip


def test_cards_carry_origin_meanings_and_deviations(exported: tuple[Bundle, dict[str, Any]], checkpoint: Path) -> None:
    bundle, deviations = exported
    for name in bundle.engine_names:
        card = Card.read(bundle.forms(name)["default"])
        assert (card.system, card.engine, card.recipe, card.precision) == ("hififace", name, "tiny 1", "fp32")
        assert (card.source, card.source_sha256) == ("published.ckpt", sha256(checkpoint))
        assert card.deviation == {each.output: each.max_in_std for each in deviations[name]}
        assert all(0 <= value <= onnx_export.TOLERANCE for value in card.deviation.values())
        with bundle.open(name, "cpu") as engine:
            assert {tensor.name for tensor in engine.inputs} == card.inputs.keys() == card.example_shapes.keys()
            assert {tensor.name for tensor in engine.outputs} == card.outputs.keys()
            assert engine.inputs[0].shape == ("batch", 3, 256, 256)


@pytest.mark.parametrize("count", [1, 2])
def test_the_engines_together_are_the_generator(
    exported: tuple[Bundle, dict[str, Any]], generator: Generator, count: int
) -> None:
    """On faces that the export did not see, one and several."""
    rng = np.random.default_rng(count)
    source, target = (rng.random((count, 3, 256, 256), np.float32) for _ in range(2))
    with torch.inference_mode():
        wanted = generator(torch.from_numpy(source), torch.from_numpy(target))
    networks = SwapNetworks(exported[0], "cpu", 1)
    coefficients = [networks.run("shape", face=face)["coefficients"] for face in (source, target)]
    identity = networks.run("identity", face=source)["identity"]
    encoded = networks.run("target", target=target)
    vector = np.concatenate([coefficients[0][:, :80], coefficients[1][:, 80:], identity], axis=1)
    found = networks.run("decoder", target=target, vector=vector, **encoded)
    np.testing.assert_allclose(found["swapped"], wanted.picture.numpy(), atol=2e-4)
    np.testing.assert_allclose(found["mask"], wanted.mask.numpy(), atol=2e-4)
    if count == 1:
        source_face, target_face = (networks.source(source[0].transpose(1, 2, 0)),
                                    networks.target(target[0].transpose(1, 2, 0)))  # fmt: skip
        swapped, mask = networks.swap(source_face, target_face)
        np.testing.assert_allclose(swapped, wanted.picture[0].permute(1, 2, 0).numpy(), atol=2e-4)
        np.testing.assert_allclose(mask, wanted.mask[0, 0].clamp(0, 1).numpy(), atol=2e-4)
    networks.close()


def test_a_picture_is_swapped_with_what_was_exported(
    exported: tuple[Bundle, dict[str, Any]], swap_store: Store
) -> None:
    with FaceSDK("cpu", threads=1, store=swap_store, swapper=exported[0].folder) as sdk:
        result = sdk.swap(stranger(), astronaut())
        face: Face = result.faces[0].face
        assert isinstance(sdk.swapper, Swapper)
    weight = result.pasted.mask_full()
    np.testing.assert_array_equal(result.picture[weight == 0], astronaut()[weight == 0])
    assert face.presence > 0.9


def test_plans_serve_every_swap(exported: tuple[Bundle, dict[str, Any]], swap_store: Store) -> None:
    bundle = exported[0]
    assert_all_said(bundle)
    with FaceSDK("cpu", threads=1, store=swap_store, swapper=bundle.folder) as sdk:
        sdk.annotate(astronaut())  # its engines are another bundle's
        with recorded() as calls:
            source = sdk.swap_source(stranger())
            for options in (SwapOptions(), SwapOptions(strength=0.5, boost=2)):
                sdk.swap(source, astronaut(), options=options)
    assert_served(bundle, [call for call in calls if call.engine in bundle.engine_names], bundle.engine_names)


def test_an_empty_folder_is_filled_and_parents_are_made(scale_file: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "new" / "deep" / "bundle"):
        export("scale", scale_file, folder)
        Bundle(folder).verify()
        assert left(folder) == ["bundle.toml", "scale.onnx"]
    assert left(tmp_path) == ["empty", "new", "scale.pth"]
    assert left(tmp_path / "new" / "deep") == ["bundle"]


def test_the_store_takes_the_bundle(scale_file: Path, tmp_path: Path) -> None:
    export("scale", scale_file, tmp_path / "bundle", "mine")
    assert Store(tmp_path / "home").add(tmp_path / "bundle").name == "mine"
    assert Store(tmp_path / "home").of_system("scale") == ("mine",)


def test_entries_that_nobody_wants_are_named(
    scale_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save({"factor": torch.ones(3), "surplus": torch.ones(1)}, scale_file)
    export("scale", scale_file, tmp_path / "bundle")
    assert "unused: surplus" in caplog.text


# -- what is refused ------------------------------------------------------------------------------------------


class Harmful:
    """Unpickled by Python itself, it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def spoiled(entries: dict[str, Any], kind: str, path: Path) -> None:
    """Write a checkpoint with one fault."""
    name = "generator.encoder.conv_first.weight"
    if kind == "malicious":
        torch.save({"state_dict": entries, "hyper_parameters": Harmful(path.parent / "harm")}, path)
    elif kind == "malicious pickle":
        path.write_bytes(pickle.dumps(Harmful(path.parent / "harm")))
    elif kind == "truncated":
        torch.save({"state_dict": entries}, path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "wrong shape":
        torch.save({"state_dict": {**entries, name: torch.zeros(4, 3, 5, 5)}}, path)
    elif kind == "missing":
        torch.save({"state_dict": {key: value for key, value in entries.items() if key != name}}, path)
    elif kind == "other network":
        torch.save({"state_dict": {"conv.weight": torch.zeros(1)}}, path)
    elif kind == "empty":
        path.write_bytes(b"")


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("malicious", ["refused, and nothing was run", "mkdir"]),
        ("malicious pickle", ["cannot be read as a checkpoint"]),
        ("truncated", ["cannot be read as a checkpoint"]),
        ("wrong shape", ["1 entries have another form", "generator.encoder.conv_first.weight is [4, 3, 5, 5]"]),
        ("missing", ["1 entries are missing: generator.encoder.conv_first.weight"]),
        ("other network", ["are missing: generator.", "begin with: conv"]),
        ("empty", ["it is empty"]),
    ],
)
def test_checkpoints_that_are_refused(entries: dict[str, Any], tmp_path: Path, kind: str, says: list[str]) -> None:
    path = tmp_path / "file.ckpt"
    spoiled(entries, kind, path)
    with pytest.raises(ConversionError) as caught:
        export("tiny", path, tmp_path / "bundle")
    assert all(text in str(caught.value) for text in says)
    assert caught.value.remedy
    assert left(tmp_path) == ["file.ckpt"]  # neither a bundle nor what the pickle would have made


def test_no_checkpoint_and_no_recipe(tmp_path: Path, scale_file: Path) -> None:
    with pytest.raises(ModelNotFound, match="absent"):
        export("tiny", tmp_path / "absent.ckpt", tmp_path / "bundle")
    with pytest.raises(UsageError, match="'simswap'") as caught:
        export("simswap", scale_file, tmp_path / "bundle")
    assert "hififace" in caught.value.remedy
    assert left(tmp_path) == ["scale.pth"]


def test_a_folder_that_is_not_empty(scale_file: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    for folder in (tmp_path / "full", tmp_path / "full" / "mine.txt"):
        with pytest.raises(OutputError, match="not an empty folder"):
            export("scale", scale_file, folder)
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"
    assert left(tmp_path / "full") == ["mine.txt"]


@pytest.mark.parametrize("there", [False, True], ids=["new", "empty"])
def test_an_engine_that_differs_from_torch(
    scale_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    """The graph is traced of other weights than torch computed with: what a faulty exporter would do."""
    trace = onnx_export.trace

    def faulty(module: nn.Module, *rest: Any) -> None:
        with torch.no_grad():
            module.factor.mul_(1.01)  # type: ignore[union-attr, operator]
        trace(module, *rest)

    monkeypatch.setattr(onnx_export, "trace", faulty)
    folder = tmp_path / "bundle"
    if there:
        folder.mkdir()
    with pytest.raises(ToleranceExceeded, match=r"engine scale differs from torch .* in y"):
        export("scale", scale_file, folder)
    assert left(tmp_path) == ["bundle"] * there + ["scale.pth"]
    assert not there or left(folder) == []


def test_large_weights_stand_beside_the_graph(
    scale_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a real one exceed what a protobuf can hold; ones of a few numbers stay in the graph."""

    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(64, 64)

        def forward(self, x: Any) -> Any:
            return self.fc(x)

    monkeypatch.setattr(onnx_export, "LARGE", 64 * 64 * 4)
    part = Part(Large(), {"x": torch.randn(3, 64)}, ("y",), Card(engine="large"))
    (found,), forms = onnx_export.write_part(part, tmp_path / "large.onnx")
    assert forms == {"default": "large.onnx"}
    assert found.max_in_std < 1e-5
    sizes = {name: (tmp_path / name).stat().st_size for name in left(tmp_path) if name != "scale.pth"}
    assert sorted(sizes) == ["large.onnx", "large.onnx.data"]
    assert sizes["large.onnx"] < 64 * 64 * 4 <= sizes["large.onnx.data"]


def test_axes_that_are_free_in_one_input(tmp_path: Path) -> None:
    class Longer(nn.Module):
        def forward(self, x: Any, y: Any, factor: Any) -> Any:
            return (x + y[1:-1]) * factor

    inputs = {"x": torch.randn(3), "y": torch.randn(5), "factor": torch.randn(1)}
    part = Part(Longer(), inputs, ("z",), Card(), {"x": {0: "length"}, "y": {0: "length + 2"}})
    onnx_export.write_part(part, tmp_path / "longer.onnx")
    with Engine.open(tmp_path / "longer.onnx", "cpu") as engine:
        assert [str(tensor) for tensor in engine.inputs] == [
            "x float32[length]", "y float32[length + 2]", "factor float32[1]",
        ]  # fmt: skip
        got = engine(x=np.float32([1, 2]), y=np.float32([5, 6, 7, 8]), factor=np.float32([10]))["z"]
    np.testing.assert_allclose(got, [70, 90])
    fixed = dataclasses.replace(part, free={"x": {0: "length"}})  # y has a size, and so has x
    with pytest.raises(ConversionError, match="x has fixed axes: length at 3"):
        onnx_export.write_part(fixed, tmp_path / "fixed.onnx")


def test_weights_that_are_nan(scale_file: Path, tmp_path: Path) -> None:
    torch.save({"factor": torch.tensor([1.0, float("nan"), 1.0])}, scale_file)
    with pytest.raises(ToleranceExceeded, match="scale"):
        export("scale", scale_file, tmp_path / "bundle")
    assert left(tmp_path) == ["scale.pth"]


def test_an_interrupted_export_leaves_nothing(
    scale_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("facesdk_export.bundles.write_manifest", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export("scale", scale_file, tmp_path / "bundle")
    assert left(tmp_path) == ["scale.pth"]


def test_a_place_that_cannot_be_written(scale_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    with pytest.raises(OutputError) as caught:
        export("scale", scale_file, tmp_path / "file" / "bundle")
    assert caught.value.remedy
    assert (tmp_path / "file").read_text() == "a file"


def test_a_full_disk(scale_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("facesdk_export.bundles.write_manifest", full)
    with pytest.raises(OutputError) as caught:
        export("scale", scale_file, tmp_path / "bundle")
    assert caught.value.cause == "No space left on device"
    assert left(tmp_path) == ["scale.pth"]


class OfTwo(nn.Module):
    """Works for two rows alone."""

    def forward(self, vector: torch.Tensor) -> torch.Tensor:
        first, second = vector.unbind(0)
        return torch.stack((first, second)) * 2


def test_an_axis_that_does_not_stay_free_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"vector has fixed axes: batch at 2"):
        onnx_export.trace(OfTwo(), {"vector": torch.ones(2, 3)}, ["out"], tmp_path / "two.onnx", {0: "batch"})
    assert not list(tmp_path.iterdir())
