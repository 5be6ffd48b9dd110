"""The engines of a diffusion bundle: what they give, when they are opened and freed, which bundles are refused."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facesdk.bundle import Bundle
from facesdk.cli.options import add_options, read_options
from facesdk.diffusion import autoencoder, seeds
from facesdk.diffusion.generate import generate
from facesdk.diffusion.networks import DiffusionNetworks, find_bundle
from facesdk.diffusion.options import GenerateOptions
from facesdk.diffusion.plan import plan
from facesdk.engine import Engine
from facesdk.errors import BundleError, EmbeddingSpaceMismatch, EngineClosed, EngineError, ModelNotFound, UsageError
from facesdk.identity import Identity
from facesdk.store import Store
from tests.diffusion_bundle import (
    CHANNELS,
    EXPRESSION,
    IDENTITY,
    LOGVAR,
    NAME,
    TOKENS,
    WIDTH,
    embedded,
    hidden,
    mapped,
    painted,
    read,
    write_diffusion_bundle,
)


@pytest.fixture(scope="module")
def networks(diffusion_bundle: Bundle) -> Iterator[DiffusionNetworks]:
    with DiffusionNetworks(diffusion_bundle, "cpu") as opened:
        yield opened


def identity(networks: DiffusionNetworks, seed: int = 0) -> Identity:
    return Identity(np.random.default_rng(seed).normal(size=IDENTITY).astype(np.float32), networks.encoder.space)


# -- what they give -------------------------------------------------------------------------------------------


def test_settings_of_the_bundle(networks: DiffusionNetworks) -> None:
    settings = networks.settings
    assert (settings.cell, settings.tokens, settings.width, settings.layers) == (8, TOKENS, WIDTH, len(CHANNELS))
    assert settings.schedule.sigmas[-1] == pytest.approx(14.6146, abs=1e-4)
    assert networks.faces is not None
    assert networks.faces.identifiers == ("f", "g")
    assert networks.faces.method("auto") == "f2d"
    assert networks.faces.method("auto", 2) == "mf2d"


def test_text_becomes_keys_and_values(networks: DiffusionNetworks) -> None:
    ids = networks.tokenizer.encode(["a man", ""])
    rows = networks.embed(ids)
    np.testing.assert_allclose(rows, embedded(ids), atol=1e-6)
    made = networks.hidden(rows)
    np.testing.assert_allclose(made, hidden(embedded(ids)), atol=1e-6)
    context = networks.context(made)
    assert {name: values.shape for name, values in context.items()} == {
        f"{kind}_{layer:02d}": (2, TOKENS, CHANNELS[layer]) for layer in (0, 1) for kind in ("key", "value")
    }


def test_latents_become_pictures_and_back(networks: DiffusionNetworks) -> None:
    latents = np.random.default_rng(0).normal(0, 0.1, (2, 4, 9, 8)).astype(np.float32)
    pictures = networks.decode(latents)
    assert pictures.shape == (2, 72, 64, 3)
    for picture, latent in zip(pictures, latents, strict=True):
        assert np.abs(picture.astype(int) - painted(latent)).max() <= 1
    mean, logvar = networks.moments(pictures[0])
    np.testing.assert_allclose(mean, read(pictures[0]), atol=1e-5)
    assert (logvar == np.float32(LOGVAR)).all()


@pytest.mark.parametrize("method", ["f2d", "mf2d"])
@pytest.mark.parametrize("given", [False, True])
def test_a_face_becomes_words(networks: DiffusionNetworks, method: str, given: bool) -> None:
    person = identity(networks)
    expression = np.linspace(-1, 2, EXPRESSION, dtype=np.float32) if given else None
    face = networks.face_tokens(person, method, expression)
    expected = mapped(person.vector, expression, method)
    np.testing.assert_allclose(face.rows, expected[: face.space.tokens], rtol=1e-5, atol=1e-6)
    assert (face.space.model, face.space.method) == ("face2diffusion-5eed5eed", method)
    assert face.space == networks.token_space(face.space.method)


def test_faces_that_cannot_be_words(networks: DiffusionNetworks, plain_diffusion_bundle: Bundle) -> None:
    person = identity(networks)
    elsewhere = Identity(person.vector, dataclasses.replace(person.space, model="another"))
    with pytest.raises(EmbeddingSpaceMismatch, match="another"):
        networks.face_tokens(elsewhere)
    for expression in (np.zeros(3), np.full(EXPRESSION, np.nan), np.zeros(EXPRESSION, int)):
        with pytest.raises(UsageError, match="6 finite floats"):
            networks.face_tokens(person, "f2d", expression)
    with pytest.raises(UsageError, match="choose one of: auto, f2d, mf2d"):
        networks.face_tokens(person, "other")
    with DiffusionNetworks(plain_diffusion_bundle, "cpu") as plain, pytest.raises(UsageError, match="knows no faces"):
        plain.face_tokens(person)


def test_a_bundle_with_one_method(tmp_path: Path) -> None:
    bundle = Bundle(write_diffusion_bundle(tmp_path / "one", methods=["f2d"]))
    settings = DiffusionNetworks(bundle, "cpu").face_settings()
    assert settings.method("auto", 2) == "f2d"
    with pytest.raises(UsageError, match="no method mf2d"):
        settings.method("mf2d")


# -- when they are opened -------------------------------------------------------------------------------------


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the engines, as they are opened."""
    names: list[str] = []
    open_engine = Bundle.open

    def spy(self: Bundle, engine: str, *args: Any, **options: Any) -> Any:
        names.append(engine)
        return open_engine(self, engine, *args, **options)

    monkeypatch.setattr(Bundle, "open", spy)
    return names


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Files of the engines that are open, as they are opened and closed."""
    names: set[str] = set()
    open_engine, close_engine = Bundle.open, Engine.close

    def opening(self: Bundle, engine: str, *args: Any, **options: Any) -> Any:
        made = open_engine(self, engine, *args, **options)
        names.add(made.path.stem)
        return made

    def closing(self: Engine) -> None:
        names.discard(self.path.stem)
        close_engine(self)

    monkeypatch.setattr(Bundle, "open", opening)
    monkeypatch.setattr(Engine, "close", closing)
    return names


def test_engines_open_once_and_when_they_are_needed(
    diffusion_bundle: Bundle, alive: set[str], opened: list[str]
) -> None:
    with DiffusionNetworks(diffusion_bundle, "cpu") as networks:
        assert not opened
        networks.face_settings().method("auto")
        networks.token_space("f2d")
        assert not opened
        for _ in range(2):
            generate(networks, "a man", options=GenerateOptions(images=2))
        assert opened == ["embedding", "text", "context", "time", "step", "vae_decoder"]
        assert alive == set(opened)
    assert not alive


def test_engines_that_are_not_resident_are_freed_stage_by_stage(
    diffusion_bundle: Bundle, alive: set[str], opened: list[str]
) -> None:
    with DiffusionNetworks(diffusion_bundle, "cpu") as kept:
        expected = generate(kept, "a man", options=GenerateOptions(images=2))
    opened.clear()
    seen: list[set[str]] = []
    with DiffusionNetworks(diffusion_bundle, "cpu", resident=False) as networks:
        watch = lambda step, steps: seen.append(set(alive))  # noqa: E731
        made = generate(networks, "a man", options=GenerateOptions(images=2), on_step=watch)
        assert opened == ["embedding", "text", "context", "time", "step", "vae_decoder"]
        assert seen == [{"step"}] * 12
        assert not alive
        opened.clear()
        generate(networks, "a man")
        assert opened == ["time", "step", "vae_decoder"]  # the texts' contexts were kept
    np.testing.assert_array_equal(made.images, expected.images)


def test_a_stage_of_one_thread_outlives_that_of_another(diffusion_bundle: Bundle, alive: set[str]) -> None:
    with DiffusionNetworks(diffusion_bundle, "cpu", resident=False) as networks:
        with networks.stage("time"):
            networks.time_rows(np.array([1.0]))
            assert alive == {"time"}
        assert not alive


def test_several_threads_at_once(diffusion_bundle: Bundle) -> None:
    for resident in (True, False):
        with DiffusionNetworks(diffusion_bundle, "cpu", resident=resident) as networks:

            def made(seed: int, networks: DiffusionNetworks = networks) -> np.ndarray:
                return generate(networks, "a man", options=GenerateOptions(seed=seed)).images

            alone = [made(seed) for seed in range(6)]
            with ThreadPoolExecutor(4) as pool:
                np.testing.assert_array_equal(np.stack(list(pool.map(made, range(6)))), np.stack(alone))


def test_contexts_of_texts_are_computed_once(networks: DiffusionNetworks) -> None:
    def context(text: str) -> Any:
        return networks.text_context(networks.tokenizer.encode(text)[0])

    first = context("man and man")
    assert context("man and man") is first
    for number in range(8):
        context(f"man {number}")
    assert context("man and man") is not first


def test_closed_networks_say_so(diffusion_bundle: Bundle) -> None:
    networks = DiffusionNetworks(diffusion_bundle, "cpu")
    generate(networks, "a man")
    networks.close()
    with pytest.raises(EngineClosed, match=NAME):
        generate(networks, "a man")
    with pytest.raises(EngineClosed):
        _ = networks.encoder


def test_half_precision_is_of_the_engines_that_have_it(tmp_path: Path, opened: list[str]) -> None:
    folder = write_diffusion_bundle(tmp_path / "half")
    manifest = (folder / "bundle.toml").read_text()
    for name in ("step", "text"):
        shutil.copy(folder / f"{name}.onnx", folder / f"{name}.fp16.onnx")
        line = f'default = "{name}.onnx"'
        manifest = manifest.replace(line, f'{line}\nfp16 = "{name}.fp16.onnx"')
    (folder / "bundle.toml").write_text(manifest)
    with DiffusionNetworks(Bundle(folder), "cpu", precision="fp16") as networks:
        generate(networks, "a man")
        files = {name: networks.engines[name].path.name for name in opened}
    assert files == {
        "embedding": "embedding.onnx", "text": "text.fp16.onnx", "context": "context.onnx", "time": "time.onnx",
        "step": "step.fp16.onnx", "vae_decoder": "vae_decoder.onnx",
    }  # fmt: skip
    (folder / "bundle.toml").write_text(manifest.replace('fp16 = "step.fp16.onnx"', ""))
    networks = DiffusionNetworks(Bundle(folder), "cpu", precision="fp16")
    with networks, pytest.raises(UsageError, match="no fp16 form"):
        generate(networks, "a man")


# -- fp16 that overflows --------------------------------------------------------------------------------------


def write_overflowing_bundle(folder: Path, broken: str = "") -> Bundle:
    """One whose decoder, in fp16, multiplies latents by 60000: those beyond 1.09 become infinite."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    write_diffusion_bundle(folder, broken=broken)
    shutil.copy(folder / "step.onnx", folder / "step.fp16.onnx")
    model = onnx.load(folder / "vae_decoder.onnx")
    for node in model.graph.node:
        node.input[:] = ["wide" if name == "latent" else name for name in node.input]
    steps = [
        ("Mul", ["latent", "large"], ["product"], {}),
        ("Cast", ["product"], ["narrow"], {"to": onnx.TensorProto.FLOAT16}),
        ("Cast", ["narrow"], ["broad"], {"to": onnx.TensorProto.FLOAT}),
        ("Div", ["broad", "large"], ["wide"], {}),
    ]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(60000, np.float32), "large"))
    for index, (operator, inputs, outputs, attributes) in enumerate(steps):
        model.graph.node.insert(index, onnx.helper.make_node(operator, inputs, outputs, **attributes))
    onnx.save(model, folder / "vae_decoder.fp16.onnx")
    manifest = (folder / "bundle.toml").read_text()
    for name in ("step", "vae_decoder"):
        line = f'default = "{name}.onnx"'
        manifest = manifest.replace(line, f'{line}\nfp16 = "{name}.fp16.onnx"')
    (folder / "bundle.toml").write_text(manifest)
    return Bundle(folder)


