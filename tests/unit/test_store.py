"""The model store: pull, add, open, verify, remove, licences, killed and concurrent processes."""

import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from demo_models import DemoBuilder, demo_model, digest, manifest
from filelock import FileLock
from loopback import serve

import facesdk
from facesdk import builders, catalog
from facesdk.errors import (
    BundleError,
    ConversionError,
    DownloadError,
    IntegrityError,
    LicenseNotAccepted,
    MissingDependency,
    ModelNotFound,
    OutputError,
    UsageError,
)
from facesdk.store import Store

CONTENT = b"DEMO" + random.Random(0).randbytes(400_000)


@pytest.fixture(autouse=True)
def builder(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("FACESDK_OFFLINE", raising=False)
    demo = DemoBuilder()
    monkeypatch.setattr(builders, "installed", lambda: (demo,))
    return demo


@pytest.fixture
def origin(tmp_path):
    path = tmp_path / "origin" / "demo-1.demo"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def store(home, origin):
    return Store(home, models={"demo": demo_model(origin.as_uri(), CONTENT)})


@pytest.fixture
def own_bundle(tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "a.bin").write_bytes(b"abc")
    (folder / "bundle.toml").write_text(manifest({"a.bin": digest(b"abc")}, name="own"))
    return folder


def bundles_in(home):
    """Names of all that is there, hidden folders too."""
    return sorted(path.name for path in (home / "bundles").iterdir())


def test_catalog_that_comes_with_the_sdk():
    models = catalog.load()
    annotation = models["annotation"]
    assert annotation.source.file.startswith("mediapipe-0.10.21-cp312")
    assert not annotation.restricted
    for model in models.values():
        assert len(bytes.fromhex(model.source.sha256)) == 32
        assert model.source.size > 0
        assert model.source.requirement or model.source.urls


# -- pull -------------------------------------------------------------------------------------------------


def test_pull_builds_once(store, home, builder):
    bundle = store.pull("demo")
    assert bundle.folder == home / "bundles" / "demo"
    assert (bundle.folder / "weights.bin").read_bytes() == CONTENT
    assert bundles_in(home) == ["demo"]
    assert store.pull("demo").folder == store.open("demo").folder == bundle.folder
    assert builder.builds == 1


def test_pull_again_by_force_uses_the_kept_download(store, origin, builder):
    store.pull("demo")
    origin.unlink()
    store.pull("demo", force=True)
    assert builder.builds == 2


def test_pull_repairs_a_damaged_bundle(store, builder):
    weights = store.pull("demo").folder / "weights.bin"
    weights.write_bytes(b"DEMO damaged")
    store.pull("demo")
    assert weights.read_bytes() == CONTENT
    (weights.parent / "bundle.toml").write_text("[bundle")
    store.pull("demo").verify()
    assert builder.builds == 3


def test_pull_of_an_unknown_name(store):
    with pytest.raises(ModelNotFound, match="it has: demo"):
        store.pull("demon")


def test_pull_without_a_builder(store, monkeypatch):
    monkeypatch.setattr(builders, "installed", lambda: ())
    with pytest.raises(MissingDependency, match="install FaceSDK again"):
        store.pull("demo")


def test_builder_that_cannot_be_imported(monkeypatch, caplog):
    monkeypatch.undo()
    entry = builders.EntryPoint("broken", "facesdk_that_is_not_there:builder", builders.GROUP)
    monkeypatch.setattr(builders, "entry_points", lambda **_: (entry,))
    assert builders.installed() == ()
    assert "facesdk_that_is_not_there" in caplog.text


def test_failed_build_leaves_the_installed_bundle(store, home, origin):
    store.pull("demo")
    origin.write_bytes(b"not a demo")
    store.models = {"demo": demo_model(origin.as_uri(), b"not a demo")}
    with pytest.raises(ConversionError):
        store.pull("demo", force=True)
    assert (store.open("demo").folder / "weights.bin").read_bytes() == CONTENT
    assert bundles_in(home) == ["demo"]


def test_interrupted_replacement_is_taken_back(store, home, builder):
    folder = store.pull("demo").folder
    folder.rename(folder.with_name(".demo.previous"))
    folder.with_name(".demo.scratch").mkdir()
    assert [entry.installed for entry in store.list()] == [False]
    store.pull("demo")
    assert builder.builds == 1
    assert bundles_in(home) == ["demo"]


def test_wrong_content_then_right(home):
    with serve(bytes(len(CONTENT))) as server:
        store = Store(home, models={"demo": demo_model(server.url, CONTENT)})
        with pytest.raises(IntegrityError, match=digest(CONTENT)):
            store.pull("demo")
        assert bundles_in(home) == []
        server.content = CONTENT
        store.pull("demo").verify()


def test_offline_opens_no_socket(home, store, monkeypatch):
    store.pull("demo")
    monkeypatch.setenv("FACESDK_OFFLINE", "1")
    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("a socket was opened"))
    assert store.pull("demo").name == "demo"
    store.remove("demo")
    store.models = {"demo": demo_model("https://example.org/demo", CONTENT)}
    with pytest.raises(DownloadError, match="FACESDK_OFFLINE"):
        store.pull("demo")


