"""Ways of the cases about prompts: ids and places of faces, and what other cases need of both."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from facesdk.diffusion.face_tokens import FaceTokens, TokenSpace
from facesdk.diffusion.prompt import SECOND, Placement, first_positions, place
from facesdk.diffusion.tokenizer import LENGTH, Tokenizer
from facesdk.errors import UsageError

from .reference import compare

Wrong = list[str]


@functools.cache
def tokenizer() -> Tokenizer:
    """The tokenizer of the published vocabulary, by way of its file."""
    from facesdk_export.clip_tokenizer import tokenizer_json

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        path.write_bytes(tokenizer_json())
        return Tokenizer.load(path)


def run_placement(run: dict[str, Any]) -> Placement:
    """The placement of one of a case's `runs`: prompt, identifiers, both_tokens."""
    return place(tokenizer(), run["prompt"], run["identifiers"], 2 if run["both_tokens"] else 1)


def faces(first: dict[str, np.ndarray], last: dict[str, np.ndarray] | None = None) -> dict[str, FaceTokens]:
    """Face tokens by identifier, of recorded vectors (width,): with `last` of two tokens, without of one."""
    width = len(next(iter(first.values())))
    space = TokenSpace("recorded", "f2d" if last else "mf2d", width)
    return {name: FaceTokens(token, last[name] if last else None, space) for name, token in first.items()}


def tokens(case: Any) -> Wrong:
    """Ids, positions, first end token and length of every prompt."""
    scalars, wrong, seen = case.scalars, [], set()
    assert scalars["max_length"] == LENGTH
    assert scalars["pad_token"] == tokenizer().end
    for number, (prompt, identifiers) in enumerate(zip(scalars["prompts"], scalars["identifiers"], strict=True)):
        ids = tokenizer().encode(prompt, truncate=True)[0]
        positions = first_positions(tokenizer(), prompt, identifiers)
        end = int(np.argmax(ids == tokenizer().end))
        got = {"ids": ids, "pos": list(positions.values()), "eot": end, "len": end + 1}
        wrong += _placed_elsewhere(prompt, positions)
        seen |= {f"{name}{number}" for name in got}
        wrong += [compare(case, f"{name}{number}", np.asarray(value)) for name, value in got.items()]
    absent = [f"{name}: not given" for name in case.facts["outputs"] if name not in seen]
    return absent + [text for text in wrong if text]


def _placed_elsewhere(prompt: str, positions: dict[str, int]) -> Wrong:
    """What is wrong with the placement of a prompt that is not refused, in the form that the prompt has."""
    ids, second = tokenizer().encode(prompt, truncate=True)[0], tokenizer().ids(SECOND)[0]
    both = all(ids[first + 1] == second for first in positions.values())
    try:
        placement = place(tokenizer(), prompt, list(positions), 2 if both else 1, truncate=True, known=())
    except UsageError:
        return []
    owned = {name: tuple(range(first, first + 1 + both)) for name, first in positions.items()}
    same = placement.positions == owned and (placement.ids == ids).all()
    return [] if same else [f"{prompt!r} is placed at {placement.positions}"]


FACE2DIFFUSION = {"tokens": {"sdk": tokens}}