@pytest.mark.parametrize("resident", [True, False])
def test_a_decoder_that_overflows_in_fp16_runs_again_in_fp32(
    tmp_path: Path, alive: set[str], opened: list[str], caplog: pytest.LogCaptureFixture, resident: bool
) -> None:
    bundle = write_overflowing_bundle(tmp_path / "narrow")
    tame = np.random.default_rng(0).uniform(-1, 1, (1, 4, 8, 8)).astype(np.float32)
    with DiffusionNetworks(bundle, "cpu", precision="fp16", resident=resident) as networks:
        assert np.abs(networks.decode(tame)[0].astype(int) - painted(tame[0])).max() <= 1
        assert opened == ["vae_decoder"]
        assert alive == ({"vae_decoder.fp16"} if resident else set())
        assert not caplog.records
        wild = tame.copy()
        wild[0, 1, 3, 3] = 1.2
        for _ in range(2):
            assert np.abs(networks.decode(wild)[0].astype(int) - painted(wild[0])).max() <= 1
        assert networks.engines.precision_of("vae_decoder") == "fp32"
        assert alive == ({"vae_decoder"} if resident else set())
        (record,) = caplog.records
        assert record.levelname == "WARNING"
        assert "engine vae_decoder of narrow gave NaN or infinite values in image in fp16" in record.getMessage()
    assert not alive


