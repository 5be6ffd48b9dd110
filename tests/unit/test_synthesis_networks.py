"""The engines of a synthesis bundle: what they give, when they are opened, and which bundles are refused."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facesdk.bundle import Bundle
from facesdk.engine import Engine
from facesdk.errors import BundleError, EngineClosed, EngineError, ModelNotFound, ProviderUnavailable
from facesdk.store import Store
from facesdk.synthesis.masks import MaskLaw, Masks, token_masks
from facesdk.synthesis.networks import SynthesisNetworks, find_bundle
from tests.synthesis_bundle import NAME, SCALE, law, shading, write_synthesis_bundle

TARGETS = np.array([0, 27, 45, 10, -10], np.float32)
WEIGHTS = np.array([100, 1, 0.5, 2, 1], np.float32)


@pytest.fixture(scope="module")
def networks(synthesis_bundle: Bundle) -> Iterator[SynthesisNetworks]:
    with SynthesisNetworks(synthesis_bundle, "cpu") as opened:
        yield opened


def drawn(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, Masks]:
    """Vectors, references near them, masks."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(count, 512)).astype(np.float32)
    references = (vectors + rng.normal(0, 0.3, vectors.shape)).astype(np.float32)
    return vectors, references, token_masks(rng.random((count, 49)), rng.uniform(0.1, 1, count), MaskLaw())


def columns(count: int) -> tuple[np.ndarray, np.ndarray]:
    return np.tile(TARGETS, (count, 1)), np.tile(WEIGHTS, (count, 1))


# -- what they give -------------------------------------------------------------------------------------------


def test_constants_of_the_bundle(networks: SynthesisNetworks) -> None:
    assert (networks.size, networks.width, networks.law.dropped) == (112, 512, 5)
    assert networks.terms == ("identity", "quality", "yaw", "pitch", "roll")
    assert "cpu" in networks.description.lower()


def test_pictures_are_of_the_vector_and_its_masks(networks: SynthesisNetworks) -> None:
    vectors, _, masks = drawn(3)
    pictures = networks.pictures(vectors, masks)
    squares = np.clip(vectors * shading(masks.keep, masks.masked) / SCALE, -1, 1)
    levels = (pictures[:, ::8, ::8].transpose(0, 3, 1, 2).reshape(3, -1)[:, :512] + 0.5) / 127.5 - 1
    assert pictures.shape == (3, 112, 112, 3)
    assert pictures.dtype == np.uint8
    assert np.abs(levels - squares).max() < 1 / 127


def test_pictures_are_clipped_and_truncated_as_the_published_ones(networks: SynthesisNetworks) -> None:
    vectors, _, masks = drawn(2)
    vectors[0] *= 5
    raw = networks.run("generator", vector=vectors, keep=masks.keep, masked=masks.masked)["image"]
    assert np.abs(raw).max() > 1
    saved = np.stack([((image.transpose(1, 2, 0) + 1) / 2 * 255).clip(0, 255).astype(np.uint8) for image in raw])
    pictures = networks.pictures(vectors, masks)
    np.testing.assert_array_equal(pictures, saved)
    assert pictures.flags.c_contiguous


def test_the_encoder_finds_the_vector_again(networks: SynthesisNetworks) -> None:
    vectors, _, masks = drawn(4)
    found = networks.encoder.vectors(list(networks.pictures(vectors, masks)))
    cosines = (found * vectors).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(vectors, axis=1)
    assert cosines.min() > 0.99
    assert networks.encoder is networks.encoder


