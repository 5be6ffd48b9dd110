"""Ways of the Face2Diffusion cases about faces: alignment, its networks before and beside Stable Diffusion, losses."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from facesdk.annotation.alignment import align, five_of_68
from facesdk_export.networks import MSID, BiSeNet, MappingNetwork, PostFusion
from facesdk_export.networks.cgdr import class_guided_loss, latent_mask
from facesdk_export.networks.margin_heads import combined
from facesdk_export.networks.postfuse import scattered
from facesdk_export.networks.recognition_training import PolynomialSchedule, cosines, cross_entropy
from facesdk_export.recipes.encoders import encoder_part

from .encoders import Wrong, _window, _wrong, filled, module_of
from .exporting import onnx_outputs
from .hififace_networks import Arrays, Run, Step, torch_outputs


def torch_and_onnx(compute: Callable[[Any, Run], Arrays], *, free: bool = False) -> dict[str, Callable[[Any], Wrong]]:
    """Both ways of a case whose outputs are computed by `compute(case, run)`; free: so is the graphs' batch."""

    def onnx(module: nn.Module, inputs: Mapping[str, Any], names: Sequence[str]) -> Arrays:
        several = all(len(array) > 1 for array in inputs.values())  # torch takes a size of 1 for a fixed one
        return onnx_outputs(module, inputs, names, dynamic_batch=free and several)

    return {
        "torch": lambda case: _wrong(case, compute(case, torch_outputs)),
        "onnx": lambda case: _wrong(case, compute(case, onnx)),
    }


# -- alignment --------------------------------------------------------------------------------------------


def alignment(case: Any) -> Wrong:
    size, template, got = case.scalars["size"], np.array(case.scalars["template"]), {}
    for i in range(case.scalars["pictures"]):
        five = five_of_68(case.inputs[f"lmk{i}"])
        crop, matrix = align(case.inputs[f"img{i}"], five, size, template)
        got |= {f"M{i}": np.vstack([matrix, [0, 0, 1]]), f"lmk5_{i}": five, f"warp{i}": crop}
        rows, columns = _window(case, f"tensor_corner{i}")
        got[f"tensor_corner{i}"] = _network_input(case.arrays[f"warp{i}"])[:, :, rows, columns]
    return _wrong(case, got)


def _network_input(crop: np.ndarray) -> np.ndarray:
    """What the encoder's engine makes of a picture before the network."""
    part = encoder_part(torch.nn.Identity(), crop.shape[0])
    return part.module(torch.from_numpy(crop[None])).numpy()


# -- MSID -------------------------------------------------------------------------------------------------


def _msid(case: Any, network: str) -> Any:
    config = case.config(network)
    return filled(case, network, lambda: MSID(
        config["ext_depths"], size=config["img_size"], patch=config["patch_size"], dim=config["embed_dim"],
        depth=config["depth"], heads=config["num_heads"], hidden=int(config["embed_dim"] * config["mlp_ratio"]),
        qkv_bias=config["qkv_bias"], eps=config["norm_eps"], tap_eps=config["tap_norm_eps"],
        momentum=case.scalars.get("norm_momentum", 0.1),
    ))  # fmt: skip


def msid(case: Any, run: Run) -> Arrays:
    got = {}
    for name in case.facts["network"]:
        shown = case.facts["outputs"][f"{name}_tokens0"]["shape"][1]

        def forward(network: Any, image: Tensor, shown: int = shown) -> tuple[Tensor, ...]:
            tokens = torch.stack(network.class_tokens(image), 1)
            return network(image), tokens, network.patches(image)[:, :shown]

        image = f"{name}_x"
        outputs = [f"{name}_{what}" for what in ("out", "cls", "tokens0")]
        got |= run(module_of(_msid(case, name), forward), {image: case.inputs[image]}, outputs)
    return got


def msid_partial(case: Any, run: Run) -> Arrays:
    """Training mode is torch's alone; with the case's weights anew, for it changes the running statistics."""
    asked, image = case.scalars["asked_depths"], case.inputs["x"]

    def forward(network: Any, image: Tensor) -> tuple[Tensor, ...]:
        return network(image, asked), network(image, asked[-1:])

    got = run(module_of(_msid(case, "msid"), forward), {"x": image}, ("out_eval", "out_last_only"))
    training = _msid(case, "msid").train()
    with torch.no_grad():
        got["out_train"] = training(torch.from_numpy(image), asked).numpy()
    (entry,) = re.findall(r"norms\S+", case.facts["outputs"]["running_mean_after"]["meaning"])
    return got | {"running_mean_after": training.state_dict()[entry].numpy()}


# -- mapping ----------------------------------------------------------------------------------------------


