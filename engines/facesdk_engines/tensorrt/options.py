"""What a plan is built for, and how hard its builder tries."""

from __future__ import annotations

import dataclasses
import re
from typing import Literal, get_args

from facesdk.errors import UsageError, one_of

PlanDevice = Literal["tensorrt-rtx", "tensorrt"]
PlanPrecision = Literal["fp32", "fp16"]
Hardware = Literal["this", "capability", "ampere"]
Attention = Literal["builtin", "plugin", "aot"]
#: RTX 30, 40 and 50: what TensorRT for RTX builds for where nothing is said
RTX_CAPABILITIES = "8.6,8.9,12.0"
_LEVELS = range(6)


@dataclasses.dataclass(frozen=True)
class BuildOptions:
    """Raises UsageError for values, and for combinations with the device, that there are not."""

    device: PlanDevice = dataclasses.field(default="tensorrt-rtx", metadata={"help": "the library that runs the plans"})
    precision: PlanPrecision = dataclasses.field(
        default="fp32", metadata={"help": "fp16: of the engines that have it; the others in fp32"}
    )
    gpus: str | None = dataclasses.field(
        default=None, metadata={"help": f"tensorrt-rtx: compute capabilities, {RTX_CAPABILITIES} where nothing is said"}
    )
    hardware: Hardware = dataclasses.field(
        default="this", metadata={"help": "tensorrt: this model of GPU, its compute capability, or Ampere and later"}
    )
    version_compatible: bool = dataclasses.field(
        default=False, metadata={"help": "tensorrt: later versions load the plan too"}
    )
    refit: bool = dataclasses.field(default=False, metadata={"help": "weights can be replaced; needs a GPU"})
    strip: bool = dataclasses.field(
        default=False, metadata={"help": "leave out the weights, to be refitted from the ONNX file; needs a GPU"}
    )
    attention: Attention = dataclasses.field(
        default="builtin",
        metadata={"help": "tensorrt, fp16: its own kernels, ours in a library (plugin), or ours inside the plan (aot)"},
    )
    tf32: bool = dataclasses.field(
        default=False, metadata={"help": "fp32 products round their factors to 10 bits of mantissa: faster"}
    )
    level: int = dataclasses.field(default=3, metadata={"help": "0 to 5: how long the builder searches"})
    workspace_mb: int | None = dataclasses.field(
        default=None, metadata={"help": "most memory of a kernel's scratch space, MB; none: that of the GPU"}
    )

    def __post_init__(self) -> None:
        kinds = {"device": PlanDevice, "precision": PlanPrecision, "hardware": Hardware, "attention": Attention}
        for name, kind in kinds.items():
            if getattr(self, name) not in get_args(kind):
                raise one_of(name, getattr(self, name), get_args(kind))
        if self.attention != "builtin":
            self._check_attention()
        if self.level not in _LEVELS:
            raise UsageError(f"level is {self.level}", remedy="give 0 to 5; 3 is TensorRT's own choice")
        if self.workspace_mb is not None and self.workspace_mb < 1:
            raise UsageError(f"workspace is {self.workspace_mb} MB", remedy="give 1 or more, or leave it out")
        if self.device == "tensorrt-rtx":
            self._check_rtx()
        elif self.gpus is not None:
            raise UsageError(
                "TensorRT builds for the GPU that it runs on",
                remedy="leave --gpus out; --hardware capability or ampere widens what the plan runs on",
            )

    def _check_attention(self) -> None:
        if self.device == "tensorrt-rtx":
            raise UsageError(
                "TensorRT for RTX takes no plugins", remedy="leave --attention out, or build with --device tensorrt"
            )
        if self.precision != "fp16":
            raise UsageError(
                f"attention {self.attention!r} computes in fp16",
                remedy="leave --attention out, or add --precision fp16",
            )

    def _check_rtx(self) -> None:
        if self.hardware != "this":
            raise UsageError(
                f"TensorRT for RTX has no hardware level {self.hardware!r}",
                remedy="name compute capabilities: --gpus 8.6,8.9",
            )
        if self.version_compatible:
            raise UsageError(
                "TensorRT for RTX makes no version-compatible plans",
                cause="its packages come without the lean runtime that such a plan carries",
                remedy="leave --version-compatible out, and build again after an update",
            )
        bad = [word for word in self.capabilities if not re.fullmatch(r"\d+\.\d", word)]
        if bad or not self.capabilities:
            raise UsageError(f"gpus is {self.gpus!r}", remedy=f"give compute capabilities, as {RTX_CAPABILITIES}")

    @property
    def capabilities(self) -> tuple[str, ...]:
        """Those asked for, in TensorRT for RTX."""
        return tuple(word.strip() for word in (self.gpus or RTX_CAPABILITIES).split(",") if word.strip())

    def arguments(self) -> str:
        """The options of `facesdk build` that differ from the defaults, and always device and precision."""
        words = [f"--device {self.device}", f"--precision {self.precision}"]
        for field in dataclasses.fields(self)[2:]:
            value, flag = getattr(self, field.name), field.name.replace("_", "-")
            if value is True:
                words.append(f"--{flag}")
            elif value != field.default:
                words.append(f"--{flag} {value}")
        return " ".join(words)
