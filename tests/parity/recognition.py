"""Ways of the Vec2Face cases around its generator: recognition's test and heads, the losses of training."""

from __future__ import annotations

from typing import Any

import numpy as np

from facesdk.recognition.evaluation import Protocol, evaluate

from .encoders import Wrong, _iresnet, _wrong, filled
from .hififace_networks import filled as partly_filled

Facts = dict[str, Any]


# -- recognition ------------------------------------------------------------------------------------------


def recognition(case: Any) -> Wrong:
    return _wrong(case, _verification(case) | _heads(case))


def _verification(case: Any) -> dict[str, np.ndarray]:
    names = ("folds", "threshold_start", "threshold_stop", "threshold_step")
    constants = {name: case.scalars[name] for name in names}
    pairs = case.inputs["embeddings"], case.inputs["issame"]
    result = evaluate(*pairs, Protocol(**constants))
    by_angle = evaluate(*pairs, Protocol(**constants, cosine=True))
    return {
        "accuracy_per_fold": result.accuracies, "tpr": result.true_positive_rate, "fpr": result.false_positive_rate,
        "cosine_accuracy_per_fold": by_angle.accuracies,
    }  # fmt: skip


def _heads(case: Any) -> dict[str, np.ndarray]:
    import torch

    from facesdk_export.networks.margin_heads import MagFace

    cosines, labels, embeddings = (
        torch.from_numpy(case.inputs[name]) for name in ("logits", "labels", "embeddings_512")
    )
    assert cosines.shape[1] == case.scalars["classes"]
    got = {}
    for name, facts in case.scalars["heads"].items():
        head = _head(facts)
        got[f"head_{name}"] = head(cosines.clone(), labels, embeddings).numpy()
        if isinstance(head, MagFace):
            got[f"head_{name}_extra"] = head.regulariser(embeddings, labels).numpy()
    return got


def _head(facts: Facts) -> Any:
    from facesdk_export.networks import margin_heads as heads

    facts = dict(facts)
    kind, scale = facts.pop("class"), facts.pop("s")
    if kind == "combined":
        return heads.combined(scale, **facts)
    if kind == "MagFace":
        norms, margins = (facts["l_a"], facts["u_a"]), (facts["l_margin"], facts["u_margin"])
        return heads.MagFace(scale, norms, margins)
    if "t_start" in facts:
        facts["start"] = facts.pop("t_start")
    return getattr(heads, kind)(scale, **facts)


# -- training ---------------------------------------------------------------------------------------------


def training_losses(case: Any) -> Wrong:
    import torch

    from facesdk_export.networks.vec2face_losses import discriminator_loss, generator_scores

    scalars, truth, vector = case.scalars, *(torch.from_numpy(case.inputs[name]) for name in ("gt_image", "rep"))
    loss, discriminator = _loss(case), _discriminator(case)
    given = torch.from_numpy(case.arrays["generated"]).requires_grad_()
    with torch.no_grad():
        rows, tokens, generated = _generated(case, vector)
        real, fake, fake_given = (discriminator(picture) for picture in (truth, generated, given))
        terms = loss(vector, rows, tokens, generated, truth, fake)
    terms_given = loss(vector, rows, tokens, given, truth, generator_scores(discriminator, given))
    got = {"generated": generated, "disc_logits_real": real, "disc_logits_fake": fake_given, "token_loss": terms.token,
           "rec_loss_mean": terms.reconstruction, "ssim_loss": terms.ssim, "p_loss": terms.perceptual,
           "feature_loss": terms.feature}  # fmt: skip
    for epoch in scalars["epochs"]:
        weights, output = _weights(scalars, epoch), f"epoch{epoch}_grad_image"
        (gradient,) = torch.autograd.grad(terms_given.total(weights), given, retain_graph=True)
        got |= {f"epoch{epoch}_ae_loss": terms.total(weights), output: gradient[: len(case.arrays[output])],
                f"epoch{epoch}_d_loss": discriminator_loss(real, fake, weights.adversarial)}  # fmt: skip
    return _wrong(case, {name: value.numpy() for name, value in got.items()} | {"f64_lr_values": _learning_rates(case)})


