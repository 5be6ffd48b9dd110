"""Vec2Face: identity vectors become faces, faces are measured, and vectors are moved toward attributes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from facesdk.card import Card
from facesdk.plans.profiles import Sizes
from facesdk.synthesis.masks import POSITIONS, MaskLaw, token_masks

from ..attribute_step import AttributeStep, IdentityTerm, PoseTerm, QualityTerm, Term, attribute_step
from ..bundles import Recipe
from ..checkpoints import Checkpoint, read_checkpoint
from ..gradients import plain_graph
from ..networks import IResNet, euler_angles, iresnet_engines, iresnet_of, vec2face_engines, vec2face_plus
from ..networks.vec2face import UNUSED, Generator
from ..networks.vec2face_plus import PosedGenerator, fold_lora
from ..networks.vec2face_sizes import generator_of
from ..onnx_export import Part
from .encoders import encoder_constants, encoder_part
from .geometry import sixdrepnet
from .parts import Pictures, example_crop, example_picture, loaded, on_meta

SIZE, VECTOR, TOKENS = 112, 512, 1 + POSITIONS
#: of Vec2Face+'s script `pose_control`
POSE_LAW = MaskLaw(0.8, 0.9, 0.85, 0.05)
#: largest deviation of the step's gradient, in its standard deviations: single elements jump where rounding carries
#: a pixel over the edge of clipping or an activation over a kink; random weights of the published sizes gave 0.02
GRADIENT_TOLERANCE = 0.1
FILES = {
    "generator": "vec2face_generator.pth, or main_model.pth of Vec2Face+",
    "arcface": "arcface-r100-glint360k.pth",
    "magface": "magface-r100-glint360k.pth",
    "headpose": "6DRepNet_300W_LP_AFLW2000.pth, for head pose",
    "pose_generator": "pose_model.pth of Vec2Face+, for faces in a given pose",
}
#: rows of plans: full batches of facesdk.synthesis.generate and its report, down to one picture
_PICTURES: Mapping[str, Sizes] = {"batch": (1, 64, 64)}
_STEPS: Mapping[str, Sizes] = {"batch": (1, 32, 32)}
_MEASURED: Mapping[str, Sizes] = {"batch": (1, 16, 16)}
#: the term of the step that a file's network is for
_TERMS: Mapping[str, Callable[[nn.Module], Term]] = {
    "arcface": IdentityTerm,
    "magface": QualityTerm,
    "headpose": PoseTerm,
}
_FACE = f"RGB (n, 3, {SIZE}, {SIZE}), nominally in [-1, 1]"
_MEANINGS = {
    "image": f"uint8 RGB (n, {SIZE}, {SIZE}, 3), aligned to the ArcFace template",
    "vector": f"(n, {VECTOR}) identity vector as ArcFace gives it, not normalised",
    "reference": f"(n, {VECTOR}) identity vector that the face is held against",
    "keep": "(n, K) tokens that the encoder sees, ascending, token 0 first",
    "masked": f"(n, {TOKENS}) tokens whose content is hidden: all outside `keep`, never token 0",
    "targets": "(n, terms) of each value, in its unit",
    "weights": "(n, terms) of each loss",
    "landmarks": f"RGB (n, 3, {SIZE}, {SIZE}) in [-1, 1], a picture of five landmarks",
}


def vec2face_parts(
    generator: Checkpoint,
    arcface: Checkpoint,
    magface: Checkpoint,
    headpose: Checkpoint | None = None,
    pose_generator: Checkpoint | None = None,
    *,
    terms: Sequence[Term] = (),
) -> dict[str, Part]:
    """Engine name -> Part, of the published files.

    terms  differentiable estimators of your own: their columns follow the published ones in the engine `step`.
           `export(dataclasses.replace(VEC2FACE, parts=partial(vec2face_parts, terms=[mine])), files, folder)`
           makes a bundle with them.
    """
    networks = {
        "generator": loaded(generator_of(generator.entries, Generator), generator, ignore=UNUSED),
        "arcface": _iresnet(arcface),
        "magface": _iresnet(magface),
    }
    if headpose is not None:
        networks["headpose"] = sixdrepnet(headpose)
    posed = None if pose_generator is None else _posed_network(pose_generator)
    forms = {name: _form(network) for name, network in networks.items()}
    parts = {
        "generator": _generator(forms["generator"], networks["generator"]),
        "step": _step(forms, networks, terms),
        "encoder": _encoder(forms["arcface"], networks["arcface"]),
        "quality": _quality(forms["magface"], networks["magface"]),
    }
    if headpose is not None:
        parts["pose"] = _pose(networks["headpose"])
    if posed is not None:
        parts["pose_generator"] = _posed(posed)
    return parts


# -- networks ---------------------------------------------------------------------------------------------


class Norm(nn.Module):
    """(B,) length of a network's vectors."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(self.network(image), dim=1)
        return norm


class Angles(nn.Module):
    """(B, 3) pitch, yaw, roll in degrees, of a network of rotations that is given the picture's channels reversed."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return euler_angles(self.network(image.flip(1))).rad2deg()


def _iresnet(checkpoint: Checkpoint) -> nn.Module:
    return loaded(on_meta(lambda: iresnet_of(checkpoint.entries)), checkpoint)


def _form(network: nn.Module) -> nn.Module:
    """What becomes an engine in place of the published network."""
    if isinstance(network, Generator):
        return vec2face_engines.export_form(network)
    return iresnet_engines.export_form(network) if isinstance(network, IResNet) else network


def _posed_network(checkpoint: Checkpoint) -> nn.Module:
    """The two networks of Vec2Face+'s file as one."""
    pose = read_checkpoint(checkpoint.path, container="pose_model")
    entries = fold_lora(checkpoint.entries) | {f"pose_model.{name}": value for name, value in pose.entries.items()}
    both = dataclasses.replace(checkpoint, entries=entries)
    return loaded(generator_of(entries, PosedGenerator), both, ignore=vec2face_plus.UNUSED)


