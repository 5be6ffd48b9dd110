"""Ways of the HifiFace cases about training: discriminator, face model, losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from facesdk_export.networks.face_model import FaceModel, rotation, split_coefficients
from facesdk_export.networks.hififace import Swap
from facesdk_export.networks.hififace_discriminators import Discriminator, halved
from facesdk_export.networks.hififace_losses import GeneratorLoss, LossWeights, discriminator_hinge

from .hififace_networks import Arrays, Run, Step, f_3d_of, f_id_of, filled, picture_of, wrong
from .reference import ROOT, compare


def discriminator_torch(case: Any) -> list[str]:
    config = dict(case.config("discriminator"))
    assert config.pop("norm") == "batch"
    network = filled(case, "discriminator", Discriminator(**config))
    x = torch.from_numpy(case.inputs["in_x"])
    got = {"mid_down1": halved(x)}
    with torch.no_grad():
        got |= {f"out_eval_scale{i}": score for i, score in enumerate(network(x))}
        got |= {f"out_train_scale{i}": score for i, score in enumerate(network.train()(x))}
    for name, value in network.state_dict().items():
        got["after_train_" + name.replace(".", "_")] = value
    return [text for output in case.facts["outputs"] if (text := compare(case, output, got[output].numpy()))]


def face_model_of(facts: Arrays, arrays: Mapping[str, Any]) -> FaceModel:
    fields = {name.removeprefix("bfm_"): value for name, value in arrays.items() if name.startswith("bfm_")}
    names = ("camera_distance", "focal", "centre", "dc_light", "recentre_mean_shape")
    return FaceModel(fields, **{name: facts[name] for name in names}).eval()


def bfm(case: Any, run: Run) -> list[str]:
    model = face_model_of(case.scalars["face_model"], case.arrays)

    def step(network: nn.Module, coefficients: Tensor) -> tuple[Tensor, ...]:
        return *network(coefficients), rotation(split_coefficients(coefficients).angles)

    names = ["out_vertex", "out_texture", "out_color", "out_landmark68", "out_rotation"]
    return wrong(case, run(Step(step, model), {"coefficients": case.inputs["in_coeff"]}, names))


def losses_torch(case: Any) -> list[str]:
    network = filled(case, "g_loss", loss_networks(case))
    weights = LossWeights(**case.config("g_loss")["weights"])
    inputs = {name: torch.from_numpy(value) for name, value in case.inputs.items()}
    learnt = {name: inputs[f"in_{name}"].requires_grad_() for name in ("i_r", "i_low", "i_cycle", "m_r", "m_low")}
    scales = range(case.scalars["discriminator_scales"])
    fake, real = ([inputs[f"in_d_{kind}_scale{i}"].requires_grad_() for i in scales] for kind in ("fake", "real"))
    source, target = (torch.from_numpy(picture_of(case, name)) for name in ("in_source", "in_target"))
    swapped = Swap(learnt["i_r"], learnt["i_low"], learnt["m_r"], learnt["m_low"])
    terms = network(source, target, swapped, learnt["i_cycle"], inputs["in_mask_target"], inputs["in_same"], fake)
    terms.total(weights).backward()
    of_real, of_fake = discriminator_hinge(real, [score.detach() for score in fake])
    got = {f"out_{name}_loss": value for name, value in terms._asdict().items()}
    got |= {"out_sid_loss": terms.identity_total(weights), "out_realism_loss": terms.realism_total(weights),
            "out_g_loss": terms.total(weights), "out_loss_real": of_real, "out_loss_fake": of_fake,
            "out_d_loss": of_real + of_fake}  # fmt: skip
    got |= {f"grad_{name}": value.grad for name, value in {**learnt, "d0": fake[0]}.items()}
    return [text for output in case.facts["outputs"] for text in loss_faults(case, output, got[output])]


def loss_networks(case: Any) -> GeneratorLoss:
    config = case.config("g_loss")
    with np.load(ROOT / case.system / "golden" / f"{case.scalars['face_model_case']}.npz") as arrays:
        model = face_model_of(config["face_model"], dict(arrays))
    sizes = config["loss_picture_size_f_3d"], config["loss_picture_size_f_id"]
    return GeneratorLoss(f_3d_of(config["f_3d"]), f_id_of(config["f_id"]), model, *sizes)


def loss_faults(case: Any, output: str, value: Tensor) -> list[str]:
    """Deviation beyond the tolerance, or a direction off by more than `min_cosine`."""
    rule, got = case.facts["outputs"][output], value.detach().numpy().reshape(case.arrays[output].shape)
    texts = [text] if (text := compare(case, output, got)) else []
    if "min_cosine" in rule:
        a, b = got.ravel().astype(np.float64), case.arrays[output].ravel().astype(np.float64)
        cosine = a @ b / np.sqrt((a @ a) * (b @ b))
        texts += [f"{output}: cosine {cosine:.6f}"] if cosine < rule["min_cosine"] else []
    return texts
