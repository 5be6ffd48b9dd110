"""Placeholders of faces in a prompt: `f l` (Face2Diffusion) or `f` (MF2D), found and checked."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from ..errors import UsageError
from .tokenizer import ROOM, Ids, Reading, Tokenizer

TokenCount = Literal[1, 2]

#: first word of each face's placeholder, and the second one of all, in Face2Diffusion's and MF2D's scripts
IDENTIFIERS = ("f", "g")
SECOND = "l"
#: words that can stand for a placeholder of so many tokens
CLASS_WORDS: Mapping[TokenCount, str] = {1: "person", 2: "a person"}

_log = logging.getLogger(__name__)
_AGAIN = "this person"
_ONE_PERSON = "; or give photos of one person as one: [[photo, photo]], on the command line --face PHOTO,PHOTO"


@dataclasses.dataclass(frozen=True, eq=False)
class Placement:
    """A prompt's ids (77,), and the token positions, start token counted, that each identifier owns."""

    ids: Ids
    positions: Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class _Placeholder:
    """What stands for one face in a text: `first` is where the published search finds its first token, or -1."""

    words: str
    ids: tuple[int, ...]
    first: int
    whole: Sequence[int]  # where all of its tokens stand as words of their own

    @property
    def positions(self) -> tuple[int, ...]:
        """In the encoded prompt, which begins with the start token."""
        return tuple(range(1 + self.first, 1 + self.first + len(self.ids)))


def place(
    tokenizer: Tokenizer,
    prompt: str,
    identifiers: Sequence[str],
    tokens: TokenCount,
    truncate: bool = False,
    *,
    second: str = SECOND,
    known: Sequence[str] = IDENTIFIERS,
) -> Placement:
    """The prompt as ids, and where the published scripts put each face: the first occurrence of its identifier.

    second  what must follow each identifier where a face has two tokens.
    known   every identifier of the bundle: one that has no face must not stand in the prompt with its second word.
    Raises UsageError, with the prompt put right, where that search would overwrite other words or miss the face.
    """
    reading = tokenizer.read(prompt)
    found = _found(tokenizer, reading, identifiers, tokens, second)
    _check(reading, found)
    if tokens == 1:
        _check_second_words(reading, found, tokenizer.ids(second), second)
    else:
        strangers = sorted({*known} - {*identifiers, second})
        _check_strangers(reading, [_placeholder(tokenizer, reading, name, 2, second) for name in strangers])
    ids = tokenizer.encode(prompt, truncate)[0]
    for each in found.values():
        _check_room(reading, each)
    return Placement(ids, {name: each.positions for name, each in found.items()})


def first_positions(tokenizer: Tokenizer, prompt: str, identifiers: Sequence[str]) -> dict[str, int]:
    """Where the published scripts put each face, unchecked: identifier -> position of its first token, or -1."""
    ids = [tokenizer.start, *tokenizer.ids(prompt)]
    return {name: _first(ids, tokenizer.ids(name)[0]) for name in identifiers}


def class_ids(tokenizer: Tokenizer, placement: Placement, tokens: TokenCount, words: str) -> Ids:
    """The prompt's ids (77,) with class words in the places of its faces: "a person eating" of "f l eating".

    Raises UsageError where the words have more or fewer tokens than a placeholder.
    """
    inserted, ids = tokenizer.ids(words), np.array(placement.ids)
    if len(inserted) != tokens:
        fact = f"the class words {words!r} have {len(inserted)} tokens, a placeholder {tokens}"
        raise UsageError(fact, remedy=f"give words of {tokens} in all, such as {CLASS_WORDS[tokens]!r}")
    for places in placement.positions.values():
        ids[list(places)] = inserted
    return ids


def _found(
    tokenizer: Tokenizer, reading: Reading, identifiers: Sequence[str], tokens: TokenCount, second: str
) -> dict[str, _Placeholder]:
    """Identifier -> its placeholder in the text; raises UsageError for identifiers that cannot be any."""
    if tokens not in (1, 2):
        raise UsageError(f"a face of {tokens!r} tokens", remedy="give 1 (mf2d) or 2 (f2d)")
    for word in (*identifiers, second):
        if not word.isalpha() or len(tokenizer.ids(word)) != 1:
            count = len(tokenizer.ids(word))
            raise UsageError(f"the identifier {word!r} is {count} tokens, not a word of one", remedy="use f, g")
    names = [name.lower() for name in identifiers]
    if len(set(names)) < len(names):
        raise UsageError(f"two faces have one identifier: {', '.join(names)}", remedy="give each its own: f, g")
    if tokens == 2 and second.lower() in names:
        raise UsageError(f"{second!r} is the second word of every placeholder", remedy="name the faces f, g")
    return {name: _placeholder(tokenizer, reading, name, tokens, second) for name in identifiers}


