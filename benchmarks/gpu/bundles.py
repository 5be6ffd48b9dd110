"""Bundles of random weights at their published sizes, and what the processor makes of them.

    python -m benchmarks.gpu.bundles FOLDER SYSTEM|BUNDLE_FOLDER ...

Of each, FOLDER/<name> holds the published files and the bundle, in fp32 and fp16, or says where a bundle lies that
somebody brought; and the processor's result of every case.  What is there already stays; nothing is downloaded.  What
cannot be made here is told, with status 3.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from facesdk.bundle import MANIFEST, Bundle
from facesdk.errors import FaceSDKError
from facesdk.store import Store

from .cases import Place, cases_of
from .running import start

#: system -> packages that its export needs, beyond torch and onnx
SYSTEMS = {"annotation": (), "hififace": (), "vec2face": (), "face2diffusion": ("diffusers", "transformers")}


#: status where something was left out
LEFT_OUT = 3


class LeftOut(Exception):
    """A bundle that cannot be made here; the message says why."""


def place_of(name: str, folder: Path) -> Place:
    """The bundle by this name, made or found; raises LeftOut, FaceSDKError."""
    if name not in SYSTEMS:
        bundle = Bundle(name)
        return Place(folder / f"brought-{bundle.name}", bundle)
    if name == "annotation":
        return Place(folder / name, _annotation(folder / name))
    return _exported(name, folder / name)


def _annotation(folder: Path) -> Bundle:
    from annotate import TASK

    if not TASK.is_file():
        raise LeftOut(f"its networks are published, and not here: {TASK}; bring a bundle in FACESDK_BUNDLES")
    made = folder / "bundles" / "annotation-478"
    return Bundle(made) if (made / MANIFEST).is_file() else Store(folder).add(TASK)


def _exported(system: str, folder: Path) -> Place:
    for package in ("torch", "onnx", "onnxscript", *SYSTEMS[system]):
        if importlib.util.find_spec(package) is None:
            raise LeftOut(f"{package} is not installed, of which its networks are made")
    from facesdk_export.bundles import export
    from tensorrt_build import PUBLISHED

    files = _files(PUBLISHED[system], folder / "files")
    bundle = folder / "bundle"
    if not (bundle / MANIFEST).is_file():
        export(system, files, bundle, fp16=True)
    return Place(folder, Bundle(bundle), system, files)


def _files(write: Callable[[Path], Path | Mapping[str, Path]], folder: Path) -> dict[str, Path]:
    """The published files by their names in the recipe, written where they are not all there yet."""
    listed = folder / "files.json"
    if not listed.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        made = write(folder)
        files = {"checkpoint": made} if isinstance(made, Path) else dict(made)
        if "stable_diffusion" in files:
            _tokenizer(files["stable_diffusion"] / "tokenizer")
        listed.write_text(json.dumps({name: str(path) for name, path in files.items()}))
    return {name: Path(path) for name, path in json.loads(listed.read_text()).items()}


def _tokenizer(folder: Path) -> None:
    """One that knows no word, as no prompt is measured: without any, the export would download CLIP's."""
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"<|startoftext|>": 0, "<|endoftext|>": 1}}}))


def keep_results(place: Place) -> Iterator[str]:
    """Keep what the processor gives for each case in fp32, and say so; a case that fails is told and left out."""
    for case in cases_of(place.bundle):
        if (place.folder / f"{case}.npz").is_file():
            continue
        begin = time.perf_counter()
        try:
            running = start(place.bundle, case, "cpu")
            place.keep(case, running.call())
            running.close()
        except FaceSDKError as error:
            yield f"{case}: left out: {error.fact}"
        else:
            yield f"{case}: kept, {time.perf_counter() - begin:.1f} s"


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="+", metavar="NAME", help=f"{', '.join(SYSTEMS)}, or a bundle's folder")
    arguments = parser.parse_args(words)
    status = 0
    for name in arguments.names:
        begin = time.perf_counter()
        try:
            place = place_of(name, arguments.folder)
        except LeftOut as reason:
            print(f"{name}: left out: {reason}")
            status = LEFT_OUT
            continue
        place.folder.mkdir(parents=True, exist_ok=True)
        place.forget_another()
        for line in keep_results(place):
            print(f"{place.bundle.name}/{line}", flush=True)
        place.write()  # last: what has it is whole
        print(f"{name}: {time.perf_counter() - begin:.0f} s")
    return status


if __name__ == "__main__":
    sys.exit(main())
