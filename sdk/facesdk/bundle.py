"""`Bundle`: a folder with `bundle.toml` and the engines and constants of one system."""

from __future__ import annotations

import sys
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .engine import Device, Engine, Precision
from .errors import BundleError, IntegrityError, ModelNotFound
from .files import sha256

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MANIFEST = "bundle.toml"
_MAKE_AGAIN = "pull, add or export the bundle again"


class Bundle:
    """The engines and constants of one system.

    about      table `[bundle]`: name, system, licence, source, source_sha256, ...
    constants  table `[constants]`: thresholds, templates, sizes.
    files      table `[files]`: name -> pinned sha256.
    plans      folder of the TensorRT plans, the bundle's own where not given.
    Raises ModelNotFound or BundleError on opening.
    """

    def __init__(self, folder: str | Path, plans: Path | None = None) -> None:
        self.folder, self.plans = Path(folder), plans
        manifest = _read_manifest(self.folder)
        self.about: Mapping[str, Any] = manifest["bundle"]
        self.constants: Mapping[str, Any] = manifest.get("constants", {})
        self._engines: Mapping[str, Any] = manifest.get("engines", {})
        self.files: Mapping[str, str] = manifest.get("files", {})

    @property
    def name(self) -> str:
        return str(self.about["name"])

    @property
    def engine_names(self) -> tuple[str, ...]:
        return tuple(self._engines)

    def forms(self, engine: str) -> dict[str, Path]:
        """Files of an engine: "default", and others by what they are written for; raises BundleError.

        That is a device ("cpu"), one in a precision ("openvino-fp32", which goes before "openvino"), or "fp16".
        """
        if engine not in self._engines:
            raise BundleError(f"{self.name} has no engine {engine!r}", remedy=f"it has: {', '.join(self._engines)}")
        return {device: self.folder / file for device, file in self._engines[engine].items()}

    def open(
        self,
        engine: str,
        device: Device = "auto",
        *,
        precision: Precision = "fp32",
        threads: int | None = None,
        openvino: bool = True,
    ) -> Engine:
        """One of the bundle's engines, in the form that suits the device; see Engine.open."""
        forms = self.forms(engine)
        return Engine.open(
            forms.pop("default"), device,
            precision=precision, threads=threads, forms=forms, openvino=openvino, plans=self.plans,
        )  # fmt: skip

    def arrays(self, name: str) -> dict[str, npt.NDArray[Any]]:
        """The arrays of `<name>.npz` in the folder."""
        path = self.folder / f"{name}.npz"
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                return dict(archive)
        except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise BundleError(f"{path} cannot be read", cause=str(error), remedy=_again(self.name)) from error

    def verify(self) -> None:
        """Compare every file with its pinned sha256; raises IntegrityError naming those that differ."""
        wrong = [name for name, digest in self.files.items() if not self._matches(name, digest)]
        if wrong:
            raise IntegrityError(
                f"{self.folder}: {', '.join(wrong)} differ from the pinned sha256",
                cause="the files were changed or damaged after the bundle was made",
                remedy=_again(self.name),
            )

    def _matches(self, name: str, digest: str) -> bool:
        path = self.folder / name
        return path.is_file() and sha256(path) == digest


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelNotFound(
            f"{folder} is not a bundle", cause=f"{MANIFEST} is missing", remedy="facesdk models list"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise BundleError(f"{path} cannot be read", cause=str(error), remedy=_MAKE_AGAIN) from error
    wrong = [name for name in ("bundle", "engines", "constants", "files") if not _is_table(manifest.get(name, {}))]
    wrong = wrong or [f"bundle.{key}" for key in ("name", "system", "licence") if key not in manifest.get("bundle", {})]
    wrong = wrong or [f"engines.{name}" for name, forms in manifest.get("engines", {}).items() if not _is_engine(forms)]
    if wrong:
        raise BundleError(f"{path}: {', '.join(wrong)} missing or malformed", remedy=_MAKE_AGAIN)
    return manifest


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def _is_engine(forms: Any) -> bool:
    """A default file, and none outside the bundle's folder."""
    plain = _is_table(forms) and all(isinstance(file, str) and Path(file).name == file for file in forms.values())
    return plain and "default" in forms


def _again(name: str) -> str:
    return f"facesdk models pull {name} --force; for a file of your own: facesdk models add PATH"
