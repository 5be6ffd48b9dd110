"""Pipelines in a strict stand-in of Triton: the same bytes as the SDK by itself, over requests that it allows."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facesdk.bundle import Bundle
from facesdk.diffusion.options import GenerateOptions
from facesdk.encoder import Encoder
from facesdk.facade import FaceSDK
from facesdk.graph import Graph
from facesdk.identity import Identity
from facesdk.plans.profiles import Sizes, profile
from facesdk.swap.paste import PasteOptions
from facesdk.swap.swapper import SwapOptions
from facesdk.synthesis.attributes import AttributeOptions
from facesdk.synthesis.generate import SynthesisOptions
from facesdk_engines.triton.options import RepositoryOptions
from facesdk_engines.triton.repository import export_repository
from tests import cuda_fake
from tests.diffusion_bundle import IDENTITY
from tests.photos import astronaut
from tests.swap_bundle import SIZE as CROP
from tests.unit.test_triton_repository import add_plan
from tests.unit.triton_server import CPU, GPU, Server

ON_CPU = RepositoryOptions(cpu=True)
PROMPT = "f l is eating"
#: of the diffusion bundle's free axes
SIZES: dict[str, Sizes] = {
    **dict.fromkeys("nrsR", (1, 2, 4)), **dict.fromkeys("hw", (8, 8, 12)), **dict.fromkeys("HW", (64, 64, 96)),
    "K": (1, 2, 6), "columns": (3, 4, 8), "C": (1, 2, 2),
}  # fmt: skip
Serve = Callable[..., Server]


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """A server on the repository of a bundle."""
    servers = []

    def start(bundle: Bundle, options: RepositoryOptions = ON_CPU, **more: Any) -> Server:
        folder = tmp_path / f"models-{len(servers)}"
        export_repository(bundle, folder, options, **more)
        servers.append(Server(folder, monkeypatch))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def with_profile(bundle: Bundle, folder: Path, lines: str) -> Bundle:
    """A copy of a bundle that says sizes."""
    shutil.copytree(bundle.folder, folder)
    with (folder / "bundle.toml").open("a") as file:
        file.write(lines)
    return Bundle(folder)


def a_person(seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=IDENTITY).astype(np.float32)


# -- generate -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["euler-ancestral", "dpm++"])
def test_pictures_of_a_prompt(serve: Serve, diffusion_bundle: Bundle, scheduler: str) -> None:
    server = serve(diffusion_bundle)
    made = server.ask(
        "face2diffusion-tiny_pipeline", prompt="a man eating", seed=3, images=2, steps=4, guidance=2.7,
        scheduler=scheduler, negative="very man", width=72,
    )  # fmt: skip
    options = GenerateOptions(
        seed=3, images=2, steps=4, guidance=2.7, scheduler=scheduler, negative="very man", width=72
    )
    with FaceSDK("cpu", diffusion=diffusion_bundle.folder) as sdk:
        expected = sdk.generate("a man eating", options=options)
    assert made["images"].shape == (2, 64, 72, 3)
    assert made["images"].tobytes() == expected.images.tobytes()
    assert made["seeds"].tolist() == [3, 4]
    assert np.isnan(made["similarity"]).all()
    steps = [name for name, _, _ in server.requests if name.endswith("_step")]
    assert len(steps) == 2 * 4  # a picture at a time on processors, as the SDK does


def test_a_person_and_a_photo_to_start_from(serve: Serve, diffusion_bundle: Bundle) -> None:
    photo = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    mask = np.zeros((64, 64), np.float32)
    mask[:32] = 1
    given: dict[str, Any] = {"image": photo, "mask": mask}
    made = serve(diffusion_bundle).ask(
        "face2diffusion-tiny_pipeline", prompt=PROMPT, identity=a_person()[None], denoise=0.5, truncate=True, **given
    )
    with FaceSDK("cpu", diffusion=diffusion_bundle.folder) as sdk:
        person = Identity(a_person(), sdk.diffusion.encoder.space)
        expected = sdk.generate(PROMPT, [person], GenerateOptions(denoise=0.5, truncate=True), **given)
    assert made["images"].tobytes() == expected.images.tobytes()


def test_a_photo_of_a_person(serve: Serve, diffusion_bundle: Bundle, bundle_478: Bundle) -> None:
    server = serve(diffusion_bundle, annotation=bundle_478)
    made = server.ask("face2diffusion-tiny_pipeline", prompt=PROMPT, face=astronaut(), steps=2)
    with FaceSDK("cpu", diffusion=diffusion_bundle.folder, annotation=bundle_478.folder) as sdk:
        expected = sdk.generate(PROMPT, [astronaut()], GenerateOptions(steps=2))
    assert made["images"].tobytes() == expected.images.tobytes()
    assert expected.similarity is not None
    assert np.array_equal(made["similarity"], expected.similarity, equal_nan=True)
    assert {name.split("_", 1)[0] for name, _, _ in server.requests} == {"annotation-478", "face2diffusion-tiny"}


def test_on_a_gpu_the_loop_stays_there(serve: Serve, diffusion_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between steps the bank is in the GPU's memory, and the constants always are; only the last result leaves it."""
    fake = cuda_fake.FakeCuda().install(monkeypatch)
    server = serve(diffusion_bundle, RepositoryOptions())
    made = server.ask("face2diffusion-tiny_pipeline", prompt="a man eating", steps=4, images=2)
    with FaceSDK("cpu", diffusion=diffusion_bundle.folder) as sdk:
        expected = sdk.generate("a man eating", options=GenerateOptions(steps=4, images=2))
    assert made["images"].tobytes() == expected.images.tobytes()
    steps = [(where, set(given)) for name, where, given in server.requests if name.endswith("_step")]
    assert [where for where, _ in steps] == [GPU, GPU, GPU, CPU]  # both pictures in one batch
    constants = {"known", "blend_noise", "mask", "level", "weights", "key_00", "value_00", "key_01", "value_01"}
    assert [given for _, given in steps] == [constants, *[constants | {"bank"}] * 3]
    fake.check()  # what lay there was freed