# -- engines ----------------------------------------------------------------------------------------------


def _part(
    module: nn.Module,
    about: str,
    inputs: Mapping[str, Tensor],
    outputs: Mapping[str, str],
    licence: str = "",
    **facts: Any,
) -> Part:
    meanings = {name: _MEANINGS[name] for name in inputs}
    return Part(
        module, inputs, tuple(outputs), Card(about=about, inputs=meanings, outputs=outputs, licence=licence), **facts
    )


def _generator(form: nn.Module, network: nn.Module) -> Part:
    constants = {"size": SIZE, "vector": VECTOR, "tokens": TOKENS, **_law(MaskLaw())}
    return _part(
        form, "the face of an identity vector", {"vector": _normal(1, VECTOR), **_masks(MaskLaw(), (0.15, 0.6))},
        {"image": _FACE}, sizes=_PICTURES, reference=network, files=("generator",), constants={"synthesis": constants},
    )  # fmt: skip


def _posed(network: nn.Module) -> Part:
    inputs = {
        "vector": _normal(1, VECTOR),
        **_masks(POSE_LAW, (0.82, 0.88)),
        "landmarks": 2 * example_crop(SIZE, 2, 2) - 1,
    }
    return _part(
        network, "the face of an identity vector in a given pose", inputs, {"image": _FACE}, sizes=_PICTURES,
        files=("pose_generator",), constants={"pose_synthesis": _law(POSE_LAW)}, licence="LicenseRef-unknown",
    )  # fmt: skip


def _step(forms: Mapping[str, nn.Module], networks: Mapping[str, nn.Module], terms: Sequence[Term]) -> Part:
    step, reference = _attributes(forms, terms), _attributes(networks, terms)
    columns = len(step.names)
    inputs = {
        "vector": _normal(1, VECTOR), "reference": _normal(2, VECTOR), **_masks(MaskLaw(), (0.15, 0.6)),
        "targets": 40 + 5 * _normal(3, columns), "weights": 1 + _normal(4, columns).abs(),
    }  # fmt: skip
    outputs = {
        "gradient": f"(n, {VECTOR}) of the sum of weights * losses of a row", "image": f"{_FACE}, clipped to it",
        "values": f"(n, {columns}) {', '.join(step.names)}; angles in degrees", "losses": f"(n, {columns})",
    }  # fmt: skip
    return _part(
        plain_graph(step, inputs), "one step toward attributes", inputs, outputs, reference=reference,
        sizes=_STEPS, tolerances={"gradient": GRADIENT_TOLERANCE}, files=tuple(networks), half=False,
        constants={"attributes": {"terms": list(step.names)}},
    )  # fmt: skip


def _attributes(networks: Mapping[str, nn.Module], terms: Sequence[Term]) -> AttributeStep:
    own = [term(networks[name]) for name, term in _TERMS.items() if name in networks]
    return attribute_step(networks["generator"], [*own, *terms])


def _encoder(form: nn.Module, network: nn.Module) -> Part:
    reference = encoder_part(network, SIZE).module
    return dataclasses.replace(encoder_part(form, SIZE), sizes=_MEASURED, reference=reference, files=("arcface",))


def _quality(form: nn.Module, network: nn.Module) -> Part:
    module, reference = (
        Pictures(Norm(each), torch.full((3,), 1 / 127.5), torch.full((3,), -1.0)) for each in (form, network)
    )
    return _part(
        module, "quality of a face", {"image": example_picture(SIZE)}, {"quality": "(n,) length of the MagFace vector"},
        sizes=_MEASURED, reference=reference, files=("magface",),
    )  # fmt: skip


def _pose(network: nn.Module) -> Part:
    module = Pictures(Angles(network), torch.full((3,), 1 / 255), torch.zeros(3))
    angles = "(n, 3) pitch, yaw, roll in degrees, as Vec2Face reads them: BGR in [0, 1], not resized"
    return _part(
        module, "head pose of a face", {"image": example_picture(SIZE)}, {"angles": angles}, sizes=_MEASURED,
        files=("headpose",),
    )  # fmt: skip


# -- examples and constants -------------------------------------------------------------------------------


def _normal(seed: int, width: int) -> Tensor:
    return torch.randn((2, width), generator=torch.Generator().manual_seed(seed))


def _masks(law: MaskLaw, rates: tuple[float, float]) -> dict[str, Tensor]:
    found = token_masks(np.random.default_rng(0).random((2, POSITIONS)), np.asarray(rates), law)
    return {"keep": torch.from_numpy(found.keep), "masked": torch.from_numpy(found.masked)}


def _law(law: MaskLaw) -> dict[str, float]:
    return {f"mask_{name}": value for name, value in dataclasses.asdict(law).items()}


# the files' authors give them under MIT; the sets that the networks were trained on are for research only
VEC2FACE = Recipe(
    "vec2face", "Vec2Face: faces of identity vectors, and attribute optimisation", "MIT", "no", vec2face_parts,
    encoder_constants("arcface", normalised=False), FILES, ("headpose", "pose_generator"),
)  # fmt: skip
