"""Identities and the encoder: spaces that do not mix, vectors that cannot be, the network's crops, both verbs."""

from __future__ import annotations

import dataclasses
import json
import logging
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import facesdk
from facesdk.annotation.alignment import ARCFACE_112
from facesdk.bundle import Bundle
from facesdk.card import Card
from facesdk.cli import main
from facesdk.encoder import Encoder, find_bundle
from facesdk.errors import BundleError, EmbeddingSpaceMismatch, EngineClosed, ModelNotFound, OutputError, UsageError
from facesdk.facade import FaceSDK
from facesdk.face import Face
from facesdk.identity import Identity, Space
from facesdk.store import Store
from tests.bundles import DATA

RNG = np.random.default_rng(11)
UNIT = Space("arcface-r100", "arcface-112 1", True, 4)
LONG = dataclasses.replace(UNIT, normalised=False)
PICTURE = RNG.integers(0, 256, (240, 260, 3), np.uint8)
WEIGHTS = RNG.normal(size=(7 * 7 * 3, 8)).astype(np.float32)
ABOUT = {"name": "tiny", "system": "encoder", "licence": "MIT"}
CONSTANTS = {"size": 112, "template": "arcface", "space": "tiny", "preprocessing": "arcface-112 1", "normalised": True}


def identity(*values: float, space: Space = UNIT, photos: int = 1) -> Identity:
    return Identity(np.array(values, np.float32), space, photos)


def face_at(x: float, y: float, scale: float = 1.0) -> Face:
    """A face of which only box and five points matter."""
    points = (ARCFACE_112 * scale + [x, y]).astype(np.float32)
    box = np.array([x, y, x + 112 * scale, y + 112 * scale], np.float32)
    empty: Any = np.zeros((0, 2), np.float32)
    return Face(box, 0.9, empty, empty, 1.0, points, empty, None, None, None, (260, 240), empty)  # type: ignore[arg-type]


def embedding(crop: np.ndarray) -> np.ndarray:
    """What the tiny network computes: means of 16 x 16 px, projected."""
    means = crop.astype(np.float64).reshape(7, 16, 7, 16, 3).mean(axis=(1, 3))
    return means.transpose(2, 0, 1).ravel() @ WEIGHTS


def write_encoder(
    folder: Path, *, batch: int | str = "n", about: dict[str, Any] = ABOUT, source: str = "", **constants: Any
) -> Path:
    onnx = pytest.importorskip("onnx")
    from facesdk_engines.writing import write_engine, write_manifest

    h, floats = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [
        h.make_node("Cast", ["image"], ["floats"], to=floats),
        h.make_node("Transpose", ["floats"], ["nchw"], perm=[0, 3, 1, 2]),
        h.make_node("AveragePool", ["nchw"], ["means"], kernel_shape=[16, 16], strides=[16, 16]),
        h.make_node("Flatten", ["means"], ["flat"]),
        h.make_node("MatMul", ["flat", "weights"], ["embedding"]),
    ]
    image = h.make_tensor_value_info("image", onnx.TensorProto.UINT8, [batch, 112, 112, 3])
    output = h.make_tensor_value_info("embedding", floats, [batch, 8])
    graph = h.make_graph(nodes, "tiny", [image], [output], [onnx.numpy_helper.from_array(WEIGHTS, "weights")])
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8)
    folder.mkdir(parents=True)
    write_engine(folder / "encoder.onnx", model, Card("encoder", "encoder", source_sha256=source))
    table = {name: value for name, value in {**CONSTANTS, **constants}.items() if value is not None}
    write_manifest(folder, about, {"encoder": {"default": "encoder.onnx"}}, {"encoder": table})
    return folder


@pytest.fixture
def encoder(tmp_path: Path) -> Any:
    with_closing = Encoder(Bundle(write_encoder(tmp_path / "tiny")), "cpu", 1)
    yield with_closing
    with_closing.close()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    home = tmp_path / "home"
    write_encoder(home / "bundles" / "tiny")
    return Store(home)


# -- identities -----------------------------------------------------------------------------------------------


