"""The tables of T2I-Dense-Face: the index csv, one row per picture, and the list of subjects."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
from collections.abc import Iterable
from pathlib import Path

from ..errors import UsageError
from ..files import write_text

_TITLES = {"reference_image": "reference image", "reference_image_bbox": "reference image bbox"}
_SUBJECT_DIGITS = 7


@dataclasses.dataclass(frozen=True, kw_only=True)
class IndexRow:
    """One row; the fields are the columns in order.  None: a cell that takes a model which FaceSDK does not have.

    Files are relative to the folder CASIA.  depth_range, bbox: fractions of the crop.   src_nose_xy: px of the photo.
    head_pose: pitch, yaw, roll in degrees, as strings.   reference_image: another picture of the subject, if wanted.
    """

    face_file: str
    depth_range: tuple[float, ...]
    label_uncertainty: float | None = None
    landmark_file: str
    mask_file: str
    xyz_file: str | None = None
    annot_size: int
    aligned_size: int
    src_nose_xy: tuple[float, ...]
    bbox: tuple[float, ...]
    subject_id: int
    caption_file: str | None = None
    msmask_file: str | None = None
    msmask_score: float | None = None
    attr_file: str | None = None
    feat_file: str | None = None
    reference_image: str | None = None
    reference_image_bbox: tuple[float, ...] | None = None
    caption: str | None = None
    head_pose: tuple[str, ...]

    def cells(self) -> list[str]:
        """The row as text; lists as Python writes them."""
        values = (getattr(self, field.name) for field in dataclasses.fields(self))
        return ["" if value is None else str(list(value) if isinstance(value, tuple) else value) for value in values]


#: header of the index
COLUMNS = tuple(_TITLES.get(field.name, field.name) for field in dataclasses.fields(IndexRow))


def append_index(path: str | os.PathLike[str], rows: Iterable[IndexRow]) -> None:
    """Add rows to an index, which is made if need be; a row of a face_file that is there takes that one's place.

    One writer at a time: the file is read, extended and replaced as a whole.
    Raises UsageError where `path` is another kind of file, OutputError.
    """
    path = Path(path)
    merged = {cells[0]: cells for cells in _read(path)} if path.exists() else {}
    merged |= {row.face_file: row.cells() for row in rows}
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *merged.values()])
    write_text(path, text.getvalue())


def add_subjects(path: str | os.PathLike[str], subject_ids: Iterable[int]) -> None:
    """Add to a list of subjects, one 7-digit number a line without a final line feed, those it does not have yet.

    Raises UsageError for numbers out of range or another kind of file, OutputError.
    """
    path = Path(path)
    names = dict.fromkeys(_read_text(path).split() if path.exists() else [])
    if not all(len(name) == _SUBJECT_DIGITS and name.isdecimal() for name in names):
        raise UsageError(f"{path} is not a list of subjects", remedy=f"one {_SUBJECT_DIGITS}-digit number a line")
    write_text(path, "\n".join(names | dict.fromkeys(map(subject_name, subject_ids))))


def subject_name(subject_id: int) -> str:
    """The 7-digit name of a subject's folder.  Raises UsageError."""
    if not 0 <= subject_id < 10**_SUBJECT_DIGITS:
        raise UsageError(f"subject {subject_id}", remedy=f"give a number of at most {_SUBJECT_DIGITS} digits")
    return f"{subject_id:0{_SUBJECT_DIGITS}d}"


def _read(path: Path) -> list[list[str]]:
    try:
        table = list(csv.reader(io.StringIO(_read_text(path), newline="")))
    except csv.Error as error:
        raise _not_an_index(path, str(error)) from error
    if table and (table[0] != list(COLUMNS) or any(len(cells) != len(COLUMNS) for cells in table)):
        raise _not_an_index(path, "other columns")
    return table[1:]


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read", cause=str(error), remedy="give another path") from error


def _not_an_index(path: Path, cause: str) -> UsageError:
    return UsageError(
        f"{path} is not an index of T2I-Dense-Face",
        cause=cause,
        remedy="give another path, or a file whose header is facesdk.dense_face.COLUMNS",
    )
