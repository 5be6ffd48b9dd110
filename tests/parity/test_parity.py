"""Every golden case, run by every way in which FaceSDK computes it: torch module, ONNX engine, SDK function.

Ids read <system>-<case>[/<variant>]-<torch|onnx|sdk>.  A way is a function (case) -> list of what is wrong.
"""

from __future__ import annotations

from typing import Any

import pytest

from . import (
    annotation,
    attributes,
    denoising,
    diffusion_loops,
    encoders,
    face2diffusion,
    hififace,
    paste,
    prompts,
    recognition,
    samplers,
    stable_diffusion,
    synthesis,
    vec2face,
)  # fmt: skip
from .reference import ROOT, cases

WAYS = {
    "annotation": annotation.WAYS | encoders.ANNOTATION,
    "dense_face": encoders.DENSE_FACE | samplers.DENSE_FACE | stable_diffusion.DENSE_FACE | diffusion_loops.DENSE_FACE,
    "face2diffusion": prompts.FACE2DIFFUSION
    | samplers.FACE2DIFFUSION
    | stable_diffusion.FACE2DIFFUSION
    | {"unet": stable_diffusion.FACE2DIFFUSION["unet"] | denoising.FACE2DIFFUSION["unet"]}
    | face2diffusion.FACE2DIFFUSION
    | diffusion_loops.FACE2DIFFUSION,
    "feedface": samplers.FEEDFACE,
    "hififace": hififace.WAYS | paste.WAYS,
    "vec2face": encoders.VEC2FACE
    | vec2face.VEC2FACE
    | attributes.ATTRIBUTES
    | synthesis.SYNTHESIS
    | recognition.RECOGNITION,
}
NOT_BUILT = "not built yet"


def _parameters() -> list[Any]:
    parameters = []
    for case in cases():
        ways = WAYS.get(case.system, {}).get(case.name)
        if ways is None:
            names = ("torch", "onnx") if case.facts["network"] else ("sdk",)
            ways = dict.fromkeys(names)
        variant = "" if case.variant == case.name else f"/{case.variant}"
        for way, run in ways.items():
            marks = () if run else pytest.mark.skip(reason=NOT_BUILT)
            parameters.append(pytest.param(case, run, id=f"{case.system}-{case.name}{variant}-{way}", marks=marks))
    return parameters


@pytest.mark.skipif(not ROOT.is_dir(), reason=f"no reference folder at {ROOT}; set FACESDK_REFERENCE")
@pytest.mark.parametrize(("case", "run"), _parameters())
def test_parity(case: Any, run: Any) -> None:
    wrong = run(case)
    assert not wrong, "\n".join(wrong)