def test_plans_serve_the_loop(
    serve: Serve, diffusion_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every engine by its plan, the step too: each of its inputs has an axis."""
    for engine in diffusion_bundle.engine_names:
        inputs = Graph.read(diffusion_bundle.forms(engine)["default"]).inputs
        free = {axis for value in inputs for axis in value.shape}
        shapes = profile(engine, inputs, {axis: sizes for axis, sizes in SIZES.items() if axis in free}, {})
        add_plan(diffusion_bundle, engine, folder=tmp_path / "plans", profile=shapes)
    fake = cuda_fake.FakeCuda().install(monkeypatch)
    server = serve(diffusion_bundle, RepositoryOptions(), plans=[tmp_path / "plans"])
    engines = {name: config for name, config in server.configs.items() if not name.endswith("_pipeline")}
    assert {config.backend for config in engines.values()} == {"tensorrt"}
    assert all(config.model_warmup for config in engines.values())
    made = server.ask("face2diffusion-tiny_pipeline", prompt="a man eating", steps=4, scheduler="dpm++", images=2)
    with FaceSDK("cpu", diffusion=diffusion_bundle.folder) as sdk:
        options = GenerateOptions(steps=4, scheduler="dpm++", images=2)
        expected = sdk.generate("a man eating", options=options)
    assert made["images"].tobytes() == expected.images.tobytes()
    assert [name for name, _, _ in server.requests].count("face2diffusion-tiny_step") == 4
    fake.check()


def test_without_cuda_python_the_constants_are_sent_again(
    serve: Serve, diffusion_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    server = serve(diffusion_bundle, RepositoryOptions())
    server.ask("face2diffusion-tiny_pipeline", prompt="a man eating", steps=3)
    given = [set(given) for name, _, given in server.requests if name.endswith("_step")]
    assert given == [set(), {"bank"}, {"bank"}]


def test_what_is_wrong_with_a_request_is_told(serve: Serve, diffusion_bundle: Bundle) -> None:
    server = serve(diffusion_bundle)
    pipeline = "face2diffusion-tiny_pipeline"
    with pytest.raises(RuntimeError, match=r"INVALID_ARG: steps is 0(.|\n)*\[usage\]"):
        server.ask(pipeline, prompt="a man", steps=0)
    with pytest.raises(RuntimeError, match="INVALID_ARG: prompt is no text"):
        server.ask(pipeline, prompt=np.array([b"\xff\xfe"], np.object_))
    with pytest.raises(RuntimeError, match=r"INVALID_ARG: scheduler is 'magic'"):
        server.ask(pipeline, prompt="a man", scheduler="magic")
    server.failing["face2diffusion-tiny_text"] = "model 'text' is not ready"
    with pytest.raises(RuntimeError, match=r"INTERNAL: (.|\n)*face2diffusion-tiny_text failed(.|\n)*is not ready"):
        server.ask(pipeline, prompt="a man")
    server.failing.clear()
    server.cancel_after = len(server.requests) + 5
    with pytest.raises(RuntimeError, match="CANCELLED: the request was cancelled"):
        server.ask(pipeline, prompt="another man", steps=50)
    server.cancel_after = np.inf
    assert server.ask(pipeline, prompt="a man", steps=2)["images"].any()  # and the next one is served


# -- the other systems ----------------------------------------------------------------------------------------


def test_a_swap_of_photos(serve: Serve, swap_bundle: Bundle, bundle_478: Bundle) -> None:
    source, target = astronaut()[:, ::-1].copy(), astronaut()
    server = serve(swap_bundle, annotation=bundle_478)
    made = server.ask(
        "hififace-tiny_pipeline", source=source, target=target, faces="largest", strength=0.7, mask="both", feather=0.11
    )
    with FaceSDK("cpu", swapper=swap_bundle.folder, annotation=bundle_478.folder) as sdk:
        paste = PasteOptions(mask="both", feather=0.11)
        expected = sdk.swap(source, target, "largest", SwapOptions(strength=0.7), paste)
    assert made["picture"].tobytes() == expected.picture.tobytes()
    assert (made["picture"] != target).any()
    assert made["similarity"].tolist() == [np.float32(face.similarity_source) for face in expected.faces]
    with pytest.raises(RuntimeError, match=r"INVALID_ARG: no face(.|\n)*\[no-face\]"):
        server.ask("hififace-tiny_pipeline", source=np.zeros((90, 90, 3), np.uint8), target=target)


def test_a_swap_of_crops(serve: Serve, swap_bundle: Bundle) -> None:
    rng = np.random.default_rng(2)
    source, target = (rng.random((CROP, CROP, 3), np.float32) for _ in range(2))
    made = serve(swap_bundle).ask("hififace-tiny_pipeline", source=source, target=target, iterations=2)
    with FaceSDK("cpu", swapper=swap_bundle.folder) as sdk:
        who = sdk.swapper.networks.source(source)
        crop, mask = sdk.swapper.infer(target, who, SwapOptions(iterations=2))
    assert made["crop"].tobytes() == crop.tobytes()
    assert made["mask"].tobytes() == mask.tobytes()


def test_faces_of_a_photo(serve: Serve, bundle_478: Bundle) -> None:
    server = serve(bundle_478)
    (made,) = server.ask("annotation-478_pipeline", image=astronaut(), search="fast")["faces"]
    with FaceSDK("cpu", annotation=bundle_478.folder) as sdk:
        expected = [face.as_dict() for face in sdk.annotate(astronaut())]
    assert json.loads(made) == json.loads(json.dumps(expected))
    assert len(expected) == 1
    assert server.ask("annotation-478_pipeline", image=np.zeros((64, 64, 3), np.uint8))["faces"].tolist() == [b"[]"]


def test_pictures_of_identities(serve: Serve, synthesis_bundle: Bundle, tmp_path: Path) -> None:
    """More rows than the server takes in one request go in several: the generator's batch is 64, its model's 3."""
    sized = with_profile(synthesis_bundle, tmp_path / "sized", "\n[profiles.generator]\nn = [1, 2, 3]\n")
    vectors = np.random.default_rng(8).normal(size=(2, 512)).astype(np.float32)
    server = serve(sized)
    assert server.configs["vec2face-tiny_generator"].max_batch_size == 3
    asked: dict[str, Any] = {"images": 4, "seed": 6}
    made = server.ask("vec2face-tiny_pipeline", vectors=vectors, kind="reference", **asked)
    with FaceSDK("cpu", synthesizer=synthesis_bundle.folder) as sdk:
        expected = sdk.synthesize(vectors, options=SynthesisOptions(kind="reference"), **asked)
    assert made["pictures"].tobytes() == expected.pictures.tobytes()
    assert [name for name, _, _ in server.requests].count("vec2face-tiny_generator") == 3
    assert not made["failed"].any()


def test_pictures_with_attributes(serve: Serve, synthesis_bundle: Bundle) -> None:
    vectors = np.random.default_rng(8).normal(size=(1, 512)).astype(np.float32)
    made = serve(synthesis_bundle).ask("vec2face-tiny_pipeline", vectors=vectors, quality=25.5, steps=12)
    with FaceSDK("cpu", synthesizer=synthesis_bundle.folder) as sdk:
        expected = sdk.synthesize(vectors, 1, AttributeOptions(quality=25.5, steps=12))
    assert made["pictures"].tobytes() == expected.pictures.tobytes()
    assert made["failed"].tolist() == expected.failed.tolist()


def test_an_encoder(serve: Serve, encoder_bundle: Bundle, bundle_478: Bundle) -> None:
    crops = np.random.default_rng(3).integers(0, 256, (3, 112, 112, 3), np.uint8)
    made = serve(encoder_bundle).ask("tiny-encoder_pipeline", crops=crops, flip=True)
    encoder = Encoder(encoder_bundle, "cpu")
    assert made["embeddings"].tobytes() == encoder.vectors(crops, flip=True).tobytes()
    encoder.close()
    photos = serve(encoder_bundle, annotation=bundle_478)
    (vector,) = photos.ask("tiny-encoder_pipeline", image=astronaut()).values()
    with FaceSDK("cpu", encoder=encoder_bundle.folder, annotation=bundle_478.folder) as sdk:
        assert vector.tobytes() == sdk.encode(astronaut()).vector.tobytes()


@pytest.fixture
def encoder_bundle(synthesis_bundle: Bundle, tmp_path: Path) -> Bundle:
    """The encoder of the synthesis bundle, alone."""
    pytest.importorskip("onnx")
    from facesdk_engines.writing import write_manifest

    folder = tmp_path / "tiny-encoder"
    folder.mkdir()
    shutil.copy(synthesis_bundle.folder / "encoder.onnx", folder)
    about = {"name": "tiny-encoder", "system": "encoder", "licence": "MIT"}
    constants = {"encoder": dict(synthesis_bundle.constants["encoder"])}
    write_manifest(folder, about, {"encoder": {"default": "encoder.onnx"}}, constants)
    return Bundle(folder)
