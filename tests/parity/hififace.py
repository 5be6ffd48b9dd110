"""Ways of the HifiFace cases; one function per case serves torch and ONNX, which differ in who runs the modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn

from facesdk.annotation import deep3d_alignment
from facesdk.annotation.alignment import similarity
from facesdk_export import hififace_dataset
from facesdk_export.networks.hififace import (
    Generator,
    Traits,
    identity_input,
    identity_vector,
    interpolated_vector,
    unit,
)
from facesdk_export.networks.hififace_blocks import nearest_quarter, resampling, resized
from facesdk_export.networks.hififace_discriminators import XuehyDiscriminator
from facesdk_export.networks.hififace_engines import IdentityEncoder, ShapeEncoder, SwapDecoder, TargetEncoder
from facesdk_export.networks.hififace_losses import quarter
from facesdk_export.networks.hififace_xuehy import xuehy_interpolated_vector

from .exporting import onnx_outputs
from .hififace_networks import (
    Arrays,
    Run,
    Step,
    f_3d_of,
    f_id_of,
    filled,
    generator_of,
    network_of,
    picture_of,
    torch_outputs,
    without_size,
    wrong,
)
from .hififace_training import bfm, discriminator_torch, losses_torch
from .reference import compare

# -- generators -------------------------------------------------------------------------------------------

CORE = ("mid_z_enc", "mid_sigma", "mid_bottleneck", "mid_z_dec", "out_i_r", "out_i_low", "out_m_r", "out_m_low")


def published_core(generator: Generator) -> nn.Module:
    """Target and vector -> everything up to the picture, in the published form."""

    def forward(encoder: nn.Module, decoder: nn.Module, fusion: nn.Module, target: Tensor, vector: Tensor) -> Any:
        z_enc, bottleneck = encoder(target)
        z_dec = decoder(bottleneck, vector)
        return z_enc, fusion.sigma(z_enc), bottleneck, z_dec, *fusion(target, z_enc, z_dec, vector)

    return Step(forward, generator.encoder, generator.decoder, generator.sff_module)


def engine_core(generator: Generator, run: Run, target: Any, vector: Any) -> Arrays:
    """The same as far as the engines return it."""
    first = run(TargetEncoder.from_generator(generator), {"target": target}, ["mid_sigma", "mid_bottleneck"])
    inputs = {"target": target, "skip": first["mid_sigma"], "bottleneck": first["mid_bottleneck"], "vector": vector}
    return first | run(SwapDecoder.from_generator(generator), inputs, ["out_i_r", "out_m_r"])


def traits_of(generator: Generator, run: Run, *faces: Any) -> list[Arrays]:
    """Coefficients of each batch of faces, and the stages of their identities."""
    extractor = generator.id_extractor
    batch = {"face": np.concatenate(faces)}

    def stages(f_id: nn.Module, face: Tensor) -> tuple[Tensor, ...]:
        seen = identity_input(face, extractor.resize, extractor.identity_px)
        raw = f_id(seen)
        return seen, raw, unit(raw)

    got = run(ShapeEncoder.from_generator(generator), batch, ["coefficients"])
    got |= run(Step(stages, extractor.f_id), batch, ["input", "raw", "identity"])
    borders = np.cumsum([len(each) for each in faces])[:-1]
    parts = {name: np.split(value, borders) for name, value in got.items()}
    return [{name: value[i] for name, value in parts.items()} for i in range(len(faces))]


def swap(case: Any, run: Run) -> list[str]:
    generator, target = generator_of(case), picture_of(case, "in_target")
    first, second = traits_of(generator, run, picture_of(case, "in_source"), target)
    parts = {"source": first["coefficients"], "target": second["coefficients"], "identity": first["identity"]}
    vector = run(Step(identity_vector), parts, ["vector"])["vector"]
    got = {"mid_c_s": first["coefficients"], "mid_c_t": second["coefficients"], "mid_id_raw": first["raw"],
           "mid_v_sid": vector, "mid_face112": first["input"]}  # fmt: skip
    published = run(published_core(generator), {"target": target, "vector": vector}, CORE)
    engines = published | engine_core(generator, run, target, vector)
    return [text for values in (published, engines) for text in wrong(case, got | values | quantised(values))]


def quantised(values: Arrays) -> Arrays:
    """The uint8 picture (h, w, 3) that upstream writes: truncated, not rounded."""
    picture = (np.clip(values["out_i_r"], 0, 1) * 255).astype(np.uint8)
    return {"out_png": picture[0].transpose(1, 2, 0)}


def interp(case: Any, run: Run) -> list[str]:
    generator, names = generator_of(case), ("in_s1", "in_s2", "in_t")
    faces = (picture_of(case, name) for name in names)
    traits = dict(zip(names, traits_of(generator, run, *faces), strict=True))
    target, got = picture_of(case, "in_t"), {}
    for each in case.scalars["runs"]:
        vector = got[each["vector"]] = interpolated(run, traits, each)
        if "picture" in each:
            got[each["picture"]] = engine_core(generator, run, target, vector)["out_i_r"]
    return [text for output in case.facts["outputs"] if (text := compare(case, output, got[output]))]


def interpolated(run: Run, traits: Mapping[str, Arrays], each: Arrays) -> Any:
    """The vector of one run of the case `interp`."""

    def step(c1: Tensor, v1: Tensor, c2: Tensor, v2: Tensor, rate: Tensor, target: Tensor) -> Tensor:
        return interpolated_vector(Traits(c1, v1), Traits(c2, v2), target, rate, each["mode"])

    rest = {"rate": np.array([each["rate"]], np.float32), "target": traits["in_t"]["coefficients"]}
    return run(Step(step), two(traits["in_s1"], traits[each["second_source"]]) | rest, ["vector"])["vector"]


def two(first: Arrays, second: Arrays) -> Arrays:
    """Coefficients and identity of two faces."""
    both = {"1": first, "2": second}
    return {name + key: traits[name] for key, traits in both.items() for name in ("coefficients", "identity")}


def xuehy(case: Any, run: Run) -> list[str]:
    generator, target = generator_of(case), picture_of(case, "in_target")
    first, second = traits_of(generator, run, picture_of(case, "in_source"), target)

    def step(c1: Tensor, v1: Tensor, c2: Tensor, v2: Tensor, shape_rate: Tensor, id_rate: Tensor) -> Any:
        source, other = Traits(c1, v1), Traits(c2, v2)
        return identity_vector(c1, c2, v1), xuehy_interpolated_vector(source, other, shape_rate, id_rate)

    rates = {name: case.inputs[f"in_{name}"].astype(np.float32).reshape(1) for name in ("shape_rate", "id_rate")}
    vectors = run(Step(step), two(first, second) | rates, ["mid_v_sid", "mid_v_interp"])
    both = {"target": np.concatenate([target, target]), "vector": np.concatenate([*vectors.values()])}
    published = run(published_core(generator), both, CORE)
    engines = published | engine_core(generator, run, **both)
    rest = vectors | xuehy_scores(case, run)
    return [text for values in (published, engines) for text in wrong(case, rest | halves(values, len(target)))]


def halves(values: Arrays, count: int) -> Arrays:
    """The plain swap's arrays, and the picture of the interpolation behind it."""
    return {name: value[:count] for name, value in values.items()} | {"out_interp_i_r": values["out_i_r"][count:]}