def mapping(case: Any, run: Run) -> Arrays:
    got = {}
    for name in case.facts["network"]:
        network = _mapping(case, name)
        for way, given in (("null", ["x"]), ("exp", ["x", "exp"]), ("mask", ["x", "exp", "mask"])):
            inputs = {f"{name}_{each}": case.inputs[f"{name}_{each}"] for each in given}
            got |= run(network, inputs, [f"{name}_{token}_{way}" for token in ("first", "last")])
    return got


def _mapping(case: Any, network: str) -> Any:
    config = case.config(network)
    return filled(case, network, lambda: MappingNetwork(
        config["embed_dim"], config["middle_dim"], config["output_dim"], layers=config["n_layer"],
        expression=config["exp_dim"], dropout=config["dropout"], slope=config["leaky_relu_slope"],
    ))  # fmt: skip


# -- beside Face2Diffusion: FastComposer's fusion, face parsing -----------------------------------------------


def postfuse(case: Any, run: Run) -> Arrays:
    def forward(network: Any, text: Tensor, objects: Tensor, counts: Tensor, flagged: Tensor) -> tuple[Tensor, ...]:
        return network(text, objects, counts, flagged), scattered(text, objects, counts, flagged)

    network = filled(case, "postfuse", lambda: PostFusion(case.config("postfuse")["embed_dim"]))
    inputs = {name: case.inputs[name] for name in ("text", "obj", "num", "mask")}
    return run(Step(forward, network), inputs, ("out", "scattered"))


def bisenet(case: Any, run: Run) -> Arrays:
    config, outputs = case.config("bisenet"), case.facts["outputs"]
    assert config["backbone"] == "resnet18"
    steps = {name: int(found[1]) for name in outputs if (found := re.search(r"::(\d+)", outputs[name]["meaning"]))}

    def forward(network: Any, image: Tensor) -> tuple[Tensor, ...]:
        out, out16, out32 = network(image)
        fine, context, _ = network.cp(image)
        return (
            out, out16[..., :: steps["out16"], :: steps["out16"]], out32[..., :: steps["out32"], :: steps["out32"]],
            out.argmax(1), context[:, :: steps["cp8"]], network.ffm(fine, context)[:, :: steps["ffm"]],
        )  # fmt: skip

    network = filled(case, "bisenet", lambda: BiSeNet(config["n_classes"]))
    names = ("out", "out16", "out32", "argmax", "cp8", "ffm")
    return run(Step(forward, network), {"x": case.inputs["x"]}, names)


# -- losses -----------------------------------------------------------------------------------------------


def arcface(case: Any) -> Wrong:
    got: dict[str, np.ndarray] = {}
    for name, margins in case.scalars["margins"].items():
        got |= {f"{name}_{key}": value for key, value in _margin_loss(case, margins).items()}
    rates = case.scalars["lr"]
    for name, warmup in rates["warmup"].items():
        schedule = PolynomialSchedule(rates["base"], rates["total"], warmup, rates["power"])
        got[name] = np.array([schedule(step) for step in range(rates["total"] + 1)])
    return _wrong(case, got)


def _margin_loss(case: Any, margins: list[float]) -> Mapping[str, np.ndarray]:
    embeddings, centres = (torch.from_numpy(case.inputs[name]).requires_grad_() for name in ("emb", "weight"))
    labels = torch.from_numpy(case.inputs["labels"]).long()
    cosine = cosines(embeddings, centres)
    logits = combined(case.scalars["s"], *margins)(cosine, labels)
    loss = cross_entropy(logits, labels, case.scalars["log_clamp"])
    gradients = torch.autograd.grad(loss, (embeddings, centres))
    names = ("cos", "logits", "loss", "grad_emb", "grad_w")
    return {name: value.detach().numpy() for name, value in zip(names, (cosine, logits, loss, *gradients), strict=True)}


def cgdr(case: Any) -> Wrong:
    tensors = {name: torch.from_numpy(value) for name, value in case.inputs.items()}
    height, width = tensors["pred"].shape[2:]
    mask = latent_mask(tensors["parsing"], (height, width))
    noises = tensors["pred"], tensors["cls_pred"], tensors["noise"]
    got = {"mask": mask, "loss_repro": class_guided_loss(*noises, mask, "mf2d"),
           "loss_paper": class_guided_loss(*noises, mask, "paper")}  # fmt: skip
    return _wrong(case, {name: value.numpy() for name, value in got.items()})


FACE2DIFFUSION: dict[str, dict[str, Callable[[Any], Wrong]]] = {
    "align": {"sdk": alignment},
    "msid": torch_and_onnx(msid, free=True),
    "msid_partial": torch_and_onnx(msid_partial, free=True),
    "mapping": torch_and_onnx(mapping, free=True),
    "postfuse": torch_and_onnx(postfuse),
    "bisenet": torch_and_onnx(bisenet),
    "arcface": {"torch": arcface},
    "cgdr": {"torch": cgdr},
}
