"""Data sets on disk: every picture is whole or not there, and what is missing can be made at any time."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import OutputError, UsageError
from ..files import write_text
from ..image import read_image, write_image
from ..provenance import Provenance
from .attributes import AttributeOptions
from .generate import Made, SynthesisOptions, attributes_of, generate, row_key
from .layout import Layout, layout
from .ledger import Json, Ledger, settings_of
from .networks import Pictures, SynthesisNetworks
from .report import Report, measure, rejections, row_spreads
from .vectors import Vectors, check_vectors

#: called as (what was done, how many, of how many): "image", "step" of the optimisation (at most), "measured image"
OnProgress = Callable[[str, int, int], None]
Missing = npt.NDArray[np.bool_]

_BLOCK = 4096  # vectors that are checked at once
_LEFTOVER = re.compile(r"\.[0-9a-f]{12}\.(jpg|png)")  # of files.atomic_path, after a kill


def write_dataset(
    networks: SynthesisNetworks,
    vectors: Vectors,
    folder: str | Path,
    name: str,
    options: SynthesisOptions | None = None,
    attributes: AttributeOptions | None = None,
    seed: int = 0,
    *,
    identities: range | None = None,
    stems: Sequence[str] = (),
    resume: bool = False,
    unusual: bool = False,
    on_progress: OnProgress = lambda what, done, total: None,
) -> Report:
    """The report of a data set written below `folder`, in the layout of Vec2Face's scripts.

    identities  rows of `vectors` (N, 512), which may be memory-mapped; several slices share a folder.
    stems       one for each vector that comes of a photo.   unusual  take vectors of any length.
    resume      make what is missing of an earlier run of the same settings; the end is that of a single run.
    Everything that can be is checked before anything is written.  Raises UsageError, OutputError, EngineError.
    """
    options = (options or SynthesisOptions()).of_kind("reference" if stems else "image")
    identities = _slice(identities, len(vectors))
    place = layout(Path(folder), name, options, attributes, stems)
    attributes = attributes_of(options.chosen_kind(), attributes)
    digest = _digest(vectors, identities, unusual)
    settings = settings_of(networks, options, attributes, seed, identities, digest, stems)
    ledger = Ledger(place, identities)
    missing = _missing(place, ledger, settings, identities, options, resume)
    stream = generate(
        networks, vectors, identities, options, attributes, seed,
        wanted=lambda identity, image: bool(missing[identity - identities.start, image]),
        on_step=_Steps(_most_steps(options, attributes, missing), on_progress),
    )  # fmt: skip
    ledger.begin(settings)
    started = time.perf_counter()
    made = _write(stream, place, ledger, networks, options, int(missing.sum()), on_progress)
    seconds = time.perf_counter() - started
    report = _report(networks, vectors, place, ledger, options, attributes, settings, identities, on_progress)
    return dataclasses.replace(report, made=made, seconds=seconds)


# -- before the work --------------------------------------------------------------------------------------


def _slice(identities: range | None, count: int) -> range:
    if count == 0:
        raise UsageError("there are no vectors", remedy="give an array (N, 512) of one row or more")
    identities = range(count) if identities is None else identities
    if identities.step != 1 or not 0 <= identities.start < identities.stop <= count:
        raise UsageError(
            f"identities {identities.start}:{identities.stop} of {count}",
            remedy=f"give START:END with 0 <= START < END <= {count}",
        )
    return identities


def _digest(vectors: Vectors, identities: range, unusual: bool) -> str:
    """sha256 of the slice as float32, every row of which was checked."""
    digest = hashlib.sha256()
    for start in range(identities.start, identities.stop, _BLOCK):
        block = vectors[start : min(start + _BLOCK, identities.stop)]
        digest.update(check_vectors(block, start, unusual=unusual).tobytes())
    return digest.hexdigest()


def _missing(
    place: Layout, ledger: Ledger, settings: Json, identities: range, options: SynthesisOptions, resume: bool
) -> Missing:
    """(identities, images) which pictures have to be made; raises UsageError where that is not clear."""
    there = np.zeros((len(identities), options.images), bool)
    if resume and ledger.load(settings):
        for row, identity in enumerate(identities):
            there[row] = _done(place, ledger, identity, options)
    elif ledger.begun or any(_holds_files(place.identity(identity)) for identity in identities):
        raise UsageError(
            f"{place.root} already holds pictures of identities {identities.start}:{identities.stop}",
            cause="nothing there says how they were made" if resume else "nothing is written over",
            remedy="choose another name or folder" if resume else "go on with --resume, or choose another --name",
        )
    return ~there


def _done(place: Layout, ledger: Ledger, identity: int, options: SynthesisOptions) -> list[bool]:
    """Which pictures of an identity need no more work: they are there, or are known to miss their attributes."""
    there, kind = _tidied(place, identity, options.images), options.chosen_kind()
    for image, written in enumerate(there):
        if key := row_key(kind, identity, image):
            row = ledger.rows.get(key)
            there[image] = row is not None and (written or (bool(row.failed) and not options.keep_failed))
    return there


def _holds_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _tidied(place: Layout, identity: int, images: int) -> list[bool]:
    """Which pictures of an identity are there; what a killed process left half-written is deleted."""
    folder = place.identity(identity)
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    for name in filter(_LEFTOVER.fullmatch, names):
        (folder / name).unlink(missing_ok=True)
    return [place.picture(identity, image).name in names for image in range(images)]


def _most_steps(options: SynthesisOptions, attributes: AttributeOptions | None, missing: Missing) -> int:
    """How many steps the optimisation of all that is missing can take."""
    if attributes is None:
        return 0
    rows = missing.any(axis=1) if options.chosen_kind() == "image" else missing
    return int(rows.sum()) * attributes.steps


# -- the work ---------------------------------------------------------------------------------------------


class _Steps:
    """Tells how many steps were done in all, when it is called with how many there were just now."""

    def __init__(self, most: int, on_progress: OnProgress) -> None:
        self._done, self._most, self._on_progress = 0, most, on_progress

    def __call__(self, rows: int) -> None:
        self._done += rows
        self._on_progress("step", self._done, self._most)


def _write(
    stream: Iterator[Made],
    place: Layout,
    ledger: Ledger,
    networks: SynthesisNetworks,
    options: SynthesisOptions,
    total: int,
    on_progress: OnProgress,
) -> int:
    """How many pictures were made; a row is in the ledger before its picture is in its folder."""
    bundle, done = networks.bundle, 0
    mark = Provenance("generated", bundle.name, str(bundle.about.get("recipe", ""))) if options.mark else None
    try:
        for done, made in enumerate(stream, start=1):
            if made.reached is not None:
                ledger.add(made.reached)
            if made.picture is not None:
                path = place.picture(made.identity, made.image)
                write_image(path, made.picture, mark, quality=options.jpeg_quality)
            on_progress("image", done, max(total, done))
        ledger.finish()
    except OutputError as error:
        remedy = f"{error.remedy}; what was written stays: go on with --resume"
        raise OutputError(error.fact, cause=error.cause, remedy=remedy) from error
    finally:
        ledger.close()
    return done


def _report(
    networks: SynthesisNetworks,
    vectors: Vectors,
    place: Layout,
    ledger: Ledger,
    options: SynthesisOptions,
    attributes: AttributeOptions | None,
    settings: Json,
    identities: range,
    on_progress: OnProgress,
) -> Report:
    """The report of what lies in the folder, written there: pictures are measured as they were written."""
    rows = [ledger.rows[key] for key in sorted(ledger.rows)]
    failed = sum(bool(row.failed) for row in rows)
    rejected = failed * (options.images if options.chosen_kind() == "image" else 1)
    asked = len(identities) * options.images
    most = len(identities) * min(options.measured, options.images)
    pictures = _written(place, identities, options, lambda done: on_progress("measured image", done, most))
    similarity, of_pictures = measure(networks, pictures, vectors, options.separation)
    report = Report(
        folder=place.root,
        settings=settings,
        images={"asked": asked, "written": asked if options.keep_failed else asked - rejected, "rejected": rejected},
        similarity=similarity,
        attributes={"optimised": row_spreads(rows), "pictures": of_pictures},
        rejected=rejections(rows, attributes) if attributes else (),
    )
    write_text(place.record(identities, "report.json"), json.dumps(report.as_dict(), indent=1, allow_nan=False) + "\n")
    return report


def _written(
    place: Layout, identities: range, options: SynthesisOptions, on_read: Callable[[int], None]
) -> Iterator[tuple[int, Pictures]]:
    """(Identity, picture) of the first `measured` ones of each."""
    read = 0
    for identity in identities:
        paths = (place.picture(identity, image) for image in range(options.images))
        for path in [path for path in paths if path.exists()][: options.measured]:
            yield identity, read_image(path)
            read += 1
            on_read(read)
