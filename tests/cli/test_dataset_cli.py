"""`facesdk dataset`: files, JSON, messages and exit statuses."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from facesdk.cli import main
from facesdk.synthesis.training_set import TrainingSet

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """(exit status, standard output, standard error) of `facesdk dataset WORDS`."""

    def run(*words: object) -> tuple[int, str, str]:
        try:
            status = main(["dataset", *map(str, words)])
        except SystemExit as exit_:
            status = int(exit_.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two identities of three and one picture, and features of 4 values."""
    stream = io.BytesIO()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(stream, "PNG")
    for number, name in enumerate(("a/0", "a/1", "a/2", "b/0")):
        picture, feature = tmp_path / "pictures" / f"{name}.png", tmp_path / "features" / f"{name}.npy"
        for path in (picture, feature):
            path.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(stream.getvalue())
        np.save(feature, np.full(4, number, np.float32))
    return tmp_path / "pictures", tmp_path / "features"


def test_centres(run: Run, folders: Any, tmp_path: Path) -> None:
    out = tmp_path / "c.npy"
    status, text, error = run("centres", folders[1], "-o", out, "--width", 4)
    assert (status, text, error) == (0, f"{out}: 2 identities\n", "")
    np.testing.assert_array_equal(np.load(out), [[1] * 4, [3] * 4])
    status, text, _ = run("centres", folders[1], "-o", out, "--width", 4, "--json")
    assert json.loads(text) == {"file": str(out), "identities": 2, "names": str(tmp_path / "c.txt")}
    assert (tmp_path / "c.txt").read_text() == "a\nb\n"


def test_labels(run: Run, folders: Any, tmp_path: Path) -> None:
    out = tmp_path / "l.txt"
    assert run("labels", folders[0], "-o", out) == (0, f"{out}: 4 picture(s) of 2 identities\n", "")
    assert out.read_text() == "0\n0\n0\n1\n"


def test_lmdb_with_and_without_features(run: Run, folders: Any, tmp_path: Path) -> None:
    pytest.importorskip("lmdb")
    out = tmp_path / "s.lmdb"
    status, text, _ = run("--json", "lmdb", folders[0], "-o", out)
    assert (status, json.loads(text)) == (0, {"file": str(out), "records": 4, "identities": 2})
    with TrainingSet(out) as records:
        assert [(record.feature, record.label) for record in records] == [(None, 0), (None, 0), (None, 0), (None, 1)]
    assert run("lmdb", folders[0], "-o", out, "--features", folders[1], "--width", 4)[0] == 0
    with TrainingSet(out) as records:
        assert [float(record.feature[0]) for record in records] == [0, 1, 2, 3]


def test_mask(run: Run, folders: Any, tmp_path: Path) -> None:
    out = tmp_path / "m.npy"
    status, text, _ = run("mask", folders[0], "-o", out, "--identities", 1, "--seed", 5, "--json")
    chosen = [[0, 1, 2], [3]][np.random.RandomState(5).choice(2, 1, replace=False)[0]]
    assert (status, json.loads(text)["records"]) == (0, len(chosen))
    np.testing.assert_array_equal(np.load(out), chosen)


def test_failures_are_told_and_write_nothing(run: Run, folders: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    status, text, error = run("centres", folders[1], "-o", out / "c.npy")
    assert (status, text) == (2, "")
    assert "0.npy is no embedding" in error
    assert "[usage]" in error
    status, text, _ = run("mask", folders[0], "-o", out / "m.npy", "--json")
    assert (status, json.loads(text)["error"]["fact"]) == (2, "50000 identities of 2")
    assert run("labels", tmp_path / "absent", "-o", out / "l.txt")[0] == 2
    assert run("labels", folders[0], "-o", out / "l.csv")[0] == 2
    assert run("labels", folders[0])[0] == 2
    assert list(out.iterdir()) == []
