"""Checkpoints: every container that systems were published in, strict loading, and files that mean harm."""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import os
import pathlib
import pickle
import pickletools
import struct
import subprocess
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facesdk.errors import ConversionError, ModelNotFound

torch = pytest.importorskip("torch", reason="the export room needs torch")

from torch import nn  # noqa: E402

from facesdk_export.checkpoints import Checkpoint, load_into, read_checkpoint  # noqa: E402
from facesdk_export.features import read_features, write_features  # noqa: E402
from tests.parity.reference import ROOT  # noqa: E402

Entries = dict[str, Any]


class Net(nn.Module):
    """A few entries of each kind: weights, a norm with its counter, a nested name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.body = nn.Sequential(nn.BatchNorm2d(4), nn.PReLU(4))

    def forward(self, x: Any) -> Any:
        return self.body(self.conv(x))


def on_meta() -> Net:
    with torch.device("meta"):
        return Net().eval()


@pytest.fixture
def entries() -> Entries:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(value.shape, generator=generator) if value.is_floating_point() else torch.tensor(7)
        for name, value in Net().state_dict().items()
    }


def same(got: Any, want: Entries) -> bool:
    return list(got) == list(want) and all(torch.equal(got[name], value) for name, value in want.items())


# -- containers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrap", "container", "others"),
    [
        (lambda e: e, "", ()),
        (collections.OrderedDict, "", ()),
        (lambda e: {"state_dict": e, "epoch": 3, "callbacks": {}}, "state_dict", ("epoch", "callbacks")),
        (lambda e: {"net_recon": e, "opt_00": {"state": {}}, "sched_00": {}}, "net_recon", ("opt_00", "sched_00")),
        (lambda e: {"model_state_dict": e, "epoch": 1}, "model_state_dict", ("epoch",)),
        (lambda e: {"model_vec2face": e, "model_disc": {}, "model_ema": None}, "model_vec2face",
         ("model_disc", "model_ema")),
    ],
    ids=["flat", "ordered", "lightning", "net_recon", "model_state_dict", "vec2face"],
)  # fmt: skip
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_containers_of_torch_save(
    entries: Entries, wrap: Callable[[Entries], Any], container: str, others: tuple[str, ...], legacy: bool,
    tmp_path: Path,
) -> None:  # fmt: skip
    path = tmp_path / "published.pth"
    torch.save(wrap(entries), path, _use_new_zipfile_serialization=not legacy)
    checkpoint = read_checkpoint(path)
    assert same(checkpoint.entries, entries)
    assert (checkpoint.path, checkpoint.container, checkpoint.others) == (path, container, others)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol(entries: Entries, protocol: int, tmp_path: Path) -> None:
    torch.save(entries, tmp_path / "a.pth", pickle_protocol=protocol)
    assert same(read_checkpoint(tmp_path / "a.pth").entries, entries)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_removed(entries: Entries, prefix: str, tmp_path: Path) -> None:
    torch.save({prefix + name: value for name, value in entries.items()}, tmp_path / "a.pth")
    assert same(read_checkpoint(tmp_path / "a.pth").entries, entries)


def test_a_part_that_is_called_module_keeps_its_name(entries: Entries, tmp_path: Path) -> None:
    entries["module.weight"] = torch.ones(1)
    torch.save(entries, tmp_path / "a.pth")
    assert same(read_checkpoint(tmp_path / "a.pth").entries, entries)


def test_a_table_is_chosen_by_name(entries: Entries, tmp_path: Path) -> None:
    path = tmp_path / "pose_model.pth"
    torch.save({"model_vec2face": {"a": torch.ones(1)}, "pose_model": entries}, path)
    assert same(read_checkpoint(path, "pose_model").entries, entries)
    with pytest.raises(ConversionError, match="model_vec2face, pose_model"):
        read_checkpoint(path, "pose")


def safetensors(entries: Entries, *, pad: int = 0) -> bytes:
    names = {torch.float32: "F32", torch.float16: "F16", torch.int64: "I64", torch.bfloat16: "BF16"}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, value in entries.items():
        raw = value.view(torch.uint8).numpy().tobytes() if value.ndim else struct.pack("<q", int(value))
        header[name] = {
            "dtype": names[value.dtype], "shape": list(value.shape), "data_offsets": [len(data), len(data) + len(raw)],
        }  # fmt: skip
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8 + pad)
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize("pad", [0, 1], ids=["aligned", "odd"])
@pytest.mark.parametrize("name", ["a.safetensors", "a.bin"])
def test_safetensors(entries: Entries, pad: int, name: str, tmp_path: Path) -> None:
    entries["half"], entries["brain"] = torch.ones(2, 3).half(), torch.ones(3).bfloat16()
    (tmp_path / name).write_bytes(safetensors(entries, pad=pad))
    checkpoint = read_checkpoint(tmp_path / name)
    assert same(checkpoint.entries, entries)
    assert checkpoint.others == ()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchscript(entries: Entries, tmp_path: Path) -> None:
    network = Net().eval()
    network.load_state_dict(entries)
    torch.jit.trace(network, torch.zeros(1, 3, 8, 8)).half().save(str(tmp_path / "ViT-B-32.pt"))
    got = read_checkpoint(tmp_path / "ViT-B-32.pt").entries
    want = {name: value.half() if value.is_floating_point() else value for name, value in entries.items()}
    assert set(got) == set(want)
    assert all(torch.equal(got[name], value) for name, value in want.items())


def test_views_parameters_and_shared_tensors(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    saved = {"view": base[1:3, ::2], "turned": base.T, "parameter": nn.Parameter(base[0]), "none": torch.empty(0, 3)}
    torch.save(saved, tmp_path / "a.pth")
    got = read_checkpoint(tmp_path / "a.pth").entries
    assert same(got, saved)
    assert got["view"].untyped_storage().data_ptr() == got["turned"].untyped_storage().data_ptr()


@pytest.mark.skipif(sys.platform != "linux", reason="reads its own memory as Linux counts it")
def test_tensors_are_mapped_and_the_file_stays_as_it_is(entries: Entries, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"big": torch.zeros(1 << 26), **entries}, path)
    code = (
        "import resource, sys; from facesdk_export.checkpoints import read_checkpoint\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "entries = read_checkpoint(sys.argv[1]).entries; entries['big'][:9] = 1\n"
        "grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before\n"
        "assert entries['big'].sum() == 9 and grown < 1 << 16, grown"
    )
    before = path.read_bytes()
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=120)
    assert path.read_bytes() == before


# -- other objects beside the tensors ---------------------------------------------------------------------


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> type:
    """A class of OmegaConf, which is not installed here; making one outside the test would be an error."""
    module = types.ModuleType("omegaconf.dictconfig")

    class DictConfig(dict[str, object]):
        def __init__(self, *_: object) -> None:
            raise AssertionError("the foreign class was called")

    DictConfig.__module__, DictConfig.__qualname__ = module.__name__, "DictConfig"
    module.DictConfig = DictConfig  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return DictConfig


def test_settings_of_trainers_are_kept_away_and_never_made(entries: Entries, foreign: type, tmp_path: Path) -> None:
    config = foreign.__new__(foreign)
    config["path"] = pathlib.PurePosixPath("weights")
    config.flags = {"a": 1}
    network = Net()
    saved = {
        "state_dict": entries,
        "args": argparse.Namespace(batch=4),
        "hyper_parameters": config,
        "best": np.float64(0.5),
        "array": np.arange(3),
        "seen": {1, 2},
        "counts": collections.defaultdict(int, a=1),
        "shape": torch.Size([1, 2]),
        "type": torch.float16,
        "device": torch.device("cpu"),
        "optimizer_states": [torch.optim.AdamW(network.parameters()).state_dict()],
    }
    torch.save(saved, tmp_path / "last.ckpt")
    checkpoint = read_checkpoint(tmp_path / "last.ckpt")
    assert same(checkpoint.entries, entries)
    assert "args (argparse.Namespace)" in checkpoint.others
    assert "hyper_parameters (omegaconf.dictconfig.DictConfig)" in checkpoint.others
    assert "optimizer_states" in checkpoint.others
    assert len(checkpoint.others) == len(saved) - 1


def test_a_whole_module_is_named_as_such(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "a.pth")
    with pytest.raises(ConversionError, match=r"holds a Sequential, not a table[\s\S]*state_dict\(\)"):
        read_checkpoint(tmp_path / "a.pth")


def test_a_module_of_unknown_code_is_refused_by_name(tmp_path: Path) -> None:
    torch.save(Net(), tmp_path / "a.pth")
    with pytest.raises(
        ConversionError, match=rf"wants to create {Net.__module__}.Net; [\s\S]*torch.save\(model\.state_"
    ):
        read_checkpoint(tmp_path / "a.pth")


# -- files that mean harm ---------------------------------------------------------------------------------


class Harm:
    """Pickles to a call of `function`."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def touch(path: Path) -> Any:
    """An object whose unpickling makes a file."""
    return Harm(os.mkdir, str(path))


