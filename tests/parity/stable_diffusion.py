"""Networks of the Stable Diffusion cases, and the ways of the cases that are about one of them alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from facesdk.diffusion.prompt import first_positions
from facesdk_export.networks.text_encoder import TextEncoder, TextModel, TokenEmbedding
from facesdk_export.networks.vae import Decoder, Encoder
from facesdk_export.stable_diffusion_names import Renamed, block_types, ldm_unet_names, ldm_vae_names
from facesdk_export.stable_diffusion_networks import text_of as text_network
from facesdk_export.stable_diffusion_networks import unet_of as unet_network
from facesdk_export.stable_diffusion_networks import vae_of as vae_network

from .hififace_networks import Arrays, Run, Step, filled, torch_outputs
from .prompts import tokenizer
from .reference import compare
from .vec2face import Wrong, both_ways, wrong

# -- networks of a case -----------------------------------------------------------------------------------


def unet_of(case: Any, network: str = "unet") -> Any:
    """The case's UNet2DConditionModel, whichever vocabulary its configuration has."""
    config = case.config(network)
    if "model_channels" not in config:
        return filled(case, network, unet_network(config).to_empty(device="cpu"))
    unet = unet_network(_unet_config(config)).to_empty(device="cpu")
    return filled(case, network, Renamed(unet, ldm_unet_names(unet.state_dict()))).network


def _unet_config(config: Arrays) -> Arrays:
    """Diffusers' configuration of CompVis'."""
    levels = range(len(config["channel_mult"]))
    return {
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "layers_per_block": config["num_res_blocks"],
        "block_out_channels": [config["model_channels"] * factor for factor in config["channel_mult"]],
        "attention_head_dim": config["num_heads"],
        "cross_attention_dim": config["context_dim"],
        "transformer_layers_per_block": config["transformer_depth"],
        **block_types([2**level in config["attention_resolutions"] for level in levels]),
    }


def vae_of(case: Any, network: str = "vae") -> Any:
    """The case's AutoencoderKL, whichever vocabulary its configuration has."""
    config = case.config(network)
    if "ch_mult" not in config:
        return filled(case, network, vae_network(config).to_empty(device="cpu"))
    vae = vae_network(_vae_config(config)).to_empty(device="cpu")
    return filled(case, network, Renamed(vae, ldm_vae_names(vae.state_dict()))).network


def _vae_config(config: Arrays) -> Arrays:
    assert not config["attn_resolutions"]
    assert config["embed_dim"] == config["z_channels"]
    levels = len(config["ch_mult"])
    return {
        "in_channels": config["in_channels"],
        "out_channels": config["out_channels"],
        "latent_channels": config["z_channels"],
        "layers_per_block": config["num_res_blocks"],
        "block_out_channels": [config["ch"] * factor for factor in config["ch_mult"]],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "scaling_factor": config["scale_factor"],
    }


def text_of(case: Any, network: str = "text") -> TextModel:
    """The case's text encoder; its entries have the same names in both vocabularies."""
    text: TextModel = filled(case, network, text_network(case.config(network)).to_empty(device="cpu"))
    return text


def text2img_networks(case: Any) -> tuple[Any, Any, TextModel]:
    """UNet, autoencoder and text encoder of a case of a single-file checkpoint."""
    assert case.scalars["clip_heads"] == case.config("text")["num_attention_heads"]
    assert case.scalars["scale_factor"] == case.config("vae")["scale_factor"]
    return unet_of(case), vae_of(case), text_of(case)


# -- text -------------------------------------------------------------------------------------------------


def ids_of(prompt: str) -> np.ndarray:
    """Ids (1, 77) of a prompt; too long ones are cut."""
    return tokenizer().encode(prompt, truncate=True)


def text_run(network: TextModel, ids: np.ndarray, run: Run, vectors: Mapping[int, np.ndarray]) -> Arrays:
    """Embeddings, embeddings with some vectors in place of others, hidden states, and the row of the first end."""
    embedded = run(TokenEmbedding(network), {"ids": ids}, ("embeddings",))["embeddings"]
    injected = embedded.copy()
    for position, vector in vectors.items():
        injected[:, position] = vector
    hidden = run(TextEncoder(network), {"embeddings": injected}, ("hidden",))["hidden"]
    pooled = hidden[:, ids[0].argmax()]
    return {"ids": ids, "embeds": embedded, "injected": injected, "hidden": hidden, "pooled": pooled}


def injection(prompt: str, identifiers: list[str], both_tokens: bool, tokens: Arrays) -> tuple[Arrays, np.ndarray]:
    """Position -> vector of `tokens` (first_f, last_f, ...), and the identifiers' positions, as published."""
    positions = first_positions(tokenizer(), prompt, identifiers)
    vectors: dict[Any, np.ndarray] = {first: tokens[f"first_{name}"] for name, first in positions.items()}
    if both_tokens:
        vectors |= {first + 1: tokens[f"last_{name}"] for name, first in positions.items()}
    return vectors, np.array(list(positions.values()))


def text(case: Any, run: Run) -> Wrong:
    network = text_of(case)
    got: Arrays = {}
    for name, facts in case.scalars["runs"].items():
        vectors, positions = injection(facts["prompt"], facts["identifiers"], facts["both_tokens"], case.inputs)
        result = text_run(network, ids_of(facts["prompt"]), run, vectors) | {"pos": positions}
        shown = case.facts["outputs"][f"{name}_embeds"]["shape"][1]
        result |= {part: result[part][:, :shown] for part in ("embeds", "injected")}
        got |= {f"{name}_{part}": value for part, value in result.items()}
    empty = text_run(network, ids_of(""), run, {})
    return wrong(case, got | {f"uncond_{part}": empty[part] for part in ("ids", "hidden")})