def test_the_old_decoder_lives_while_others_use_it(tmp_path: Path, alive: set[str]) -> None:
    bundle = write_overflowing_bundle(tmp_path / "narrow")
    with DiffusionNetworks(bundle, "cpu", precision="fp16") as networks:
        with networks.stage("vae_decoder"):
            networks.decode(np.full((1, 4, 8, 8), 2, np.float32))
            assert alive == {"vae_decoder", "vae_decoder.fp16"}
        assert alive == {"vae_decoder"}


def test_threads_that_overflow_at_once_warn_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bundle = write_overflowing_bundle(tmp_path / "narrow")
    wild = np.full((1, 4, 8, 8), 2, np.float32)
    with DiffusionNetworks(bundle, "cpu", precision="fp16", resident=False) as networks, ThreadPoolExecutor(4) as pool:
        for picture in pool.map(networks.decode, [wild] * 16):
            assert np.abs(picture[0].astype(int) - painted(wild[0])).max() <= 1
    assert len(caplog.records) == 1


def test_what_is_nan_in_fp32_too_is_an_error(tmp_path: Path) -> None:
    bundle = write_overflowing_bundle(tmp_path / "nan", broken="image")
    with (
        DiffusionNetworks(bundle, "cpu", precision="fp16") as networks,
        pytest.raises(EngineError, match=r"engine vae_decoder of nan gave NaN .* in image, in fp32 on device cpu"),
    ):
        networks.decode(np.zeros((1, 4, 8, 8), np.float32))


