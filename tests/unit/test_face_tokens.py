"""Face tokens: what they can be, files, mixing, and the two ways into a prompt, bit for bit at the ends."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facesdk.diffusion.face_tokens import FaceTokens, TokenSpace, add_to_output, inject, interpolate
from facesdk.diffusion.prompt import Placement
from facesdk.errors import EmbeddingSpaceMismatch, OutputError, UsageError
from facesdk.identity import Identity, Space

WIDTH = 6
TWO = TokenSpace("face2diffusion 0123", "f2d", WIDTH)
ONE = dataclasses.replace(TWO, method="mf2d")
RNG = np.random.default_rng(5)
EMBEDDINGS, CLASS, HIDDEN = RNG.normal(size=(3, 77, WIDTH)).astype(np.float32)
IDS = np.zeros(77, np.int64)
PAIRS = Placement(IDS, {"f": (4, 5), "g": (1, 2)})
SINGLES = Placement(IDS, {"f": (3,), "g": (1,)})


def face(seed: int, space: TokenSpace = TWO, photos: int = 1) -> FaceTokens:
    rows = np.random.default_rng(seed).normal(size=(space.tokens, WIDTH)).astype(np.float32)
    return FaceTokens.of_rows(rows, space, photos)


def same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and one.tobytes() == other.tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_tokens_are_finite(value: float) -> None:
    rows = np.ones((2, WIDTH))
    rows[1, 3] = value
    with pytest.raises(UsageError, match="the last token holds 1 NaN or infinite"):
        FaceTokens.of_rows(rows, TWO)


@pytest.mark.parametrize("wrong", [np.zeros(WIDTH + 1, np.float32), np.zeros((1, WIDTH), np.float32),
                                   np.zeros(WIDTH, np.int64), np.array("x")])  # fmt: skip
def test_tokens_have_the_width_and_type(wrong: np.ndarray) -> None:
    right = np.zeros(WIDTH, np.float32)
    with pytest.raises(UsageError, match="the first token is"):
        FaceTokens(wrong, right, TWO)
    with pytest.raises(UsageError, match="the last token is"):
        FaceTokens(right, wrong, TWO)


def test_tokens_are_as_many_as_the_method_has() -> None:
    token = np.zeros(WIDTH, np.float32)
    for last, space in ((None, TWO), (token, ONE)):
        with pytest.raises(UsageError, match=f"where {space.method} has {space.tokens}"):
            FaceTokens(token, last, space)
    for space in (ONE, TWO):
        with pytest.raises(UsageError, match="3 face tokens"):
            FaceTokens.of_rows(np.zeros((3, WIDTH)), space)
    with pytest.raises(UsageError, match="choose one of: f2d, mf2d"):
        TokenSpace("model", "other")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="of 0 photos"):
        face(0, photos=0)


def test_tokens_cannot_change() -> None:
    given = np.ones(WIDTH, np.float32)
    one = FaceTokens(given, None, ONE)
    given[0] = 7
    assert one.first[0] == 1
    with pytest.raises(ValueError, match="read-only"):
        one.first[0] = 2


@pytest.mark.parametrize("space", [ONE, TWO])
def test_files_keep_every_bit(tmp_path: Path, space: TokenSpace) -> None:
    before = face(3, space, photos=4)
    before.save(tmp_path / "new" / "face.npz")
    after = FaceTokens.load(tmp_path / "new" / "face.npz")
    assert same_bits(after.rows, before.rows)
    assert (after.last is None) == (space is ONE)
    assert (after.space, after.photos) == (space, 4)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["face.npz"]


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "face.npz"
    with pytest.raises(UsageError, match="does not exist"):
        FaceTokens.load(path)
    face(1).save(path)
    whole = path.read_bytes()
    fields = dict(np.load(path))
    identity = Identity(np.ones(4, np.float32), Space("m", "p", True, 4))
    identity.save(tmp_path / "identity.npz")
    contents = [b"", b"text", whole[:-40], whole[: len(whole) // 2], (tmp_path / "identity.npz").read_bytes()]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(UsageError, match="is not a file of face tokens") as caught:
            FaceTokens.load(path)
        assert caught.value.cause == "it is damaged, or of another kind"  # not NumPy's advice to allow pickles
        assert "--save-tokens" in caught.value.remedy
    with pytest.raises(UsageError, match="Is a directory"):
        FaceTokens.load(tmp_path)
    pickled: Any = np.array([{}], object)
    changes = {"tokens": pickled}, {"tokens": np.full((2, WIDTH), np.nan)}, {"method": "x"}, {"width": 7}, {"photos": 0}
    for change in (*changes, {"tokens": np.float32(1)}, {"method": "mf2d"}):
        np.savez(path, **(fields | change))
        with pytest.raises(UsageError, match="is not a file of face tokens"):
            FaceTokens.load(path)
    np.savez(path, **(fields | {"format": 99}))
    with pytest.raises(UsageError, match="has format 99"):
        FaceTokens.load(path)
    with pytest.raises(OutputError):
        face(1).save(tmp_path)


def test_the_mean_counts_each_face_once() -> None:
    faces = [face(1, photos=3), face(2), face(3)]
    mean = FaceTokens.mean_of(faces)
    np.testing.assert_allclose(mean.rows, np.mean([each.rows for each in faces], axis=0), rtol=0, atol=1e-6)
    assert mean.photos == 5
    assert same_bits(FaceTokens.mean_of([faces[0]]).rows, faces[0].rows)
    with pytest.raises(UsageError, match="no face tokens"):
        FaceTokens.mean_of([])


def test_spaces_do_not_mix() -> None:
    others = [dataclasses.replace(TWO, model="other"), ONE]
    for other in others:
        with pytest.raises(EmbeddingSpaceMismatch, match="face2diffusion 0123"):
            FaceTokens.mean_of([face(1), face(2, other)])
        with pytest.raises(EmbeddingSpaceMismatch):
            interpolate(face(1), face(2, other), 0.5)


def test_interpolation_passes_through_both() -> None:
    one, other = face(1, photos=2), face(2)
    assert same_bits(interpolate(one, other, 0).rows, one.rows)
    assert same_bits(interpolate(one, other, 1).rows, other.rows)
    for t in (0.25, -0.5, 1.5):
        np.testing.assert_allclose(
            interpolate(one, other, t).rows, one.rows + t * (other.rows - one.rows), rtol=0, atol=1e-6
        )
    assert interpolate(one, other, 0.5).photos == 3
    for t in (math.nan, math.inf):
        with pytest.raises(UsageError, match="between two faces"):
            interpolate(one, other, t)
    with pytest.raises(UsageError, match="infinite"):
        interpolate(one, other, 1e300)


@pytest.mark.parametrize(("placement", "space"), [(PAIRS, TWO), (SINGLES, ONE)])
def test_injection_replaces_the_rows_of_the_faces_alone(placement: Placement, space: TokenSpace) -> None:
    faces = {"f": face(1, space), "g": face(2, space)}
    original = EMBEDDINGS.copy()
    result = inject(EMBEDDINGS, placement, faces)
    assert same_bits(EMBEDDINGS, original)
    owned = [place for name in faces for place in placement.positions[name]]
    assert same_bits(result[owned], np.concatenate([each.rows for each in faces.values()]))
    others = [row for row in range(77) if row not in owned]
    assert same_bits(result[others], EMBEDDINGS[others])
    assert same_bits(inject(EMBEDDINGS, placement, faces, 1.0, CLASS), result)
    assert same_bits(inject(EMBEDDINGS, placement, faces, 0.0, CLASS)[owned], CLASS[owned])
    half = inject(EMBEDDINGS, placement, faces, 0.5, CLASS)
    np.testing.assert_allclose(half[owned], (CLASS[owned] + result[owned]) / 2, rtol=0, atol=1e-6)
    assert same_bits(half[others], EMBEDDINGS[others])


def test_the_ends_keep_negative_zeros() -> None:
    zeros = FaceTokens.of_rows(np.full((1, WIDTH), -0.0), ONE)
    place = Placement(IDS, {"f": (3,)})
    minus = np.full((77, WIDTH), -0.0, np.float32)
    assert np.signbit(inject(EMBEDDINGS, place, {"f": zeros}, 1, CLASS)[3]).all()
    assert np.signbit(inject(EMBEDDINGS, place, {"f": face(1, ONE)}, 0, minus)[3]).all()


def test_adding_to_the_output_is_a_float32_sum() -> None:
    faces = {"f": face(1), "g": face(2)}
    result = add_to_output(HIDDEN, PAIRS, faces)
    expected = HIDDEN.copy()
    for name, (first, last) in PAIRS.positions.items():
        expected[first] += faces[name].first
        expected[last] += faces[name].rows[1]
    assert same_bits(result, expected)
    assert same_bits(add_to_output(HIDDEN, PAIRS, faces, 0), HIDDEN)
    double = add_to_output(HIDDEN, PAIRS, faces, 2)
    np.testing.assert_allclose(double - HIDDEN, 2 * (result - HIDDEN), rtol=0, atol=1e-6)


@pytest.mark.parametrize("way", [inject, add_to_output])
def test_misuse(way: Any) -> None:
    faces = {"f": face(1), "g": face(2)}
    for strength in (math.nan, math.inf, -0.1):
        with pytest.raises(UsageError, match="a strength of"):
            way(EMBEDDINGS, PAIRS, faces, strength)
    for rows in (EMBEDDINGS[:76], EMBEDDINGS[:, 1:], EMBEDDINGS[None], EMBEDDINGS.astype(np.float64)):
        with pytest.raises(UsageError, match=r"float32 \(77, 6\)"):
            way(rows, PAIRS, faces)
    with pytest.raises(UsageError, match="faces for f, placeholders of f, g"):
        way(EMBEDDINGS, PAIRS, {"f": faces["f"]})
    with pytest.raises(UsageError, match="tokens=2"):
        way(EMBEDDINGS, SINGLES, faces)


def test_a_strength_other_than_one_needs_class_words() -> None:
    faces = {"f": face(1), "g": face(2)}
    with pytest.raises(UsageError, match="without class words"):
        inject(EMBEDDINGS, PAIRS, faces, 0.5)
    with pytest.raises(UsageError, match=r"float32 \(77, 6\)"):
        inject(EMBEDDINGS, PAIRS, faces, 0.5, CLASS[:5])
