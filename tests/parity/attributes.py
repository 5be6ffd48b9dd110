"""Ways of the AttrOP cases: gradient and losses of every recorded step, and Adam between them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from facesdk.synthesis.attributes import Adam
from facesdk.synthesis.masks import MaskLaw, Masks, drop_mask, token_masks

from .encoders import Wrong, _iresnet, _pose_network, _wrong, filled

Arrays = dict[str, np.ndarray]
#: inputs of a step by name -> its outputs by name
Run = Callable[[Mapping[str, np.ndarray]], Arrays]
OUTPUTS = ("gradient", "image", "values", "losses")


# -- the step of a case ------------------------------------------------------------------------------------


def step_of(case: Any) -> Any:
    from facesdk_export.attribute_step import IdentityTerm, PoseTerm, QualityTerm, attribute_step

    scalars = case.scalars
    arcface, magface = (filled(case, name, lambda name=name: _iresnet(case, name)) for name in ("arcface", "magface"))
    terms = [IdentityTerm(arcface, eps=scalars["cosine_eps"]), QualityTerm(magface)]
    if scalars["pose_network"]:
        terms.append(PoseTerm(filled(case, "pose", lambda: _pose_network(case, "pose"))))
    return attribute_step(filled(case, "generator", lambda: _generator(case)), terms, limits=tuple(scalars["clip"]))


def _generator(case: Any) -> Any:
    from facesdk_export.networks.vec2face import Generator, ImageDecoder

    config = case.config("generator")
    decoder = dict(config["image_decoder"])
    return Generator(
        ImageDecoder(eps=decoder.pop("group_norm_eps"), **decoder), vector=config["rep_dim"], dim=config["dim"],
        depth=config["depth"], heads=config["heads"], decoder_dim=config["decoder_dim"],
        decoder_depth=config["decoder_depth"], decoder_heads=config["decoder_heads"], mlp_ratio=config["mlp_ratio"],
        map_size=config["map_size"], eps=config["layer_norm_eps"],
    )  # fmt: skip


def torch_run(step: Any, example: Mapping[str, np.ndarray]) -> Run:
    import torch

    def run(arrays: Mapping[str, np.ndarray]) -> Arrays:
        results = step(*map(torch.from_numpy, arrays.values()))
        return {name: tensor.numpy() for name, tensor in zip(OUTPUTS, results, strict=True)}

    return run


def onnx_run(step: Any, example: Mapping[str, np.ndarray]) -> Run:
    """The step as a plain graph, exported once, its batch free."""
    import torch

    from facesdk_export.gradients import plain_graph
    from facesdk_export.onnx_export import trace

    # a reference that is met leaves no gradient but rounding noise to check the graph on
    example = {**example, "reference": np.roll(example["reference"], 1, 1)}
    tensors = {name: torch.from_numpy(array) for name, array in example.items()}
    with tempfile.TemporaryDirectory(prefix="facesdk-parity-") as folder:
        path = Path(folder) / "step.onnx"
        trace(plain_graph(step, tensors), tensors, OUTPUTS, path, {0: "batch"})
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda arrays: dict(zip(OUTPUTS, session.run(list(OUTPUTS), dict(arrays)), strict=True))


def inputs_of(case: Any, names: tuple[str, ...], vector: np.ndarray, masks: Masks) -> Arrays:
    """A step's inputs; angles that the case has no target for have weight 0."""
    scalars = case.scalars
    targets = {"quality": scalars["q_target"], "yaw": scalars.get("target_yaw", 0)}
    weights = {
        "identity": scalars["id_weight"],
        "quality": scalars["quality_weight"],
        "yaw": scalars["pose_weight"],
    }
    rows = [
        np.tile(np.float32([table.get(name, 0) for name in names]), (len(vector), 1)) for table in (targets, weights)
    ]
    return {
        "vector": vector, "reference": case.inputs["class_rep"], "keep": masks.keep, "masked": masks.masked,
        "targets": rows[0], "weights": rows[1],
    }  # fmt: skip


def masks_of(case: Any) -> list[Masks]:
    """The masks of every generator call."""
    limits = (case.scalars[f"mask_ratio_{part}"] for part in ("min", "max", "mu", "std"))
    law = MaskLaw(*limits)
    draws = zip(case.inputs["noise"], case.inputs["mask_rate"], strict=True)
    return [token_masks(noise, float(rate), law) for noise, rate in draws]


