"""Where the pictures of a data set lie: the folders of Vec2Face's three scripts."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError
from .attributes import AttributeOptions
from .generate import Kind, SynthesisOptions, attributes_of

# kind -> folder, digits of an identity's number
_FOLDERS: dict[Kind, tuple[str, int]] = {
    "image": ("generated_images", 4),
    "pose": ("generated_pose_images", 6),
    "reference": ("generated_images_ref", 4),
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """Files of a data set.

    root   the folder of the identities' folders.   stems  names of those of kind "reference"; without, numbers are.
    first  the number of identity 0.   suffix  of the pictures.
    """

    root: Path
    digits: int
    suffix: str
    first: int = 0
    stems: tuple[str, ...] = ()

    def identity(self, number: int) -> Path:
        """The folder of an identity; numbers are those of the whole file of vectors, whatever slice is made."""
        return self.root / (self.stems[number] if self.stems else f"{number + self.first:0{self.digits}d}")

    def picture(self, identity: int, image: int) -> Path:
        return self.identity(identity) / f"{image:03d}{self.suffix}"

    def record(self, identities: range, what: str) -> Path:
        """A file about a slice, beside the folders of its identities."""
        return self.root / f"identities-{identities.start}-{identities.stop}.{what}"


def layout(
    folder: Path,
    name: str,
    options: SynthesisOptions,
    attributes: AttributeOptions | None = None,
    stems: Sequence[str] = (),
) -> Layout:
    """The layout of a data set `name` below `folder`.

    stems  file names of photos without their suffixes; folders of the kind "reference" bear them.
    Raises UsageError for a name that is no folder's, stems that are not distinct, attributes that the kind has not.
    """
    if Path(name).name != name or name in ("", ".", ".."):
        raise UsageError(f"the data set's name is {name!r}", remedy="give the name of one folder, without slashes")
    kind = options.chosen_kind()
    place, digits = _FOLDERS[kind]
    goal = attributes_of(kind, attributes)
    suffix = f"-{goal.yaw:g}" if kind == "pose" and goal is not None else ""
    named = tuple(stems) if kind == "reference" else ()
    _check_stems(named)
    return Layout(folder / place / f"{name}{suffix}", digits, f".{options.format}", options.start_class_id, named)


def _check_stems(stems: Sequence[str]) -> None:
    """Raise UsageError where two photos would share a folder, on a file system without upper and lower case too."""
    counted = collections.Counter(stem.casefold() for stem in stems)
    shared = sorted({stem for stem in stems if counted[stem.casefold()] > 1})
    if shared:
        raise UsageError(
            f"several photos are called {', '.join(shared[:5])}{' ...' if len(shared) > 5 else ''}",
            cause="the folder of an identity is called like its photo",
            remedy="rename the photos, or make a data set of each of their folders",
        )
