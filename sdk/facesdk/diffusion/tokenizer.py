"""`Tokenizer`: CLIP's byte-pair encoding, from text to the ids that a text encoder takes."""

from __future__ import annotations

import html
import logging
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import BundleError, MissingDependency, UsageError

Ids = npt.NDArray[np.int64]

#: of CLIP ViT-L/14's text encoder, with one start and at least one end token
LENGTH = 77
#: tokens of a text that fit between the two
ROOM = LENGTH - 2
#: ids 49406 and 49407 of the published vocabulary
_START, _END = "<|startoftext|>", "<|endoftext|>"

_log = logging.getLogger(__name__)
_SHOWN = 300
_ENTITY = re.compile(r"&#?[0-9A-Za-z]{1,24};")
_CONTROLS = (range(0x09), (0x0B,), range(0x0E, 0x20), (0x7F,), range(0x206A, 0x2070), (0xFEFF,), range(0xFFF9, 0xFFFD))
_COMPOSED = (range(0x132, 0x134), range(0x1C4, 0x1CD), range(0x1F1, 0x1F4), range(0xFB00, 0xFB07),
             range(0xFF01, 0xFFF0), (0x3000,))  # fmt: skip
# the repairs of ftfy.fix_text, which the published tokenizer applies, that well-encoded text can need
_REPAIRS: Mapping[int, str] = {
    **{code: "" for group in _CONTROLS for code in group},
    **{code: unicodedata.normalize("NFKC", chr(code)) for group in _COMPOSED for code in group},
    **dict.fromkeys((0x2BC, *range(0x2018, 0x201C)), "'"),
    **dict.fromkeys(range(0x201C, 0x2020), '"'),
}


class Reading(NamedTuple):
    """A text as tokens: `spans` are where each one lies in `text`, (first, past the last) character."""

    text: str
    ids: list[int]
    spans: list[tuple[int, int]]

    def replaced(self, changes: Mapping[int, tuple[int, str]]) -> str:
        """The text with other words for some tokens: index of the first -> (how many, words)."""
        text = self.text
        for first in sorted(changes, reverse=True):
            count, words = changes[first]
            start, end = self.spans[first][0], self.spans[first + count - 1][1]
            text = text[:start] + words + text[end:]
        return text

    def inside_word(self, index: int) -> bool:
        """Whether a letter stands right before the token."""
        start = self.spans[index][0]
        return self.text[start - 1 : start].isalpha()

    def beyond(self, count: int) -> str:
        """The words from the one on that holds the first token after `count` of them."""
        start = self.text.rfind(" ", 0, self.spans[count][0]) + 1
        return self.text[start:]


class Tokenizer:
    """Texts to ids by a table of byte pairs; `start` and `end` (also the padding) are the ids around a text."""

    def __init__(self, table: Any) -> None:
        self._table = table
        self.start, self.end = (_special(table, name) for name in (_START, _END))

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """The tokenizer in a `tokenizer.json` of the package tokenizers.  Raises BundleError, MissingDependency."""
        try:
            import tokenizers
        except ImportError as error:
            raise MissingDependency(
                "prompts need the package tokenizers", cause=str(error), remedy="pip install tokenizers"
            ) from error
        try:
            table = tokenizers.Tokenizer.from_buffer(Path(path).read_bytes())
            table.no_truncation()
            table.no_padding()
            return cls(table)
        except Exception as error:  # the package raises nothing more special on what it cannot read
            raise BundleError(
                f"{path} is not a CLIP tokenizer", cause=str(error), remedy="pull, add or export the bundle again"
            ) from error

    def read(self, text: str) -> Reading:
        """The text, cleaned as CLIP's is, with its tokens."""
        if not isinstance(text, str):
            raise UsageError(f"a prompt is a {type(text).__name__}", remedy="give a str")
        text = clean(text)
        encoding = self._table.encode(text, add_special_tokens=False)
        return Reading(text, encoding.ids, encoding.offsets)

    def ids(self, text: str) -> list[int]:
        """Ids of the text alone, as many as it has."""
        return self.read(text).ids

    def encode(self, texts: str | Sequence[str], truncate: bool = False, *, what: str = "the prompt") -> Ids:
        """(n, 77) ids with start and end, filled up with the end's; `what` they are is said where they do not fit.

        A text that is too long raises UsageError, or, with `truncate`, keeps its first 75 tokens and logs a warning.
        """
        texts = texts if isinstance(texts, list | tuple) else [texts]  # type: ignore[list-item]
        rows = np.full((len(texts), LENGTH), self.end, np.int64)
        rows[:, 0] = self.start
        for row, text in zip(rows, texts, strict=True):
            ids = self._fitting(self.read(text), truncate, what)
            row[1 : 1 + len(ids)] = ids
        return rows

    def _fitting(self, reading: Reading, truncate: bool, what: str) -> list[int]:
        count = len(reading.ids)
        if count <= ROOM:
            return reading.ids
        cut = reading.beyond(ROOM)
        cut = cut if len(cut) <= _SHOWN else f"{cut[:_SHOWN]} ..."
        if not truncate:
            raise UsageError(
                f"{what} has {count} tokens, {ROOM} fit",
                cause=f"these words would be cut: {cut!r}",
                remedy="shorten it, or have it cut: truncate=True, on the command line --truncate",
            )
        _log.warning("%s has %d tokens, %d fit; cut: %r", what, count, ROOM, cut)
        return reading.ids[:ROOM]


def clean(text: str) -> str:
    """The text with straight quotes, plain widths and ligatures, no control characters, entities resolved.

    These are the repairs of ftfy.fix_text, but for its guesses at wrongly decoded text.
    """
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if "<" not in whole:
        whole = _ENTITY.sub(lambda match: html.unescape(match[0]), whole)
    return unicodedata.normalize("NFC", whole.translate(_REPAIRS))


def _special(table: Any, name: str) -> int:
    number = table.token_to_id(name)
    if number is None:
        raise BundleError(f"its vocabulary has no {name}")
    return int(number)