def test_the_gradient_is_that_of_the_weighted_losses(networks: SynthesisNetworks) -> None:
    vectors, references, masks = drawn(1, seed=2)
    rng, reach = np.random.default_rng(3), 0.05
    places = np.concatenate([np.eye(512)[::37], rng.normal(size=(16, 512)) / 16]).astype(np.float32)
    ends = np.concatenate([vectors + reach * places, vectors - reach * places])
    many = len(ends)
    step = networks.step(
        ends, np.repeat(references, many, 0), Masks.stacked([masks] * many), *columns(many)
    )  # every column's loss but the cosine's is linear here: no kink is near
    losses = (step.losses.astype(np.float64) * WEIGHTS).sum(1)
    slopes = (losses[: many // 2] - losses[many // 2 :]) / (2 * reach)
    gradient = networks.step(vectors, references, masks, *columns(1)).gradient[0]
    np.testing.assert_allclose(places @ gradient, slopes, atol=3e-3)
    assert np.abs(slopes).max() > 1


@pytest.mark.parametrize(("term", "column"), [("quality", 1), ("yaw", 2), ("pitch", 3), ("roll", 4)])
def test_every_term_pulls_by_its_own_weight(networks: SynthesisNetworks, term: str, column: int) -> None:
    vectors, references, masks = drawn(1)
    targets, weights = columns(1)[0], np.eye(5, dtype=np.float32)[[column]]
    step = networks.step(vectors, references, masks, targets, weights)
    sign = np.sign(step.gradient[0] @ law(term))
    expected = sign * law(term) * shading(masks.keep, masks.masked)[0]
    np.testing.assert_allclose(step.gradient[0], expected, rtol=1e-5)
    off = targets[0, column] - (abs(step.values[0, column]) if term == "yaw" else step.values[0, column])
    assert step.losses[0, column] == pytest.approx(max(off, 0) if term == "quality" else abs(off), rel=1e-5)


@pytest.mark.parametrize("sizes", [(1,) * 8, (3, 5), (7, 1)])
def test_rows_do_not_feel_each_other(networks: SynthesisNetworks, sizes: tuple[int, ...]) -> None:
    vectors, references, masks = drawn(8)
    whole, pictures = networks.step(vectors, references, masks, *columns(8)), networks.pictures(vectors, masks)
    measured, start = networks.measure(pictures), 0
    for size in sizes:
        rows = slice(start, start + size)
        part = networks.step(vectors[rows], references[rows], masks[rows], *columns(size))
        for name in ("gradient", "pictures", "values", "losses"):
            np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[rows], err_msg=name)
        np.testing.assert_array_equal(networks.pictures(vectors[rows], masks[rows]), pictures[rows])
        for term, values in networks.measure(pictures[rows]).items():
            np.testing.assert_array_equal(values, measured[term][rows], err_msg=term)
        start += size


def test_measures_agree_with_the_values_of_the_step(networks: SynthesisNetworks) -> None:
    vectors, references, masks = drawn(6)
    step = networks.step(vectors, references, masks, *columns(6))
    np.testing.assert_array_equal(step.pictures, networks.pictures(vectors, masks))
    measured = networks.measure(step.pictures)
    assert set(measured) == {"quality", "yaw", "pitch", "roll"}
    for column, term in enumerate(networks.terms[1:], 1):
        np.testing.assert_allclose(measured[term], step.values[:, column], atol=0.5, err_msg=term)


def test_a_bundle_without_head_pose_measures_quality_alone(synthesis_bundle_without_pose: Bundle) -> None:
    vectors, references, masks = drawn(2)
    with SynthesisNetworks(synthesis_bundle_without_pose, "cpu") as networks:
        step = networks.step(vectors, references, masks, *(column[:, :2] for column in columns(2)))
        assert step.values.shape == (2, 2)
        assert set(networks.measure(step.pictures)) == {"quality"}


# -- when they are opened -------------------------------------------------------------------------------------


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the engines, as they are opened."""
    names: list[str] = []
    open_engine = Bundle.open

    def record(bundle: Bundle, engine: str, *arguments: Any, **options: Any) -> Any:
        names.append(engine)
        time.sleep(0.02)  # long enough for the other threads to come
        return open_engine(bundle, engine, *arguments, **options)

    monkeypatch.setattr(Bundle, "open", record)
    return names


def test_an_engine_is_opened_when_it_is_needed_and_once(synthesis_bundle: Bundle, opened: list[str]) -> None:
    vectors, _, masks = drawn(2)
    with SynthesisNetworks(synthesis_bundle, "cpu") as networks, ThreadPoolExecutor(8) as threads:
        assert opened == []
        pictures = [task.result() for task in [threads.submit(networks.pictures, vectors, masks) for _ in range(16)]]
        assert opened == ["generator"]
        assert all((each == pictures[0]).all() for each in pictures)
        networks.measure(pictures[0])
        assert opened == ["generator", "quality", "pose"]


def test_closed_networks_say_so(synthesis_bundle: Bundle) -> None:
    vectors, _, masks = drawn(1)
    with SynthesisNetworks(synthesis_bundle, "cpu") as networks:
        encoder, picture = networks.encoder, networks.pictures(vectors, masks)[0]
    networks.close()
    for use in (
        lambda: networks.pictures(vectors, masks),
        lambda: networks.encoder,
        lambda: encoder.vectors([picture]),
    ):
        with pytest.raises(EngineClosed):
            use()


def test_the_precision_is_of_what_paints(synthesis_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}
    open_engine = Bundle.open

    def record(bundle: Bundle, engine: str, device: Any, *, precision: Any = "fp32", **options: Any) -> Any:
        asked[engine] = precision
        return open_engine(bundle, engine, device, **options)

    monkeypatch.setattr(Bundle, "open", record)
    vectors, references, masks = drawn(1)
    with SynthesisNetworks(synthesis_bundle, "cpu", precision="fp16") as networks:
        networks.measure(networks.pictures(vectors, masks))
        networks.step(vectors, references, masks, *columns(1))
    assert asked == {"generator": "fp16", "step": "fp32", "quality": "fp32", "pose": "fp32"}


def test_gradients_are_not_computed_on_openvino(synthesis_bundle: Bundle) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    vectors, references, masks = drawn(1)
    with SynthesisNetworks(synthesis_bundle, "openvino") as networks:
        assert networks.pictures(vectors, masks).shape == (1, 112, 112, 3)
        with pytest.raises(ProviderUnavailable, match="attributes cannot be optimised on openvino"):
            networks.step(vectors, references, masks, *columns(1))


def test_auto_takes_another_device_for_gradients(synthesis_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    open_engine = Engine.open.__func__

    def record(kind: type[Engine], path: Path, device: Any, **options: Any) -> Any:
        asked.append(device)
        return open_engine(kind, path, device, **options)

    monkeypatch.setattr(Engine, "open", classmethod(record))
    vectors, references, masks = drawn(1)
    with SynthesisNetworks(synthesis_bundle, "auto") as networks:
        networks.step(vectors, references, masks, *columns(1))
    assert asked == ["auto"]


# -- what is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("constants", "named"),
    [
        ({"size": "112"}, "constant size"),
        ({"size": True}, "constant size"),
        ({"tokens": 197}, "constant tokens"),
        ({"mask_std": "wide"}, "constant mask_std"),
        ({"mask_minimum": 1.5}, "mask_"),
        ({"mask_std": 0.0}, "mask_"),
    ],
)
def test_malformed_constants_are_named(tmp_path: Path, constants: dict[str, Any], named: str) -> None:
    bundle = Bundle(write_synthesis_bundle(tmp_path / "odd", **constants))
    with pytest.raises(BundleError, match=named):
        SynthesisNetworks(bundle, "cpu")


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('["identity", "quality", "yaw"', '["identity", "quality", 7', "attributes.terms"),
        ('["identity", "quality", "yaw"', '["identity", "identity", "quality"', "attributes.terms"),
        ('["identity", "quality", "yaw"', '["identity", "yaw"', "attributes.terms"),
        ("[engines.pose]", "[engines.poise]", "engine pose"),
        ("[engines.step]", "[engines.leap]", "engine step"),
        ("[constants.synthesis]", "[constants.other]", "constant size"),
    ],
)
def test_an_incomplete_bundle_is_refused(
    tmp_path: Path, synthesis_bundle: Bundle, old: str, new: str, named: str
) -> None:
    folder = shutil.copytree(synthesis_bundle.folder, tmp_path / "odd")
    text = (folder / "bundle.toml").read_text()
    assert old in text
    (folder / "bundle.toml").write_text(text.replace(old, new))
    with pytest.raises(BundleError, match=named):
        SynthesisNetworks(Bundle(folder), "cpu")


def test_a_whole_number_is_as_good_as_a_float(tmp_path: Path) -> None:
    bundle = Bundle(write_synthesis_bundle(tmp_path / "odd", mask_maximum=1))
    assert SynthesisNetworks(bundle, "cpu").law.maximum == 1.0


def test_an_engine_of_another_signature_is_refused(tmp_path: Path, synthesis_bundle: Bundle) -> None:
    folder = shutil.copytree(synthesis_bundle.folder, tmp_path / "odd")
    shutil.copy(folder / "quality.onnx", folder / "generator.onnx")
    vectors, _, masks = drawn(1)
    with (
        SynthesisNetworks(Bundle(folder), "cpu") as networks,
        pytest.raises(BundleError, match="input vector, input keep, input masked, unknown input image, output image"),
    ):
        networks.pictures(vectors, masks)


def test_masks_of_another_law_do_not_fit(tmp_path: Path) -> None:
    bundle = Bundle(write_synthesis_bundle(tmp_path / "odd", mask_minimum=0.5))
    vectors, _, masks = drawn(1)
    with SynthesisNetworks(bundle, "cpu") as networks, pytest.raises(BundleError, match="input keep"):
        networks.pictures(vectors, masks)


@pytest.mark.parametrize("output", ["gradient", "values", "losses"])
def test_a_step_that_gives_no_numbers_is_an_error(tmp_path: Path, output: str) -> None:
    vectors, references, masks = drawn(2)
    bundle = Bundle(write_synthesis_bundle(tmp_path / "odd", broken=output))
    with SynthesisNetworks(bundle, "cpu") as networks, pytest.raises(EngineError, match=f"NaN.* in {output}"):
        networks.step(vectors, references, masks, *columns(2))


@pytest.mark.parametrize("output", ["image", "quality", "angles"])
def test_a_picture_or_measure_that_is_no_number_is_an_error(tmp_path: Path, output: str) -> None:
    vectors, _, masks = drawn(2)
    bundle = Bundle(write_synthesis_bundle(tmp_path / "odd", broken=output))
    with SynthesisNetworks(bundle, "cpu") as networks, pytest.raises(EngineError, match=f"NaN.* in {output}"):
        networks.measure(networks.pictures(vectors, masks))


def test_the_only_bundle_of_a_store_is_found(synthesis_store: Store, tmp_path: Path) -> None:
    assert find_bundle(synthesis_store).name == NAME
    assert find_bundle(Store(tmp_path), synthesis_store.open(NAME).folder).name == NAME
    with pytest.raises(ModelNotFound, match="facesdk export vec2face"):
        find_bundle(Store(tmp_path))