def text_full(case: Any, run: Run) -> Wrong:
    (name,), prompt = case.scalars["identifiers"], case.scalars["prompt"]
    given = {f"first_{name}": case.inputs["first"], f"last_{name}": case.inputs["last"]}
    vectors, positions = injection(prompt, [name], case.scalars["both_tokens"], given)
    got = text_run(text_of(case), ids_of(prompt), run, vectors)
    return wrong(case, {"pos": positions, **{part: got[part] for part in ("ids", "hidden", "pooled")}})


# -- autoencoder ------------------------------------------------------------------------------------------


def moments(case: Any, vae: Any, run: Run, image: np.ndarray) -> Arrays:
    """Mean and logvar of float pictures (n, 3, h, w) in [-1, 1], or of uint8 pictures (n, h, w, 3)."""
    encoder = Encoder(vae, tuple(case.scalars["logvar_clamp"]))
    if image.dtype == np.uint8:
        return run(encoder, {"image": image}, ("mean", "logvar"))
    return run(Step(Encoder.moments, encoder), {"image": image}, ("mean", "logvar"))


def decoded(vae: Any, run: Run, latent: np.ndarray) -> np.ndarray:
    got: np.ndarray = run(Decoder(vae), {"latent": np.ascontiguousarray(latent, np.float32)}, ("image",))["image"]
    return got


def vae(case: Any, run: Run) -> Wrong:
    network = vae_of(case)
    assert network.config.scaling_factor == case.scalars["scaling_factor"]
    image = decoded(network, run, case.inputs["z"] * np.float32(case.scalars["scaling_factor"]))
    picture = np.round(255 * (image / 2 + 0.5).clip(0, 1)).astype(np.uint8).transpose(0, 2, 3, 1)
    return wrong(case, {"decoded": image, "image_u8": picture, **moments(case, network, run, case.inputs["img"])})


def autoencoder(case: Any, run: Run) -> Wrong:
    network = vae_of(case)
    assert network.config.scaling_factor == case.scalars["scale_factor"]
    got = moments(case, network, run, case.inputs["image_u8"])
    z = case.scalars["scale_factor"] * (got["mean"] + np.exp(got["logvar"] / 2) * case.inputs["noise"])
    images = {"decoded": decoded(network, run, z), "decoded_random": decoded(network, run, case.inputs["z_random"])}
    return wrong(case, got | images | {"z": z})


# -- UNet -------------------------------------------------------------------------------------------------

#: intermediate output of a case -> the layer whose output it is
STAGES = {
    "temb": "time_embedding", "conv_in": "conv_in", "down0": "down_blocks.0", "mid": "mid_block", "up0": "up_blocks.0"
}  # fmt: skip


def unet(case: Any) -> Wrong:
    network, x, context = unet_of(case), case.inputs["x"], case.inputs["ctx"]
    step, steps = case.scalars["timestep"], case.scalars["batch_timesteps"]
    got, stages = unet_run(network, x, step, context)
    each, _ = unet_run(network, x, steps, context)
    odd, _ = unet_run(network, case.inputs["x_odd"], step, context[:1])
    return wrong(case, {"out": got, **stages, "out_batch_t": each, "out_odd": odd})


def unet_run(network: nn.Module, x: np.ndarray, steps: float | list[int], context: np.ndarray) -> tuple[Any, Arrays]:
    """What the UNet predicts, and its stages on the way."""
    stages: Arrays = {}
    hooks = [network.get_submodule(layer).register_forward_hook(_keep(stages, name)) for name, layer in STAGES.items()]
    with torch.inference_mode():
        out = network(torch.from_numpy(x), torch.tensor(steps), torch.from_numpy(context)).sample
    for hook in hooks:
        hook.remove()
    return out.numpy(), stages


def _keep(stages: Arrays, name: str) -> Callable[..., None]:
    def hook(_: nn.Module, __: Any, out: Any) -> None:
        stages[name] = (out[0] if isinstance(out, tuple) else out).numpy()

    return hook


FACE2DIFFUSION = {
    "text": both_ways(text),
    "text_full": both_ways(text_full),
    "vae": both_ways(vae),
    "unet": {"torch": unet},
}
DENSE_FACE = {"autoencoder": both_ways(autoencoder)}


def text2img_first(case: Any, run: Run = torch_outputs) -> Wrong:
    """What is wrong with the first step of a plain Stable Diffusion case: both prompts, and one prediction."""
    network, _, encoder = text2img_networks(case)
    ids = {
        "token_ids": ids_of(case.scalars["prompt"]),
        "negative_token_ids": ids_of(case.scalars["negative_prompt"]),
    }
    wrong_ids = [f"{name} differ" for name, got in ids.items() if (got != case.inputs[name]).any()]
    embeds = text_run(encoder, ids["token_ids"], run, {})["hidden"]
    negative = text_run(encoder, ids["negative_token_ids"], run, {})["hidden"]
    eps, _ = unet_run(network, case.inputs["latents"], float(case.arrays["timesteps"][0]), embeds)
    got = {"prompt_embeds": embeds, "negative_embeds": negative, "eps_first": eps}
    return wrong_ids + [text for name, value in got.items() if (text := compare(case, name, value))]
