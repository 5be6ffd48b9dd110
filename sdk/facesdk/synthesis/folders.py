"""Folders of identities, {root}/{identity}/{file}, in the order of the files' paths as text.

Labels, masks and centres of the published sets count in that order.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import UsageError

PICTURES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
FEATURES = frozenset({".npy"})
#: told how many identities are done, and of how many
OnIdentity = Callable[[int, int], None]


def identities(root: Path, suffixes: frozenset[str]) -> Iterator[tuple[str, list[Path]]]:
    """Name and files of every folder in `root` that holds any; raises UsageError where none does."""
    with reading(root), os.scandir(root) as entries:
        # in a path, a folder's name is followed by a slash
        folders = sorted(entry.name + "/" for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    found = False
    for folder in folders:
        if files := files_of(root / folder, suffixes):
            found = True
            yield folder[:-1], files
    if not found:
        raise UsageError(
            f"{root} holds no identities",
            cause=f"none of its {len(folders)} folders holds a file in {', '.join(sorted(suffixes))}",
            remedy="give the folder that holds a folder of files for each identity",
        )


def files_of(folder: Path, suffixes: frozenset[str]) -> list[Path]:
    """Files of an identity with one of the suffixes; hidden ones do not count.

    Raises UsageError where it holds folders: another folder than `root` was meant, and files would be overlooked.
    """
    with reading(folder), os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
        nested = [entry.name for entry in visible if entry.is_dir()]
    if nested:
        raise UsageError(
            f"{folder} holds the folder {nested[0]}",
            cause="an identity is a folder of files",
            remedy="give the folder that holds the identities' folders directly",
        )
    paths = [folder / name for name in sorted(entry.name for entry in visible)]
    return [path for path in paths if path.suffix.lower() in suffixes]


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """The block's OSErrors become UsageErrors about `path`."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read", cause=error.strerror or str(error), remedy="check the path and your rights there"
        ) from error


def check_suffix(output: Path, suffix: str) -> None:
    """Raise UsageError unless the file's name ends so."""
    if output.suffix.lower() != suffix:
        raise UsageError(f"the output is {str(output)!r}", remedy=f"give a file name that ends in {suffix}")