def xuehy_scores(case: Any, run: Run) -> Arrays:
    config = case.config("discriminator")
    network = filled(case, "discriminator", XuehyDiscriminator(config["input_channels"], config["channels"]))
    return run(network, {"picture": picture_of(case, "in_disc")}, ["out_disc"])


# -- parts ------------------------------------------------------------------------------------------------

#: input of a network of the case `blocks`, where it is not `in_x`
OTHER_INPUT = {"IResNet": "in_face", "f_3d (3DMM coefficient network)": "in_recon"}
OPERATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "op_nearest_quarter": nearest_quarter,
    "op_bilinear_quarter": quarter,
    "op_bilinear_up2": resampling("up")[0],
}


def blocks(case: Any, run: Run) -> list[str]:
    got = {}
    for name, facts in case.facts["network"].items():
        module = filled(case, name, network_of(facts["config"], facts["class"]))
        source = OTHER_INPUT.get(facts["class"], "in_x")
        inputs = {"x": picture_of(case, source) if case.inputs[source].dtype == np.uint8 else case.inputs[source]}
        if "vector_size" in facts["config"]:
            inputs["vector"] = case.inputs["in_v"]
        got |= run(module, inputs, [f"out_{name}"])
    sizes = [name for name in case.facts["outputs"] if name.startswith("op_bilinear_to_")]
    operators = OPERATORS | {name: partial(resized, size=int(name.rsplit("x")[-1])) for name in sizes}
    for name, operator in operators.items():
        got |= run(Step(operator), {"picture": case.inputs["in_img"]}, [name])
    return [text for output in case.facts["outputs"] if (text := compare(case, output, got[output]))]


