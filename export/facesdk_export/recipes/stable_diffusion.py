"""Stable Diffusion 1.x: text encoder, denoising step with its companions, and the two halves of the autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from facesdk.card import Card
from facesdk.plans.profiles import Sizes
from facesdk_engines.precision_islands import Islands
from facesdk_engines.winograd import Limits, Winograd

from ..bundles import Recipe
from ..networks.denoising_step import ContextKeys, DenoisingStep, TimeRows, context_layers, context_names
from ..networks.text_encoder import TextEncoder, TokenEmbedding
from ..networks.vae import Decoder, Encoder
from ..onnx_export import Free, Part
from ..stable_diffusion import StableDiffusion, read_stable_diffusion, tokenizer_json
from .parts import ALONE, example_picture

LICENCE = "LicenseRef-CreativeML-OpenRAIL-M"
NAME = "stable_diffusion"
FILE = "folder of diffusers or single file (.ckpt, .safetensors) of Stable Diffusion 1.x"
#: scheduler of CompVis/stable-diffusion-v1-4, steps and guidance of diffusers' StableDiffusionPipeline
DEFAULTS: dict[str, Any] = {"scheduler": "plms", "spacing": "auto", "steps": 50, "guidance": 7.5}
_SIDES = (16, 18)  # latent of the examples: no two axes of equal size, none of size 1 on the lowest level
# benchmarks/generate.py, 2 threads: OpenVINO's step gains by its wide convolutions alone
_STEP = {"cpu": Winograd(), "openvino-fp32": Winograd(limits=Limits(least_channels=640))}
# 4 bands: 3.9 GB in place of 5.7 GB to decode 512 px in ONNX Runtime, in 2 % more time
_AUTOENCODER = dict.fromkeys(("cpu", "openvino-fp32"), Winograd(bands=4))
#: rows of plans: one prompt a call, or a few; a picture at a time through the autoencoder; a sampler's steps
_PROMPTS: Mapping[str, Sizes] = {"batch": (1, 1, 4)}
_TIMES: Mapping[str, Sizes] = {"batch": (1, DEFAULTS["steps"], 1000)}
#: of the step's: pictures, what samplers remember (PLMS five, previews one more), with and without guidance
_STEP_SIZES: Mapping[str, Sizes] = {
    "batch": (1, 1, 4), "memory": (1, 1, 6), "conditions": (1, 2, 2), "rows": (1, 2, 2),
}  # fmt: skip
_LATENT = {0: "batch", 2: "height", 3: "width"}
_FREE: Mapping[str, Mapping[int, str]] = {
    "bank": {0: "batch", 1: "memory", 3: "height", 4: "width"}, "matrix": {0: "memory", 1: "memory + 2"},
    "weights": {0: "conditions"}, **dict.fromkeys(("noise", "blend_noise", "known", "mask"), _LATENT),
}  # fmt: skip
_MEANINGS = {
    "bank": "(n, k, 4, h, w) the latent and what the sampler remembers",
    "scale": "(1,) of the latent before the network", "time": "one row of the engine time",
    "matrix": "(k, k + 2) next bank of bank, prediction and noise",
    "weights": "(c,) of the conditions' predictions", "noise": "(n, 4, h, w) standard normal",
    "level": "(2,) of known and of blend_noise where the mask is 0", "blend_noise": "(n, 4, h, w) standard normal",
    "known": "(n, 4, h, w) latent that is kept where the mask is 0", "mask": "(n, 1, h, w) 1: change, 0: keep",
}  # fmt: skip


def stable_diffusion_parts(stable_diffusion: StableDiffusion) -> dict[str, Part | bytes]:
    """Engine name -> Part, and the bundle's tokenizer.json: the folder's, or of a single file OpenAI's."""
    path = stable_diffusion.path
    return {
        "tokenizer.json": tokenizer_json(path if path.is_dir() else None),
        **_text_parts(stable_diffusion),
        **_denoising_parts(stable_diffusion),
        **_autoencoder_parts(stable_diffusion),
    }


def _text_parts(networks: StableDiffusion) -> dict[str, Part]:
    tokens, width = networks.constants["tokens"], networks.constants["width"]
    ids = torch.randint(0, 400, (2, tokens), generator=torch.Generator().manual_seed(0))
    taken = {
        "ids": f"int64 (n, {tokens}) CLIP's byte-pair encoding, padded with its end token",
        "embeddings": f"(n, {tokens}, {width}) token plus position embeddings",
    }
    table, encoder = TokenEmbedding(networks.text), TextEncoder(networks.text)
    inputs = {"embeddings": table(ids).detach()}
    hidden = {"hidden": f"(n, {tokens}, {width}) after the final norm"}
    return {
        "embedding": _part(table, "embeddings of a prompt", {"ids": ids}, taken, {"embeddings": taken["embeddings"]}),
        "text": _part(encoder, "text encoder", inputs, taken, hidden),
    }