HARM = {
    "posix.mkdir": lambda path: touch(path),
    "posix.system": lambda path: Harm(os.system, f"touch {path}"),
    "builtins.eval": lambda path: Harm(eval, f"open({str(path)!r}, 'w')"),
    "builtins.exec": lambda path: Harm(exec, f"open({str(path)!r}, 'w')"),
    "builtins.getattr": lambda path: Harm(getattr, path, "mkdir"),
    "builtins.open": lambda path: Harm(open, str(path), "w"),
    "subprocess.Popen": lambda path: Harm(subprocess.Popen, ["touch", str(path)]),
    "torch.load": lambda path: Harm(torch.load, str(path)),
    "torch.save": lambda path: Harm(torch.save, 1, str(path)),
}


@pytest.mark.parametrize("name", HARM)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("deep", [False, True], ids=["root", "beside"])
def test_a_pickle_that_calls_is_refused_by_name(
    name: str, legacy: bool, deep: bool, entries: Entries, tmp_path: Path
) -> None:
    proof, path = tmp_path / "proof", tmp_path / "a.pth"
    harm = HARM[name](proof)
    torch.save(
        {"state_dict": entries, "extra": [harm]} if deep else harm, path, _use_new_zipfile_serialization=not legacy
    )
    before = set(tmp_path.iterdir())
    with pytest.raises(ConversionError) as caught:
        read_checkpoint(path)
    assert set(tmp_path.iterdir()) == before
    module, _, function = name.rpartition(".")
    named = {f"{alias}.{function}" for alias in (module, "io", "_io", "nt", "torch.serialization")}
    assert any(f"wants to create {text}" in caught.value.fact for text in named), str(caught.value)
    assert str(path) in caught.value.fact
    assert caught.value.remedy


