"""Building, filling and comparing what the HifiFace cases have in common."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from facesdk_export.networks.deep3d import Deep3DRecon
from facesdk_export.networks.hififace import Decoder, Encoder, Generator, IdentityExtractor, SemanticFacialFusion
from facesdk_export.networks.hififace_blocks import AdaIn, AdaInResBlock, ResBlock
from facesdk_export.networks.hififace_xuehy import XuehyFacialFusion
from facesdk_export.networks.iresnet import IResNet

from .reference import compare

Arrays = dict[str, Any]
Run = Callable[[nn.Module, Mapping[str, Any], Sequence[str]], Arrays]


class Step(nn.Module):
    """A function of tensors, and the networks that it uses, as a module that can be exported."""

    def __init__(self, function: Callable[..., Any], *networks: nn.Module) -> None:
        super().__init__()
        self.function, self.networks = function, nn.ModuleList(networks)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*self.networks, *inputs)


def torch_outputs(module: nn.Module, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Arrays:
    """What `module` returns, by name."""
    with torch.inference_mode():
        got = module.eval()(*(torch.from_numpy(np.ascontiguousarray(value)) for value in inputs.values()))
    got = got if isinstance(got, list | tuple) else (got,)
    return {name: value.numpy() for name, value in zip(outputs, got, strict=True)}


# -- networks of a case -----------------------------------------------------------------------------------


def filled(case: Any, network: str, module: nn.Module) -> Any:
    """The module with the case's weights; only entries that the case leaves out keep their own."""
    entries = module.state_dict()
    shapes = {name: value.shape for name, value in entries.items() if value.is_floating_point()}
    values = {name: torch.from_numpy(value) for name, value in case.weights(network, shapes).items()}
    left_out = set(shapes) - set(values)
    excluded = case.facts["network"][network]["fill"]["exclude"]
    assert all(any(re.search(pattern, name) for pattern in excluded) for name in left_out), left_out
    module.load_state_dict(values, strict=False)
    return module.eval()


def f_3d_of(config: Arrays) -> Deep3DRecon:
    return Deep3DRecon(config["backbone"], config["heads"])


def f_id_of(config: Arrays) -> IResNet:
    return IResNet(
        config["layers"], config["widths"], embedding=config["embedding"], input_size=config["input_size"]
    )  # fmt: skip


def generator_of(case: Any) -> Generator:
    """The generator of either system, as the case describes it."""
    config = case.config("generator")
    resize = re.match(r"\w+", config["f_id_resize"]).group()
    f_id = config["f_id"]
    extractor = IdentityExtractor(f_3d_of(config["f_3d"]), f_id_of(f_id), resize, f_id["input_size"])
    encoder = Encoder(config["encoder_channels"], config["encoder_resample"], config["z_enc_after_block"])
    decoder = Decoder(config["decoder_channels"], config["decoder_resample"], config["vector_size"])
    generator = Generator(extractor, encoder, decoder, fusion_of(config))
    return filled(case, "generator", generator)


def fusion_of(config: Arrays) -> Any:
    if config["mask_activation"] == "sigmoid":
        return XuehyFacialFusion(config["sff_sigma"][0], config["vector_size"])
    assert config["mask_activation"] == "tanh"
    return SemanticFacialFusion(
        config["sff_sigma"], config["sff_low_mask"], config["sff_z_fuse"], config["sff_f_up"], config["vector_size"]
    )


def network_of(config: Arrays, kind: str) -> nn.Module:
    """One of the networks of the case `blocks`."""
    if kind == "ResBlock":
        return ResBlock(config["in_channels"], config["out_channels"], config["resample"])
    if kind == "AdaIn":
        return AdaIn(config["channels"], config["vector_size"])
    if kind == "AdaInResBlock":
        return AdaInResBlock(config["in_channels"], config["out_channels"], config["resample"], config["vector_size"])
    return f_id_of(config) if kind == "IResNet" else f_3d_of(config)


# -- comparing --------------------------------------------------------------------------------------------

#: mid_sigma_c0_16: channels 0, 16, 32, ...; face112_ch0: channel 0; out_m_r_rows64_192: rows 64..191
PART = re.compile(r"(?P<whole>.+?)(_c(?P<first>\d+)_(?P<step>\d+))?(_ch(?P<one>\d+))?(_rows(?P<a>\d+)_(?P<b>\d+))?")


def picture_of(case: Any, name: str) -> Any:
    """(n, 3, h, w) in [0, 1] of uint8 pictures (n, h, w, 3)."""
    return np.ascontiguousarray(case.inputs[name].transpose(0, 3, 1, 2), np.float32) / np.float32(255)


def chosen(output: str, got: Arrays) -> Any:
    """The part of a whole array that an output's name speaks of."""
    part = PART.fullmatch(output)
    assert part is not None
    array = got[part["whole"]]
    if part["step"]:
        array = array[:, int(part["first"]) :: int(part["step"])]
    if part["one"]:
        array = array[:, int(part["one"])]
    rows = slice(int(part["a"]), int(part["b"])) if part["a"] else slice(None)
    return array[rows] if part["whole"] == "out_png" else (array[..., rows, :] if part["a"] else array)


def without_size(output: str) -> str:
    """The name without the size in pixels that it may carry: out_crop224 -> out_crop."""
    return re.sub(r"(?<=[a-z])\d{2,}", "", output)


def wrong(case: Any, got: Arrays) -> list[str]:
    """What is wrong with all outputs of a case."""
    texts = [compare(case, output, chosen(output, got)) for output in case.facts["outputs"]]
    return [text for text in texts if text]
