"""Networks at published size hold exactly the entries that the published files were listed with."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.parity.reference import ROOT

torch = pytest.importorskip("torch", reason="the export room needs torch")

from facesdk_export.networks import (  # noqa: E402
    IRSE,
    Deep3DRecon,
    IResNet,
    SixDRepNet,
    euler_angles,
    fold_training_form,
    iresnet_of,
    is_training_form,
    rotation_matrix,
    vec2face,
    vec2face_plus,
)
from facesdk_export.networks import iresnet as iresnet_module  # noqa: E402
from facesdk_export.networks.lpips import LPIPS  # noqa: E402
from facesdk_export.networks.vec2face_discriminator import Discriminator  # noqa: E402
from facesdk_export.networks.vec2face_sizes import generator_of  # noqa: E402

TRAINING_FORM = "6DRepNet training checkpoint (not published for Dense-Face; multi-branch form)"

#: (system, file, prefix of the network in the file, network)
MANIFESTS: list[tuple[str, str, str, Callable[[], Any]]] = [
    ("hififace", "ms1mv3_arcface_r100_fp16_backbone.pth", "", IResNet),
    ("hififace", "epoch_20.pth", "", Deep3DRecon),
    ("hififace", "hififace_opensouce_299999.ckpt", "generator.id_extractor.f_id.", IResNet),
    ("hififace", "hififace_opensouce_299999.ckpt", "generator.id_extractor.f_3d.", Deep3DRecon),
    ("hififace", "hififace_opensouce_299999.ckpt", "g_loss.f_id.", IResNet),
    ("hififace", "hififace_opensouce_299999.ckpt", "g_loss.f_3d.", Deep3DRecon),
    ("hififace", "xuehy/generator_<step>.pth", "id_extractor.f_id.", IResNet),
    ("hififace", "xuehy/generator_<step>.pth", "id_extractor.f_3d.", Deep3DRecon),
    ("vec2face", "weights/arcface-r100-glint360k.pth", "", IResNet),
    ("vec2face", "weights/magface-r100-glint360k.pth", "", IResNet),
    *(
        (
            "vec2face",
            f"fr_weights/hsface{size}.pth",
            "",
            lambda: IResNet(iresnet_module.LAYERS[50], identity_attention=True),
        )
        for size in ("10k", "20k", "100k", "200k", "300k")
    ),
    ("vec2face", "weights/6DRepNet_300W_LP_AFLW2000.pth", "", SixDRepNet),
    ("vec2face", "(not used here) 6DRepNet training form", "", lambda: SixDRepNet(deploy=False)),
    ("vec2face", "checkpoint-*.pth:model_disc", "", Discriminator),
    ("dense_face", "model_ir_se50.pth", "", IRSE),
    ("dense_face", "epoch=44397232.ckpt", "id_loss_func.facenet.", IRSE),
    ("dense_face", "6DRepNet_300W_LP_AFLW2000.pth", "", SixDRepNet),
    ("annotation", "6DRepNet_300W_LP_AFLW2000.pth", "", SixDRepNet),
    ("annotation", TRAINING_FORM, "", lambda: SixDRepNet(deploy=False)),
]


def manifest(system: str, file: str, prefix: str = "") -> dict[str, tuple[int, ...]]:
    files = json.loads((ROOT / system / "state_dict.json").read_text(encoding="utf-8"))
    entries = files[file]["entries"]
    if "same_as" in entries:
        entries = files[entries["same_as"]]["entries"]
    return {name.removeprefix(prefix): tuple(shape) for name, shape in entries.items() if name.startswith(prefix)}


def on_meta(build: Callable[[], Any]) -> Any:
    with torch.device("meta"):
        return build()


def shapes(network: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


@pytest.mark.skipif(not ROOT.is_dir(), reason=f"no reference folder at {ROOT}; set FACESDK_REFERENCE")
@pytest.mark.parametrize(
    ("system", "file", "prefix", "build"), [pytest.param(*row, id="-".join(row[:3])) for row in MANIFESTS]
)
def test_network_has_the_published_entries(system: str, file: str, prefix: str, build: Callable[[], Any]) -> None:
    want = manifest(system, file, prefix)
    assert len(want) > 30
    assert shapes(on_meta(build)) == want


GENERATORS = ("weights/vec2face_generator.pth", "vec2face_plus/main_model.pth")
POSE_MODEL = "vec2face_plus/pose_model.pth"


def used(entries: dict[str, Any], unused: tuple[str, ...]) -> dict[str, Any]:
    """The entries without the unused ones, of which every kind must be there."""
    assert all(any(name.startswith(root) for name in entries) for root in unused)
    return {name: value for name, value in entries.items() if not name.startswith(unused)}


@pytest.mark.skipif(not ROOT.is_dir(), reason=f"no reference folder at {ROOT}; set FACESDK_REFERENCE")
@pytest.mark.parametrize("file", GENERATORS)
def test_generator_has_the_published_entries_but_the_unused(file: str) -> None:
    want = manifest("vec2face", file)
    network = on_meta(lambda: vec2face.Generator(vec2face.ImageDecoder()))
    assert shapes(network) == used(want, vec2face.UNUSED)
    read = generator_of({name: torch.empty(shape, device="meta") for name, shape in want.items()}, vec2face.Generator)
    assert shapes(read) == shapes(network)


@pytest.mark.skipif(not ROOT.is_dir(), reason=f"no reference folder at {ROOT}; set FACESDK_REFERENCE")
def test_pose_generator_has_the_published_entries_of_both_containers() -> None:
    want = {
        name.replace("pose_model::", "pose_model."): shape for name, shape in manifest("vec2face", POSE_MODEL).items()
    }
    updates = [name for name in want if name.endswith((".A", ".B"))]
    assert len(updates) == 2 * 2 * (vec2face.DEPTH + vec2face.DECODER_DEPTH)
    folded = vec2face_plus.fold_lora({name: torch.empty(shape, device="meta") for name, shape in want.items()})
    entries = {name: tuple(value.shape) for name, value in folded.items()}
    network = on_meta(lambda: vec2face_plus.PosedGenerator(vec2face.ImageDecoder()))
    assert shapes(network) == used(entries, vec2face_plus.UNUSED)


@pytest.mark.skipif(not ROOT.is_dir(), reason=f"no reference folder at {ROOT}; set FACESDK_REFERENCE")
def test_every_file_of_vec2face_is_looked_at() -> None:
    files = json.loads((ROOT / "vec2face" / "state_dict.json").read_text(encoding="utf-8"))
    listed = {file for system, file, *_ in MANIFESTS if system == "vec2face"}
    assert listed | {*GENERATORS, POSE_MODEL, "lpips/vgg.pth"} == set(files)
    heads, whole = (files["lpips/vgg.pth"][key] for key in ("entries", "module_entries"))
    network = shapes(on_meta(lambda: LPIPS(named_twice=False)))
    assert network == {name: tuple(shape) for name, shape in whole.items()}
    assert heads.items() <= whole.items()


@pytest.mark.skipif(not ROOT.is_dir(), reason=f"no reference folder at {ROOT}; set FACESDK_REFERENCE")
@pytest.mark.parametrize("file", ["weights/arcface-r100-glint360k.pth", "fr_weights/hsface10k.pth"])
def test_iresnet_is_read_off_its_entry_names(file: str) -> None:
    want = manifest("vec2face", file)
    assert shapes(on_meta(lambda: iresnet_of(want))) == want


@pytest.mark.parametrize("depth", sorted(iresnet_module.LAYERS))
@pytest.mark.parametrize("attention", [False, True])
def test_every_depth_is_recognised(depth: int, attention: bool) -> None:
    layers = iresnet_module.LAYERS[depth]
    network = on_meta(lambda: IResNet(layers, identity_attention=attention))
    assert shapes(on_meta(lambda: iresnet_of(network.state_dict()))) == shapes(network)
    assert sum(name.endswith("conv2.weight") for name in network.state_dict()) == sum(layers)


def test_attention_is_in_the_first_block_of_each_stage_only() -> None:
    network = on_meta(lambda: IResNet(iresnet_module.LAYERS[50], identity_attention=True))
    roots = {name.partition(".attn.")[0] for name in network.state_dict() if ".attn." in name}
    assert roots == {f"layer{i}.0" for i in range(1, 5)}


@pytest.mark.parametrize(
    ("build", "size", "output"),
    [
        (lambda: IResNet((1, 1, 1, 1)), 112, (2, 512)),
        (lambda: IResNet((1, 1, 1, 1), embedding=64, input_size=64), 64, (2, 64)),
        (lambda: IRSE((1, 1, 1, 1)), 112, (2, 512)),
        (lambda: IRSE((1, 1, 1, 1), embedding=32, input_size=224, attention=False), 224, (2, 32)),
        (lambda: Deep3DRecon("resnet18"), 224, (2, 257)),
        (lambda: Deep3DRecon("resnet50", heads=(5, 2)), 256, (2, 7)),
        (SixDRepNet, 224, (2, 3, 3)),
        (lambda: SixDRepNet(deploy=False), 112, (2, 3, 3)),
    ],
)
def test_output_shape(build: Callable[[], Any], size: int, output: tuple[int, ...]) -> None:
    network = on_meta(build).eval()
    assert network(torch.empty((2, 3, size, size), device="meta")).shape == output


# -- 6DRepNet ---------------------------------------------------------------------------------------------


def small(deploy: bool) -> Any:
    return SixDRepNet((2, 2, 1, 1), (8, 8, 12, 16), stem=8, grouped=(2, 3, 4), deploy=deploy).eval()


def test_folding_keeps_what_the_network_computes() -> None:
    """Blocks with and without identity branch, with and without groups, all normalisations away from identity."""
    torch.manual_seed(0)
    training = small(deploy=False)
    for name, value in training.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) + 0.2 if name.endswith("running_var") else 0.5 * torch.randn_like(value))
    entries = training.state_dict()
    assert is_training_form(entries)
    folded = fold_training_form(entries)
    assert not is_training_form(folded)
    deploy = small(deploy=True)
    deploy.load_state_dict(folded)
    image = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        for want, got in zip(training.stage_maps(image), deploy.stage_maps(image), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * float(want.std()))


def test_folding_keeps_prefix_and_type() -> None:
    entries = {f"pose.{name}": value.half() for name, value in small(deploy=False).state_dict().items()}
    folded = fold_training_form(entries)
    assert set(folded) == {f"pose.{name}" for name in small(deploy=True).state_dict()}
    assert {value.dtype for value in folded.values()} == {torch.float16}


def test_rotations_are_rotations_and_angles_restore_them() -> None:
    six = torch.from_numpy(np.random.default_rng(0).standard_normal((50, 6)))
    rotation = rotation_matrix(six)
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3, dtype=torch.float64).expand(50, 3, 3))
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(50, dtype=torch.float64))
    pitch, yaw, roll = euler_angles(rotation).unbind(1)
    zero, one = torch.zeros_like(pitch), torch.ones_like(pitch)

    def turn(*rows: Any) -> Any:
        return torch.stack([torch.stack(row, 1) for row in rows], 1)

    x = turn((one, zero, zero), (zero, pitch.cos(), -pitch.sin()), (zero, pitch.sin(), pitch.cos()))
    y = turn((yaw.cos(), zero, yaw.sin()), (zero, one, zero), (-yaw.sin(), zero, yaw.cos()))
    z = turn((roll.cos(), -roll.sin(), zero), (roll.sin(), roll.cos(), zero), (zero, zero, one))
    torch.testing.assert_close(z @ y @ x, rotation)


def test_six_zeros_give_no_nan() -> None:
    assert torch.equal(rotation_matrix(torch.zeros(1, 6)), torch.zeros(1, 3, 3))
