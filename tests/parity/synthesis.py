"""Ways of the cases about the generator's random inputs: token masks, and several vectors of an identity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from facesdk.synthesis.masks import MaskLaw, drop_mask, token_masks
from facesdk.synthesis.perturbation import Perturbation, perturb
from facesdk.synthesis.separability import separable

from .reference import compare

Wrong = list[str]
Arrays = dict[str, np.ndarray]


def masks_sdk(case: Any) -> Wrong:
    got: Arrays = {}
    for setting in case.scalars["settings"]:
        masks = token_masks(case.inputs[setting["noise"]], setting["mask_rate"], _law(setting))
        assert masks.masked.shape[1] == case.scalars["tokens"]
        got[setting["drop_mask"]] = drop_mask(masks)
        got[setting["all_mask"]] = masks.masked
        got[setting["tokens_in_encoder"]] = np.array(masks.keep.shape[1])
    for facts in case.scalars["rate_laws"]:
        law, rng, grid = _law(facts), np.random.RandomState(facts["seed"]), facts["quantile_grid"]
        assert facts["law"] == "truncated normal"
        got[facts["draws"]] = np.array([law.rate(rng) for _ in range(facts["count"])])
        quantiles = np.linspace(grid["start"], grid["stop"], grid["count"])
        got[facts["quantiles"]] = np.array([law.quantile(float(q)) for q in quantiles])
    return _wrong(case, got)


def sampling_sdk(case: Any) -> Wrong:
    rows = np.repeat(case.inputs["base"], case.scalars["examples"], axis=0)
    got: Arrays = {}
    for run in case.scalars["runs"]:
        how = Perturbation(tuple(run["sigmas"]), tuple(run["shares"]), run["shuffle"])
        got[run["array"]] = perturb(rows, how, np.random.RandomState(run["seed"]))
    alone = separable(case.inputs["separability_vectors"], case.scalars["separability_threshold"])
    got |= {"separability_unique": alone, "separability_count": alone.sum()}
    return _wrong(case, got)


def _law(facts: Any) -> MaskLaw:
    return MaskLaw(*(facts[f"mask_ratio_{name}"] for name in ("min", "max", "mu", "std")))


def _wrong(case: Any, got: Arrays) -> Wrong:
    assert got.keys() == case.facts["outputs"].keys()
    return [text for name, value in got.items() if (text := compare(case, name, value))]


SYNTHESIS: dict[str, dict[str, Callable[[Any], Wrong]]] = {
    "masks": {"sdk": masks_sdk},
    "sampling": {"sdk": sampling_sdk},
}