# -- what is wrong --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "engine"), [("hidden", "text"), ("rows", "time"), ("next_bank", "step"), ("image", "vae_decoder")]
)
def test_nan_is_told_with_its_engine(tmp_path: Path, output: str, engine: str) -> None:
    bundle = Bundle(write_diffusion_bundle(tmp_path / "nan", broken=output))
    with DiffusionNetworks(bundle, "cpu") as networks, pytest.raises(EngineError, match=f"engine {engine} of nan"):
        generate(networks, "a man")


@pytest.mark.parametrize(
    ("constants", "words"),
    [
        ({"scaling_factor": None}, "scaling_factor"),
        ({"scaling_factor": "x"}, "scaling_factor"),
        ({"cell": 0}, "cell"),
        ({"cell": 8.0}, "cell"),
        ({"prediction": "other"}, "prediction"),
        ({"scheduler": "other"}, "scheduler"),
        ({"steps": True}, "steps"),
        ({"size": 65}, "no multiple of cell 8"),
    ],
)
def test_constants_that_cannot_be(tmp_path: Path, constants: dict[str, Any], words: str) -> None:
    bundle = Bundle(write_diffusion_bundle(tmp_path / "wrong", **constants))
    with pytest.raises(BundleError, match=words):
        DiffusionNetworks(bundle, "cpu")


