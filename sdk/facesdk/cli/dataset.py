"""`facesdk dataset`: files for training on pictures: identity centres, labels, training sets, masks."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..synthesis.centres import WIDTH, write_centres
from ..synthesis.folders import OnIdentity
from ..synthesis.labels import MASK_IDENTITIES, MASK_SEED, write_labels, write_mask
from ..synthesis.training_set_writing import write_training_set

Run = Callable[[argparse.Namespace], dict[str, Any]]


def command(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], Any]:
    """Make files for training: identity centres, labels, training sets, masks.

    Of folders that hold a folder of files for each identity.
    """
    verbs = parser.add_subparsers(dest="dataset_verb", required=True, metavar="VERB")
    centres = _verb(verbs, "centres", "mean embedding of each identity", _centres, "FEATURES", "IDENTITY/*.npy", ".npy")
    _add_width(centres)
    _verb(
        verbs, "labels", "identity number of each picture, a line each", _labels, "PICTURES", "IDENTITY/*.jpg", ".txt"
    )
    training = _verb(
        verbs, "lmdb", "training set in one LMDB file", _training_set, "PICTURES", "IDENTITY/*.jpg", ".lmdb"
    )
    training.add_argument("--features", type=Path, help="folder of IDENTITY/*.npy: a set for the generator's training")
    _add_width(training)
    mask = _verb(
        verbs, "mask", "record numbers of randomly chosen identities", _mask, "PICTURES", "IDENTITY/*.jpg", ".npy"
    )
    text = f"how many are chosen (default: {MASK_IDENTITIES})"
    mask.add_argument("--identities", type=int, default=MASK_IDENTITIES, help=text)
    mask.add_argument("--seed", type=int, default=MASK_SEED, help=f"seed of the choice (default: {MASK_SEED})")
    return lambda options: options.run(options)


def _verb(
    verbs: Any, name: str, text: str, run: Run, metavar: str, content: str, suffix: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=text)
    parser.add_argument("folder", type=Path, metavar=metavar, help=f"folder that holds {content}")
    parser.add_argument("-o", "--output", type=Path, required=True, help=f"file to write, {suffix}")
    # suppressed: an absent one must not undo `facesdk dataset --json centres`
    parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document")
    parser.set_defaults(run=run)
    return parser


def _add_width(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--width", type=int, default=WIDTH, help=f"values of each embedding (default: {WIDTH})")


def _centres(options: argparse.Namespace) -> dict[str, Any]:
    with _bar() as show:
        names = write_centres(options.folder, options.output, width=options.width, on_identity=show)
    name_list = options.output.with_suffix(".txt")
    return _done(options, {"identities": len(names), "names": str(name_list)}, f"{len(names)} identities")


def _labels(options: argparse.Namespace) -> dict[str, Any]:
    return _counted(options, write_labels(options.folder, options.output)._asdict())


def _training_set(options: argparse.Namespace) -> dict[str, Any]:
    with _bar() as show:
        counts = write_training_set(
            options.folder, options.output, options.features, width=options.width, on_identity=show
        )
    return _counted(options, counts._asdict())


def _mask(options: argparse.Namespace) -> dict[str, Any]:
    return _counted(options, write_mask(options.folder, options.output, options.identities, options.seed)._asdict())


def _counted(options: argparse.Namespace, counts: dict[str, int]) -> dict[str, Any]:
    return _done(options, counts, f"{counts['records']} picture(s) of {counts['identities']} identities")


def _done(options: argparse.Namespace, facts: dict[str, Any], text: str) -> dict[str, Any]:
    if not options.json:
        print(f"{options.output}: {text}")
    return {"file": str(options.output), **facts}


@contextlib.contextmanager
def _bar() -> Iterator[OnIdentity]:
    """A progress bar on a terminal's standard error, for what takes over a second."""
    from tqdm import tqdm

    with tqdm(unit="identity", delay=1.0, disable=not sys.stderr.isatty(), file=sys.stderr) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show
