"""The tokenizer of Stable Diffusion 1's text encoder, as one file of the library `tokenizers`."""

from __future__ import annotations

import gzip
import itertools
import json
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from facesdk.errors import ConversionError, ModelNotFound
from facesdk.home import home
from facesdk.wheel import fetch_wheel

#: OpenAI's table has more merges than the published vocabulary of 49408 takes: CLIP/simple_tokenizer.py
_MERGES = 49152 - 256 - 2
#: whose package carries that table, under MIT
_REQUIREMENT, _WHEEL = "open-clip-torch==3.3.0", "open_clip_torch-3.3.0-py3-none-any.whl"
_WHEEL_SHA256 = "c549ad5ed6bfc119cc11105033c0a2b9d7a2a4afeb40a58a09aab3da1a0043ce"
_START, _END = "<|startoftext|>", "<|endoftext|>"
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def tokenizer_json(path: str | Path | None = None) -> bytes:
    """The file `tokenizer.json` of a checkpoint's folder, or of openai/clip-vit-large-patch14 where it has none.

    path  a folder of diffusers or its subfolder tokenizer, with vocab.json and merges.txt, or tokenizer.json.  Where
          there is none, OpenAI's table is taken from the wheel of open-clip-torch, fetched once as a plain file.
    Raises DownloadError where that fails, ConversionError where the tables do not fit each other.
    """
    for folder in () if path is None else (Path(path), Path(path) / "tokenizer"):
        if (folder / "merges.txt").is_file():
            lines = _text(folder / "merges.txt").split("\n")
            merges = [line for line in lines if line and not line.startswith("#version")]
            return _written(folder, _table(folder / "vocab.json"), merges)
        if (folder / "tokenizer.json").is_file():
            return _checked(folder / "tokenizer.json")
    merges = _openai_merges()
    return _written(Path("open-clip-torch"), _vocabulary(merges), merges)


# -- OpenAI's table ---------------------------------------------------------------------------------------


def _openai_merges() -> list[str]:
    wheel = home() / "downloads" / _WHEEL_SHA256 / _WHEEL
    wheel.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(fetch_wheel(_REQUIREMENT, wheel, sha256=_WHEEL_SHA256)) as archive:
        lines = gzip.decompress(archive.read("open_clip/bpe_simple_vocab_16e6.txt.gz")).decode().split("\n")
    return lines[1 : 1 + _MERGES]  # after the version


def _vocabulary(merges: Sequence[str]) -> dict[str, int]:
    """Token -> id: the bytes, the bytes that end a word, the merges, start and end."""
    letters = _letters()
    joined = (merge.replace(" ", "") for merge in merges)
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *joined, _START, _END]
    return {token: number for number, token in enumerate(tokens)}


def _letters() -> list[str]:
    """One printable letter a byte, in the order of CLIP's ids: those that print themselves, then the others."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + number) for number in range(256 - len(printable))]


# -- files ------------------------------------------------------------------------------------------------


def _written(source: Path, vocabulary: dict[str, int], merges: Sequence[str]) -> bytes:
    parts = (token for merge in merges for token in (*merge.split(" "), merge.replace(" ", "")))
    _require(source, vocabulary, itertools.chain(parts, (_START, _END)))
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [_special(token, vocabulary[token]) for token in (_START, _END)],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFC"}, {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}, {"type": "Lowercase"},
        ]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": _WORDS}, "behavior": "Removed", "invert": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        ]},
        "post_processor": {
            "type": "RobertaProcessing", "sep": [_END, vocabulary[_END]], "cls": [_START, vocabulary[_START]],
            "trim_offsets": False, "add_prefix_space": False,
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": _END, "continuing_subword_prefix": "",
            "end_of_word_suffix": "</w>", "fuse_unk": False, "byte_fallback": False, "vocab": vocabulary,
            "merges": list(merges),
        },
    }  # fmt: skip
    return json.dumps(tokenizer, ensure_ascii=False).encode()


def _special(token: str, number: int) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": number, "content": token, **flags}


def _checked(path: Path) -> bytes:
    model = _table(path).get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    _require(path, vocabulary if isinstance(vocabulary, dict) else {}, (_START, _END))
    return path.read_bytes()


def _require(source: Path, vocabulary: dict[str, int], tokens: Iterable[str]) -> None:
    missing = next((token for token in tokens if token not in vocabulary), None)
    if missing is not None:
        raise ConversionError(
            f"{source} has no token {missing!r}",
            cause="it is not the tokenizer of CLIP, or its vocabulary and its merges are of different models",
            remedy="take the folder tokenizer/ of the same checkpoint, or leave it out for OpenAI's own table",
        )


def _table(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(_text(path))
    except ValueError as error:
        raise ConversionError(f"{path} is no JSON: {error}", remedy="download or copy it again") from error
    if not isinstance(table, dict):
        raise ConversionError(f"{path} holds a {type(table).__name__}, not a table", remedy="download it again")
    return table


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ModelNotFound(f"{path} does not exist", remedy="download the whole folder tokenizer/") from error
    except UnicodeDecodeError as error:
        raise ConversionError(f"{path} is no text: {error}", remedy="download or copy it again") from error
