"""What is measured of a bundle: its system's verb, then each of its engines, on inputs that anybody can make again."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from facesdk.bench import Shape, example_inputs, example_shapes
from facesdk.bundle import MANIFEST, Bundle
from facesdk.card import Card
from facesdk.diffusion.samplers import Sampler, SamplerOptions, sampler
from facesdk.diffusion.settings import DiffusionSettings
from facesdk.engine import Arrays, Precision, Tensor
from facesdk.files import sha256, write_text
from facesdk.graph import Graph, Value
from facesdk.plans.profiles import profile, said
from facesdk.plans.verification import FP16, FP32, MARGIN, Verdict, _unit
from facesdk.synthesis.masks import POSITIONS, MaskLaw, token_masks
from facesdk.verify import deviation

#: system -> what a user asks of it
VERBS = {
    "annotation": "annotate", "hififace": "swap", "vec2face": "synthesize",
    "face2diffusion": "denoise", "stable-diffusion": "denoise",
}  # fmt: skip
STEPS, PICTURES = 10, 8
#: of an engine's inputs, at most: the processor has to compute them, too
ROWS = 8
#: verb -> by how much the time of one call is divided
SHARES = {"denoise": STEPS}
_ABOUT = "place.json"


@dataclasses.dataclass(frozen=True)
class Place:
    """A bundle, and in `folder` what belongs to it here.

    recipe  of facesdk_export, and files: its published files; empty for a bundle that somebody brought.
    """

    folder: Path
    bundle: Bundle
    recipe: str = ""
    files: dict[str, Path] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Place:
        """What `write` wrote."""
        about = json.loads((folder / _ABOUT).read_text())
        files = {name: Path(path) for name, path in about["files"].items()}
        return cls(folder, Bundle(about["bundle"]), about["recipe"], files)

    def write(self) -> None:
        files = {name: str(path.resolve()) for name, path in self.files.items()}
        about = {"bundle": str(self.bundle.folder.resolve()), "recipe": self.recipe, "files": files}
        about["manifest"] = sha256(self.bundle.folder / MANIFEST)
        write_text(self.folder / _ABOUT, json.dumps(about, indent=1) + "\n")

    def forget_another(self) -> None:
        """Delete the results of another bundle that was here before: the manifest pins the files."""
        path = self.folder / _ABOUT
        if path.is_file() and json.loads(path.read_text())["manifest"] != sha256(self.bundle.folder / MANIFEST):
            for kept in self.folder.glob("*.npz"):
                kept.unlink()

    def keep(self, case: str, outputs: Arrays) -> None:
        """Keep what the processor gave."""
        np.savez(self.folder / f"{case}.npz", **outputs)

    def kept(self, case: str) -> dict[str, Any]:
        with np.load(self.folder / f"{case}.npz") as archive:
            return dict(archive)

    def cases(self) -> list[str]:
        """Those whose result is kept: the verb, then engines, large ones first."""
        return [name for name in cases_of(self.bundle) if (self.folder / f"{name}.npz").is_file()]


def places(folder: Path) -> list[Place]:
    """All in a folder, by name."""
    return [Place.read(path.parent) for path in sorted(folder.glob(f"*/{_ABOUT}"))]


def cases_of(bundle: Bundle) -> list[str]:
    """Every case: the verb where the system has one, then engines, large ones first."""

    def size(engine: str) -> int:
        path = bundle.forms(engine)["default"]
        return sum(file.stat().st_size for file in (path, path.with_name(f"{path.name}.data")) if file.is_file())

    verb = VERBS.get(str(bundle.about["system"]))
    return [*([verb] if verb else []), *sorted(bundle.engine_names, key=size, reverse=True)]


def precisions_of(bundle: Bundle, case: str) -> list[Precision]:
    """Those that a case can run in."""
    engines = bundle.engine_names if case in VERBS.values() else (case,)
    return ["fp32", "fp16"] if any("fp16" in bundle.forms(name) for name in engines) else ["fp32"]


# -- inputs -------------------------------------------------------------------------------------------------------


def inputs_of(bundle: Bundle, engine: str) -> Arrays:
    """Seeded arrays of the sizes that the engine's plans are best for, ROWS at most; of Vec2Face, masks of its law."""
    path = bundle.forms(engine)["default"]
    card, values = Card.read(path), Graph.read(path).inputs
    sizes = profile(engine, values, said(bundle.folder, engine), card.example_shapes)
    best = {value.name: _few(value, sizes[value.name][1]) for value in values if value.name in sizes}
    tensors = [Tensor(value.name, value.shape, np.dtype(value.type)) for value in values]
    arrays = example_inputs(tensors, example_shapes(tensors, {**card.example_shapes, **best}))
    return {**arrays, **_tokens(arrays["vector"].shape)} if {"keep", "masked"} <= arrays.keys() else arrays


def _few(value: Value, shape: Shape) -> Shape:
    return (min(shape[0], ROWS), *shape[1:]) if isinstance(value.shape[0], str) else shape


def _tokens(shape: tuple[int, ...]) -> Arrays:
    rng = np.random.default_rng(0)
    masks = token_masks(rng.random((shape[0], POSITIONS)), rng.uniform(0.15, 0.6, shape[0]), MaskLaw())
    return {"vector": rng.standard_normal(shape).astype(np.float32), "keep": masks.keep, "masked": masks.masked}


@dataclasses.dataclass(frozen=True)
class Denoising:
    """A loop without a prompt: latent (1, 4, h, w), text (2, tokens, width) of either condition, and the way."""

    latent: Any
    text: Any
    guidance: float
    sampler: Sampler

    @classmethod
    def of(cls, bundle: Bundle) -> Denoising:
        settings, rng = DiffusionSettings.of(bundle), np.random.default_rng(0)
        side = settings.size // settings.cell
        way = sampler(SamplerOptions(scheduler="ddim", steps=STEPS, prediction=settings.prediction), settings.schedule)
        latent = rng.standard_normal((1, settings.latent_channels, side, side)).astype(np.float32)
        text = rng.standard_normal((2, settings.tokens, settings.width)).astype(np.float32)
        return cls(latent, text, settings.guidance, way)

    def share_of_the_network(self, result: Any) -> Any:
        """The result without what the sampler alone makes of the noise: the rest is what networks can get wrong."""
        alone = functools.reduce(lambda factor, matrix: factor * matrix[0, 0], self.sampler.matrices, 1.0)
        return result - np.float32(alone) * self.latent


# -- results ------------------------------------------------------------------------------------------------------


def judge(expected: Arrays, actual: Arrays, exact: bool, recorded: Callable[[str], float]) -> list[Verdict]:
    """A verdict for every output, by the limits that plans have when they are first opened.

    exact     computed in fp32.
    recorded  output -> the deviation that its card says.
    """
    floor = FP32 if exact else FP16
    return [
        Verdict(deviation(name, values, actual[name]), _unit(values), max(floor, MARGIN * recorded(name)))
        for name, values in expected.items()
    ]


def summary(verdicts: list[Verdict]) -> dict[str, Any]:
    """The worst output's figures; `wrong` names all that are beyond their limits."""
    worst = max(verdicts, key=lambda each: (each.broken, each.error / each.limit))
    return {
        "output": worst.deviation.output, "error": worst.error, "limit": worst.limit,
        "max_in_std": worst.deviation.max_in_std, "cosine": min(each.deviation.cosine for each in verdicts),
        "nan": sum(each.deviation.nan + each.deviation.infinite for each in verdicts),
        "wrong": "; ".join(str(each) for each in verdicts if each.broken),
    }  # fmt: skip