def test_cosine() -> None:
    assert identity(1, 0, 0, 0).cosine(identity(1, 1, 0, 0)) == pytest.approx(np.sqrt(0.5), abs=1e-6)
    assert identity(1, 2, 3, 4, space=LONG).cosine(identity(-2, -4, -6, -8, space=LONG)) == pytest.approx(-1)
    assert -1 <= identity(0.1, 0.2, 0.3, 0.7).cosine(identity(0.1, 0.2, 0.3, 0.7)) <= 1


def test_vectors_of_a_normalised_space_have_length_one_others_keep_theirs() -> None:
    np.testing.assert_allclose(identity(3, 0, 4, 0).vector, [0.6, 0, 0.8, 0], atol=1e-7)
    np.testing.assert_array_equal(identity(3, 0, 4, 0, space=LONG).vector, [3, 0, 4, 0])


def test_the_vector_is_a_copy_that_cannot_be_changed() -> None:
    values = np.ones(4, np.float32)
    one = Identity(values, LONG)
    values[0] = 9
    assert one.vector.dtype == np.float32
    np.testing.assert_array_equal(one.vector, 1)
    with pytest.raises(ValueError, match="read-only"):
        one.vector[0] = 2


@pytest.mark.parametrize(
    "change", [{"model": "other"}, {"preprocessing": "arcface-112 2"}, {"normalised": False}, {"width": 5}]
)
def test_two_spaces_do_not_mix(change: dict[str, Any]) -> None:
    space = dataclasses.replace(UNIT, **change)
    other = Identity(np.ones(space.width, np.float32), space)
    for mix in (identity(1, 0, 0, 0).cosine, lambda x: Identity.mean_of([identity(1, 0, 0, 0), x])):
        with pytest.raises(EmbeddingSpaceMismatch) as caught:
            mix(other)
        assert caught.value.code == "embedding-space"
        assert str(space) in caught.value.cause
        assert "facesdk encode" in caught.value.remedy


@pytest.mark.parametrize(
    ("vector", "says"),
    [
        ([1, 2, np.nan, np.inf], "2 NaN or infinite values of 4"),
        ([0, 0, 0, 0], "length zero"),
        ([1, 2, 3], "(3,), not float32 (4,)"),
        ([[1, 2, 3, 4]], "(1, 4)"),
        ([1e300, 1, 1, 1], "1 NaN or infinite"),
        ([1e-300, 0, 0, 0], "length zero"),
    ],
)
@pytest.mark.parametrize("space", [UNIT, LONG])
def test_vectors_that_are_nobody(vector: list[Any], says: str, space: Space) -> None:
    with pytest.raises(UsageError) as caught:
        Identity(np.array(vector, np.float64), space)
    assert says in caught.value.fact
    assert caught.value.remedy


@pytest.mark.parametrize("vector", [np.ones(4, np.int64), np.array(["a"] * 4), np.ones(4, complex)])
def test_vectors_of_another_kind(vector: np.ndarray) -> None:
    with pytest.raises(UsageError, match="not float32"):
        Identity(vector, UNIT)


def test_the_mean_is_that_of_directions() -> None:
    mean = Identity.mean_of([identity(100, 0, 0, 0), identity(0, 1, 0, 0, photos=3)])
    np.testing.assert_allclose(mean.vector, [np.sqrt(0.5), np.sqrt(0.5), 0, 0], atol=1e-6)
    assert (mean.photos, mean.space) == (4, UNIT)


def test_the_mean_of_a_space_with_lengths_has_the_mean_length() -> None:
    mean = Identity.mean_of([identity(30, 0, 0, 0, space=LONG), identity(0, 10, 0, 0, space=LONG)])
    np.testing.assert_allclose(mean.vector, np.array([1, 1, 0, 0]) * 20 * np.sqrt(0.5), rtol=1e-6)


def test_means_that_are_nobody() -> None:
    with pytest.raises(UsageError, match="no identities"):
        Identity.mean_of([])
    with pytest.raises(UsageError, match="cancel out"):
        Identity.mean_of([identity(1, 2, 3, 4), identity(-1, -2, -3, -4)])
    with pytest.raises(UsageError, match="0 photos"):
        identity(1, 0, 0, 0, photos=0)