def _weights(scalars: Facts, epoch: int) -> Any:
    from facesdk_export.networks.vec2face_losses import LossWeights, adversarial_weight

    return LossWeights(
        perceptual=scalars["p_weight"], ssim=scalars["ssim_weight"], token=scalars["token_weight"],
        feature=scalars["feature_weight"],
        adversarial=scalars["adversarial_weight"] * adversarial_weight(epoch, scalars["disc_start"]),
    )  # fmt: skip


def _generated(case: Any, vector: Any) -> tuple[Any, Any, Any]:
    """Rows, decoded tokens and picture."""
    import torch

    from facesdk.synthesis.masks import MaskLaw, token_masks

    names = ("minimum", "min"), ("maximum", "max"), ("mu", "mu"), ("std", "std")
    law = MaskLaw(**{ours: case.scalars[f"mask_ratio_{theirs}"] for ours, theirs in names})
    masks = token_masks(case.inputs["noise"], float(case.inputs["mask_rate"]), law)
    keep, masked = torch.from_numpy(masks.keep), torch.from_numpy(masks.masked)
    network = _generator(case)
    rows = network.rows(vector)
    tokens = network.decode(network.encode(rows, keep, masked), keep, masked)
    return rows, tokens, network.im_decoder(network.feature_map(tokens))


def _generator(case: Any) -> Any:
    from facesdk_export.networks.vec2face import Generator, ImageDecoder

    config = case.config("generator")
    decoder = config["image_decoder"]
    assert config["qkv_bias"]
    assert config["tokens"] == config["map_size"] ** 2 + 1

    image_decoder = ImageDecoder(
        decoder["z"], decoder["ch"], decoder["ch_mult"], decoder["blocks_per_level"], decoder["groups"],
        decoder["group_norm_eps"], decoder["out_channels"],
    )  # fmt: skip
    names = "dim", "depth", "heads", "decoder_dim", "decoder_depth", "decoder_heads", "mlp_ratio", "map_size"
    network = Generator(
        image_decoder, vector=config["rep_dim"], eps=config["layer_norm_eps"], dropout=case.scalars["dropout"],
        **{name: config[name] for name in names},
    )  # fmt: skip
    return partly_filled(case, "generator", network)


def _discriminator(case: Any) -> Any:
    from facesdk_export.networks.vec2face_discriminator import Discriminator

    config = dict(case.config("discriminator"))
    eps = config.pop("group_norm_eps")
    return filled(case, "discriminator", lambda: Discriminator(config.pop("dims"), eps=eps, **config))


def _loss(case: Any) -> Any:
    import torch

    from facesdk_export.networks.lpips import VGG16_SLICES
    from facesdk_export.networks.vec2face_losses import GeneratorLoss, Ssim

    config, constants = case.config("lpips"), case.facts["network"]["lpips"]["fill"]["constants"]
    assert config["channels"] == [widths[-1] for widths in VGG16_SLICES]
    assert not config["normalize"]
    window = dict(case.scalars["ssim"])
    assert window.pop("padding") == "none (valid)"
    loss = GeneratorLoss(
        filled(case, "arcface", lambda: _iresnet(case, "arcface")),
        lpips_factor=case.scalars["lpips_factor"], lpips_floor=config["norm_floor"], ssim=Ssim(**window),
    )  # fmt: skip
    scaling = partly_filled(case, "lpips", loss.lpips).scaling_layer
    for name in ("shift", "scale"):
        assert torch.equal(getattr(scaling, name).flatten(), torch.tensor(constants[f"scaling_layer.{name}"]))
    return loss.requires_grad_(False).eval()


def _learning_rates(case: Any) -> np.ndarray:
    from facesdk_export.networks.vec2face_losses import Schedule

    schedule = Schedule(**case.scalars["schedule"])
    return np.array([schedule(epoch) for epoch in case.inputs["f64_lr_epochs"]])


RECOGNITION = {"recognition": {"sdk": recognition}, "training_losses": {"torch": training_losses}}