def test_bundles_that_lack_something(tmp_path: Path, synthesis_bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="engine text, engine step"):
        DiffusionNetworks(Bundle(write_diffusion_bundle(tmp_path / "a", leave_out=["text", "step"])), "cpu")
    with pytest.raises(BundleError, match="engine mapping"):
        DiffusionNetworks(Bundle(write_diffusion_bundle(tmp_path / "b", leave_out=["mapping"])), "cpu")
    with pytest.raises(BundleError, match="engine embedding"):
        DiffusionNetworks(synthesis_bundle, "cpu")
    folder = write_diffusion_bundle(tmp_path / "c")
    (folder / "tokenizer.json").unlink()
    (folder / "vae_decoder.onnx").unlink()
    with pytest.raises(BundleError, match=r"file vae_decoder\.onnx, file tokenizer\.json") as caught:
        DiffusionNetworks(Bundle(folder), "cpu")
    assert caught.value.remedy == "export it again: facesdk export face2diffusion --help"
    for number, (line, words) in enumerate(
        [('methods = ["other"]', "faces.methods"), ("methods = []", "faces.methods"), ("methods = 3", "faces.methods")]
    ):
        folder = write_diffusion_bundle(tmp_path / f"d{number}")
        manifest = (folder / "bundle.toml").read_text().replace('methods = ["f2d", "mf2d"]', line)
        (folder / "bundle.toml").write_text(manifest)
        with pytest.raises(BundleError, match=words):
            DiffusionNetworks(Bundle(folder), "cpu")


def test_engines_of_another_signature_are_refused(tmp_path: Path) -> None:
    for name, constants, words in (
        ("text", {"width": 16}, "input embeddings"),
        ("time", {"time_width": 3}, "input time"),
        ("step", {"layers": 3}, "key_02"),
        ("step", {"layers": 1}, "unknown input key_01"),
    ):
        bundle = Bundle(write_diffusion_bundle(tmp_path / f"{name}-{words.split()[-1]}", **constants))
        with DiffusionNetworks(bundle, "cpu") as networks, pytest.raises(BundleError, match=words):
            _ = networks.engines["step" if name == "time" else name]


def test_an_engine_in_the_place_of_another(tmp_path: Path) -> None:
    folder = write_diffusion_bundle(tmp_path / "mixed")
    shutil.copy(folder / "time.onnx", folder / "text.onnx")
    with DiffusionNetworks(Bundle(folder), "cpu") as networks, pytest.raises(BundleError) as caught:
        generate(networks, "a man")
    for what in ("engine text of mixed", "input embeddings", "unknown input timestep", "output hidden"):
        assert what in str(caught.value)


def test_finding_a_bundle(diffusion_store: Store, tmp_path: Path) -> None:
    assert find_bundle(diffusion_store).name == NAME
    write_diffusion_bundle(tmp_path / "bundles" / "plain", faces=False)
    assert find_bundle(Store(tmp_path)).name == "plain"
    with pytest.raises(ModelNotFound, match="facesdk export"):
        find_bundle(Store(tmp_path / "empty"))


# -- tiles ----------------------------------------------------------------------------------------------------


def blurred(latent: np.ndarray) -> np.ndarray:
    """A network that looks at the mean of all that it is given: (3, 8h, 8w) of (4, h, w)."""
    return np.repeat(np.repeat(latent[:3], 8, axis=1), 8, axis=2) + 0.02 * latent.mean()


