"""`facesdk models`: what is installed, what can be had, and under which licence."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .. import licences
from ..bundle import Bundle
from ..store import Store

Run = Callable[[argparse.Namespace], Any]


def command(parser: argparse.ArgumentParser) -> Run:
    """List, pull, add, verify and remove models.

    They are kept below $FACESDK_HOME (default: facesdk in $XDG_CACHE_HOME or ~/.cache).
    """
    verbs = parser.add_subparsers(dest="models_verb", required=True, metavar="VERB")
    _verb(verbs, "list", "the catalog and what is installed", _list)
    pull = _verb(verbs, "pull", "download and build a model of the catalog, unless it is installed and intact", _pull)
    pull.add_argument("name", metavar="NAME")
    pull.add_argument("--force", action="store_true", help="build it again, from the kept download where it is intact")
    pull.add_argument("--accept-license", action="store_true", help="accept a licence that restricts the use")
    add = _verb(verbs, "add", "make a bundle of your own model file, or copy a bundle's folder into the store", _add)
    add.add_argument("path", metavar="PATH", type=Path, help="face_landmarker.task, a wheel, a folder with bundle.toml")
    add.add_argument("--name", help="name in the store (default: the bundle's own)")
    verify = _verb(verbs, "verify", "compare every file with its pinned sha256; exit status 1 if one differs", _verify)
    verify.add_argument("name", metavar="NAME", nargs="?", help="(default: everything installed)")
    remove = _verb(verbs, "remove", "delete an installed model and its kept download", _remove)
    remove.add_argument("name", metavar="NAME")
    path = _verb(verbs, "path", "the folder of an installed model", _path)
    path.add_argument("name", metavar="NAME")
    return lambda options: options.run(options)


def _verb(verbs: Any, name: str, text: str, run: Run) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=text)
    # suppressed: an absent one must not undo `facesdk models --json list`
    parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document")
    parser.set_defaults(run=run)
    return parser


def _list(options: argparse.Namespace) -> list[dict[str, Any]]:
    entries = Store().list()
    rows = [("NAME", "INSTALLED", "SIZE", "LICENCE", "COMMERCIAL", "ABOUT")]
    for entry in entries:
        state = "damaged" if entry.problem else "yes" if entry.installed else "no"
        rows.append((entry.name, state, _size(entry.size), entry.licence, entry.commercial, entry.about))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        _say(options, "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    return [{**dataclasses.asdict(entry), "path": entry.path and str(entry.path)} for entry in entries]


def _pull(options: argparse.Namespace) -> dict[str, str]:
    store = Store()
    if model := store.models.get(options.name):
        print(licences.line(model.name, licences.of_model(model)), file=sys.stderr)
    with _bar(options.name) as on_progress:
        bundle = store.pull(
            options.name, force=options.force, accept_license=options.accept_license, on_progress=on_progress
        )
    return _installed(options, bundle)


def _add(options: argparse.Namespace) -> dict[str, str]:
    store = Store()
    bundle = store.add(options.path, name=options.name)
    name = bundle.folder.name
    print(licences.line(name, licences.read(store.licence_book)[name]), file=sys.stderr)
    return _installed(options, bundle)


def _verify(options: argparse.Namespace) -> tuple[list[dict[str, str]], int]:
    reports = Store().verify(options.name)
    for report in reports:
        _say(
            options,
            f"{'differs' if report.problem else 'ok':7}  {report.bundle}/{report.file}  {report.problem}".rstrip(),
        )
    damaged = sorted({report.bundle for report in reports if report.problem})
    for name in damaged:
        print(f"{name} is damaged; remedy: facesdk models pull {name}, or add it again", file=sys.stderr)
    return [dataclasses.asdict(report) for report in reports], 1 if damaged else 0


def _remove(options: argparse.Namespace) -> dict[str, str]:
    folder = Store().remove(options.name)
    _say(options, f"removed {folder}")
    return {"name": options.name, "path": str(folder)}


def _path(options: argparse.Namespace) -> dict[str, str]:
    return _installed(options, Store().open(options.name))


def _installed(options: argparse.Namespace, bundle: Bundle) -> dict[str, str]:
    _say(options, str(bundle.folder))
    return {"name": bundle.folder.name, "path": str(bundle.folder), "licence": str(bundle.about["licence"])}


@contextlib.contextmanager
def _bar(name: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal's standard error, for what takes over a second."""
    from tqdm import tqdm

    with tqdm(desc=name, unit="B", unit_scale=True, delay=1.0, disable=None, file=sys.stderr) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


def _say(options: argparse.Namespace, text: str) -> None:
    if not options.json:
        print(text)


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