def _denoising_parts(networks: StableDiffusion) -> dict[str, Part]:
    unet, known = networks.unet, networks.constants
    text, timestep = _normal(1, 2, known["tokens"], known["width"]), torch.tensor([0.0, 964.5517, 999.0])
    with torch.no_grad():
        names, pairs, rows = context_names(unet), ContextKeys(unet)(text), TimeRows(unet)(timestep)
    widths = {name: f"(r, {known['tokens']}, {pair.shape[2]})" for name, pair in zip(names, pairs, strict=True)}
    meanings = _MEANINGS | widths
    constants = {**DEFAULTS, **known, "layers": context_layers(unet), "time_width": rows.shape[1]}
    context = _part(
        ContextKeys(unet), "keys and values of a prompt", {"text": text},
        {"text": "output of the text encoder, condition by condition"}, widths,
    )  # fmt: skip
    time = _part(
        TimeRows(unet), "time projections", {"timestep": timestep}, {"timestep": "(s,) 0 to 999, fractions allowed"},
        {"rows": f"(s, {rows.shape[1]}) every block's, one after the other"}, sizes=_TIMES, half=False,
    )  # fmt: skip
    inputs = _step_inputs(known["latent_channels"]) | {"time": rows[1]} | dict(zip(names, pairs, strict=True))
    inputs = {name: inputs[name] for name in (*_ORDER, *names)}
    step = _part(
        DenoisingStep(unet), "one denoising step", inputs, meanings, {"next_bank": "(n, k, 4, h, w)"},
        {**_FREE, **{name: {0: "rows"} for name in names}}, sizes={**_STEP_SIZES, **_sides(known)},
        islands=Islands(inputs=tuple(name for name in _ORDER if name != "time")), winograd=_STEP,
        constants={"diffusion": constants},
    )  # fmt: skip
    return {"context": context, "time": time, "step": step}


_ORDER = ("bank", "scale", "time", "matrix", "weights", "noise", "level", "blend_noise", "known", "mask")


def _step_inputs(channels: int) -> dict[str, Tensor]:
    """Three pictures, two slots of memory, two conditions, of which one row each serves all pictures."""
    latent, memory = (3, channels, *_SIDES), 2
    mask = (torch.rand((3, 1, *_SIDES), generator=torch.Generator().manual_seed(9)) > 0.3).float()
    return {
        "bank": _normal(2, 3, memory, *latent[1:]), "scale": torch.tensor([0.7]),
        "matrix": _normal(3, memory, memory + 2), "weights": torch.tensor([-6.0, 7.0]), "noise": _normal(4, *latent),
        "level": torch.tensor([0.8, 0.6]), "blend_noise": _normal(5, *latent), "known": _normal(6, *latent),
        "mask": mask,
    }  # fmt: skip


def _autoencoder_parts(networks: StableDiffusion) -> dict[str, Part]:
    vae, known = networks.vae, networks.constants
    channels, cell = known["latent_channels"], known["cell"]
    latent = {"latent": _normal(7, 2, channels, *_SIDES)}
    image = {"image": example_picture(8 * _SIDES[0])}
    shape = f"(n, {channels}, h, w)"
    decoder = _part(
        Decoder(vae), "pictures of latents", latent, {"latent": f"{shape} as the sampler leaves it"},
        {"image": "RGB (n, 3, 8h, 8w), nominally in [-1, 1]"}, _LATENT, sizes={**ALONE, **_sides(known)},
        winograd=_AUTOENCODER,
    )  # fmt: skip
    encoder = _part(
        Encoder(vae), "latents of pictures", image, {"image": "uint8 RGB (n, 8h, 8w, 3)"},
        {"mean": f"{shape} before scaling", "logvar": f"{shape} log variance, clamped"},
        {0: "batch", 1: "height", 2: "width"}, sizes={**ALONE, **_sides(known, cell)}, winograd=_AUTOENCODER,
    )  # fmt: skip
    return {"vae_decoder": decoder, "vae_encoder": encoder}


def _sides(known: Mapping[str, Any], scale: int = 1) -> dict[str, Sizes]:
    """Of plans, times `scale`: the least that facesdk.diffusion takes, the network's own, half as much again."""
    own = known["size"] // known["cell"]
    least, best, most = (scale * side for side in (min(8, own), own, own * 3 // 2))
    return dict.fromkeys(("height", "width"), (least, best, most))


def _part(
    module: nn.Module, about: str, inputs: Mapping[str, Tensor], taken: Mapping[str, str], given: Mapping[str, str],
    free: Free | None = None, **facts: Any,
) -> Part:  # fmt: skip
    card = Card(about=about, inputs={name: taken[name] for name in inputs}, outputs=given, licence=LICENCE)
    facts = {"free": {0: "batch"} if free is None else free, "sizes": _PROMPTS, "files": (NAME,)} | facts
    return Part(module, inputs, tuple(given), card, **facts)


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


STABLE_DIFFUSION = Recipe(
    "stable-diffusion", "Stable Diffusion 1.x: text to image, image to image, inpainting", LICENCE, "ask",
    stable_diffusion_parts, {}, {NAME: FILE}, readers={NAME: read_stable_diffusion},
)  # fmt: skip
