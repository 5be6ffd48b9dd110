"""What a diffusion bundle says of itself: sizes, noise schedule, published defaults, and how faces enter."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_type_hints

from ..bundle import Bundle
from ..errors import BundleError, UsageError, one_of
from .face_tokens import Method
from .samplers import Prediction, SchedulerName
from .schedule import Curve, NoiseSchedule

SpacingChoice = Literal["auto", "leading", "linspace", "trailing"]

ENGINES = ("embedding", "text", "context", "time", "step", "vae_decoder")
TOKENIZER = "tokenizer.json"
#: the mapping engine of each method
MAPPINGS: Mapping[Method, str] = {"f2d": "mapping", "mf2d": "mapping_mf2d"}


@dataclasses.dataclass(frozen=True)
class DiffusionSettings:
    """Table `[constants.diffusion]`.

    cell        pixels of a latent value's side.   tokens, width  of the text encoder's output.
    layers      cross-attentions of the network.   time_width  of the engine `time`'s rows.
    scheduler, spacing, steps, guidance, size  as published for prompts without a face.
    """

    scaling_factor: float
    cell: int
    latent_channels: int
    tokens: int
    width: int
    layers: int
    time_width: int
    timesteps: int
    beta_start: float
    beta_end: float
    prediction: Prediction
    scheduler: SchedulerName
    spacing: SpacingChoice
    steps: int
    guidance: float
    size: int
    beta_schedule: Curve = "scaled_linear"

    @classmethod
    def of(cls, bundle: Bundle) -> DiffusionSettings:
        """The settings of a bundle; raises BundleError naming all that is missing or malformed."""
        lacks = [f"engine {name}" for name in ENGINES if name not in bundle.engine_names]
        files = (bundle.forms(name)["default"] for name in bundle.engine_names)
        lacks += [f"file {file.name}" for file in files if not file.is_file()]
        lacks += [] if (bundle.folder / TOKENIZER).is_file() else [f"file {TOKENIZER}"]
        given = bundle.constants.get("diffusion", {})
        hints, values = get_type_hints(cls), {}
        for field in dataclasses.fields(cls):
            value = _value(given.get(field.name, field.default), hints[field.name])
            lacks += [f"constant {field.name}"] if value is None else []
            values[field.name] = value
        if not lacks and values["size"] % values["cell"]:
            lacks.append(f"constant size ({values['size']}, no multiple of cell {values['cell']})")
        if lacks:
            cause = f"missing or malformed: {', '.join(lacks)}"
            raise BundleError(f"{bundle.name} is not a diffusion bundle", cause=cause, remedy=remedy_of(bundle))
        return cls(**values)

    @functools.cached_property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule that the network was trained on."""
        return NoiseSchedule(self.timesteps, self.beta_start, self.beta_end, self.beta_schedule)


@dataclasses.dataclass(frozen=True)
class FaceSettings:
    """Table `[constants.faces]`: the placeholders of people, the word behind each, and the methods there are."""

    identifiers: tuple[str, ...]
    second: str
    methods: tuple[Method, ...]

    @classmethod
    def of(cls, bundle: Bundle) -> FaceSettings | None:
        """The settings of a bundle, None where it knows no faces; raises BundleError."""
        given = bundle.constants.get("faces")
        if given is None:
            return None
        names, methods = (_words(given.get(name)) for name in ("identifiers", "methods"))
        second = given.get("second")
        lacks = [] if names else ["constant faces.identifiers"]
        lacks += [] if isinstance(second, str) and second else ["constant faces.second"]
        lacks += [] if methods and set(methods) <= MAPPINGS.keys() else ["constant faces.methods"]
        engines = ("encoder", *(MAPPINGS[method] for method in get_args(Method) if method in methods))
        lacks += [f"engine {name}" for name in engines if name not in bundle.engine_names]
        if lacks:
            cause = f"missing or malformed: {', '.join(lacks)}"
            raise BundleError(f"{bundle.name} is not a bundle for faces", cause=cause, remedy=remedy_of(bundle))
        return cls(names, str(second), methods)  # type: ignore[arg-type]

    def method(self, asked: str, people: int = 1) -> Method:
        """The method: as asked, or with "auto" MF2D for several people where the bundle has it, else Face2Diffusion.

        Raises UsageError for a method that the bundle lacks.
        """
        if asked == "auto":
            preferred: Method = "mf2d" if people > 1 else "f2d"
            return preferred if preferred in self.methods else self.methods[0]
        for method in self.methods:
            if method == asked:
                return method
        if asked not in get_args(Method):
            raise one_of("method", asked, ("auto", *get_args(Method)))
        raise UsageError(
            f"the bundle has no method {asked}",
            cause=f"it was exported with: {', '.join(self.methods)}",
            remedy="choose one of those, or export it again with the checkpoint of that method",
        )


def remedy_of(bundle: Bundle) -> str:
    """What to do about a bundle that is not whole."""
    return f"export it again: facesdk export {bundle.about['system']} --help"


def _words(value: Any) -> tuple[str, ...]:
    """The list as a tuple; empty where it is no list of different words."""
    listed = value if isinstance(value, list) and all(isinstance(word, str) and word for word in value) else []
    return tuple(listed) if len(set(listed)) == len(listed) else ()


def _value(value: Any, hint: Any) -> Any:
    """The value if it is of that kind and, being a number, above zero; else None."""
    if get_args(hint):
        return value if value in get_args(hint) else None
    if type(value) is int and value > 0:
        return hint(value)
    return value if hint is float and type(value) is float and math.isfinite(value) and value > 0 else None