def test_tiles_cover_the_picture_and_meet_softly() -> None:
    rows = np.linspace(-0.9, 0.9, 40, dtype=np.float32)
    latent = np.broadcast_to(rows[:, None], (4, 40, 24)).copy()
    whole, calls = autoencoder.decode(blurred, latent, 8), []

    def spied(part: np.ndarray) -> np.ndarray:
        calls.append(part.shape[1:])
        return blurred(part)

    tiled = autoencoder.decode(spied, latent, 8, 128)
    assert tiled.shape == whole.shape == (320, 192, 3)
    assert calls == [(16, 16)] * 6
    assert 0 < np.abs(tiled.astype(int) - whole).max() <= 4
    steps = np.abs(np.diff(tiled[::8, 0, 0].astype(int)))  # of a picture whose rows rise evenly by 5.9 levels
    assert steps.min() >= 4
    assert steps.max() <= 7


def test_a_tile_hands_over_to_the_next_linearly() -> None:
    shades = iter([-1.0, 1.0])

    def shade(part: np.ndarray) -> np.ndarray:
        return np.full((3, 128, 128), next(shades), np.float32)

    row = autoencoder.decode(shade, np.zeros((4, 16, 28), np.float32), 8, 128)[50, :, 0]
    assert (row[:96] == 0).all()
    assert (row[128:] == 255).all()
    expected = 255 * (np.arange(32) + 0.5) / 32  # over a quarter of the tile
    assert np.abs(row[96:128] - expected).max() <= 0.5


def test_tiles_of_what_has_no_context_change_nothing() -> None:
    latent = np.random.default_rng(0).normal(0, 0.5, (4, 21, 33)).astype(np.float32)

    def plain(part: np.ndarray) -> np.ndarray:
        return np.repeat(np.repeat(part[:3], 8, axis=1), 8, axis=2)

    whole = autoencoder.decode(plain, latent, 8).astype(int)
    for tile in (64, 72, 128, 160):
        assert np.abs(autoencoder.decode(plain, latent, 8, tile) - whole).max() <= 1
    np.testing.assert_array_equal(autoencoder.decode(plain, latent, 8, 512), whole)


def test_encoding_in_tiles(networks: DiffusionNetworks) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (160, 88, 3), np.uint8)
    whole, tiled = networks.moments(picture), networks.moments(picture, 64)
    np.testing.assert_allclose(tiled[0], whole[0], atol=1e-5)
    np.testing.assert_allclose(tiled[1], whole[1], atol=1e-5)
    noise = np.ones_like(whole[0])
    latent = autoencoder.sample(*whole, noise, 0.5)
    np.testing.assert_allclose(latent, 0.5 * (whole[0] + np.exp(LOGVAR / 2)), rtol=1e-5)


# -- seeds, plan, options -------------------------------------------------------------------------------------


def test_streams_are_unit_normal_and_independent() -> None:
    shape = (4, 32, 32)
    streams = {
        "start": seeds.start(7, shape),
        "other seed": seeds.start(8, shape),
        "step": seeds.step_noise(7, 2, shape)[0],
        "second step": seeds.step_noise(7, 2, shape)[1],
        "blend": seeds.blend_noise(7, 1, shape)[0],
        "posterior": seeds.posterior(7, shape),
    }
    flat = np.stack([values.ravel() for values in streams.values()])
    assert np.abs(flat.mean(axis=1)).max() < 0.06
    assert np.abs(np.corrcoef(flat) - np.eye(len(flat))).max() < 0.06
    np.testing.assert_allclose(flat.std(axis=1), 1, atol=0.05)
    np.testing.assert_array_equal(seeds.step_noise(7, 5, shape)[:2], seeds.step_noise(7, 2, shape))
    np.testing.assert_array_equal(seeds.start(7, shape), streams["start"])
    assert seeds.start(seeds.LIMIT - 1, (1,)).dtype == np.float32
    for seed in (-1, seeds.LIMIT, 0.5, True):
        with pytest.raises(UsageError):
            seeds.check_seeds(seed)  # type: ignore[arg-type]


