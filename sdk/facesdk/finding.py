"""`Finding`: one fact of the examination behind `facesdk doctor`."""

from __future__ import annotations

import dataclasses
from typing import Literal

State = Literal["ok", "note", "problem"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """One fact.  "note": works without it; "problem": FaceSDK does not work as it should.  `remedy`: a command."""

    topic: str
    subject: str
    state: State
    fact: str
    remedy: str = ""
