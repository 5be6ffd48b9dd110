"""Writing a model repository: a folder for every engine of a bundle, and one for the pipeline that joins them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from facesdk.backends import Source
from facesdk.bundle import MANIFEST, Bundle
from facesdk.card import Card
from facesdk.engine import Precision
from facesdk.errors import BundleError, UsageError, one_of
from facesdk.files import atomic_folder, check_empty, write_bytes, write_text
from facesdk.graph import Graph
from facesdk.plans.key import files_of
from facesdk.plans.profiles import Profile, profile, said

from .config import parameters, text
from .models import Model, batched, config, instance_group, most_rows
from .options import RepositoryOptions
from .outline import outline
from .pipelines import Pipeline, pipeline
from .plans import built_of, check_versions, find_plans
from .serving import INDEX

_MODEL_PY = '''"""The pipeline of {bundle}: {answer}.  Written by facesdk {version}."""

import pathlib

import triton_python_backend_utils as pb_utils

from facesdk_engines.triton.answers import {answer}
from facesdk_engines.triton.serving import Server


class TritonPythonModel:
    def initialize(self, args):
        self.server = Server(pb_utils, pathlib.Path(__file__).parent, args)

    def execute(self, requests):
        return [self.server.answer(request, {answer}) for request in requests]

    def finalize(self):
        self.server.close()
'''


@dataclasses.dataclass(frozen=True)
class Repository:
    """What was written.   pipeline  name of the model that joins the engines; empty: there is none."""

    folder: Path
    models: tuple[Model, ...]
    pipeline: str


def export_repository(
    bundle: Bundle,
    folder: Path,
    options: RepositoryOptions | None = None,
    *,
    annotation: Bundle | None = None,
    engines: Sequence[str] = (),
    plans: Sequence[Path] = (),
) -> Repository:
    """The repository, after writing `folder`, which must be new or empty; it appears when it is whole.

    annotation  a bundle whose engines are served too, so that the pipeline takes photos.
    engines     names: only these, and no pipeline.   plans  folders with plans; the bundle's own by default.
    Raises UsageError, BundleError, IntegrityError, EngineStale, EngineUnreadable, OutputError.
    """
    options = options or RepositoryOptions()
    for name in engines:
        if name not in bundle.engine_names:
            raise one_of("engine", name, bundle.engine_names)
    check_empty(folder)
    _check_plans(plans, options)
    bundles = [bundle] if annotation is None or annotation.name == bundle.name else [bundle, annotation]
    models = {one.name: _models(one, options, engines if one is bundle else (), plans) for one in bundles}
    every = tuple(model for several in models.values() for model in several)
    if plans and not any(model.plans or model.note for model in every):
        raise _no_plans(bundle, plans, options)
    check_versions([plan for model in every for plan in model.plans])
    joined = None if engines else pipeline(bundle, photos=len(bundles) > 1)
    with atomic_folder(folder) as scratch:
        for model in every:
            _write_model(scratch / model.name, model, options)
        if joined is not None:
            _write_pipeline(scratch / _pipeline_name(bundle), joined, bundles, models, options)
    return Repository(folder, every, _pipeline_name(bundle) if joined else "")


# -- what is served ---------------------------------------------------------------------------------------


def _models(
    bundle: Bundle, options: RepositoryOptions, engines: Sequence[str], folders: Sequence[Path]
) -> tuple[Model, ...]:
    bundle.verify()
    return tuple(_model(bundle, name, options, folders or [bundle.folder]) for name in engines or bundle.engine_names)


def _model(bundle: Bundle, engine: str, options: RepositoryOptions, folders: Sequence[Path]) -> Model:
    forms = bundle.forms(engine)
    precision: Precision = "fp16" if options.precision == "fp16" and "fp16" in forms else "fp32"
    plans, note = ((), "") if options.cpu else find_plans(bundle, engine, precision, folders)
    source = Source(forms["default"], forms, None, precision).in_precision()
    onnx = built_of(bundle, engine, precision) if plans else source.path_for("cpu" if options.cpu else "cuda")
    shapes = _profile(bundle, engine, onnx)
    rows = most_rows(plans, shapes) if batched(Graph.read(onnx)) else 0
    batch = rows if rows > 1 else 0
    files = files_of(onnx, bundle.files)
    return Model(f"{bundle.name}_{engine}", engine, precision, onnx, files, plans, note, batch, shapes)


def _check_plans(folders: Sequence[Path], options: RepositoryOptions) -> None:
    """Raise UsageError for folders of plans that were named and cannot be used."""
    if folders and options.cpu:
        raise UsageError("plans do not run on the processor", remedy="leave --plans out, or --cpu")
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"there is no folder {folder}, where --plans looks for plans", remedy="check the path")


def _no_plans(bundle: Bundle, folders: Sequence[Path], options: RepositoryOptions) -> UsageError:
    source, target = shlex.quote(str(bundle.folder)), shlex.quote(str(folders[0]))
    command = f"facesdk build {source} --device tensorrt --precision {options.precision} -o {target}"
    return UsageError(
        f"no plan of TensorRT for {bundle.name} in {options.precision} lies in {', '.join(map(str, folders))}",
        cause="engines without a plan are served by ONNX Runtime, but plans were asked for",
        remedy=f"on a GPU of the server's kind: {command}; or leave --plans out",
    )


def _profile(bundle: Bundle, engine: str, onnx: Path) -> Profile:
    """Sizes of free axes, none where neither the bundle nor the card says them."""
    with contextlib.suppress(BundleError):
        return profile(engine, Graph.read(onnx).inputs, said(bundle.folder, engine), Card.read(onnx).example_shapes)
    return {}


def _pipeline_name(bundle: Bundle) -> str:
    return f"{bundle.name}_pipeline"


# -- files ------------------------------------------------------------------------------------------------


def _write_model(folder: Path, model: Model, options: RepositoryOptions) -> None:
    place = folder / "1"
    if model.plans:
        for plan in model.plans:
            _bring(plan.path, place / plan.file, options)
    elif len(model.files) == 1:
        _bring(model.onnx, place / "model.onnx", options)
    else:  # a folder of that name, in which the weights lie as the graph calls them
        for name in model.files:
            target = "model.onnx" if name == model.onnx.name else name
            _bring(model.onnx.with_name(name), place / "model.onnx" / target, options)
    write_text(folder / "config.pbtxt", text(config(model, options.instances, options.cpu)))


def _write_pipeline(
    folder: Path,
    joined: Pipeline,
    bundles: Sequence[Bundle],
    models: Mapping[str, Sequence[Model]],
    options: RepositoryOptions,
) -> None:
    place, main = folder / "1", bundles[0]
    for bundle in bundles:
        for path in bundle.folder.iterdir():
            if path.is_file() and (path.name == MANIFEST or path.name in bundle.files) and not _is_engine(path):
                _bring(path, place / "bundles" / bundle.name / path.name, options)
    for bundle in bundles:
        for model in models[bundle.name]:
            file = bundle.forms(model.engine)["default"].name
            write_bytes(place / "bundles" / bundle.name / file, outline(model.onnx))
    parts = {joined.part: main.name} | ({"annotation": bundles[1].name} if len(bundles) > 1 else {})
    served = {name: {model.engine: (model.name, model.batch) for model in some} for name, some in models.items()}
    write_text(place / INDEX, json.dumps({"bundles": parts, "models": served}, indent=1))
    write_text(place / "model.py", _MODEL_PY.format(bundle=main.name, answer=joined.answer, version=version("facesdk")))
    message: dict[str, Any] = {
        "name": folder.name,
        "backend": "python",
        "max_batch_size": 0,
        "input": [port.message() for port in joined.inputs],
        "output": [port.message() for port in joined.outputs],
        "instance_group": [instance_group(options.instances, options.cpu)],
        "version_policy": {"latest": {"num_versions": 1}},
        "parameters": parameters({f"facesdk.{key}": str(value) for key, value in main.about.items()}),
    }
    write_text(folder / "config.pbtxt", text(message))


def _is_engine(path: Path) -> bool:
    return path.suffix in (".onnx", ".data", ".plan") or path.name.endswith(".plan.json")


def _bring(source: Path, target: Path, options: RepositoryOptions) -> None:
    """A hard link, or a copy where links are not wanted or not possible."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not options.copy:
        with contextlib.suppress(OSError):
            os.link(source.resolve(), target)
            return
    shutil.copyfile(source, target)