def extractor(case: Any, run: Run) -> list[str]:
    f_3d = filled(case, "f_3d", f_3d_of(case.config("f_3d")))
    f_id = filled(case, "f_id", f_id_of(case.config("f_id")))
    face, loss_size = picture_of(case, "in_faces"), case.scalars["loss_size"]

    names = [name for name in case.facts["outputs"] if name.startswith("out_coeff_")]  # as it is, resized

    def coefficients(network: nn.Module, picture: Tensor) -> tuple[Tensor, Tensor]:
        return network(picture), network(resized(picture, loss_size))

    got = run(Step(coefficients, f_3d), {"face": face}, names)
    px = case.config("f_id")["input_size"]
    got |= run(Step(lambda network, x: network(identity_input(x, size=px)), f_id), {"face": face}, ["out_id_raw"])
    got |= run(IdentityEncoder(f_id, identity_px=px), {"face": face}, ["out_id_unit"])
    return wrong(case, got)


# -- numpy and Pillow -------------------------------------------------------------------------------------


def align_sdk(case: Any) -> list[str]:
    scalars, picture = case.scalars, case.inputs["in_image"]
    size, five = scalars["target_size"], case.inputs["in_lm5_image_coords"]
    standard, height = case.inputs["lm3d_std"], picture.shape[0]
    y_up = np.column_stack([five[:, 0], height - 1 - five[:, 1]])
    scale, translation = deep3d_alignment.fit_projection(y_up, standard)
    crop = deep3d_alignment.align(
        picture, five, size=size, rescale_factor=scalars["rescale_factor"], standard=standard
    )  # fmt: skip
    rows = [[row - 1 for row in rows] for rows in scalars["five_from_68_1_based"].values()]
    of_68 = deep3d_alignment.five_points(case.inputs["in_lm68_y_up"], rows)
    frame = scalars["arcface_frame_height"]
    in_frame = np.column_stack([of_68[:, 0], frame - 1 - of_68[:, 1]])
    in_crop = np.column_stack([crop.five_points_px[:, 0], size - 1 - crop.five_points_px[:, 1]])
    got = {"out_pos_t": translation, "out_pos_s": np.float64(scale), "out_crop": crop.picture,
           "out_trans_params": np.array([picture.shape[1], height, crop.scale, *crop.translation_px]),
           "out_lm5_crop_y_up": in_crop, "out_lm5_from_68": of_68,
           "out_arcface_M": similarity(in_frame, np.array(scalars["arcface_template_112"]))}  # fmt: skip
    return [text for output in case.facts["outputs"] if (text := compare(case, output, got[without_size(output)]))]


def dataset_sdk(case: Any) -> list[str]:
    scalars, palette = case.scalars, case.inputs["palette"]
    cell = np.ones((scalars["cell_px"], scalars["cell_px"]), np.int64)
    parsing, image = palette[np.kron(case.inputs["in_parsing_index"], cell)], case.inputs["in_image"]
    faces = palette[scalars["face_palette_rows"]]
    mask = hififace_dataset.face_mask(parsing, faces)
    size = scalars["train_size"]
    got = {"out_mask_full": mask, "out_mask": hififace_dataset.resized_mask(mask, size),
           "out_image_train": hififace_dataset.square_picture(image, size),
           "out_image_cli": hififace_dataset.short_side_picture(image, scalars["cli_short_side"])}  # fmt: skip
    return [text for output in case.facts["outputs"] if (text := compare(case, output, got[without_size(output)]))]


def both_ways(run_case: Callable[[Any, Run], list[str]]) -> dict[str, Callable[[Any], list[str]]]:
    return {"torch": partial(run_case, run=torch_outputs), "onnx": partial(run_case, run=onnx_outputs)}


WAYS = {
    "blocks": both_ways(blocks),
    "swap_small": both_ways(swap),
    "swap_256": both_ways(swap),
    "extractor": both_ways(extractor),
    "interp": both_ways(interp),
    "xuehy": both_ways(xuehy),
    "bfm": both_ways(bfm),
    "discriminator": {"torch": discriminator_torch},
    "losses": {"torch": losses_torch},
    "align": {"sdk": align_sdk},
    "dataset": {"sdk": dataset_sdk},
}