def test_home_that_cannot_be_written(tmp_path, store, own_bundle):
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file" / "home", models=store.models)
    assert [entry.name for entry in store.list()] == ["demo"]
    assert store.verify() == ()
    for action in (lambda: store.pull("demo"), lambda: store.add(own_bundle)):
        with pytest.raises(OutputError, match="set FACESDK_HOME"):
            action()


def test_installed_bundle_in_a_read_only_home(store, monkeypatch):
    store.pull("demo")
    monkeypatch.setattr("facesdk.store.locked", lambda *_: pytest.fail("a lock was taken"))
    assert store.pull("demo").folder == store.open("demo").folder
    assert not any(report.problem for report in store.verify())


# -- other processes --------------------------------------------------------------------------------------


def start_pull(home, url):
    source = Path(__file__).with_name("demo_models.py")
    words = [sys.executable, str(source), str(home), url, digest(CONTENT), str(len(CONTENT))]
    places = [str(Path(facesdk.__path__[0]).parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    return subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)


def wait_for(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "nothing came within 10 s"
        time.sleep(0.01)


def test_killed_in_the_middle_of_a_download(home):
    part = home / "downloads" / digest(CONTENT) / f"{digest(CONTENT)}.part"
    with serve(CONTENT, pause_s=0.05) as server:
        child = start_pull(home, server.url)
        wait_for(lambda: part.exists() and part.stat().st_size >= 1 << 16)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        kept = part.stat().st_size
        assert kept < len(CONTENT)
        assert bundles_in(home) == []
        store = Store(home, models={"demo": demo_model(server.url, CONTENT)})
        assert not store.list()[0].installed
        server.pause_s = 0.0
        bundle = store.pull("demo")
        assert server.requests == [None, f"bytes={kept}-"]
    assert (bundle.folder / "weights.bin").read_bytes() == CONTENT
    assert [path.name for path in part.parent.iterdir()] == ["demo-1.demo"]


def test_two_processes_at_once(home):
    with serve(CONTENT, pause_s=0.02) as server:
        children = [start_pull(home, server.url) for _ in range(2)]
        said = "".join(child.communicate(timeout=20)[1] for child in children)
        assert [child.returncode for child in children] == [0, 0], said
        assert server.requests == [None]
    assert "waiting for another process that is busy with the bundle demo" in said
    assert bundles_in(home) == ["demo"]
    assert (home / "bundles" / "demo" / "weights.bin").read_bytes() == CONTENT


def test_lock_that_is_never_freed(home, store, caplog):
    impatient = Store(home, models=store.models, lock_timeout_s=0.1)
    (home / "locks").mkdir(parents=True)
    with (
        FileLock(home / "locks" / "bundle-demo.lock"),
        ThreadPoolExecutor() as other,
        pytest.raises(OutputError, match="the bundle demo is busy"),
    ):
        other.submit(impatient.pull, "demo").result()
    assert "waiting for another process" in caplog.text
    assert impatient.pull("demo").name == "demo"


# -- add, open, verify, list, remove ----------------------------------------------------------------------


def test_add_a_file(store, origin):
    own = origin.with_name("mine.demo")
    own.write_bytes(CONTENT + b"changed")
    bundle = store.add(own)
    assert bundle.folder.name == "demo-own"
    assert store.open("demo-own").folder == store.path("demo-own") == bundle.folder
    (store.home / "bundles" / "a-stray-file").touch()
    assert [entry.name for entry in store.list()] == ["demo", "demo-own"]


def test_add_a_file_of_the_catalog(store, origin):
    store.add(origin, name="demo")
    assert json.loads((store.home / "licences.json").read_text())["demo"]["commercial"] == "yes"
    origin.write_bytes(CONTENT[:-1])
    with pytest.raises(IntegrityError, match=digest(CONTENT)):
        store.add(origin, name="demo")
    assert origin.exists()
    assert (store.open("demo").folder / "weights.bin").read_bytes() == CONTENT


def test_add_a_damaged_file(store, home, tmp_path):
    (tmp_path / "bad.demo").write_bytes(b"")
    with pytest.raises(ConversionError, match="damaged"):
        store.add(tmp_path / "bad.demo")
    assert bundles_in(home) == []


@pytest.mark.parametrize(
    ("name", "error"), [("nothing.demo", ModelNotFound), ("text.txt", UsageError), (".", UsageError)]
)
def test_add_what_is_no_model(store, tmp_path, name, error):
    (tmp_path / "text.txt").write_text("text")
    with pytest.raises(error):
        store.add(tmp_path / name)


def test_add_a_bundle(store, own_bundle, home):
    assert (store.add(own_bundle).folder / "a.bin").read_bytes() == b"abc"
    (own_bundle / "a.bin").write_bytes(b"abd")
    with pytest.raises(IntegrityError, match=r"a\.bin"):
        store.add(own_bundle)
    store.open("own").verify()
    assert bundles_in(home) == ["own"]


@pytest.mark.parametrize("name", ["../out", "a/b", ".hidden", "Big", "a b"])
def test_add_under_a_bad_name(store, own_bundle, home, name):
    with pytest.raises(UsageError, match="name"):
        store.add(own_bundle, name=name)
    assert not home.exists()


def test_open_a_folder(store, own_bundle):
    assert store.open(own_bundle).name == store.open(str(own_bundle)).name == "own"


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("demo", "models pull demo"), ("demo-own", "models add PATH"), ("x", "models list"), ("/no/x", "models list")],
)
def test_open_what_is_not_there(store, name, remedy):
    with pytest.raises(ModelNotFound) as caught:
        store.open(name)
    assert remedy in caught.value.remedy


