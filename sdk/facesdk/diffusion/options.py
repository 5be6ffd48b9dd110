"""Options of a generation, and what they come to with a bundle, faces and a picture."""

from __future__ import annotations

import dataclasses
import math
from numbers import Integral, Real
from typing import Any, Literal, get_args

from ..errors import UsageError, one_of
from .face_tokens import TOKEN_COUNTS, Method
from .prompt import CLASS_WORDS
from .samplers import Sampler, SamplerOptions, SchedulerName, sampler
from .seeds import check_seeds
from .settings import DiffusionSettings, SpacingChoice

Fusion = Literal["input-replace", "output-add"]
MethodChoice = Literal["auto", "f2d", "mf2d"]

# field -> least and greatest value, both whole where it has to be
_RANGES = {
    "steps": (1, 1000),
    "guidance": (0.0, 100.0),
    "eta": (0.0, 1.0),
    "images": (1, 100_000),
    "strength": (0.0, 2.0),
    "delay": (0, 999),
    "batch": (1, 1024),
    "keep": (1, 100_000),
    "denoise": (0.0, 1.0),
}
_SIZES = ("width", "height", "tile")  # their limits are the bundle's
# Face2Diffusion's scripts: method, several people -> steps, guidance
_PUBLISHED: dict[tuple[Method, bool], tuple[int, float]] = {
    ("f2d", False): (30, 7.0),
    ("f2d", True): (30, 10.0),
    ("mf2d", False): (50, 10.0),
    ("mf2d", True): (50, 10.0),
}
_FROM_PICTURE, _WITH_MASK = 0.75, 1.0  # denoise; latent-diffusion's img2img.py, and the whole of what is masked


@dataclasses.dataclass(frozen=True)
class GenerateOptions:
    """How pictures are made.  None: the published value of the method, or of the bundle where there is no face."""

    method: MethodChoice = dataclasses.field(
        default="auto",
        metadata={
            "help": "f2d: a face is two tokens; mf2d: one; auto: mf2d for several people where the bundle has it"
        },
    )
    fusion: Fusion = dataclasses.field(
        default="input-replace",
        metadata={"help": "faces replace embeddings as published, or are added to the text encoder's output"},
    )
    scheduler: SchedulerName | None = dataclasses.field(default=None, metadata={"help": "sampler; default: published"})
    spacing: SpacingChoice = dataclasses.field(default="auto", metadata={"help": "where the sampler's time steps lie"})
    steps: int | None = dataclasses.field(default=None, metadata={"help": "of the sampler; default: published"})
    guidance: float | None = dataclasses.field(
        default=None, metadata={"help": "weight of the prompt against the negative one; 1: none, in half the time"}
    )
    eta: float = dataclasses.field(default=0.0, metadata={"help": "noise of ddim, 0: none to 1"})
    width: int | None = dataclasses.field(default=None, metadata={"help": "px; default: the image's, or the bundle's"})
    height: int | None = dataclasses.field(default=None, metadata={"help": "px; default: the image's, or the bundle's"})
    images: int = dataclasses.field(default=1, metadata={"help": "how many pictures"})
    seed: int = dataclasses.field(default=0, metadata={"help": "of the first picture; picture i has seed + i"})
    negative: str = dataclasses.field(default="", metadata={"help": "prompt of what the pictures shall not show"})
    strength: float = dataclasses.field(
        default=1.0, metadata={"help": "share of the faces against the class words, 0 to 2; 1: as published"}
    )
    class_words: str | None = dataclasses.field(
        default=None,
        metadata={"help": "words for a face where it is held back; default: a person, or person for one token"},
    )
    delay: int = dataclasses.field(
        default=0, metadata={"help": "first steps in which the class words stand in for the faces"}
    )
    batch: int | None = dataclasses.field(
        default=None, metadata={"help": "pictures of one call; default: 1 on processors, all on GPUs"}
    )
    keep: int | None = dataclasses.field(
        default=None, metadata={"help": "keep only so many, those most like the faces, best first"}
    )
    truncate: bool = dataclasses.field(default=False, metadata={"help": "cut off what is too long of a prompt"})
    tile: int | None = dataclasses.field(
        default=None, metadata={"help": "px of tiles in which large pictures are decoded, for less memory; approximate"}
    )
    denoise: float | None = dataclasses.field(
        default=None,
        metadata={"help": "share of the steps that an image is changed by; default: 0.75, with a mask 1"},
    )
    fresh_blend: bool = dataclasses.field(
        default=False, metadata={"help": "inpainting: what is kept gets new noise in every step"}
    )

    def __post_init__(self) -> None:
        choices = {"method": MethodChoice, "fusion": Fusion, "scheduler": SchedulerName, "spacing": SpacingChoice}
        for name, kind in choices.items():
            value = getattr(self, name)
            if value not in get_args(kind) and (name != "scheduler" or value is not None):
                raise one_of(name, value, get_args(kind))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in _RANGES and (value is not None or field.default is not None):
                _check_number(field.name, value, *_RANGES[field.name])
            if field.name in _SIZES and value is not None and not _is(value, Integral):
                raise UsageError(f"{field.name} is {value!r}", remedy="give a whole number of px")
        check_seeds(self.seed, self.images)
        if self.keep is not None and self.keep > self.images:
            raise UsageError(f"keep is {self.keep} of {self.images} images", remedy="give at most as many as images")
        if self.denoise == 0:
            raise UsageError("denoise is 0", cause="the image would not change", remedy="give more, up to 1")

    def words(self, method: Method) -> str:
        """The class words: as given, or those that take as many tokens as the method's placeholder."""
        return self.class_words or CLASS_WORDS[TOKEN_COUNTS[method]]