# -- files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", [UNIT, LONG, dataclasses.replace(UNIT, model="é 中")])
def test_files_come_back(tmp_path: Path, space: Space) -> None:
    path = tmp_path / "new" / "me.npz"
    one = identity(1, 2, 3, 4, space=space, photos=7)
    one.save(path)
    again = Identity.load(path)
    np.testing.assert_array_equal(again.vector, one.vector)
    assert (again.space, again.photos) == (space, 7)
    assert type(again.space.normalised) is bool
    assert [child.name for child in path.parent.iterdir()] == ["me.npz"]


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("before")
    with pytest.raises(OutputError):
        identity(1, 2, 3, 4).save(tmp_path / "file" / "me.npz")
    assert (tmp_path / "file").read_text() == "before"


def altered(path: Path, **changes: Any) -> None:
    """The file with other fields; None takes one away."""
    identity(1, 2, 3, 4, space=LONG).save(path)
    with np.load(path) as archive:
        fields = {name: archive[name] for name in archive.files} | changes
    np.savez(path, **{name: value for name, value in fields.items() if value is not None})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": 2}, "has format 2"),
        ({"format": None}, "format"),
        ({"format": np.zeros(3)}, "not an identity file"),
        ({"vector": np.full(4, np.nan, np.float32)}, "4 NaN"),
        ({"vector": np.zeros(4, np.float32)}, "length zero"),
        ({"vector": np.ones(5, np.float32)}, "(5,)"),
        ({"vector": None}, "vector"),
        ({"model": None}, "model"),
        ({"photos": 0}, "0 photos"),
        ({"vector": np.array([object()] * 4)}, "not an identity file"),
    ],
)
def test_files_that_are_no_identity(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    path = tmp_path / "me.npz"
    altered(path, **changes)
    with pytest.raises(UsageError) as caught:
        Identity.load(path)
    assert says in str(caught.value)
    assert path.name in caught.value.fact
    assert "facesdk encode" in caught.value.remedy


@pytest.mark.parametrize("content", [b"", b"text", b"PK\3\4 half an archive", b"\x93NUMPY\1\0"])
def test_files_of_another_kind(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "me.npz"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="not an identity file"):
        Identity.load(path)
    np.save(tmp_path / "one.npy", np.ones(4))
    for other in (tmp_path, tmp_path / "one.npy"):
        with pytest.raises(UsageError, match="not an identity file"):
            Identity.load(other)
    with pytest.raises(UsageError, match="does not exist"):
        Identity.load(tmp_path / "absent.npz")


def test_a_cut_file(tmp_path: Path) -> None:
    path = tmp_path / "me.npz"
    identity(1, 2, 3, 4).save(path)
    with zipfile.ZipFile(path) as archive:
        assert "format.npy" in archive.namelist()
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(UsageError):
            Identity.load(path)


# -- the encoder ----------------------------------------------------------------------------------------------


def test_encode_is_the_network_on_the_aligned_crop(encoder: Encoder) -> None:
    face = face_at(20.5, 30.25, 1.3)
    found = encoder.encode(PICTURE, face)
    expected = embedding(face.aligned(PICTURE))
    np.testing.assert_allclose(found.vector, expected / np.linalg.norm(expected), atol=1e-5)
    assert found.space == Space("tiny", "arcface-112 1", True, 8)
    assert found.photos == 1


def test_flip_is_the_mean_of_both(encoder: Encoder) -> None:
    face = face_at(20, 30)
    crop = face.aligned(PICTURE)
    both = embedding(crop) + embedding(crop[:, ::-1])
    found = encoder.encode(PICTURE, face, flip=True)
    np.testing.assert_allclose(found.vector, both / np.linalg.norm(both), atol=1e-5)
    assert found.cosine(encoder.encode(PICTURE, face)) < 0.99999


@pytest.mark.parametrize("batch", ["n", 1])
@pytest.mark.parametrize("flip", [False, True])
def test_many_faces_in_any_number(tmp_path: Path, batch: int | str, flip: bool) -> None:
    """More than go into one call of the engine, and one at a time where its batch is fixed."""
    faces = [(PICTURE, face_at(x, 2 * x)) for x in range(19)]
    encoder = Encoder(Bundle(write_encoder(tmp_path / "tiny", batch=batch)), "cpu", 1)
    found = encoder.encode_many(faces, flip=flip)
    expected = Identity.mean_of([encoder.encode(*pair, flip=flip) for pair in faces])
    np.testing.assert_allclose(found.vector, expected.vector, atol=1e-6)
    assert found.photos == 19
    encoder.close()


def test_an_encoder_whose_lengths_mean_something(tmp_path: Path) -> None:
    encoder = Encoder(Bundle(write_encoder(tmp_path / "tiny", normalised=False)), "cpu", 1)
    face = face_at(5, 5)
    found = encoder.encode(PICTURE, face)
    np.testing.assert_allclose(found.vector, embedding(face.aligned(PICTURE)), rtol=1e-4)
    encoder.close()


def test_other_weights_under_one_name_are_another_space(tmp_path: Path) -> None:
    spaces = []
    for source in ("0123456789abcdef", "f123456789abcdef"):
        with_source = Encoder(Bundle(write_encoder(tmp_path / source, source=source)), "cpu", 1)
        spaces.append(with_source.space)
        with_source.close()
    assert [space.model for space in spaces] == ["tiny-01234567", "tiny-f1234567"]


def test_no_faces_and_after_closing(encoder: Encoder) -> None:
    with pytest.raises(UsageError, match="no faces"):
        encoder.encode_many([])
    encoder.close()
    with pytest.raises(EngineClosed):
        encoder.encode(PICTURE, face_at(0, 0))


@pytest.mark.parametrize(
    ("constants", "says"),
    [
        ({"size": None}, "constant size"),
        ({"size": "112"}, "constant size"),
        ({"normalised": 1}, "constant normalised"),
        ({"template": "ffhq"}, "'ffhq'"),
        ({"size": 224}, r"is no encoder"),
    ],
)
def test_bundles_that_are_no_encoder(tmp_path: Path, constants: dict[str, Any], says: str) -> None:
    with pytest.raises(BundleError, match=says) as caught:
        Encoder(Bundle(write_encoder(tmp_path / "tiny", **constants)), "cpu")
    assert caught.value.remedy


def test_a_bundle_of_another_system(bundle_478: Bundle) -> None:
    with pytest.raises(BundleError, match="engine encoder") as caught:
        Encoder(bundle_478)
    assert "facesdk models list" in caught.value.remedy


# -- which bundle ---------------------------------------------------------------------------------------------


def test_the_only_encoder_of_the_store(store: Store) -> None:
    assert find_bundle(store).name == "tiny"


def test_several_have_to_be_chosen_from(store: Store, tmp_path: Path) -> None:
    write_encoder(store.home / "bundles" / "second", about={**ABOUT, "name": "tiny"})
    with pytest.raises(UsageError, match="second, tiny") as caught:
        find_bundle(store)
    assert "--encoder second" in caught.value.remedy
    assert find_bundle(store, "second").folder.name == "second"
    own = write_encoder(tmp_path / "own")
    assert find_bundle(store, own).folder == own


def test_no_encoder(store: Store, tmp_path: Path) -> None:
    write_encoder(tmp_path / "empty" / "bundles" / "other", about={**ABOUT, "system": "hififace"})
    with pytest.raises(ModelNotFound) as caught:
        find_bundle(Store(tmp_path / "empty"))
    assert "facesdk export arcface --checkpoint backbone.pth -o bundle/" in caught.value.remedy
    assert "facesdk models add buffalo_l.zip" in caught.value.remedy
    with pytest.raises(ModelNotFound, match="absent"):
        find_bundle(store, "absent")


# -- the facade -----------------------------------------------------------------------------------------------


@pytest.fixture
def two_faces(monkeypatch: pytest.MonkeyPatch) -> list[Face]:
    faces = [face_at(10, 10), face_at(60, 40, 1.5)]
    monkeypatch.setattr(FaceSDK, "annotate", lambda self, image: faces)
    return faces


def test_the_largest_face_counts_and_the_log_says_so(
    store: Store, two_faces: list[Face], caplog: pytest.LogCaptureFixture
) -> None:
    with FaceSDK("cpu", threads=1, store=store) as sdk, caplog.at_level(logging.WARNING, "facesdk"):
        found = sdk.encode(PICTURE)
        assert "2 faces" in caplog.text
        assert "[60, 40, 228, 208]" in caplog.text
        assert found.cosine(sdk.encoder.encode(PICTURE, two_faces[1])) == pytest.approx(1, abs=1e-6)
        assert found.cosine(sdk.encode(PICTURE, two_faces[0])) < 0.9999
        assert sdk.compare(found, PICTURE) == pytest.approx(1, abs=1e-6)
        assert sdk.encode([PICTURE, PICTURE[:, ::-1]], flip=True).photos == 2


def test_a_face_belongs_to_one_picture(store: Store, two_faces: list[Face]) -> None:
    with FaceSDK("cpu", store=store) as sdk, pytest.raises(UsageError, match="one face for 2 pictures"):
        sdk.encode([PICTURE, PICTURE], two_faces[0])
    with FaceSDK("cpu", store=store) as sdk, pytest.raises(UsageError, match="no faces"):
        sdk.encode([])


def test_closing_frees_the_encoder_too(store: Store) -> None:
    sdk = FaceSDK("cpu", store=store)
    encoder = sdk.encoder
    assert sdk.encoder is encoder
    sdk.close()
    with pytest.raises(EngineClosed):
        encoder.encode(PICTURE, face_at(0, 0))
    assert sdk.encoder is not encoder
    sdk.close()


def test_identities_need_no_model(tmp_path: Path) -> None:
    with FaceSDK(store=Store(tmp_path)) as sdk:
        assert sdk.compare(identity(1, 0, 0, 0), identity(0, 1, 0, 0)) == 0
    assert facesdk.Identity is Identity


# -- the verbs ------------------------------------------------------------------------------------------------


@pytest.fixture
def home(store: Store, models_home: Path, bundle_478: Bundle, monkeypatch: pytest.MonkeyPatch) -> Path:
    (store.home / "bundles" / "annotation-478").symlink_to(bundle_478.folder)
    monkeypatch.setenv("FACESDK_HOME", str(store.home))
    return store.home


def run_json(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, Any]:
    status = main([*map(str, words), "--json", "--device", "cpu", "--threads", "1"])
    return status, json.loads(capsys.readouterr().out)


def test_encode_then_compare(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, photo, turned = tmp_path / "me.npz", DATA / "astronaut.png", DATA / "astronaut_rot35.png"
    status, found = run_json(capsys, "encode", photo, turned, "-o", file, "--flip")
    assert status == 0
    assert found["space"]["model"] == "tiny"
    assert [entry["photo"] for entry in found["photos"]] == [str(photo), str(turned)]
    assert Identity.load(file).photos == 2
    status, found = run_json(capsys, "compare", file, photo, "--flip")
    assert status == 0
    assert found["similarity"] > 0.9
    assert main(["compare", str(file), str(file)]) == 0
    assert capsys.readouterr().out == "1.0000\n"


def test_photos_that_fail_do_not_stop_the_others(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, photo, nobody = tmp_path / "me.npz", DATA / "astronaut.png", DATA / "no_face.png"
    status, found = run_json(capsys, "encode", photo, nobody, "-o", file)
    assert (status, found["failed"][0]["error"]["code"]) == (3, "no-face")
    assert Identity.load(file).photos == 1
    file.unlink()
    assert main(["encode", str(nobody), str(tmp_path / "absent.png"), "-o", str(file), "--device", "cpu"]) == 1
    told = capsys.readouterr().err
    assert f"{nobody}: no face" in told
    assert "[image-unreadable]" in told
    assert not file.exists()
    assert main(["compare", str(photo), str(nobody), "--device", "cpu"]) == 3
    assert f"{nobody}: no face" in capsys.readouterr().err


def test_files_of_two_spaces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, space in (("a", UNIT), ("b", LONG)):
        identity(1, 2, 3, 4, space=space).save(tmp_path / f"{name}.npz")
    assert main(["compare", str(tmp_path / "a.npz"), str(tmp_path / "b.npz")]) == 1
    assert "[embedding-space]" in capsys.readouterr().err


def test_an_output_that_is_no_identity_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encode", "a.png", "-o", str(tmp_path / "me.json")]) == 2
    assert ".npz" in capsys.readouterr().err
