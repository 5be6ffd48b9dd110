"""The tokenizer: start, end and padding, what is too long, how text is cleaned, files that are none."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from facesdk.diffusion.tokenizer import LENGTH, ROOM, Tokenizer, clean
from facesdk.errors import BundleError, MissingDependency, UsageError
from tests.unit.clip_table import WORDS, small_tokenizer, write_table

F, G, L, A = 325, 326, 331, 320


def test_ids_are_of_lower_case_words_punctuation_and_single_digits() -> None:
    tokenizer = small_tokenizer()
    eating = tokenizer.ids("eating")
    assert len(eating) == 1
    assert tokenizer.ids("F  L\teating, 42!") == [F, L, *eating, *tokenizer.ids(","), *tokenizer.ids("4 2 !")]
    assert tokenizer.ids("f's") == [F, *tokenizer.ids("'s")]
    assert all(len(tokenizer.ids(word)) == 1 for word in WORDS)
    assert tokenizer.ids("") == []


def test_encoding_has_start_end_and_padding() -> None:
    tokenizer = small_tokenizer()
    rows = tokenizer.encode(["f l", ""])
    assert rows.shape == (2, LENGTH)
    assert rows.dtype == np.int64
    assert rows[0, :4].tolist() == [tokenizer.start, F, L, tokenizer.end]
    assert rows[1, 0] == tokenizer.start
    assert (rows[1, 1:] == tokenizer.end).all()
    np.testing.assert_array_equal(tokenizer.encode("f l"), rows[:1])


def test_what_is_too_long_is_refused_with_the_words_that_would_go(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = small_tokenizer()
    fits = "very " * ROOM
    assert tokenizer.encode(fits)[0, -1] == tokenizer.end
    with pytest.raises(UsageError, match="78 tokens, 75 fit") as caught:
        tokenizer.encode("very " * (ROOM - 1) + "abc man")
    assert "'abc man'" in str(caught.value)  # abc from its first letter on, though that would fit
    assert "truncate=True" in caught.value.remedy
    with caplog.at_level(logging.WARNING):
        cut = tokenizer.encode(fits + "man", truncate=True)
    np.testing.assert_array_equal(cut, tokenizer.encode(fits))
    assert "76 tokens, 75 fit; cut: 'man'" in caplog.text


def test_reading_replaces_tokens_in_the_text_as_it_was_written() -> None:
    reading = small_tokenizer().read("Photo and  F L, eating")
    first = reading.ids.index(F)
    assert reading.replaced({first: (2, "a man"), 0: (1, "Picture")}) == "Picture and  a man, eating"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("\u201cf l\u2019s\u201d", '"f l\'s"'),
        ("\uff46\u3000\uff4c\uff0c \ufb01ne", "f l, fine"),
        ("f\x00 l\ufeff", "f l"),
        ("cafe\u0301 &amp; bar &eacute;", "caf\u00e9 & bar \u00e9"),
        ("<b> &amp;", "<b> &amp;"),
        ("\ud83d\ude00 \ud83d", "\U0001f600 \ufffd"),
        ("f l\r\n\teating", "f l\r\n\teating"),
    ],
)
def test_text_is_cleaned(written: str, meant: str) -> None:
    assert clean(written) == meant
    assert clean(meant) == meant
    small_tokenizer().encode(written)


def test_prompts_are_text() -> None:
    for wrong in (None, 7, b"f l", ["f l", None]):
        with pytest.raises(UsageError, match="a prompt is a"):
            small_tokenizer().encode(wrong if isinstance(wrong, list) else [wrong])  # type: ignore[list-item]


@pytest.mark.parametrize("damage", [b"", b"{}", b"[]", b"\xff\xfe\x00", b'{"version": "1.0", "model": {}}'])
def test_files_that_are_no_tokenizer(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(damage)
    with pytest.raises(BundleError, match=r"tokenizer\.json is not a CLIP tokenizer"):
        Tokenizer.load(path)


def test_cut_missing_and_foreign_files(tmp_path: Path) -> None:
    path = write_table(tmp_path)
    whole = path.read_bytes()
    foreign = whole.replace(b"<|startoftext|>", b"[CLS]")
    for content, cause in ((whole[:-9], "EOF"), (foreign, r"no <\|startoftext\|>")):
        path.write_bytes(content)
        with pytest.raises(BundleError, match=cause):
            Tokenizer.load(path)
    with pytest.raises(BundleError, match="No such file"):
        Tokenizer.load(tmp_path / "absent.json")


def test_truncation_and_padding_of_the_file_do_not_count(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Table

    path = write_table(tmp_path)
    table = Table.from_file(str(path))
    table.enable_truncation(5)
    table.enable_padding(length=9)
    table.save(str(path))
    assert Tokenizer.load(path).ids("f l " * 4) == [F, L] * 4


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingDependency, match="pip install tokenizers"):
        Tokenizer.load(tmp_path / "tokenizer.json")


def test_the_package_is_imported_only_when_a_table_is_loaded() -> None:
    code = "import sys, facesdk.diffusion.face_tokens; sys.exit('tokenizers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