@dataclasses.dataclass(frozen=True, eq=False)
class Course:
    """The sampler and the guidance that options come to.   steps  of the whole schedule, before any were skipped."""

    sampler: Sampler
    scheduler: SchedulerName
    steps: int
    begin: int
    guidance: float


def course(
    options: GenerateOptions,
    settings: DiffusionSettings,
    method: Method | None,
    people: int = 0,
    *,
    picture: bool = False,
    mask: bool = False,
) -> Course:
    """The course of a generation, with or without faces, of noise or of a picture; raises UsageError."""
    published = (settings.steps, settings.guidance) if method is None else _PUBLISHED[method, people > 1]
    steps = published[0] if options.steps is None else options.steps
    guidance = published[1] if options.guidance is None else options.guidance
    scheduler = options.scheduler or settings.scheduler
    own = options.spacing == "auto" and scheduler == settings.scheduler
    begin = _begin(options, steps, mask=mask) if picture else 0
    if not 0 <= options.delay < steps:
        raise UsageError(
            f"delay is {options.delay} of {steps} steps",
            cause="the faces would never come in",
            remedy=f"give 0 to {steps - 1}",
        )
    chosen = SamplerOptions(
        scheduler=scheduler,
        steps=steps,
        spacing=settings.spacing if own else options.spacing,
        eta=options.eta,
        prediction=settings.prediction,
        begin=begin,
    )
    return Course(sampler(chosen, settings.schedule), scheduler, steps, begin, guidance)


def _begin(options: GenerateOptions, steps: int, *, mask: bool) -> int:
    """The first step that is run, as diffusers' image-to-image pipeline finds it."""
    share = options.denoise or (_WITH_MASK if mask else _FROM_PICTURE)
    run = min(int(steps * share), steps)
    if run < 1:
        raise UsageError(
            f"denoise {share:g} of {steps} steps is less than one",
            remedy=f"give a denoise of {math.ceil(1000 / steps) / 1000:g} or more, or more steps",
        )
    return steps - run


def _check_number(name: str, value: Any, least: float, greatest: float) -> None:
    kind, what = (Integral, "a whole number, ") if isinstance(least, int) else (Real, "")
    if not _is(value, kind) or not least <= value <= greatest:
        raise UsageError(f"{name} is {value!r}", remedy=f"give {what}{least:g} to {greatest:g}")


def _is(value: object, kind: type[Any]) -> bool:
    """Whether the value is such a number, NumPy's among them; truth values are none."""
    return isinstance(value, kind) and not isinstance(value, bool)
