"""The side-car of a plan: what it was built of, with and for.  It is compared before a plan is loaded."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import protobuf
from ..errors import EngineStale, EngineUnreadable, ModelNotFound
from ..files import sha256, write_text
from ..graph import parse_file

FORMAT = 1
# field numbers of onnx.proto
_GRAPH, _INITIALIZER, _EXTERNAL_DATA = 7, 5, 13


@dataclasses.dataclass(frozen=True)
class Key:
    """What a plan depends on, and facts of its build.

    files         name -> sha256 of the ONNX file and of the weights beside it.
    capabilities  of the GPUs that it runs on; with hardware "ampere" every one from 8.0 on as well.
    gpu           the model that it was timed on; empty where it was built without one.
    profile       input -> smallest, best and largest shape.
    kernel        sha256 of the plugin library that it calls; empty without plugins.
    flags         names of the builder's flags.   card  of the engine, as in its ONNX file.
    report        seconds, layers and so on: for people, nothing depends on it.
    command       what builds the plan again.
    """

    engine: str
    files: Mapping[str, str]
    builder: str
    version: str
    device: str
    precision: str
    hardware: str
    capabilities: tuple[str, ...]
    gpu: str
    profile: Mapping[str, Sequence[Sequence[int]]]
    flags: tuple[str, ...]
    plan_size: int
    plan_sha256: str
    command: str
    kernel: str = ""
    card: Mapping[str, str] = dataclasses.field(default_factory=dict)
    report: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    format: int = FORMAT


@dataclasses.dataclass(frozen=True)
class Here:
    """What a plan meets where it is to run.  What is empty, and files that are absent here, are not compared.

    gpu  its model, on which alone a plan of TensorRT runs that was built with hardware "this".
    """

    version: str
    capability: str = ""
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    kernel: str = ""
    gpu: str = ""


def side_car(plan: Path) -> Path:
    """Where the key of a plan lies."""
    return plan.with_name(f"{plan.name}.json")


def write_key(plan: Path, key: Key) -> None:
    """Write the side-car, whole or not at all."""
    write_text(side_car(plan), json.dumps(dataclasses.asdict(key), indent=1, ensure_ascii=False))


def read_key(plan: Path) -> Key:
    """The key of a plan; raises ModelNotFound without plan or side-car, EngineUnreadable where that is damaged."""
    path = side_car(plan)
    for file in (plan, path):
        if not file.is_file():
            raise ModelNotFound(f"{file} does not exist", remedy="build the bundle's plans: facesdk build BUNDLE")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.get("format") != FORMAT:
            raise ValueError(f"its format is {values.get('format')!r}, this FaceSDK reads {FORMAT}")
        return Key(**{**values, **{name: tuple(values[name]) for name in ("capabilities", "flags")}})
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise EngineUnreadable(
            f"{path} is no key of a plan", cause=str(error), remedy="build the plan again: facesdk build BUNDLE --force"
        ) from error


def check(plan: Path, here: Here, *, whole: bool = False) -> Key:
    """The key of a plan that may be loaded here.

    whole  also read the plan and compare its sha256; a truncated one is found without.
    Raises ModelNotFound, EngineUnreadable for a damaged plan, EngineStale for one of something else.
    """
    key = read_key(plan)
    size = plan.stat().st_size
    if size != key.plan_size or (whole and sha256(plan) != key.plan_sha256):
        cause = f"it has {size} bytes of {key.plan_size}" if size != key.plan_size else "its sha256 is another"
        raise EngineUnreadable(f"{plan} is damaged", cause=cause, remedy=f"{key.command} --force")
    if found := list(differences(key, here)):
        raise EngineStale(
            f"{plan.name} was built for something else", cause="; ".join(found), remedy=_rebuild(key, here)
        )
    return key


def differences(key: Key, here: Here) -> Iterator[str]:
    """Every fact in which a plan differs from the place where it is to run."""
    if key.version != here.version and "VERSION_COMPATIBLE" not in key.flags:
        yield f"{key.builder} {key.version} built it, {here.version} is here"
    if here.capability and not _runs_on(key, here.capability):
        kinds = ", ".join(key.capabilities) + (" and every GPU from 8.0 on" if key.hardware == "ampere" else "")
        yield f"it runs on compute capability {kinds}, this GPU has {here.capability}"
    elif here.gpu and here.gpu != key.gpu and key.device == "tensorrt" and key.hardware == "this":
        yield f"it was built for {key.gpu} alone, this is {here.gpu}"
    for name, digest in key.files.items():
        if here.files.get(name, digest) != digest:
            yield f"{name} has changed"
    if key.kernel != here.kernel:
        yield "it was built with another plugin library" if here.kernel else "the plugin library it calls is not here"


def files_of(path: Path, pinned: Mapping[str, str]) -> dict[str, str]:
    """Name -> sha256 of an ONNX file and of the files that hold its weights; `pinned` ones are not read."""
    names = [path.name, *sorted(parse_file(path, _weight_files))]
    return {name: pinned.get(name) or sha256(path.with_name(name)) for name in names}


def _rebuild(key: Key, here: Here) -> str:
    """The command that builds a plan again; one of TensorRT for RTX for this GPU as well."""
    if key.device != "tensorrt-rtx" or not here.capability or _runs_on(key, here.capability):
        return key.command
    return f"{re.sub(' --gpus [^ ]+', '', key.command)} --gpus {','.join((*key.capabilities, here.capability))}"


def _runs_on(key: Key, capability: str) -> bool:
    return capability in key.capabilities or (key.hardware == "ampere" and float(capability) >= 8.0)


def _weight_files(model: memoryview) -> set[str]:
    found = set()
    for graph in _messages(model, _GRAPH):
        for tensor in _messages(graph, _INITIALIZER):
            for entry in _messages(tensor, _EXTERNAL_DATA):
                pair = {
                    number: bytes(text).decode() for number, text in protobuf.fields(entry) if not isinstance(text, int)
                }
                if pair.get(1) == "location":
                    found.add(pair[2])
    return found


def _messages(message: memoryview, wanted: int) -> Iterator[memoryview]:
    return (value for number, value in protobuf.fields(message) if number == wanted and isinstance(value, memoryview))