def test_a_folder_that_only_has_a_models_name(store, tmp_path, monkeypatch):
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFound, match="models pull demo"):
        store.open("demo")


def test_verify(store, own_bundle):
    folder = store.pull("demo").folder
    store.add(own_bundle)
    assert [(r.bundle, r.file, r.problem) for r in store.verify()] == [
        ("demo", "weights.bin", ""),
        ("own", "a.bin", ""),
    ]
    (folder / "weights.bin").write_bytes(b"x")
    (store.open("own").folder / "a.bin").unlink()
    changed, missing = store.verify()
    assert changed.problem == f"sha256 expected {digest(CONTENT)}, actual {digest(b'x')}"
    assert missing.problem == "missing"
    assert store.verify("own") == (missing,)
    with pytest.raises(ModelNotFound):
        store.verify("other")


@pytest.mark.parametrize("text", ["[bundle", "", "\x00"])
def test_damaged_manifest(store, text):
    folder = store.pull("demo").folder
    (folder / "bundle.toml").write_text(text)
    with pytest.raises(BundleError):
        store.open("demo")
    (entry,) = store.list()
    assert entry.installed
    assert entry.problem
    (report,) = store.verify("demo")
    assert (report.file, bool(report.problem)) == ("bundle.toml", True)


def test_list(store):
    (before,) = store.list()
    assert (before.installed, before.size, before.path) == (False, len(CONTENT), None)
    folder = store.pull("demo").folder
    (after,) = store.list()
    assert (after.installed, after.path, after.licence, after.problem) == (True, folder, "MIT", "")
    assert after.size == len(CONTENT) + (folder / "bundle.toml").stat().st_size


def test_remove(store, home, builder):
    store.pull("demo")
    store.remove("demo")
    assert bundles_in(home) == []
    assert not any((home / "downloads").iterdir())
    with pytest.raises(ModelNotFound):
        store.remove("demo")
    store.pull("demo")
    assert builder.builds == 2


# -- licences ---------------------------------------------------------------------------------------------


def test_licences_are_recorded(store, home, own_bundle):
    store.pull("demo")
    store.add(own_bundle)
    records = json.loads((home / "licences.json").read_text())
    assert (records["demo"]["licence"], records["demo"]["sha256"]) == ("MIT", digest(CONTENT))
    assert records["demo"]["date"].endswith("+00:00")
    assert records["own"]["source"] == str(own_bundle)
    store.remove("demo")
    assert list(json.loads((home / "licences.json").read_text())) == ["demo", "own"]


@pytest.mark.parametrize("changes", [{"commercial": "no"}, {"commercial": "ask"}, {"accept": True}])
def test_restricting_licence(home, origin, changes):
    store = Store(home, models={"demo": demo_model(origin.as_uri(), CONTENT, licence="CC-BY-NC-4.0", **changes)})
    with pytest.raises(LicenseNotAccepted, match="CC-BY-NC") as caught:
        store.pull("demo")
    assert "https://example.org/mit" in caught.value.remedy
    assert "facesdk models pull demo --accept-license" in caught.value.remedy
    assert not home.exists()
    store.pull("demo", accept_license=True)
    assert json.loads((home / "licences.json").read_text())["demo"]["accepted"]
    store.pull("demo", force=True)  # accepted once is accepted
    store.models = {"demo": demo_model(origin.as_uri(), CONTENT, licence="other", **changes)}
    with pytest.raises(LicenseNotAccepted):
        store.pull("demo")


def test_damaged_licence_book_is_kept_aside(store, home, caplog):
    home.mkdir()
    (home / "licences.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        store.pull("demo")
    assert "cannot be read" in caplog.text
    assert (home / "licences.json.damaged").read_text() == "{"
    assert list(json.loads((home / "licences.json").read_text())) == ["demo"]
