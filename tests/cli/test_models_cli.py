"""`facesdk models ...`: output, JSON, exit statuses."""

import dataclasses
import hashlib
import json

import pytest

from facesdk import builders, catalog
from facesdk.cli import main

CONTENT = b"an engine"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MANIFEST = f"""
[bundle]
name = "annotation"
system = "annotation"
licence = "Apache-2.0"
[files]
"engine.bin" = "{SHA256}"
"""


class FakeBuilder:
    """Stands for the annotation bundle's builder: copies the file."""

    names = ("annotation", "annotation-478")

    def recognises(self, path):
        return "annotation-478" if path.suffix == ".task" else None

    def build(self, source, folder):
        (folder / "engine.bin").write_bytes(source.read_bytes())
        (folder / "bundle.toml").write_text(MANIFEST)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("FACESDK_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FACESDK_OFFLINE", raising=False)
    monkeypatch.setattr(builders, "installed", lambda: (FakeBuilder(),))
    (tmp_path / "origin").write_bytes(CONTENT)
    source = catalog.Source("url", "a.task", SHA256, len(CONTENT), urls=((tmp_path / "origin").as_uri(),))
    real = catalog.load()
    annotation = dataclasses.replace(real["annotation"], source=source)
    monkeypatch.setattr(catalog, "load", lambda: {"annotation": annotation})
    return tmp_path / "home"


@pytest.fixture
def run(capsys):
    """(exit status, standard output, standard error) of `facesdk models WORDS`."""

    def run(*words):
        status = main(["models", *words])
        return status, *capsys.readouterr()

    return run


@pytest.mark.parametrize("words", [("--json", "list"), ("list", "--json")])
def test_list_as_json(run, words):
    status, out, err = run(*words)
    assert (status, err) == (0, "")
    (entry,) = json.loads(out)
    assert (entry["name"], entry["installed"], entry["path"]) == ("annotation", False, None)


def test_list_for_people(run):
    head, line = run("list")[1].splitlines()
    assert head.split() == ["NAME", "INSTALLED", "SIZE", "LICENCE", "COMMERCIAL", "ABOUT"]
    assert line.split()[:2] == ["annotation", "no"]
    run("pull", "annotation")
    assert run("list")[1].splitlines()[1].split()[:2] == ["annotation", "yes"]


def test_pull_shows_the_licence_and_no_bar(run, home):
    status, out, err = run("pull", "annotation")
    assert (status, out) == (0, f"{home / 'bundles' / 'annotation'}\n")
    assert err.startswith("annotation: licence Apache-2.0 (https://")
    assert err.count("\n") == 1
    assert run("path", "annotation")[1] == out


def test_every_verb_as_json(run, home, tmp_path):
    folder = str(home / "bundles" / "annotation")
    expected = {"name": "annotation", "path": folder, "licence": "Apache-2.0"}
    assert json.loads(run("pull", "annotation", "--json")[1]) == expected
    assert json.loads(run("path", "annotation", "--json")[1]) == expected
    assert json.loads(run("verify", "--json")[1]) == [{"bundle": "annotation", "file": "engine.bin", "problem": ""}]
    assert json.loads(run("remove", "annotation", "--json")[1]) == {"name": "annotation", "path": folder}
    (tmp_path / "mine.task").write_bytes(CONTENT)
    added = json.loads(run("add", str(tmp_path / "mine.task"), "--name", "mine", "--json")[1])
    assert added["path"] == str(home / "bundles" / "mine")


def test_verify_fails_when_a_file_differs(run, home):
    run("pull", "annotation")
    assert run("verify")[:2] == (0, "ok       annotation/engine.bin\n")
    (home / "bundles" / "annotation" / "engine.bin").write_bytes(b"x")
    status, out, err = run("verify", "annotation")
    assert status == 1
    assert f"expected {SHA256}" in out
    assert "facesdk models pull annotation" in err


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (("path", "annotation"), 4, "facesdk models pull annotation"),
        (("pull", "nothing"), 4, "it has: annotation"),
        (("add", "nothing.task"), 4, "does not exist"),
        (("remove", "annotation"), 4, "not installed"),
        (("add", __file__), 2, "annotation-478"),
    ],
)
def test_exit_status_of_errors(run, words, status, text):
    actual, out, err = run(*words)
    assert (actual, out) == (status, "")
    assert text in err


def test_errors_as_json(run):
    status, out, _ = run("path", "annotation", "--json")
    assert status == 4
    assert json.loads(out)["error"]["code"] == "model-not-found"


def test_home_that_cannot_be_written(run, tmp_path, monkeypatch):
    monkeypatch.setenv("FACESDK_HOME", str(tmp_path / "origin" / "home"))
    status, _, err = run("pull", "annotation")
    assert status == 1
    assert "set FACESDK_HOME" in err


def test_no_verb_is_a_usage_error(run):
    with pytest.raises(SystemExit) as caught:
        run()
    assert caught.value.code == 2