# -- what the published loop makes of it --------------------------------------------------------------------


def batch_losses(case: Any, names: tuple[str, ...], result: Arrays) -> Arrays:
    """The published numbers of one iteration, batch means all."""
    scalars, losses = case.scalars, dict(zip(names, result["losses"].mean(0), strict=True))
    means = {"id_loss": losses["identity"], "q_loss": losses["quality"], "pose_loss": losses.get("yaw", np.float32(0))}
    weights = (scalars["id_weight"], scalars["quality_weight"], scalars["pose_weight"])
    means["loss"] = np.float32(np.dot(list(means.values()), weights))
    limits = scalars["stop"]["id_loss"], scalars["stop"]["quality_loss"], scalars["stop"]["pose_loss"]
    means["keep_going"] = np.bool_(any(np.greater(list(means.values())[:3], limits)))
    return means


def adam_of(case: Any) -> Adam:
    assert case.scalars["weight_decay"] == 0
    return Adam(case.scalars["lr"], tuple(case.scalars["betas"]), case.scalars["eps"])


def steps_way(prepare: Callable[[Any, Mapping[str, np.ndarray]], Run]) -> Callable[[Any], Wrong]:
    """Every iteration at the recorded vectors; Adam on the recorded gradients."""

    def run(case: Any) -> Wrong:
        assert case.scalars["batch_reduction"] == "mean"
        step, masks, before = step_of(case), masks_of(case), case.arrays["rep_before"]
        inputs = [inputs_of(case, step.names, *each) for each in zip(before, masks, strict=True)]
        results = list(map(prepare(step, inputs[0]), inputs))
        means = [batch_losses(case, step.names, result) for result in results]
        got = {name: np.stack([mean[name] for mean in means]) for name in means[0]}
        values = np.stack([result["values"] for result in results])
        columns = dict(zip(step.names, np.moveaxis(values, 2, 0), strict=True))
        adam, after = adam_of(case), case.arrays["rep_after"]
        got |= {
            "image_step0": results[0]["image"],
            "rep_before": np.concatenate((case.inputs["rep"][None], after[:-1])),
            "grad": np.stack([result["gradient"] / len(result["gradient"]) for result in results]),
            "rep_after": np.stack([adam(*each) for each in zip(before, case.arrays["grad"], strict=True)]),
            "norm": columns["quality"][..., None],
            "yaw": columns.get("yaw", np.zeros_like(columns["quality"])),
            "distance": 1 - columns["identity"],
            "drop_mask": np.stack([drop_mask(each) for each in masks]),
            "all_mask": np.stack([each.masked for each in masks]),
        }
        return _wrong(case, got)

    return run


def loop_way(prepare: Callable[[Any, Mapping[str, np.ndarray]], Run]) -> Callable[[Any], Wrong]:
    """The loop to its own end; the last picture is drawn from the recorded vectors."""

    def run(case: Any) -> Wrong:
        step, masks, vector, adam = step_of(case), masks_of(case), case.inputs["rep"], adam_of(case)
        evaluate, passed, iterations = prepare(step, inputs_of(case, step.names, vector, masks[0])), 0, 0
        while passed < case.scalars["num_iter"]:
            result = evaluate(inputs_of(case, step.names, vector, masks[iterations]))
            passed += not batch_losses(case, step.names, result)["keep_going"]
            vector = adam(vector, result["gradient"] / len(vector))
            iterations += 1
        reach = iterations * case.scalars["lr"] * 1.0001
        far = ["rep_out: steps beyond the learning rate"] if np.abs(vector - case.inputs["rep"]).max() > reach else []
        final = evaluate(inputs_of(case, step.names, case.arrays["rep_out"], masks[iterations]))
        got = {"image": final["image"], "rep_out": vector, "iterations": np.asarray(iterations)}
        return _wrong(case, got) + far

    return run


def _both(way: Callable[[Any], Callable[[Any], Wrong]]) -> dict[str, Callable[[Any], Wrong]]:
    return {"torch": way(torch_run), "onnx": way(onnx_run)}


ATTRIBUTES = {
    "attrop_pose": _both(steps_way),
    "attrop_quality": _both(steps_way),
    "attrop_complete": _both(loop_way),
}
