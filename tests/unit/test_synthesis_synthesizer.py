"""Pictures in memory: those of a data set, from vectors, numbers, identities and photos."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from facesdk.bundle import Bundle
from facesdk.errors import EmbeddingSpaceMismatch, EngineClosed, ModelNotFound, NoFaceFound, UsageError
from facesdk.facade import FaceSDK
from facesdk.identity import Identity
from facesdk.image import read_image
from facesdk.store import Store
from facesdk.synthesis.attributes import AttributeOptions
from facesdk.synthesis.dataset import write_dataset
from facesdk.synthesis.generate import SynthesisOptions
from facesdk.synthesis.networks import SynthesisNetworks
from facesdk.synthesis.sampling import sample_vectors
from facesdk.synthesis.synthesizer import Synthesis, Synthesizer
from tests.bundles import DATA
from tests.synthesis_bundle import NAME, SIZE

PHOTO = DATA / "astronaut.png"
TURNED = AttributeOptions(yaw=30.0)
POSE = SynthesisOptions(kind="pose")


@pytest.fixture(scope="module")
def synthesizer(synthesis_bundle: Bundle) -> Iterator[Synthesizer]:
    made = Synthesizer(SynthesisNetworks(synthesis_bundle, "cpu", 1))
    yield made
    made.close()


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(3, 512)).astype(np.float32)


def check_equal(one: Synthesis, other: Synthesis) -> None:
    for name in ("pictures", "vectors", "drawn", "similarity", "failed"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("kind", ["image", "pose", "reference"])
def test_pictures_are_those_of_the_data_set(
    synthesizer: Synthesizer, vectors: np.ndarray, tmp_path: Path, kind: str
) -> None:
    options = SynthesisOptions(kind=kind, images=4, format="png", batch=5)  # type: ignore[arg-type]
    attributes = TURNED if kind == "pose" else None
    report = write_dataset(synthesizer.networks, vectors, tmp_path, "a", options, attributes, 3)
    made = synthesizer.synthesize(vectors, 4, attributes, options, 3)
    files = sorted(report.folder.rglob("*.png"))
    assert len(files) == 12
    np.testing.assert_array_equal(
        np.stack([read_image(path) for path in files]), made.pictures.reshape(12, 112, 112, 3)
    )


def test_what_a_synthesis_says(synthesizer: Synthesizer, vectors: np.ndarray) -> None:
    made = synthesizer.synthesize(vectors, 5, TURNED, dataclasses.replace(POSE, measured=2), 3)
    assert (made.pictures.shape, made.pictures.dtype) == ((3, 5, SIZE, SIZE, 3), np.uint8)
    np.testing.assert_array_equal(made.vectors, vectors)
    assert not made.failed.any()
    assert [row.key for row in made.reached] == [(i, j) for i in range(3) for j in range(5)]
    for row in made.reached:
        np.testing.assert_array_equal(made.drawn[row.key], row.vector)
        assert abs(abs(row.values["yaw"]) - 30) <= 5
    found = synthesizer.networks.encoder.vectors(made.pictures[:, :2].reshape(-1, SIZE, SIZE, 3)).reshape(3, 2, 512)
    for i, j in np.ndindex(3, 2):
        one, asked = found[i, j], vectors[i]
        cosine = one @ asked / np.linalg.norm(one) / np.linalg.norm(asked)
        assert made.similarity[i, j] == pytest.approx(cosine, abs=1e-6)
    assert made.timings_ms.keys() == {"generate", "similarity"}


def test_kinds_optimise_once_each_or_never(synthesizer: Synthesizer, vectors: np.ndarray) -> None:
    for kind, rows in (("image", 3), ("pose", 6), ("reference", 0)):
        options = SynthesisOptions(kind=kind, measured=0)  # type: ignore[arg-type]
        made = synthesizer.synthesize(vectors, 2, None, options)
        assert len(made.reached) == rows
        assert made.similarity.shape == (3, 0)


def test_what_misses_its_attributes_is_there_and_told(synthesizer: Synthesizer, vectors: np.ndarray) -> None:
    """Of the kind image a whole identity; of the kind pose each picture by itself."""
    impossible = AttributeOptions(quality=90.0, steps=2)
    for kind in ("image", "pose"):
        made = synthesizer.synthesize(vectors, 2, impossible, SynthesisOptions(kind=kind))  # type: ignore[arg-type]
        assert made.failed.all()
        assert all("quality" in row.failed for row in made.reached)
        assert (made.pictures.std(axis=(2, 3, 4)) > 0).all()
    assert dataclasses.replace(made, failed=~made.failed).failed.sum() == 0


def test_threads_share_the_networks(synthesizer: Synthesizer, vectors: np.ndarray) -> None:
    alone = synthesizer.synthesize(vectors, 2, TURNED, POSE)
    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(synthesizer.synthesize, vectors, 2, TURNED, POSE) for _ in range(3)]
        for job in jobs:
            check_equal(job.result(), alone)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (np.zeros((0, 512), np.float32), "no identities"),
        (np.ones((2, 256), np.float32), "256"),
        (np.full((2, 512), np.inf, np.float32), "infinite"),
        (np.full((2, 512), 512**-0.5, np.float32), "length"),
    ],
)
def test_wrong_vectors(synthesizer: Synthesizer, rows: np.ndarray, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        synthesizer.synthesize(rows)


def test_unusual_vectors_on_request(synthesizer: Synthesizer, vectors: np.ndarray) -> None:
    short = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    made = synthesizer.synthesize(short, 1, None, SynthesisOptions(kind="reference"), unusual=True)
    assert np.linalg.norm(made.drawn, axis=2) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("images", [0, -1])
def test_no_pictures(synthesizer: Synthesizer, vectors: np.ndarray, images: int) -> None:
    with pytest.raises(UsageError, match="images"):
        synthesizer.synthesize(vectors, images)


# -- the facade -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sdk(synthesis_store: Store) -> Iterator[FaceSDK]:
    with FaceSDK("cpu", threads=1, store=synthesis_store) as sdk:
        yield sdk


@pytest.fixture(scope="module")
def sdk_with_eyes(
    tmp_path_factory: pytest.TempPathFactory, synthesis_bundle: Bundle, bundle_478: Bundle
) -> Iterator[FaceSDK]:
    """Of a store with the synthesis bundle and the annotation."""
    home = tmp_path_factory.mktemp("eyes")
    for bundle in (synthesis_bundle, bundle_478):
        shutil.copytree(bundle.folder, home / "bundles" / bundle.name)
    with FaceSDK("cpu", threads=1, store=Store(home)) as sdk:
        yield sdk


def test_from_vectors_and_from_a_number(sdk: FaceSDK, vectors: np.ndarray) -> None:
    made = sdk.synthesize(vectors, 2, seed=4)
    check_equal(made, sdk.synthesizer.synthesize(vectors, 2, seed=4))
    assert len(made.reached) == 3  # the kind image
    drawn = sdk.synthesize(4, seed=9)
    np.testing.assert_array_equal(drawn.vectors, sample_vectors(4, 9))
    assert (sdk.synthesize(4, seed=10).vectors != drawn.vectors).all()


def test_identities_have_to_be_of_the_bundles_space(sdk: FaceSDK, vectors: np.ndarray) -> None:
    space = sdk.synthesizer.networks.encoder.space
    own = [Identity(vector, space) for vector in vectors]
    made = sdk.synthesize(own, 2)
    np.testing.assert_array_equal(made.vectors, vectors)
    assert made.reached == ()  # the kind reference
    np.testing.assert_array_equal(sdk.synthesize(own[1]).vectors, vectors[1:2])
    assert len(sdk.synthesize(own[1], 1, TURNED, POSE).reached) == 1
    other = Identity(vectors[0], dataclasses.replace(space, model="arcface-r50"))
    with pytest.raises(EmbeddingSpaceMismatch, match="its own encoder") as caught:
        sdk.synthesize([own[0], other])
    assert "arcface-r50" in caught.value.cause
    assert caught.value.remedy


def test_from_photos(sdk_with_eyes: FaceSDK) -> None:
    sdk = sdk_with_eyes
    person = sdk.synthesis_identity(PHOTO)
    (face,) = sdk.annotate(PHOTO)
    crop = face.aligned(read_image(PHOTO), SIZE)
    np.testing.assert_allclose(person.vector, sdk.synthesizer.networks.encoder.vectors([crop])[0], atol=1e-5)
    for source in (PHOTO, read_image(PHOTO), [PHOTO, DATA / "astronaut_rot35.png"]):
        made = sdk.synthesize(source, 2, unusual=True)
        assert len(made.pictures) == (2 if isinstance(source, list) else 1)
        np.testing.assert_array_equal(made.vectors[0], person.vector)
        assert made.reached == ()
    with pytest.raises(NoFaceFound):
        sdk.synthesize(DATA / "no_face.png")


def test_nothing_to_synthesise(sdk: FaceSDK) -> None:
    for source in ([], 0):
        with pytest.raises(UsageError, match="no identities"):
            sdk.synthesize(source)  # type: ignore[arg-type]


def test_bundles_by_name_and_where_there_is_none(synthesis_store: Store, tmp_path: Path) -> None:
    with FaceSDK("cpu", store=synthesis_store, synthesizer=NAME) as sdk:
        first = sdk.synthesizer
        assert first.networks.bundle.name == NAME
        sdk.close()
        with pytest.raises(EngineClosed):
            first.synthesize(np.ones((1, 512), np.float32))
        assert sdk.synthesizer is not first
    with FaceSDK("cpu", store=Store(tmp_path)) as bare:
        with pytest.raises(ModelNotFound, match="face synthesis") as caught:
            bare.synthesize(1)
        assert "facesdk export vec2face" in caught.value.remedy
