"""Placeholders: where the published search finds them, each misuse with its correction, class words."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from facesdk.diffusion.prompt import CLASS_WORDS, Placement, class_ids, first_positions, place
from facesdk.diffusion.tokenizer import ROOM
from facesdk.errors import UsageError
from tests.unit.clip_table import small_tokenizer


def placed(prompt: str, identifiers: Sequence[str] = ("f",), tokens: Any = 2, **options: Any) -> Placement:
    return place(small_tokenizer(), prompt, identifiers, tokens, **options)


def remedy_of(prompt: str, identifiers: Sequence[str] = ("f",), tokens: Any = 2, **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        placed(prompt, identifiers, tokens, **options)
    return caught.value.remedy


@pytest.mark.parametrize(
    ("prompt", "identifiers", "tokens", "positions"),
    [
        ("f l eating", ["f"], 2, {"f": (1, 2)}),
        ("photo and F L, very man!", ["f"], 2, {"f": (3, 4)}),
        ("f l and g l eating", ["f", "g"], 2, {"f": (1, 2), "g": (4, 5)}),
        ("g l and f l eating", ["f", "g"], 2, {"f": (4, 5), "g": (1, 2)}),
        ("f and g eating", ["f", "g"], 1, {"f": (1,), "g": (3,)}),
        ("eating f", ["f"], 1, {"f": (2,)}),
        ("f l and f eating", ["f"], 2, {"f": (1, 2)}),  # a lone f after the placeholder is a word like any other
        ("f and g", ["f"], 1, {"f": (1,)}),  # with one token g may be a word
        ("photo", [], 2, {}),
    ],
)
def test_positions(prompt: str, identifiers: list[str], tokens: int, positions: dict[str, tuple[int, ...]]) -> None:
    found = placed(prompt, identifiers, tokens)
    assert dict(found.positions) == positions
    np.testing.assert_array_equal(found.ids, small_tokenizer().encode(prompt)[0])
    firsts = first_positions(small_tokenizer(), prompt, identifiers)
    assert firsts == {name: owned[0] for name, owned in positions.items()}


def test_the_published_search_takes_the_first_of_anything() -> None:
    assert first_positions(small_tokenizer(), "xyzf and f l and f l", ["f", "g"]) == {"f": 4, "g": -1}


def test_other_words_can_be_placeholders() -> None:
    assert placed("very man eating", ["very"], second="man").positions == {"very": (1, 2)}


@pytest.mark.parametrize(
    ("prompt", "identifiers", "tokens", "fact", "corrected"),
    [
        ("a man", ["f"], 2, "no 'f l'", "f l, a man"),
        ("a man", ["f", "g"], 2, "no 'f l' and no 'g l'", "f l and g l, a man"),
        ("a man", ["f"], 1, "no 'f'", "f, a man"),
        ("", ["f"], 2, "no 'f l'", "f l"),
        ("Photo, FL eating", ["f"], 2, "no 'f l'", "Photo, f l eating"),
        ("f l eating", ["f", "g"], 2, "no 'g l'", "g l, f l eating"),
        ("f eating", ["f"], 2, "'f' is not followed by 'l'", "f l eating"),
        ("f and g, eating", ["f", "g"], 2, "'f' is not followed by 'l'", "f l and g l, eating"),
        ("f l and g", ["f", "g"], 2, "'g' is not followed by 'l'", "f l and g l"),
        ("photo f", ["f"], 2, "'f' is not followed by 'l'", "photo f l"),
        ("f/1.8 photo f l", ["f"], 2, "'f' is not followed by 'l'", "f l, f/1.8 photo this person"),
        ("f l and f l", ["f"], 2, "'f l' stands 2 times", "f l and this person"),
        ("f and f, f", ["f"], 1, "'f' stands 3 times", "f and this person, this person"),
        ("xyzf and f l", ["f"], 2, "'f' of the prompt is the end of another word", "f l, xyzf and this person"),
        ("xyzf l", ["f"], 2, "'f' of the prompt is the end of another word", "f l, xyzf l"),
        ("xyzf eating", ["f"], 1, "'f' of the prompt is the end of another word", "f, xyzf eating"),
        ("f l and g l", ["f"], 2, "'g l', but no face", "f l and a person"),
        ("F L eating", [], 2, "'f l', but no face", "a person eating"),
    ],
)
def test_misuse_is_corrected(prompt: str, identifiers: list[str], tokens: int, fact: str, corrected: str) -> None:
    with pytest.raises(UsageError, match=fact) as caught:
        placed(prompt, identifiers, tokens)
    assert repr(corrected) in caught.value.remedy
    placed(corrected, identifiers, tokens)


def test_what_is_corrected_for_room_fits() -> None:
    prompt = "very " * (ROOM - 1) + "f l"
    assert "shorten it" in remedy_of(prompt)
    remedy = remedy_of(prompt, truncate=True)
    assert "by 1 or more" in remedy
    assert repr("f l, " + "very " * (ROOM - 1) + "this person") in remedy
    assert placed("very " * (ROOM - 2) + "f l").positions == {"f": (ROOM - 1, ROOM)}
    assert placed("very " * (ROOM - 2) + "f l man", truncate=True).positions == {"f": (ROOM - 1, ROOM)}
    assert "by 8 or more" in remedy_of("very " * 82 + "f", tokens=1, truncate=True)


@pytest.mark.parametrize(
    ("identifiers", "options", "fact"),
    [
        (["f", "f"], {}, "two faces have one identifier"),
        (["f", "F"], {}, "two faces have one identifier"),
        (["alice"], {}, "'alice' is 5 tokens"),
        ([""], {}, "'' is 0 tokens"),
        ([","], {}, "',' is 1 tokens, not a word"),
        (["l"], {}, "'l' is the second word"),
        (["f"], {"second": "abc"}, "'abc' is 3 tokens"),
        (["f"], {"tokens": 3}, "a face of 3 tokens"),
    ],
)
def test_identifiers_that_cannot_be(identifiers: list[str], options: dict[str, Any], fact: str) -> None:
    with pytest.raises(UsageError, match=fact):
        placed("f l eating", identifiers, **options)


def test_the_form_of_two_tokens_is_warned_of_where_a_face_has_one(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert placed("f eating", tokens=1).positions == {"f": (1,)}
        assert not caplog.records
        assert placed("f l eating", tokens=1).positions == {"f": (1,)}
    assert "'l' after 'f'" in caplog.text


def test_two_photos_of_one_person_are_no_two_people() -> None:
    assert "--face PHOTO,PHOTO" in remedy_of("f l eating", ["f", "g"])
    assert "--face" not in remedy_of("eating", ["f"])


def test_class_words_leave_every_other_token_in_its_place() -> None:
    tokenizer = small_tokenizer()

    def ids_of(prompt: str, identifiers: Sequence[str], tokens: Any, words: str) -> np.ndarray:
        return class_ids(tokenizer, placed(prompt, identifiers, tokens), tokens, words)

    expected = tokenizer.encode("Photo, a person and a person eating")[0]
    before = placed("Photo, F L and g l eating", ["f", "g"])
    np.testing.assert_array_equal(ids_of("Photo, F L and g l eating", ["f", "g"], 2, "a person"), expected)
    np.testing.assert_array_equal(before.ids, tokenizer.encode("Photo, F L and g l eating")[0])  # not written over
    np.testing.assert_array_equal(ids_of("f, eating", ["f"], 1, "man"), tokenizer.encode("man, eating")[0])
    beside = ids_of("f l, eating", ["f"], 2, "man .")  # which the text "man ., eating" would merge with the comma
    assert beside[1:4].tolist() == [*tokenizer.ids("man ."), tokenizer.ids(",")[0]]
    for tokens, words in CLASS_WORDS.items():
        assert len(tokenizer.ids(words)) == tokens


@pytest.mark.parametrize(
    ("tokens", "words", "fact"),
    [(2, "person", "have 1 tokens, a placeholder 2"), (1, "a person", "have 2 tokens, a placeholder 1"),
     (2, "", "have 0 tokens")],
)  # fmt: skip
def test_class_words_that_do_not_fit(tokens: Any, words: str, fact: str) -> None:
    placement = placed("f l, eating", ["f"], tokens)
    with pytest.raises(UsageError, match=fact) as caught:
        class_ids(small_tokenizer(), placement, tokens, words)
    assert repr(CLASS_WORDS[tokens]) in caught.value.remedy
