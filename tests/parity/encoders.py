"""Ways of the cases about encoder networks alone: recognition, head pose, identity vectors on disk."""

from __future__ import annotations

import dataclasses
import re
import runpy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from facesdk.image import read_image

from .exporting import onnx_outputs
from .reference import ROOT, compare

Wrong = list[str]
Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Trial:
    """A module whose `forward` returns the case's `outputs`, in order, of `inputs`; `known` need no network."""

    module: Any
    inputs: Mapping[str, np.ndarray]
    outputs: tuple[str, ...]
    known: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    dynamic_batch: bool = True


def torch_way(prepare: Callable[[Any], Trial]) -> Callable[[Any], Wrong]:
    def run(case: Any) -> Wrong:
        import torch

        trial = prepare(case)
        with torch.inference_mode():
            results = trial.module(*map(torch.from_numpy, trial.inputs.values()))
        got = {name: tensor.numpy() for name, tensor in zip(trial.outputs, results, strict=True)}
        return _wrong(case, got | dict(trial.known))

    return run


def onnx_way(prepare: Callable[[Any], Trial]) -> Callable[[Any], Wrong]:
    def run(case: Any) -> Wrong:
        trial = prepare(case)
        got = onnx_outputs(trial.module, trial.inputs, trial.outputs, dynamic_batch=trial.dynamic_batch)
        return _wrong(case, got | dict(trial.known))

    return run


def _wrong(case: Any, got: Arrays) -> Wrong:
    """What is wrong with the case's outputs, all of which `got` must hold."""
    absent = sorted(set(case.facts["outputs"]) ^ set(got))
    texts = [compare(case, name, _near(case, name, value)) for name, value in got.items() if name not in absent]
    return [f"{name}: not both given and expected" for name in absent] + [text for text in texts if text]


def _near(case: Any, name: str, value: np.ndarray) -> np.ndarray:
    """Angles in degrees are meant modulo 360 where the case says so: the turn nearest to the expected."""
    if "modulo 360" not in case.facts["outputs"][name]["meaning"]:
        return value
    return value + 360 * np.round((case.arrays[name] - value) / 360)


def filled(case: Any, network: str, build: Callable[[], Any]) -> Any:
    """The network with the case's weights, given to it as a checkpoint's are."""
    import torch

    from facesdk_export.checkpoints import Checkpoint, load_into

    with torch.device("meta"):
        module = build()
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items() if value.is_floating_point()}
    weights = {name: torch.from_numpy(value) for name, value in case.weights(network, shapes).items()}
    report = load_into(module, Checkpoint(case.path, weights))
    assert not report.unused
    return module.eval()


def nchw(pictures: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pictures.transpose(0, 3, 1, 2), np.float32)


def module_of(network: Any, forward: Callable[[Any, Any], tuple[Any, ...]]) -> Any:
    """A module that computes `forward(network, image)`."""
    from torch import nn

    class Outputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, image: Any) -> tuple[Any, ...]:
            return forward(self.network, image)

    return Outputs().eval()


# -- head pose --------------------------------------------------------------------------------------------


def head_pose_input(picture: np.ndarray, resize: int, crop: int, mean: Any, std: Any) -> np.ndarray:
    """(3, crop, crop): short side resized to `resize` with antialiasing, centre cropped, normalised."""
    height, width = picture.shape[:2]
    scale = resize / min(height, width)
    size = (resize, int(height * scale)) if width <= height else (int(width * scale), resize)
    resized = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR), np.float32)
    top, left = (round((side - crop) / 2) for side in resized.shape[:2])
    patch = resized[top : top + crop, left : left + crop] / 255
    return ((patch - np.float32(mean)) / np.float32(std)).transpose(2, 0, 1)