def _placeholder(
    tokenizer: Tokenizer, reading: Reading, identifier: str, tokens: TokenCount, second: str
) -> _Placeholder:
    words = identifier if tokens == 1 else f"{identifier} {second}"
    ids = tuple(tokenizer.ids(words))
    starts = [at for at in range(len(reading.ids)) if tuple(reading.ids[at : at + len(ids)]) == ids]
    whole = [at for at in starts if not reading.inside_word(at)]
    return _Placeholder(words, ids, _first(reading.ids, ids[0]), whole)


def _first(ids: list[int], token: int) -> int:
    return ids.index(token) if token in ids else -1


def _check(reading: Reading, found: Mapping[str, _Placeholder]) -> None:
    """Each placeholder stands in the text, whole at the first occurrence of its identifier, and once."""
    missing = [each.words for each in found.values() if each.first < 0]
    if missing:
        one_person = _ONE_PERSON if len(found) > 1 else ""
        raise UsageError(
            f"the prompt has no {' and no '.join(map(repr, missing))}",
            cause="a face goes where its placeholder stands",
            remedy=f"write for example: {_with_missing(reading.text, missing)!r}{one_person}",
        )
    for each in found.values():
        if each.first not in each.whole:
            raise _broken(reading, each, found)
        if len(each.whole) > 1:
            corrected = reading.replaced({at: (len(each.ids), _AGAIN) for at in each.whole[1:]})
            raise UsageError(
                f"{each.words!r} stands {len(each.whole)} times in the prompt",
                cause="a face goes to one place, the first",
                remedy=f"write for example: {corrected!r}",
            )


def _with_missing(text: str, missing: Sequence[str]) -> str:
    """The text with the placeholders: those that were written as one word parted, the others put in front."""
    absent = []
    for placeholder in missing:
        joined = rf"\b{re.escape(placeholder.replace(' ', ''))}\b"
        text, count = re.subn(joined, placeholder, text, count=1, flags=re.IGNORECASE)
        if not count:
            absent.append(placeholder)
    return ", ".join(part for part in (" and ".join(absent), text.strip()) if part)


def _broken(reading: Reading, broken: _Placeholder, found: Mapping[str, _Placeholder]) -> UsageError:
    """The error for an identifier whose first occurrence is no placeholder."""
    identifier, _, second = broken.words.partition(" ")
    if reading.inside_word(broken.first):
        fact = f"the first token {identifier!r} of the prompt is the end of another word"
        corrected = _in_front(reading, broken)
    else:
        fact = f"the prompt's first {identifier!r} is not followed by {second!r}"
        alone = {each.first: (1, each.words) for each in found.values() if not each.whole}
        corrected = _in_front(reading, broken) if broken.whole else reading.replaced(alone)
    return UsageError(
        fact,
        cause="a face goes to the first of them, and would overwrite other words",
        remedy=f"write for example: {corrected!r}",
    )


def _in_front(reading: Reading, found: _Placeholder) -> str:
    """The text beginning with the placeholder, which is taken from where it stood."""
    rest = reading.replaced({at: (len(found.ids), _AGAIN) for at in found.whole})
    return f"{found.words}, {rest.lstrip()}"


def _check_second_words(reading: Reading, found: Mapping[str, _Placeholder], ids: list[int], second: str) -> None:
    """Warn of prompts in the form of two tokens per face, where a face has one."""
    for each in found.values():
        if reading.ids[each.first + 1 : each.first + 2] == ids:
            _log.warning("%r after %r is a word like any other: here a face has one token", second, each.words)


def _check_strangers(reading: Reading, strangers: Sequence[_Placeholder]) -> None:
    """No placeholder stands in the text whose face was not given."""
    for each in strangers:
        if each.whole:
            corrected = reading.replaced({at: (len(each.ids), CLASS_WORDS[2]) for at in each.whole})
            raise UsageError(
                f"the prompt has {each.words!r}, but no face was given for it",
                remedy=f"give one for {(name := each.words.split()[0])!r}, on the command line --face {name}=PHOTO, or "
                f"write for example: {corrected!r}",
            )


def _check_room(reading: Reading, found: _Placeholder) -> None:
    """The placeholder stands among the tokens that are kept."""
    over = found.positions[-1] - ROOM
    if over > 0:
        raise UsageError(
            f"{found.words!r} is cut off: {found.positions[-1]} tokens end with it, {ROOM} fit",
            remedy=f"shorten what stands before it by {over} or more, or begin with it: {_in_front(reading, found)!r}",
        )
