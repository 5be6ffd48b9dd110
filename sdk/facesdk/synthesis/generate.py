"""Pictures of identities: each depends on its own vector, numbers, seed and settings, and on nothing beside it."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, get_args

import numpy as np

from ..errors import UsageError, one_of
from .attributes import AttributeOptions, OnStep, Reached, Row, optimise
from .masks import POSITIONS, Masks, token_masks
from .networks import Floats, Pictures, SynthesisNetworks
from .perturbation import PRESETS, Perturbation, perturb
from .seeds import random
from .separability import check_threshold
from .vectors import Vectors

Kind = Literal["image", "pose", "reference"]
Wanted = Callable[[int, int], bool]

#: --pose of pose_image_generation
PUBLISHED_YAW = 85.0
# what is optimised, in image_generation, pose_image_generation and image_generation_with_reference
_OPTIMISED: dict[Kind, Literal["identity", "picture", "nothing"]] = {
    "image": "identity",
    "pose": "picture",
    "reference": "nothing",
}


@dataclasses.dataclass(frozen=True)
class SynthesisOptions:
    """How pictures are made of vectors.  Defaults: Vec2Face's scripts, where they have the option."""

    kind: Kind | None = dataclasses.field(
        default=None,
        metadata={
            "help": "image: each identity is optimised once; pose: each picture is; reference: none is; by default "
            "reference for photos, else image"
        },
    )
    images: int = dataclasses.field(default=50, metadata={"help": "pictures of each identity"})
    batch: int = dataclasses.field(default=64, metadata={"help": "pictures of one call of the generator"})
    step_batch: int = dataclasses.field(
        default=32, metadata={"help": "rows of one call of the optimisation's step, which takes more memory"}
    )
    masks: Literal["seeded", "fixed"] = dataclasses.field(
        default="seeded", metadata={"help": "token masks: each picture has its own, or all have one"}
    )
    keep_failed: bool = dataclasses.field(
        default=False, metadata={"help": "also write pictures that missed their attributes"}
    )
    measured: int = dataclasses.field(
        default=4, metadata={"help": "pictures of each identity that are encoded for the report; 0: none"}
    )
    separation: float = dataclasses.field(
        default=0.4, metadata={"help": "cosine above which two identities are too alike"}
    )
    format: Literal["jpg", "png"] = dataclasses.field(default="jpg", metadata={"help": "of the files"})
    jpeg_quality: int = dataclasses.field(default=75, metadata={"help": "of JPEG files, 1 to 100"})
    mark: bool = dataclasses.field(default=True, metadata={"help": "mark the pictures as made by a model"})
    start_class_id: int = dataclasses.field(
        default=0, metadata={"help": "number that the folder of identity 0 bears, where folders bear numbers"}
    )

    def __post_init__(self) -> None:
        if self.kind is not None and self.kind not in get_args(Kind):
            raise one_of("kind", self.kind, get_args(Kind))
        for name, choices in (("masks", ("seeded", "fixed")), ("format", ("jpg", "png"))):
            if getattr(self, name) not in choices:
                raise one_of(name, getattr(self, name), choices)
        least = {"images": 1, "batch": 1, "step_batch": 1, "measured": 0, "start_class_id": 0, "jpeg_quality": 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise UsageError(f"{name} is {getattr(self, name)}", remedy=f"give {value} or more")
        if self.jpeg_quality > 100:
            raise UsageError(f"jpeg_quality is {self.jpeg_quality}", remedy="give 1 to 100")
        check_threshold(self.separation)

    def of_kind(self, default: Kind) -> SynthesisOptions:
        """The same with a kind: `default` where none was chosen."""
        return dataclasses.replace(self, kind=self.kind or default)

    def chosen_kind(self) -> Kind:
        return self.kind or "image"


@dataclasses.dataclass(frozen=True, eq=False)
class Made:
    """Picture number `image` of an identity.

    vector   (width,) that it was drawn of.   picture  None where it missed its attributes and is not kept.
    reached  the optimisation that it comes of, its own or its identity's; None where there is none.
    """

    identity: int
    image: int
    vector: Floats
    picture: Pictures | None
    reached: Reached | None


def attributes_of(kind: Kind, attributes: AttributeOptions | None) -> AttributeOptions | None:
    """What a kind optimises for; None where it optimises nothing.  Raises UsageError for attributes it cannot have."""
    given = attributes or AttributeOptions()
    if _OPTIMISED[kind] == "nothing":
        if given != AttributeOptions():
            raise UsageError(
                f"pictures of the kind {kind!r} are not optimised for attributes",
                remedy="choose the kind image or pose, or leave the attributes out",
            )
        return None
    return dataclasses.replace(given, yaw=PUBLISHED_YAW) if kind == "pose" and given.yaw is None else given


def row_key(kind: Kind, identity: int, image: int) -> tuple[int, ...]:
    """The key of the optimisation that a picture comes of; empty where there is none."""
    return {"identity": (identity,), "picture": (identity, image), "nothing": ()}[_OPTIMISED[kind]]


def generate(
    networks: SynthesisNetworks,
    vectors: Vectors,
    identities: range,
    options: SynthesisOptions,
    attributes: AttributeOptions | None = None,
    seed: int = 0,
    *,
    wanted: Wanted = lambda identity, image: True,
    on_step: OnStep | None = None,
) -> Iterator[Made]:
    """Every wanted picture of `identities`, which are rows of `vectors`; in no particular order.

    No more than a few batches are in memory, so `vectors` may be memory-mapped.  With the attribute rule "batch" a
    picture depends on those beside it.  Raises UsageError at once; EngineError.
    """
    kind = options.chosen_kind()
    goal = attributes_of(kind, attributes)
    plan = _Plan(networks, vectors, identities, options, seed, wanted)
    random(seed, "")  # an impossible seed is told now, not with the first picture
    if goal is None:
        return plan.drawn((identity, plan.base(identity), None) for identity in identities)
    rows = plan.wanted_rows(group_size=options.step_batch if goal.rule == "batch" else 1)
    results = optimise(networks, rows, goal, options.step_batch, on_step)
    if _OPTIMISED[kind] == "picture":
        return map(plan.made, results)
    return plan.drawn((reached.key[0], reached.vector, reached) for reached in results)


@dataclasses.dataclass(frozen=True, eq=False)
class _Plan:
    """What every picture of a run has in common."""

    networks: SynthesisNetworks
    vectors: Vectors
    identities: range
    options: SynthesisOptions
    seed: int
    wanted: Wanted

    def base(self, identity: int) -> Floats:
        return np.asarray(self.vectors[identity], np.float32)

    def perturbed(self, base: Floats, identity: int, image: int) -> Floats:
        """Another vector of an identity, the size of its noise drawn by the preset's shares.

        The published scripts share out all rows of a run; this is what one row of many then gets.
        """
        how, rng = PRESETS[self.options.chosen_kind()], random(self.seed, "perturbation", identity, image)
        sigma = float(rng.choice(how.sigmas, p=how.shares))
        (vector,) = perturb(base[None], Perturbation((sigma,), (1.0,), shuffle=False), rng)
        return np.asarray(vector, np.float32)

    def masks(self, purpose: str, *numbers: int) -> Masks:
        """One mask: this picture's own, or where masks are fixed that of the seed, of median share."""
        law = self.networks.law
        if self.options.masks == "fixed":
            return token_masks(random(self.seed, "fixed mask").random((1, POSITIONS)), law.quantile(0.5), law)
        rng = random(self.seed, purpose, *numbers)
        return token_masks(rng.random((1, POSITIONS)), law.rate(rng), law)

    def made(self, reached: Reached) -> Made:
        identity, image = reached.key
        kept = reached.passed or self.options.keep_failed
        return Made(identity, image, reached.vector, reached.picture if kept else None, reached)

    def wanted_rows(self, group_size: int) -> Iterator[Row]:
        """What is to be optimised, in whole groups: with rule "batch" a row needs those beside it."""
        keys = iter(self._keys())
        while group := list(itertools.islice(keys, group_size)):
            if any(map(self._wanted_key, group)):
                yield from map(self._row, group)

    def drawn(self, identities: Iterable[tuple[int, Floats, Reached | None]]) -> Iterator[Made]:
        """Perturbed copies of each identity's vector through the generator, in full batches across identities."""
        waiting: list[Made] = []
        for identity, base, reached in identities:
            rejected = reached is not None and not reached.passed and not self.options.keep_failed
            for image in filter(functools.partial(self.wanted, identity), range(self.options.images)):
                made = Made(identity, image, self.perturbed(base, identity, image), None, reached)
                if rejected:
                    yield made
                    continue
                waiting.append(made)
                if len(waiting) == self.options.batch:
                    yield from self._with_pictures(waiting)
                    waiting = []
        if waiting:
            yield from self._with_pictures(waiting)

    def _with_pictures(self, waiting: list[Made]) -> Iterator[Made]:
        masks = Masks.stacked([self.masks("picture", made.identity, made.image) for made in waiting])
        pictures = self.networks.pictures(np.stack([made.vector for made in waiting]), masks)
        return (dataclasses.replace(made, picture=picture) for made, picture in zip(waiting, pictures, strict=True))

    def _keys(self) -> Iterable[tuple[int, ...]]:
        if _OPTIMISED[self.options.chosen_kind()] == "identity":
            return ((identity,) for identity in self.identities)
        return itertools.product(self.identities, range(self.options.images))

    def _wanted_key(self, key: tuple[int, ...]) -> bool:
        if len(key) == 2:
            return self.wanted(*key)
        return any(self.wanted(key[0], image) for image in range(self.options.images))

    def _row(self, key: tuple[int, ...]) -> Row:
        base = self.base(key[0])
        start = base if len(key) == 1 else self.perturbed(base, key[0], key[1])
        return Row(key, start, base, functools.partial(self.masks, "optimisation", *key))
