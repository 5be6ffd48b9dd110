"""Vec2Face on engines: identity vectors become pictures, and what is wrong with a picture becomes a gradient."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..bundle import Bundle
from ..engine import Device, Engine, Precision, Tensor
from ..engine_set import EngineSet
from ..errors import BundleError, ProviderUnavailable, UsageError
from ..store import Store
from .masks import POSITIONS, MaskLaw, Masks

Floats = npt.NDArray[np.float32]
Pictures = npt.NDArray[np.uint8]

SYSTEM = "vec2face"
ENGINES = ("generator", "step", "encoder", "quality")
ANGLES = ("pitch", "yaw", "roll")  # columns of the engine `pose`
TOKENS = 1 + POSITIONS
_LAW = ("mask_minimum", "mask_maximum", "mask_mu", "mask_std")
_KINDS = {**dict.fromkeys(("size", "vector", "tokens"), int), **dict.fromkeys(_LAW, float)}
_AGAIN = "make one: facesdk export vec2face --generator FILE --arcface FILE --magface FILE -o FOLDER"


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """One step of the attribute optimisation; a row of each array depends on its own row of the inputs alone.

    gradient  (n, width) of the weighted sum of losses with respect to the vectors.
    pictures  (n, size, size, 3) RGB that the losses were computed of.
    values    (n, K): cosine, norm, degrees.   losses  (n, K): how far each is from its target.
    """

    gradient: Floats
    pictures: Pictures
    values: Floats
    losses: Floats


def find_bundle(store: Store, name_or_path: str | Path | None = None) -> Bundle:
    """The synthesis bundle of that name or folder, else the only one in the store; raises as `Store.only`."""
    how = f"{_AGAIN}, then facesdk models add FOLDER"
    return store.only(SYSTEM, name_or_path, what="face synthesis", argument="synthesizer", option="--bundle", how=how)


class SynthesisNetworks(EngineSet):
    """The engines of a vec2face bundle, each opened when it is first needed.  Safe to use from several threads.

    law     of the masks that the generator was published with.
    terms   columns of `Step.values` and `Step.losses`: identity, quality, angles where there are any, others.
    No call splits or pads its batch: its memory is the caller's to bound.
    """

    def __init__(
        self, bundle: Bundle, device: Device, threads: int | None = None, *, precision: Precision = "fp32"
    ) -> None:
        """Raises BundleError where the bundle is of another kind.

        precision: of the generator; gradients and what measures the pictures stay fp32.
        """
        self.terms, constants = _terms(bundle), _constants(bundle)
        super().__init__(bundle, device, threads, {"generator": precision})
        self.width, self.size = constants["vector"], constants["size"]
        self.law = _law(bundle, constants)
        self._signatures = _signatures(self.width, self.size, TOKENS - self.law.dropped, len(self.terms))

    @property
    def description(self) -> str:
        """What the generator runs on; opens it."""
        return self["generator"].description

    def pictures(self, vectors: Floats, masks: Masks) -> Pictures:
        """(n, size, size, 3) RGB pictures of (n, width) vectors, one mask each."""
        outputs = self.run("generator", vector=_rows(vectors), keep=masks.keep, masked=masks.masked)
        return _bytes(outputs["image"])

    def step(self, vectors: Floats, references: Floats, masks: Masks, targets: Floats, weights: Floats) -> Step:
        """Pictures of the vectors, how far they are from their targets, and which way is nearer.

        references  (n, width) that the identities are compared with.   targets, weights  (n, K), columns as `terms`.
        """
        outputs = self.run(
            "step",
            vector=_rows(vectors),
            reference=_rows(references),
            keep=masks.keep,
            masked=masks.masked,
            targets=_rows(targets),
            weights=_rows(weights),
        )
        return Step(outputs["gradient"], _bytes(outputs["image"]), outputs["values"], outputs["losses"])

    def measure(self, pictures: Pictures) -> dict[str, Floats]:
        """Term -> (n,): quality and, where the bundle has a head-pose network, pitch, yaw and roll in degrees."""
        measured: dict[str, Floats] = {"quality": self.run("quality", image=pictures)["quality"]}
        if "pose" in self.bundle.engine_names:
            angles = self.run("pose", image=pictures)["angles"]
            measured.update({name: angles[:, column] for column, name in enumerate(ANGLES)})
        return measured

    def _opened(self, name: str) -> Engine:
        engine = self._opened_step() if name == "step" else super()._opened(name)
        wrong = _differences(engine, *self._signatures[name])
        if wrong:
            engine.close()
            raise BundleError(
                f"engine {name} of {self.bundle.name} does not fit the bundle: {', '.join(wrong)}", remedy=_AGAIN
            )
        return engine

    def _opened_step(self) -> Engine:
        # OpenVINO 2026.4.1 gives wrong gradients at the published sizes, in fp32 too: benchmarks/synthesize.py shows it
        if self.device == "openvino":
            raise ProviderUnavailable(
                "attributes cannot be optimised on openvino",
                cause="its gradients of the published networks are wrong, while its pictures are right",
                remedy="ask for device auto or cpu, or for the kind reference, which optimises nothing",
            )
        return self.bundle.open("step", self.device, threads=self.threads, openvino=False)


def _rows(values: Floats) -> Floats:
    return np.ascontiguousarray(values, np.float32)


def _bytes(image: Floats) -> Pictures:
    """(n, size, size, 3) from (n, 3, size, size) in -1..1; truncated, as the published pictures are."""
    scaled = np.clip((image.transpose(0, 2, 3, 1) + 1) / 2 * 255, 0, 255)
    return np.ascontiguousarray(scaled).astype(np.uint8)


# -- what a bundle has to be ------------------------------------------------------------------------------

Takes = dict[str, tuple[str, tuple[int, ...]]]
Gives = tuple[str, ...]


def _constants(bundle: Bundle) -> dict[str, Any]:
    given = bundle.constants.get("synthesis", {})
    constants = {name: _number(given.get(name), kind) for name, kind in _KINDS.items()}
    lacks = [f"engine {name}" for name in ENGINES if name not in bundle.engine_names]
    lacks += [f"constant {name}" for name, value in constants.items() if value is None]
    if not lacks and constants["tokens"] != TOKENS:
        lacks.append(f"constant tokens ({constants['tokens']}, not {TOKENS})")
    if lacks:
        raise _not_ours(bundle, lacks)
    return constants


def _number(value: Any, kind: type) -> Any:
    """The value as that kind, or None where it is no number of it; a whole number is a float as well."""
    if type(value) is int:
        return kind(value)
    return value if type(value) is kind else None


def _law(bundle: Bundle, constants: dict[str, Any]) -> MaskLaw:
    try:
        return MaskLaw(*(constants[name] for name in _LAW))
    except UsageError as error:
        raise _not_ours(bundle, [f"constants mask_* ({error.fact})"]) from error


def _terms(bundle: Bundle) -> tuple[str, ...]:
    terms = bundle.constants.get("attributes", {}).get("terms")
    listed = tuple(terms) if isinstance(terms, list) and all(isinstance(term, str) for term in terms) else ()
    if len(set(listed)) < len(listed) or not {"identity", "quality"} <= set(listed):
        raise _not_ours(bundle, ["constant attributes.terms"])
    if set(listed) & set(ANGLES) and "pose" not in bundle.engine_names:
        raise _not_ours(bundle, ["engine pose"])
    return listed


def _not_ours(bundle: Bundle, lacks: list[str]) -> BundleError:
    cause = f"missing or malformed: {', '.join(lacks)}"
    return BundleError(f"{bundle.name} is not a face synthesis bundle", cause=cause, remedy=_AGAIN)


def _signatures(width: int, size: int, kept: int, terms: int) -> dict[str, tuple[Takes, Gives]]:
    """Engine -> its inputs (dtype, shape without the batch) and the names of its outputs."""
    vector, column = ("float32", (width,)), ("float32", (terms,))
    masks: Takes = {"keep": ("int64", (kept,)), "masked": ("bool", (TOKENS,))}
    image: Takes = {"image": ("uint8", (size, size, 3))}
    step: Takes = {"vector": vector, "reference": vector, **masks, "targets": column, "weights": column}
    return {
        "generator": ({"vector": vector, **masks}, ("image",)),
        "step": (step, ("gradient", "image", "values", "losses")),
        "quality": (image, ("quality",)),
        "pose": (image, ("angles",)),
    }


def _differences(engine: Engine, inputs: Takes, outputs: Gives) -> list[str]:
    """What an engine takes and gives otherwise than it should."""
    takes = {tensor.name: tensor for tensor in engine.inputs}
    gives = {tensor.name for tensor in engine.outputs}
    wrong = [f"input {name}" for name, wanted in inputs.items() if not _fits(takes.get(name), *wanted)]
    wrong += [f"unknown input {name}" for name in takes if name not in inputs]
    return wrong + [f"output {name}" for name in outputs if name not in gives]


def _fits(tensor: Tensor | None, dtype: str, shape: tuple[int, ...]) -> bool:
    """Whether it is that dtype, that shape, and of any number of rows."""
    if tensor is None or tensor.dtype != np.dtype(dtype):
        return False
    return tensor.shape[1:] == shape and not isinstance(tensor.shape[0], int)