def test_the_plan_names_every_stage(networks: DiffusionNetworks, opened: list[str]) -> None:
    rows = {row.stage: row for row in plan(networks, GenerateOptions(images=3, batch=2), 1, picture=True)}
    assert list(rows) == ["faces", "text", "encode", "denoise", "decode"]
    assert not opened
    folder = networks.bundle.folder
    assert rows["denoise"].engines == ("step",)
    assert rows["denoise"].files_mb == pytest.approx((folder / "step.onnx").stat().st_size / 1e6)
    keys = 2 * TOKENS * 2 * sum(CHANNELS)
    # bank twice, known, its noise and the mask; published f2d: 30 steps of noise, of which denoise 0.75 runs 22
    assert rows["denoise"].arrays_mb == pytest.approx(4e-6 * (keys + 2 * 256 * (2 + 22 + 3)))
    assert [row.stage for row in plan(networks)] == ["text", "denoise", "decode"]
    with pytest.raises(UsageError):
        plan(networks, GenerateOptions(width=100))
    with pytest.raises(UsageError):
        plan(networks, GenerateOptions(steps=3, delay=3))


def test_weights_beside_a_file_count(tmp_path: Path) -> None:
    folder = write_diffusion_bundle(tmp_path / "large")
    with DiffusionNetworks(Bundle(folder), "cpu") as networks:
        before = networks.engines.file_mb("step")
        (folder / "step.onnx.data").write_bytes(bytes(3_000_000))
        assert networks.engines.file_mb("step") == pytest.approx(before + 3)


def test_winograd_weights_count_on_processors(tmp_path: Path) -> None:
    folder = write_diffusion_bundle(tmp_path / "wide")
    shutil.copy(folder / "step.onnx", folder / "step.cpu.onnx")
    (folder / "step.winograd.data").write_bytes(bytes(3_000_000))
    manifest = (folder / "bundle.toml").read_text()
    line = 'default = "step.onnx"'
    (folder / "bundle.toml").write_text(manifest.replace(line, f'{line}\ncpu = "step.cpu.onnx"'))
    bundle, plain = Bundle(folder), (folder / "step.onnx").stat().st_size / 1e6
    for device, more in (("cpu", 3), ("auto", 3), ("cuda", 0), ("tensorrt", 0), ("tensorrt-rtx", 0)):
        assert DiffusionNetworks(bundle, device).engines.file_mb("step") == pytest.approx(plain + more), device


def test_pictures_that_are_denoised_together_count(diffusion_bundle: Bundle) -> None:
    sizes = {}
    for device in ("cpu", "openvino", "cuda", "tensorrt", "tensorrt-rtx"):
        networks = DiffusionNetworks(diffusion_bundle, device)
        rows = (plan(networks, GenerateOptions(images=4, batch=batch)) for batch in (1, 4, None))
        one, all_, own = (next(row.arrays_mb for row in stages if row.stage == "denoise") for stages in rows)
        assert one < all_
        sizes[device] = {one: 1, all_: 4}[own]
    assert sizes == {"cpu": 1, "openvino": 1, "cuda": 4, "tensorrt": 4, "tensorrt-rtx": 4}


def test_every_option_is_an_option_of_the_command() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser, GenerateOptions)
    assert read_options(parser.parse_args([]), GenerateOptions) == GenerateOptions()
    given = ["--scheduler=ddim", "--steps=12", "--guidance=1.5", "--width=64", "--keep=2", "--images=3", "--truncate"]
    assert read_options(parser.parse_args([*given, "--denoise=0.5"]), GenerateOptions) == GenerateOptions(
        scheduler="ddim", steps=12, guidance=1.5, width=64, keep=2, images=3, truncate=True, denoise=0.5
    )
    assert all(field.metadata["help"] for field in dataclasses.fields(GenerateOptions))