def handmade(pickled: bytes, **members: bytes) -> bytes:
    """A zip as torch.save writes it, around any pickle."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, data in members.items():
            archive.writestr(f"archive/data/{name.removeprefix('_')}", data)
    return stream.getvalue()


def opcodes(value: object) -> bytes:
    """What pushes a value on the stack of the pickle machine."""
    return pickletools.optimize(pickle.dumps(value, 2))[2:-1]


def reference_to(
    key: str, count: int, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, *more: object
) -> bytes:
    """A pickle of {"weight": tensor} whose storage is member `key` of `count` floats."""
    storage = b"(U\x07storagectorch\nFloatStorage\n" + b"".join(map(opcodes, (key, "cpu", count, *more))) + b"tQ"
    call = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"".join(map(opcodes, (offset, size, stride)))
    return b"\x80\x02}U\x06weight" + call + b"\x89NtRs."


def test_the_handmade_pickle_is_right(tmp_path: Path) -> None:
    data = np.arange(6, dtype=np.float32)
    (tmp_path / "a.pth").write_bytes(handmade(reference_to("0", 6, (2, 2), (3, 1), 1), _0=data.tobytes()))
    assert read_checkpoint(tmp_path / "a.pth").entries["weight"].tolist() == [[1, 2], [4, 5]]


def legacy(pickled: bytes, keys: object, data: bytes) -> bytes:
    """A file as torch.save wrote it before 1.6."""
    versions = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    return b"".join(versions) + pickled + pickle.dumps(keys, 2) + (len(data) // 4).to_bytes(8, "little") + data


def test_parts_of_storages_in_legacy_files(tmp_path: Path) -> None:
    """Before torch 1.2 a reference could name a part of a storage: key, offset and number of elements."""
    data = np.arange(6, dtype=np.float32).tobytes()
    (tmp_path / "a.pth").write_bytes(legacy(reference_to("k", 6, (3,), (1,), 0, ("part", 2, 3)), ["k"], data))
    assert read_checkpoint(tmp_path / "a.pth").entries["weight"].tolist() == [2, 3, 4]


@pytest.mark.parametrize(
    ("pickled", "keys", "data"),
    [
        pytest.param(reference_to("k", 6, (6,), (1,)), ["other"], bytes(24), id="another key"),
        pytest.param(reference_to("k", 6, (6,), (1,)), 3, bytes(24), id="no list of keys"),
        pytest.param(reference_to("k", 6, (6,), (1,)), ["k", "k"], bytes(24), id="one key twice"),
        pytest.param(reference_to("k", 6, (6,), (1,)), ["k"], bytes(20), id="too little data"),
        pytest.param(reference_to("k", 1 << 40, (6,), (1,)), ["k"], bytes(24), id="four terabytes"),
        pytest.param(reference_to("k", -6, (6,), (1,)), ["k"], bytes(24), id="negative size"),
        pytest.param(reference_to("k", 6, (7,), (1,)), ["k"], bytes(24), id="tensor beyond its storage"),
        pytest.param(reference_to("k", 6, (3,), (1,), 0, ("part", 2, 99)), ["k"], bytes(24), id="part beyond"),
        pytest.param(reference_to("k", 6, (3,), (1,), 0, ("part", -2, 3)), ["k"], bytes(24), id="part before"),
        pytest.param(reference_to("k", 6, (3,), (1,), 0, "part"), ["k"], bytes(24), id="part without a size"),
    ],
)
def test_a_damaged_legacy_file(pickled: bytes, keys: object, data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(legacy(pickled, keys, data))
    with pytest.raises(ConversionError, match="sha256"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "pickled",
    [
        pytest.param(b"\x80\x02.", id="nothing on the stack"),
        pytest.param(b"\x80\x02}", id="no end"),
        pytest.param(b"", id="no pickle"),
        pytest.param(b"\x80\x63}.", id="protocol 99"),
        pytest.param(b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b".", id="a terabyte array"),
        pytest.param(b"\x80\x04\x8e" + (1 << 40).to_bytes(8, "little") + b".", id="a terabyte string"),
        pytest.param(b"\x80\x02}r\xff\xff\xff\x7f.", id="memo entry two thousand million"),
        pytest.param(b"\x80\x02ccollections\nOrderedDict\n(K\x01tR.", id="constructor misused"),
        pytest.param(b"\x80\x02ctorch\nFloatStorage\n)R.", id="a type called"),
        pytest.param(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.", id="no storage"),
        pytest.param(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}U\x0c__defaults__)sb.", id="a function changed"),
        pytest.param(b"\x80\x02cargparse\nNamespace\n}U\x0c__setstate__K\x01sb.", id="a class changed"),
        pytest.param(b"\x80\x02})" + b"\x85" * 1_000_000 + b"K\x01s.", id="a key of a million tuples"),
        pytest.param(b"\x80\x02\x82\x01.", id="extension registry"),
        pytest.param(b"\x80\x02U\x03abcQ.", id="unknown reference"),
        pytest.param(reference_to("0", 6, (9, 9), (9, 1)), id="tensor beyond its storage"),
        pytest.param(reference_to("0", 6, (2, 2), (-1, 1)), id="negative stride"),
        pytest.param(reference_to("0", 6, (2, 2), (3, 1), -2), id="negative offset"),
        pytest.param(reference_to("0", 1 << 40, (2, 2), (3, 1)), id="storage of four terabytes"),
        pytest.param(reference_to("9", 6, (2, 2), (3, 1)), id="storage missing"),
        pytest.param(reference_to("../data.pkl", 6, (2, 2), (3, 1)), id="storage elsewhere"),
    ],
)
def test_a_damaged_or_crafted_pickle(pickled: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(handmade(pickled, _0=bytes(24)))
    with pytest.raises(ConversionError) as caught:
        read_checkpoint(path)
    assert str(path) in caught.value.fact
    assert caught.value.remedy


def compressed(entries: Entries) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 24))
    return stream.getvalue()


def saved(entries: Entries, *, legacy: bool = False) -> bytes:
    stream = io.BytesIO()
    torch.save(entries, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


BROKEN: dict[str, tuple[Callable[[Entries], bytes], str]] = {
    "empty": (lambda e: b"", "is empty"),
    "text": (lambda e: b"<!DOCTYPE html><title>Quota exceeded", "<!DOCTYPE html>"),
    "pointer": (lambda e: b"version https://git-lfs.github.com/spec/v1\n", "version https://git-lfs"),
    "bytes": (lambda e: np.random.default_rng(0).bytes(4096), "no file of torch.save"),
    "plain pickle": (lambda e: pickle.dumps({"a": 1}), "no file of torch.save"),
    "half": (lambda e: saved(e)[:-200], "cut off or damaged"),
    "head": (lambda e: saved(e)[:40], "cut off or damaged"),
    "legacy half": (lambda e: saved(e, legacy=True)[:-64], "cut off|unexpected|EOF|end of file|read"),
    "legacy head": (lambda e: saved(e, legacy=True)[:60], "damaged|cut off"),
    "other zip": (lambda e: compressed(e).replace(b"data.pkl", b"data.txt"), "holds no data.pkl"),
    "bomb": (compressed, "is compressed"),
    "safetensors half": (lambda e: safetensors(e)[:-9], "outside the file"),
    "safetensors bomb": (lambda e: (1 << 62).to_bytes(8, "little") + b"{}", "announces 4611686018427387904 bytes"),
    "safetensors text": (lambda e: (2).to_bytes(8, "little") + b"{(", "no JSON"),
    "safetensors nest": (lambda e: (99999).to_bytes(8, "little") + b'{"a":' * 19999 + b"    ", "no JSON"),
    "safetensors size": (lambda e: safetensors(e).replace(b"[4, 3, 3, 3]", b"[9, 3, 3, 3]"), "bytes"),
    "safetensors type": (lambda e: safetensors(e).replace(b"F32", b"Q32"), "dtype Q32"),
    "safetensors entry": (lambda e: safetensors(e).replace(b"shape", b"sharp"), "no dtype, shape"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_is_no_checkpoint(kind: str, entries: Entries, tmp_path: Path) -> None:
    make, cause = BROKEN[kind]
    path = tmp_path / "published.pth"
    path.write_bytes(make(entries))
    with pytest.raises(ConversionError, match=cause) as caught:
        read_checkpoint(path)
    assert str(path) in caught.value.fact
    assert "sha256" in caught.value.remedy


def test_every_truncation_is_an_error(entries: Entries, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    for whole in (saved(entries), saved(entries, legacy=True), safetensors(entries)):
        for length in range(0, len(whole) - 1, 61):
            path.write_bytes(whole[:length])
            with pytest.raises(ConversionError):
                read_checkpoint(path)


def test_damaged_bytes_give_an_error_or_tensors(entries: Entries, tmp_path: Path) -> None:
    """Whatever single byte is wrong: never another exception."""
    path, random = tmp_path / "a.pth", np.random.default_rng(0)
    for whole in (saved(entries), saved(entries, legacy=True), safetensors(entries)):
        for position in random.integers(0, len(whole), 150):
            damaged = bytearray(whole)
            damaged[position] ^= int(random.integers(1, 256))
            path.write_bytes(damaged)
            with contextlib.suppress(ConversionError):
                assert isinstance(read_checkpoint(path), Checkpoint)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound):
        read_checkpoint(tmp_path / "nowhere.pth")
    with pytest.raises(ConversionError):
        read_checkpoint(tmp_path)


def test_a_table_without_tensors_says_what_it_holds(tmp_path: Path) -> None:
    torch.save({"generator": {"a": torch.ones(1)}, "epoch": 2}, tmp_path / "a.pth")
    with pytest.raises(ConversionError, match=r"generator, epoch[\s\S]*container="):
        read_checkpoint(tmp_path / "a.pth")


# -- loading ----------------------------------------------------------------------------------------------


def checkpoint_of(entries: Entries) -> Checkpoint:
    return Checkpoint(Path("published.pth"), entries)


def test_loading_gives_the_tensors_themselves(entries: Entries) -> None:
    network = on_meta()
    report = load_into(network, checkpoint_of(entries))
    assert same(network.state_dict(), entries)
    assert network.conv.weight.data_ptr() == entries["conv.weight"].data_ptr()
    assert report.loaded == set(entries)
    assert report.unused == ()
    assert network(torch.zeros(1, 3, 8, 8)).shape == (1, 4, 6, 6)


def test_loading_below_a_prefix_reports_the_rest(entries: Entries) -> None:
    file = {f"generator.{name}": value for name, value in entries.items()}
    file |= {"generator.extra": torch.ones(1), "discriminator.a": torch.ones(1), "g_loss.b": torch.ones(1)}
    report = load_into(on_meta(), checkpoint_of(file), "generator.", ignore=["g_loss."])
    assert report.unused == ("generator.extra", "discriminator.a")
    assert "generator.extra, discriminator.a" in str(report)


def test_two_reports_on_one_file(entries: Entries) -> None:
    file = {f"{root}.{name}": value for root in ("a", "b", "c") for name, value in entries.items()}
    report = load_into(on_meta(), checkpoint_of(file), "a.") + load_into(on_meta(), checkpoint_of(file), "b.")
    assert report.unused == tuple(f"c.{name}" for name in entries)
    assert len(report.loaded) == 2 * len(entries)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_precisions_are_cast(dtype: str, entries: Entries) -> None:
    file = {
        name: value.to(getattr(torch, dtype)) if value.is_floating_point() else value for name, value in entries.items()
    }
    network = on_meta()
    load_into(network, checkpoint_of(file))
    assert {value.dtype for value in network.state_dict().values()} == {torch.float32, torch.int64}
    torch.testing.assert_close(network.conv.weight.data, entries["conv.weight"], rtol=1e-2, atol=1e-3)


def test_batch_counters_may_be_absent(entries: Entries) -> None:
    del entries["body.0.num_batches_tracked"]
    network = on_meta()
    load_into(network, checkpoint_of(entries))
    assert int(network.body[0].num_batches_tracked) == 0


def test_missing_and_misshaped_entries_are_listed_and_nothing_changes(entries: Entries) -> None:
    del entries["conv.bias"]
    entries["conv.weight"] = torch.ones(4, 3, 1, 1)
    entries["body.1.weight"] = torch.ones(4, dtype=torch.int64)
    network = Net()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ConversionError) as caught:
        load_into(network, checkpoint_of(entries))
    text = str(caught.value)
    assert "1 entries are missing: conv.bias" in text
    assert "conv.weight is [4, 3, 1, 1], not [4, 3, 3, 3]" in text
    assert "body.1.weight is torch.int64" in text
    assert "published.pth" in text
    assert same(network.state_dict(), before)


def test_a_wrong_prefix_is_answered_with_the_file_s_own() -> None:
    names = [f"{root}.{i}" for root in ("encoder", "decoder") for i in range(20)]
    with torch.device("meta"):
        network = nn.Sequential(*(nn.Linear(1, 1) for _ in range(20)))
    with pytest.raises(ConversionError, match=r"40 entries are missing: net.0.weight, .* and 30 more") as caught:
        load_into(network, checkpoint_of({name: torch.ones(1) for name in names}), "net.")
    assert "encoder, decoder" in caught.value.cause


# -- identity vectors -------------------------------------------------------------------------------------


@pytest.fixture
def vector() -> Any:
    values = np.random.default_rng(0).standard_normal((1, 512)).astype(np.float32)
    return values / np.linalg.norm(values)


def test_features_of_torch_save(vector: Any, tmp_path: Path) -> None:
    torch.save(vector, tmp_path / "001.pth")
    got = read_features(tmp_path / "001.pth")
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, vector)


def test_features_round_trip_and_name_numpy_1(vector: Any, tmp_path: Path) -> None:
    write_features(tmp_path / "001.pth", vector)
    np.testing.assert_array_equal(read_features(tmp_path / "001.pth"), vector)
    with zipfile.ZipFile(tmp_path / "001.pth") as archive:
        assert archive.read("archive/data.pkl").startswith(b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n")
        assert archive.read("archive/version") == b"3\n"


@pytest.mark.skipif(not ROOT.is_dir(), reason=f"no reference folder at {ROOT}; set FACESDK_REFERENCE")
def test_features_are_written_as_they_were_published(tmp_path: Path) -> None:
    published = ROOT / "dense_face" / "golden" / "feature_example.pth"
    write_features(tmp_path / "a.pth", read_features(published))
    with zipfile.ZipFile(published) as want, zipfile.ZipFile(tmp_path / "a.pth") as got:
        assert got.namelist() == want.namelist()
        assert all(got.read(name) == want.read(name) for name in want.namelist())


@pytest.mark.parametrize(
    ("order", "dtype"), [("C", "<f4"), ("F", "<f4"), ("C", ">f4"), ("C", "<f8")], ids=["c", "fortran", "big", "double"]
)
def test_features_in_other_layouts(order: Any, dtype: str, vector: Any, tmp_path: Path) -> None:
    torch.save(np.asarray(vector, dtype, order=order), tmp_path / "a.pth")
    np.testing.assert_array_equal(read_features(tmp_path / "a.pth"), vector)


@pytest.mark.parametrize(
    ("value", "cause"),
    [
        (np.zeros((1, 256), np.float32), "shape"),
        (np.full((1, 512), np.nan, np.float32), "not finite"),
        (np.zeros((1, 512), np.int32), "type 'i4'"),
        (np.array([object()] * 2), "__main__|object|type 'O8'|wants to create"),
        (touch(Path("never")), "wants to create posix.mkdir|wants to create nt.mkdir"),
        ({"a": torch.ones(1)}, "wants to create"),
        (argparse.Namespace(a=1), "wants to create argparse.Namespace"),
        ([1, 2], "holds a list"),
    ],
)
def test_files_that_hold_no_features(value: object, cause: str, tmp_path: Path) -> None:
    torch.save(value, tmp_path / "a.pth")
    with pytest.raises(ConversionError, match=cause) as caught:
        read_features(tmp_path / "a.pth")
    assert str(tmp_path / "a.pth") in caught.value.fact


def test_truncated_features(vector: Any, tmp_path: Path) -> None:
    write_features(tmp_path / "a.pth", vector)
    (tmp_path / "a.pth").write_bytes((tmp_path / "a.pth").read_bytes()[:-30])
    with pytest.raises(ConversionError, match="cut off"):
        read_features(tmp_path / "a.pth")
    with pytest.raises(ModelNotFound):
        read_features(tmp_path / "b.pth")


def test_wrong_features_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ConversionError):
        write_features(tmp_path / "a.pth", np.zeros(512))
    assert not (tmp_path / "a.pth").exists()


def test_features_given_as_a_checkpoint(vector: Any, tmp_path: Path) -> None:
    write_features(tmp_path / "a.pth", vector)
    with pytest.raises(ConversionError, match="read_features"):
        read_checkpoint(tmp_path / "a.pth")
