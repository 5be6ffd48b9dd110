"""CLIP's text encoder against transformers', its two engines, and the tokenizer that comes with it."""

from __future__ import annotations

import gzip
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from facesdk.errors import ConversionError, DownloadError, ModelNotFound

torch = pytest.importorskip("torch", reason="the export room needs torch")
pytest.importorskip("onnxscript", reason="the export room needs onnxscript")
tokenizers = pytest.importorskip("tokenizers", reason="prompts need tokenizers")

from torch import Tensor, nn  # noqa: E402

from facesdk_export.clip_tokenizer import tokenizer_json  # noqa: E402
from facesdk_export.networks.text_encoder import TextEncoder, TextModel, TokenEmbedding  # noqa: E402
from facesdk_export.onnx_export import trace  # noqa: E402

WIDTH, TOKENS, WORDS = 48, 11, 60


@pytest.fixture(scope="module")
def text() -> TextModel:
    torch.manual_seed(0)
    text = TextModel(WORDS, WIDTH, layers=2, heads=3, hidden=80, tokens=TOKENS).eval()
    for name, value in text.named_parameters():
        nn.init.normal_(value, std=1.0 if "embedding" in name else 0.2)
    return text


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.randint(0, WORDS, (3, TOKENS), generator=torch.Generator().manual_seed(1))


# -- network ----------------------------------------------------------------------------------------------


def test_equals_transformers(text: TextModel, ids: Tensor) -> None:
    transformers = pytest.importorskip("transformers", reason="what is compared with")
    config = transformers.CLIPTextConfig(
        vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=80, num_hidden_layers=2, num_attention_heads=3,
        max_position_embeddings=TOKENS, hidden_act="quick_gelu",
    )  # fmt: skip
    other = transformers.CLIPTextModel(config).eval()
    names = [name.removeprefix("text_model.") for name in other.state_dict()]
    assert [name for name in names if "position_ids" not in name] == list(text.state_dict())
    values = dict(zip(other.state_dict(), names, strict=True))
    other.load_state_dict({name: text.state_dict()[own] for name, own in values.items()})
    with torch.inference_mode():
        torch.testing.assert_close(text(ids), other(ids).last_hidden_state, rtol=0, atol=1e-5)


def test_a_token_sees_only_those_before_it(text: TextModel, ids: Tensor) -> None:
    changed = ids.clone()
    changed[:, 6] = (changed[:, 6] + 1) % WORDS
    with torch.inference_mode():
        moved = (text(ids) - text(changed)).abs().amax((0, 2))
    assert moved[:6].max() == 0
    assert moved[6:].min() > 1e-3


def test_the_engines_are_the_network(tmp_path: Path, text: TextModel, ids: Tensor) -> None:
    """Traced with two prompts, run with three; and nothing but the tables is in the first."""
    embedding, encoder = TokenEmbedding(text), TextEncoder(text)
    with torch.inference_mode():
        embedded = embedding(ids)
        want = text(ids)
    got = run(embedding, {"ids": ids[:2]}, {"ids": ids}, tmp_path)
    np.testing.assert_array_equal(got, embedded)
    got = run(encoder, {"embeddings": embedded[:2]}, {"embeddings": embedded}, tmp_path)
    np.testing.assert_allclose(got, want, atol=2e-5)


def run(module: nn.Module, example: Mapping[str, Tensor], inputs: Mapping[str, Tensor], folder: Path) -> Any:
    trace(module, example, ("out",), folder / "engine.onnx", {0: "batch"})
    session = onnxruntime.InferenceSession(folder / "engine.onnx", providers=["CPUExecutionProvider"])
    return session.run(None, {name: np.asarray(value) for name, value in inputs.items()})[0]


# -- tokenizer --------------------------------------------------------------------------------------------


@pytest.fixture
def openai(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the wheel of open-clip-torch, with a table of three merges."""
    wheel = tmp_path / "open_clip.whl"
    table = '"bpe_simple_vocab_16e6.txt#version: 0.2\nc a\nca t</w>\n# #</w>'
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("open_clip/bpe_simple_vocab_16e6.txt.gz", gzip.compress(table.encode()))
    monkeypatch.setattr("facesdk_export.clip_tokenizer.fetch_wheel", lambda *_, **__: wheel)
    return wheel


def tokens_of(content: bytes, prompt: str) -> list[str]:
    return list(tokenizers.Tokenizer.from_str(content.decode()).encode(prompt).tokens)


def test_ids_of_the_published_table(openai: Path) -> None:
    table = tokenizers.Tokenizer.from_str(tokenizer_json().decode())
    assert [table.token_to_id(token) for token in ("!", "a", "f</w>", "l</w>", "ca", "##</w>")] == [
        0,
        64,
        325,
        331,
        512,
        514,
    ]
    assert table.encode("f l").ids == [515, 325, 331, 516]


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        ("CAT  \n cat", ["cat</w>", "cat</w>"]),
        ("cat's 42", ["cat</w>", "'", "s</w>", "4</w>", "2</w>"]),
        ("cat,##", ["cat</w>", ",", "##</w>"]),
        ("e\u0301", ["Ã", "©</w>"]),
        ("", []),
    ],
)
def test_words_are_cut_as_clip_does(openai: Path, prompt: str, tokens: list[str]) -> None:
    got = tokens_of(tokenizer_json(), prompt)
    assert got == ["<|startoftext|>", *tokens, "<|endoftext|>"]


@pytest.mark.parametrize("place", [".", "tokenizer"])
def test_a_folder_has_its_own_table(tmp_path: Path, place: str, openai: Path) -> None:
    content = tokenizer_json()
    model = json.loads(content)["model"]
    folder = tmp_path / "sd" / place
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *model["merges"], ""]), encoding="utf-8")
    openai.unlink()
    assert tokenizer_json(tmp_path / "sd") == content
    (folder / "tokenizer.json").write_bytes(content)
    (folder / "merges.txt").unlink()
    assert tokenizer_json(str(tmp_path / "sd")) == content


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ({"merges.txt": "#version: 0.2\na b\n", "vocab.json": '{"a": 0, "b": 1}'}, ConversionError, "no token 'ab'"),
        ({"merges.txt": "#version: 0.2\n", "vocab.json": "{}"}, ConversionError, "startoftext"),
        ({"merges.txt": "#version: 0.2\n", "vocab.json": "{"}, ConversionError, "no JSON"),
        ({"merges.txt": "#version: 0.2\n", "vocab.json": "[]"}, ConversionError, "holds a list"),
        ({"merges.txt": "#version: 0.2\n"}, ModelNotFound, "vocab.json"),
        ({"tokenizer.json": '{"model": {"vocab": {}}}'}, ConversionError, "startoftext"),
        ({"tokenizer.json": '{"model": 3}'}, ConversionError, "startoftext"),
    ],
)
def test_damaged_tables(tmp_path: Path, files: dict[str, str], error: type[Exception], message: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(error, match=message):
        tokenizer_json(tmp_path)


def test_without_any_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACESDK_HOME", str(tmp_path / "home"))  # where the table was never fetched
    monkeypatch.setenv("FACESDK_OFFLINE", "1")
    with pytest.raises(DownloadError, match="open-clip-torch"):
        tokenizer_json(tmp_path)
