"""How a model repository is written."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from facesdk.errors import UsageError, one_of

ServedPrecision = Literal["fp32", "fp16"]


@dataclasses.dataclass(frozen=True)
class RepositoryOptions:
    """Raises UsageError for values that there are not."""

    precision: ServedPrecision = dataclasses.field(
        default="fp32", metadata={"help": "fp16: of the engines that have it; the others in fp32"}
    )
    instances: int = dataclasses.field(default=1, metadata={"help": "of each model, on every GPU"})
    cpu: bool = dataclasses.field(default=False, metadata={"help": "serve on the processor, with ONNX Runtime alone"})
    copy: bool = dataclasses.field(
        default=False, metadata={"help": "copy files; otherwise they are hard links where that is possible"}
    )

    def __post_init__(self) -> None:
        if self.precision not in get_args(ServedPrecision):
            raise one_of("precision", self.precision, get_args(ServedPrecision))
        if self.instances < 1:
            raise UsageError(f"instances is {self.instances}", remedy="give 1 or more")
        if self.cpu and self.precision == "fp16":
            raise UsageError("processors do not compute in fp16", remedy="leave out --precision fp16, or --cpu")