def sixdrepnet(case: Any) -> Trial:
    """The annotation case: RepVGG-B1g2 with its stages' means."""
    from facesdk_export.networks import SixDRepNet, euler_angles, rotation_matrix

    config = case.config("sixdrepnet")
    first, second, last = map(int, re.findall(r"\d+", config["grouped_blocks"])[:3])
    network = filled(case, "sixdrepnet", lambda: SixDRepNet(
        config["blocks"][1:], config["channels"][1:], stem=config["channels"][0],
        grouped=range(first, last + 1, second - first),
    ))  # fmt: skip
    picture = read_image(ROOT / "annotation" / "golden" / case.scalars["image_file"])
    inputs = case.inputs["preprocessed"]
    # the preprocessing of the 6DRepNet package: ImageNet statistics
    ours = head_pose_input(picture, inputs.shape[-1], inputs.shape[-1], (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert np.abs(ours - inputs[0]).max() <= case.scalars["preprocessing_tolerance"]

    def forward(network: Any, image: Any) -> tuple[Any, ...]:
        maps = network.stage_maps(image)
        six = network.six(maps[-1])
        rotation = rotation_matrix(six)
        means = [each.mean((2, 3)) for each in maps]
        return (*means, six, rotation, euler_angles(rotation).rad2deg())

    stages = [f"layer{i}_mean" for i in range(network.stages)]
    names = (*stages, f"layer{network.stages}", "six", "rotation", "euler_degrees")
    return Trial(module_of(network, forward), {"image": inputs}, names)


def headpose_6drepnet(case: Any) -> Trial:
    """The Dense-Face case: from pictures in BGR to angles."""
    from facesdk_export.networks import SixDRepNet, euler_angles, rotation_matrix

    config, scalars = case.config("headpose"), case.scalars
    assert config["backbone"] == "RepVGG-B1g2"
    assert config["deploy"]
    network = filled(case, "headpose", SixDRepNet)
    pictures = case.inputs["image_bgr_u8"][..., ::-1]
    inputs = np.stack([
        head_pose_input(picture, scalars["resize"], scalars["center_crop"], scalars["mean"], scalars["std"])
        for picture in pictures
    ])  # fmt: skip

    def forward(network: Any, image: Any) -> tuple[Any, ...]:
        features = network.stage_maps(image)[-1]
        six = network.six(features)
        rotation = rotation_matrix(six)
        return features.mean((2, 3)), six, rotation, euler_angles(rotation).rad2deg()

    rows, columns = _window(case, "input_patch")
    known = {"input_patch": inputs[:, :, rows, columns]}
    names = ("gap", "six", "rotation", "pitch_yaw_roll_deg")
    return Trial(module_of(network, forward), {"image": inputs}, names, known)


def _window(case: Any, output: str) -> tuple[slice, slice]:
    """Rows and columns of a patch, which the case gives in words: "[:, :, 50:58, 50:58]"."""
    top, bottom, left, right = map(int, re.findall(r"\d+", case.facts["outputs"][output]["meaning"])[:4])
    return slice(top, bottom), slice(left, right)


# -- recognition ------------------------------------------------------------------------------------------


def arcface_irse50(case: Any) -> Trial:
    """The Dense-Face case: IR-SE50, from its pooled input to the identity loss of a pair."""
    import torch

    from facesdk_export.networks import IRSE
    from facesdk_export.networks.ir_se50 import LAYERS

    config = case.config("arcface")
    network = filled(case, "arcface", lambda: IRSE(
        LAYERS[config["num_layers"]], embedding=config["feature_dim"], input_size=config["input_size"],
        attention=config["mode"] == "ir_se", dropout=config["drop_ratio"],
    ))  # fmt: skip
    picture = torch.from_numpy(nchw(case.inputs["image_u8"]) / np.float32(127.5) - 1)
    pooled = torch.nn.functional.adaptive_avg_pool2d(picture, case.scalars["pool_size"]).numpy()
    every = network.body[-1].res_layer[1].out_channels // case.facts["outputs"]["body"]["shape"][1]
    early = int(re.findall(r"body\.(\d+)", case.facts["outputs"]["body2_mean"]["meaning"])[0])

    def forward(network: Any, image: Any) -> tuple[Any, ...]:
        first = network.body[: early + 1](network.input_layer(image))
        body = network.body[early + 1 :](first)
        feature = network.embedding(body)
        return first.mean((2, 3)), body[:, ::every], feature, 1 - (feature[:1] * feature[1:2]).sum(1)

    rows, columns = _window(case, "pooled_patch")
    known = {"pooled_mean": pooled.mean((2, 3)), "pooled_patch": pooled[:, :, rows, columns]}
    names = ("body2_mean", "body", "feature", "id_loss")
    return Trial(module_of(network, forward), {"image": pooled}, names, known, dynamic_batch=False)


def estimators(case: Any) -> Trial:
    """The Vec2Face case: ArcFace, MagFace, HSFace, head pose in both forms, and its geometry."""
    import torch

    from facesdk_export.networks import euler_angles, fold_training_form, rotation_matrix

    training = filled(case, "pose_training_form", lambda: _pose_network(case, "pose_training_form"))
    folded = _pose_network(case, "pose_training_form", deploy=True).eval()
    folded.load_state_dict(fold_training_form(training.state_dict()))
    block = folded.get_submodule(case.scalars["folded_block"]).rbr_reparam
    bgr = np.ascontiguousarray((case.inputs["image"][:, ::-1] + 1) / 2)
    with torch.inference_mode():
        torch.testing.assert_close(folded(torch.from_numpy(bgr)), training(torch.from_numpy(bgr)), rtol=0, atol=1e-5)
    arcface, magface, hsface = (
        filled(case, name, lambda name=name: _iresnet(case, name)) for name in ("arcface", "magface", "hsface")
    )
    pose = filled(case, "pose", lambda: _pose_network(case, "pose"))

    class Estimators(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.networks = torch.nn.ModuleList([arcface, magface, hsface, pose, folded])

        def forward(self, image: Any, bgr: Any, wide: Any, six: Any, locked: Any) -> tuple[Any, ...]:
            maps, quality = arcface.stage_maps(image), magface(image)
            small, large, turned = pose(bgr), pose(wide), rotation_matrix(six)
            return (
                arcface(image), quality, torch.linalg.vector_norm(quality, dim=1, keepdim=True),
                *(each.mean((2, 3)) for each in maps), maps[-1][:1], hsface(image),
                small, euler_angles(small).rad2deg(), large, euler_angles(large).rad2deg(),
                turned, euler_angles(turned), euler_angles(locked), folded(bgr),
            )  # fmt: skip

    names = (
        "arcface_feature", "magface_feature", "magface_norm",
        *(f"arcface_layer{i + 1}_spatial_mean" for i in range(arcface.stages)),
        f"arcface_layer{arcface.stages}", "hsface_se_feature", "pose112_R",
        "pose112_euler_deg_pitch_yaw_roll", "pose224_R", "pose224_euler_deg_pitch_yaw_roll", "six_R",
        "six_euler_rad", "singular_euler_rad", "repvgg_train_form_R",
    )  # fmt: skip
    inputs = {"image": case.inputs["image"], "bgr": bgr, "wide": _wide_input(case), "six": case.inputs["six"],
              "locked": case.inputs["singular_R"]}  # fmt: skip
    stem = _folded_names(case)
    known = {f"{stem}_weight": block.weight.detach().numpy(), f"{stem}_bias": block.bias.detach().numpy()}
    return Trial(Estimators().eval(), inputs, names, known, dynamic_batch=False)


def _iresnet(case: Any, network: str) -> Any:
    from facesdk_export.networks import IResNet

    config = case.config(network)
    return IResNet(
        config["layers"], config["widths"], embedding=config["embedding"], input_size=config["input_size"],
        identity_attention="se_reduction" in config, reduction=config.get("se_reduction", 16),
        eps=config["batch_norm_eps"],
    )  # fmt: skip


def _pose_network(case: Any, network: str, *, deploy: bool | None = None) -> Any:
    from facesdk_export.networks import SixDRepNet

    config = case.config(network)
    return SixDRepNet(
        config["blocks"], config["widths"], stem=config["stage0_width"], groups=config["groups"],
        grouped=config["grouped_indices"], deploy=config["deploy"] if deploy is None else deploy,
    )  # fmt: skip


def _wide_input(case: Any) -> np.ndarray:
    rule = case.scalars["pose224_input"]
    noise = runpy.run_path(str(ROOT / "fill.py"))["inputs"](rule["inputs_name"], tuple(rule["shape"]))
    values = noise * rule["scale"] + rule["shift"]
    return np.ascontiguousarray(values.clip(*rule["clip"])[:, ::-1], np.float32)


def _folded_names(case: Any) -> str:
    names = [name for name in case.facts["outputs"] if name.startswith("repvgg_reparam_")]
    (stem,) = {name.rpartition("_")[0] for name in names}
    return stem


# -- identity vectors on disk -----------------------------------------------------------------------------


def feature_example(case: Any) -> Wrong:
    from facesdk_export.features import read_features

    return _wrong(case, {"feature": read_features(case.path.with_name(case.scalars["file"]))})


def both(prepare: Callable[[Any], Trial]) -> dict[str, Callable[[Any], Wrong]]:
    return {"torch": torch_way(prepare), "onnx": onnx_way(prepare)}


ANNOTATION = {"sixdrepnet": both(sixdrepnet)}
DENSE_FACE: dict[str, dict[str, Callable[[Any], Wrong]]] = {
    "arcface_irse50": both(arcface_irse50),
    "headpose_6drepnet": both(headpose_6drepnet),
    "feature_example": {"sdk": feature_example},
}
VEC2FACE = {"estimators": both(estimators)}
