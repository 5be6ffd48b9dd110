"""From published files to pictures: a folder of diffusers, the face networks' files, a bundle, a person in a prompt."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facesdk.bundle import Bundle
from facesdk.card import Card
from facesdk.diffusion.generate import GenerateOptions, generate
from facesdk.diffusion.networks import DiffusionNetworks
from facesdk.errors import ConversionError
from facesdk.identity import Identity

torch = pytest.importorskip("torch", reason="the export room needs torch")
pytest.importorskip("onnxscript", reason="the export room needs onnxscript")
pytest.importorskip("diffusers", reason="Stable Diffusion's networks need diffusers")

from facesdk_export.bundles import export  # noqa: E402
from facesdk_export.networks import MSID, MappingNetwork  # noqa: E402
from facesdk_export.recipes import stable_diffusion as recipe  # noqa: E402
from tests.engine_calls import assert_all_said, assert_served, recorded  # noqa: E402
from tests.unit.clip_table import write_table  # noqa: E402
from tests.unit.stable_diffusion_files import weights, write_folder  # noqa: E402

WORDS = 600  # of the small tokenizer, and more
TAPS = 4 * 24


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Published files in little, by their names in the recipe."""
    folder, values = tmp_path_factory.mktemp("published"), weights()
    torch.manual_seed(0)
    values["text_encoder"]["embeddings.token_embedding.weight"] = torch.randn(WORDS, 64)
    published = write_folder(folder / "sd", values, text_encoder={"vocab_size": WORDS})
    (published / "tokenizer").mkdir()
    write_table(published / "tokenizer")
    networks = {
        "msid": MSID((0, 1, 2, 3), patch=28, dim=24, depth=4, hidden=40),
        "mapping": MappingNetwork(TAPS, 30, 64), "mf2d": MappingNetwork(TAPS, 30, 64),
        "narrow": MappingNetwork(TAPS, 30, 20),
    }  # fmt: skip
    for name, network in networks.items():
        torch.save(network.state_dict(), folder / f"{name}.pt")
    return {"stable_diffusion": published} | {name: folder / f"{name}.pt" for name in networks}


def of_recipe(files: dict[str, Path], *more: str) -> dict[str, Path]:
    return {name: files[name] for name in ("stable_diffusion", "msid", "mapping", *more)}


@pytest.fixture(scope="module")
def bundle(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("exported") / "f2d"
    deviations = export("face2diffusion", of_recipe(files, "mf2d"), folder)
    assert all(each.max_in_std < 1e-3 for found in deviations.values() for each in found)
    return Bundle(folder)


def test_the_bundle_says_what_it_is(bundle: Bundle) -> None:
    diffusion, faces = bundle.constants["diffusion"], bundle.constants["faces"]
    published = {"scheduler": "euler-ancestral", "spacing": "linspace", "steps": 30, "guidance": 7.0}
    assert {name: diffusion[name] for name in published} == published
    assert faces == {"identifiers": ["f", "g"], "second": "l", "methods": ["f2d", "mf2d"]}
    assert "CreativeML-OpenRAIL-M" in bundle.about["licence"]
    assert "CC-BY-NC-SA-4.0" in bundle.about["licence"]
    assert bundle.about["commercial"] == "no"
    assert Card.read(bundle.forms("step")["default"]).licence == "LicenseRef-CreativeML-OpenRAIL-M"
    assert Card.read(bundle.forms("mapping")["default"]).licence == "CC-BY-NC-SA-4.0"
    assert set(bundle.forms("step")) == {"default", "openvino", "tensorrt"}
    bundle.verify()


@pytest.mark.parametrize(("method", "prompt"), [("f2d", "f l eating"), ("mf2d", "f eating")])
def test_a_person_enters_the_picture(bundle: Bundle, method: Any, prompt: str) -> None:
    options = GenerateOptions(method=method, steps=2, width=64, height=64)
    with DiffusionNetworks(bundle, "cpu") as networks:
        people = [
            Identity(np.random.default_rng(seed).standard_normal(TAPS).astype(np.float32), networks.encoder.space)
            for seed in range(2)
        ]
        pictures = [
            generate(networks, prompt, {"f": networks.face_tokens(who, method)}, options).images for who in people
        ]
        again = generate(
            networks, prompt, {"f": networks.face_tokens(people[0], method)}, dataclasses.replace(options, images=2)
        )
    assert pictures[0].shape == (1, 64, 64, 3)
    assert (pictures[0] != pictures[1]).any()
    np.testing.assert_array_equal(again.images[:1], pictures[0])


def test_plans_serve_every_call(bundle: Bundle) -> None:
    """Defaults; pictures of one batch, as on a GPU; what samplers remember; no guidance; pictures as conditions."""
    assert_all_said(bundle)
    photo = np.random.default_rng(3).integers(0, 256, (24, 16, 3), np.uint8)
    settings = {
        "defaults": {}, "batch": {"images": 4, "batch": 4, "steps": 1}, "unguided": {"guidance": 1.0, "steps": 1},
        "two": {"method": "mf2d", "steps": 1}, "previews": {"scheduler": "plms", "steps": 6},
    }  # fmt: skip
    with DiffusionNetworks(bundle, "cpu") as networks, recorded() as calls:
        face = np.random.default_rng(4).integers(0, 256, (networks.encoder.size,) * 2 + (3,), np.uint8)
        who = Identity(networks.encoder.vectors([face])[0], networks.encoder.space)
        for name, options in settings.items():
            asked = GenerateOptions(**options)
            faces = {"f": networks.face_tokens(who, "mf2d" if name == "two" else "f2d")}
            prompt = "f eating" if name == "two" else "f l eating"
            generate(networks, prompt, faces, asked, on_preview=lambda *_: None, preview_every=2 * (name == "previews"))
        for mask in (None, np.ones(photo.shape[:2], bool)):
            generate(networks, "eating", None, GenerateOptions(images=2, steps=2), image=photo, mask=mask)
    assert_served(bundle, calls, bundle.engine_names)
    assert max(call.shapes["bank"][1] for call in calls if call.engine == "step") == 6


def test_plans_of_the_published_sizes() -> None:
    known = {"size": 512, "cell": 8}
    assert recipe._sides(known) == {"height": (8, 64, 96), "width": (8, 64, 96)}
    assert recipe._sides(known, 8)["width"] == (64, 512, 768)


def test_half_precision_forms(files: dict[str, Path], tmp_path: Path) -> None:
    deviations = export("stable-diffusion", {"stable_diffusion": files["stable_diffusion"]}, tmp_path / "sd", fp16=True)
    bundle = Bundle(tmp_path / "sd")
    halves = {engine for engine in bundle.engine_names if "fp16" in bundle.forms(engine)}
    assert halves == set(bundle.engine_names) - {"time"}
    assert {"fp16", "tensorrt-fp16"} < set(bundle.forms("step"))
    assert "step (fp16)" in deviations
    with DiffusionNetworks(bundle, "cpu", precision="fp16") as half, DiffusionNetworks(bundle, "cpu") as full:
        options = GenerateOptions(steps=2, width=64, height=64)
        made, wanted = (generate(each, "eating", None, options).latents for each in (half, full))
    assert 0 < np.abs(made - wanted).max() < 0.1 * wanted.std()


def test_words_of_another_width_are_refused(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="words of 20 numbers, the text encoder reads 64"):
        export("face2diffusion", of_recipe(files) | {"mapping": files["narrow"]}, tmp_path / "f2d")
    assert not (tmp_path / "f2d").exists()
