"""A small table of byte pairs under the published ids of single letters: f is 325, g 326, l 331."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

from facesdk.diffusion.tokenizer import Tokenizer
from facesdk_export.clip_tokenizer import tokenizer_json

#: words that are one token; every other word is as many as it has letters
WORDS = ("eating", "person", "and", "photo", "very", "man")
_START, _END = "<|startoftext|>", "<|endoftext|>"


def write_table(folder: Path) -> Path:
    """The path of a `tokenizer.json` in the folder."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    merges = list(dict.fromkeys(merge for word in WORDS for merge in _merges(word)))
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges)]
    vocabulary = {token: number for number, token in enumerate([*tokens, _START, _END])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]), encoding="utf-8")
    path = folder / "tokenizer.json"
    path.write_bytes(tokenizer_json(folder))
    return path


@functools.cache
def small_tokenizer() -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        return Tokenizer.load(write_table(Path(folder)))


def _merges(word: str) -> list[str]:
    """From the front, letter by letter: "p e", "pe r", ..., "perso n</w>"."""
    letters = [*word[:-1], f"{word[-1]}</w>"]
    return [f"{''.join(letters[:count])} {letters[count]}" for count in range(1, len(letters))]
