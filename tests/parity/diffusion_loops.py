"""Ways of the cases that sample: torch networks under the samplers' own loop, and the SDK on a bundle of engines."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from facesdk.bundle import Bundle
from facesdk.diffusion.conditioning import Conditioning, condition, hidden_states, read_prompt, stacked
from facesdk.diffusion.face_tokens import FaceTokens, inject
from facesdk.diffusion.generate import generate
from facesdk.diffusion.loop import denoise
from facesdk.diffusion.networks import DiffusionNetworks
from facesdk.diffusion.options import GenerateOptions
from facesdk.diffusion.samplers import Sampler, SamplerOptions, run, sampler
from facesdk.diffusion.schedule import NoiseSchedule
from facesdk_export.bundles import Recipe, export
from facesdk_export.networks import MSID, MappingNetwork
from facesdk_export.networks.text_encoder import TextEncoder, TokenEmbedding
from facesdk_export.networks.vae import Decoder
from facesdk_export.recipes.encoders import encoder_constants, encoder_part
from facesdk_export.recipes.face2diffusion import WORDS
from facesdk_export.recipes.face_tokens import mapping_part
from facesdk_export.recipes.stable_diffusion import stable_diffusion_parts
from facesdk_export.stable_diffusion import StableDiffusion

from .face2diffusion import _mapping as mapping_network
from .prompts import faces as face_tokens
from .prompts import run_placement, tokenizer
from .reference import compare
from .stable_diffusion import text_of, unet_of, vae_of
from .vec2face import Wrong, wrong

Arrays = dict[str, np.ndarray]
_SCHEDULERS = {"EulerAncestralDiscrete": "euler-ancestral", "DDIM": "ddim"}

# -- what a case asks for ---------------------------------------------------------------------------------


def schedule_of(scalars: Mapping[str, Any]) -> NoiseSchedule:
    """The noise schedule, in either vocabulary."""
    if "beta_start" in scalars:
        kind = scalars["beta_schedule"]
        return NoiseSchedule(scalars["num_train_timesteps"], scalars["beta_start"], scalars["beta_end"], kind)
    return NoiseSchedule(scalars["timesteps"], scalars["linear_start"], scalars["linear_end"])


def sampler_of(scalars: Mapping[str, Any], steps: int) -> Sampler:
    prediction = {"eps": "epsilon"}.get(name := scalars.get("prediction_type") or scalars["parameterization"], name)
    scheduler: Any = _SCHEDULERS[scalars["scheduler"]]
    knobs = {name: scalars[name] for name in ("steps_offset", "set_alpha_to_one", "eta") if name in scalars}
    options = SamplerOptions(scheduler, steps, spacing=scalars["timestep_spacing"], prediction=prediction, **knobs)
    return sampler(options, schedule_of(scalars))


def pictures(image: np.ndarray) -> np.ndarray:
    """(n, h, w, 3) in [0, 1] of (n, 3, h, w) in [-1, 1]."""
    return (image / 2 + 0.5).clip(0, 1).transpose(0, 2, 3, 1)


# -- torch ------------------------------------------------------------------------------------------------


@torch.inference_mode()
def computed(module: nn.Module, *inputs: np.ndarray) -> Any:
    """Outputs of a module as arrays."""
    out = module(*(torch.from_numpy(np.ascontiguousarray(each)) for each in inputs))
    return tuple(each.numpy() for each in out) if isinstance(out, tuple) else out.numpy()


def guided(unet: Any, conditions: Callable[[int], np.ndarray], guidance: float) -> Callable[[Any, float], Any]:
    """The network of a sampler: prediction of the second condition, held against that of the first.

    conditions  number of the step -> text (2, tokens, width).
    """
    step = iter(range(10**6))

    @torch.inference_mode()
    def predict(x: np.ndarray, timestep: float) -> np.ndarray:
        text: Tensor = torch.from_numpy(conditions(next(step))).repeat_interleave(len(x), 0)
        both = torch.from_numpy(np.concatenate([x, x]))
        without, with_text = unet(both, torch.tensor(timestep, dtype=torch.float32), text).sample.chunk(2)
        out: np.ndarray = (without + guidance * (with_text - without)).numpy()
        return out

    return predict


def loop_torch(case: Any) -> Wrong:
    unet, text, vae, mapper = unet_of(case), text_of(case), vae_of(case), mapping_network(case, "mapper")
    encode = lambda ids, swap=lambda rows: rows: computed(TextEncoder(text), swap(computed(TokenEmbedding(text), ids)))  # noqa: E731
    negative = encode(tokenizer().encode([case.scalars["negative_prompt"]]))
    got: Arrays = {}
    for name, facts in case.scalars["runs"].items():
        first, last = computed(mapper, case.inputs[f"{name}_idvec"])
        placement = run_placement(facts)
        firsts, lasts = (dict(zip(facts["identifiers"], rows, strict=True)) for rows in (first, last))
        people = face_tokens(firsts, lasts if facts["both_tokens"] else None)
        hidden = encode(placement.ids[None], lambda rows, p=placement, t=people: inject(rows[0], p, t)[None])
        both = np.concatenate([negative, hidden])
        way = sampler_of(case.scalars, facts["steps"])
        start = np.float32(way.initial) * case.inputs[f"{name}_latents_in"]
        network = guided(unet, lambda step, both=both: both, facts["guidance"])
        latents = np.stack(run(way, network, start, case.inputs[f"{name}_noise"])[1:])
        image = pictures(computed(Decoder(vae), latents[-1]))
        got |= _run_outputs(case, name, placement, first, last, hidden, latents, image)
    return wrong(case, got)


def _run_outputs(
    case: Any, name: str, placement: Any, first: Any, last: Any, hidden: Any, latents: Any, image: Any
) -> Arrays:
    shown = case.facts["outputs"][f"{name}_cond"]["shape"][1]
    positions = [places[0] for places in placement.positions.values()]
    outputs = {
        "ids": placement.ids[None], "pos": np.array(positions), "first": first, "last": last,
        "cond": hidden[:, :shown], "traj": latents, "image": image[:, ::2, ::2], "image_u8": np.round(255 * image),
    }  # fmt: skip
    return {f"{name}_{part}": value for part, value in outputs.items()}


def delayed_torch(case: Any) -> Wrong:
    text = text_of(case)
    null = computed(TextEncoder(text), computed(TokenEmbedding(text), tokenizer().encode([""])))
    got = {"null": null}
    for merge in case.scalars["start_merge_steps"]:
        plain, subject = (np.concatenate([null, case.inputs[name]]) for name in ("txt", "aug"))
        network = guided(
            unet_of(case), lambda step, p=plain, s=subject, m=merge: p if step <= m else s, case.scalars["guidance"]
        )
        way = sampler_of(case.scalars, case.scalars["steps"])
        start = np.float32(way.initial) * case.inputs["latents_in"]
        got[f"start{merge}_traj"] = np.stack(run(way, network, start, case.inputs[f"start{merge}_noise"])[1:])
    return wrong(case, got)


def text2img_torch(case: Any) -> Wrong:
    unet, text, scalars = unet_of(case), text_of(case), case.scalars
    prompt, negative = (
        computed(TextEncoder(text), computed(TokenEmbedding(text), tokenizer().encode([scalars[name]])))
        for name in ("prompt", "negative_prompt")
    )
    way = sampler_of(scalars, scalars["steps"])
    network = guided(unet, lambda step: np.concatenate([negative, prompt]), scalars["guidance"])
    latents = np.stack(run(way, network, np.float32(way.initial) * case.inputs["latents"])[1:])
    first = guided(unet, lambda step: np.concatenate([negative, prompt]), 1.0)
    return wrong_text2img(case, prompt, negative, way, first(case.inputs["latents"], way.timesteps[0]), latents,
                          computed(Decoder(vae_of(case)), latents[-1]))  # fmt: skip


def wrong_text2img(case: Any, prompt: Any, negative: Any, way: Sampler, first: Any, latents: Any, image: Any) -> Wrong:
    ids = {f"{key}token_ids": case.scalars[name] for key, name in (("", "prompt"), ("negative_", "negative_prompt"))}
    differ = [f"{key} differ" for key, text in ids.items() if (tokenizer().encode([text]) != case.inputs[key]).any()]
    return differ + wrong(case, {
        "prompt_embeds": prompt, "negative_embeds": negative, "timesteps": way.timesteps, "eps_first": first,
        "latents_after_step": latents.reshape(-1, *latents.shape[2:]), "image": pictures(image),
    })  # fmt: skip


# -- the SDK on engines -----------------------------------------------------------------------------------


@contextlib.contextmanager
def bundle_of(case: Any, faces: Sequence[MappingNetwork] = ()) -> Iterator[DiffusionNetworks]:
    """The case's networks as a bundle on ONNX Runtime; `faces`: its mapping network, for both methods."""
    scalars, unet = case.scalars, unet_of(case)
    vae, text = vae_of(case) if "vae" in case.facts["network"] else _small_vae(), text_of(case)
    cell, schedule = 2 ** (len(vae.config.block_out_channels) - 1), schedule_of(scalars)
    constants = {
        "prediction": "epsilon", "scaling_factor": vae.config.scaling_factor, "cell": cell,
        "latent_channels": vae.config.latent_channels, "tokens": case.config("text")["max_position_embeddings"],
        "width": case.config("text")["hidden_size"], "timesteps": schedule.steps, "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end, "beta_schedule": schedule.kind, "size": 64 * cell,
    }  # fmt: skip
    parts = stable_diffusion_parts(StableDiffusion(unet, vae, text, constants, report="", path=Path("a case")))
    for network in faces:
        parts |= {"encoder": encoder_part(MSID((0,), dim=12, depth=1), 112)}
        parts |= {name: mapping_part(network, name) for name in ("mapping", "mapping_mf2d")}
    for name, part in parts.items():
        parts[name] = part if isinstance(part, bytes) else dataclasses.replace(part, files=())
    tables = {"faces": {**WORDS, "methods": ["f2d", "mf2d"]}, **encoder_constants("msid", normalised=False)}
    recipe = Recipe("face2diffusion", "a case", "", "no", lambda: parts, tables if faces else {}, {})
    with tempfile.TemporaryDirectory(prefix="facesdk-parity-") as folder:
        export(recipe, {}, Path(folder) / "bundle")
        with DiffusionNetworks(Bundle(Path(folder) / "bundle"), "cpu") as networks:
            yield networks


def _small_vae() -> Any:
    """For a case without one: a bundle has to have an autoencoder."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    return AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).eval().requires_grad_(False)


def trajectory(networks: DiffusionNetworks, way: Sampler, told: Conditioning, start: Any, noise: Any = None) -> Any:
    latents: list[np.ndarray] = []
    start = np.float32(way.initial) * start
    end = denoise(networks, way, told, start, noise, on_latents=lambda _, x, clean: latents.append(x.copy()), every=1)
    assert np.array_equal(latents[-1], end)
    return np.stack(latents)


def loop_sdk(case: Any) -> Wrong:
    got: Arrays = {}
    with bundle_of(case, [mapping_network(case, "mapper")]) as networks:
        for name, facts in case.scalars["runs"].items():
            got |= _loop_run(case, networks, name, facts)
    return wrong(case, got)


def _loop_run(case: Any, networks: DiffusionNetworks, name: str, facts: Mapping[str, Any]) -> Arrays:
    method: Any = "f2d" if facts["both_tokens"] else "mf2d"
    vectors, inputs = case.inputs[f"{name}_idvec"], case.inputs
    none = np.zeros((len(vectors), case.config("mapper")["exp_dim"]), np.float32)
    first, last = networks.map_faces(vectors, none, none[:, 0], method)
    space = networks.token_space(method)
    people = {
        who: FaceTokens(first[row], last[row] if facts["both_tokens"] else None, space)
        for row, who in enumerate(facts["identifiers"])
    }
    way = sampler_of(case.scalars, facts["steps"])
    cell, (height, width) = networks.settings.cell, inputs[f"{name}_latents_in"].shape[2:]
    scheduler, spacing = _SCHEDULERS[case.scalars["scheduler"]], case.scalars["timestep_spacing"]
    options = GenerateOptions(
        method=method, scheduler=scheduler, spacing=spacing, steps=facts["steps"], guidance=facts["guidance"],
        images=facts["n"], negative=case.scalars["negative_prompt"], width=cell * width, height=cell * height,
    )  # fmt: skip
    reading = read_prompt(networks, facts["prompt"], people, options)
    told = condition(networks, reading, options, facts["guidance"])
    latents = trajectory(networks, way, told, inputs[f"{name}_latents_in"], inputs[f"{name}_noise"])
    image = pictures(networks.engines.run("vae_decoder", latent=latents[-1])["image"])
    made = generate(
        networks, facts["prompt"], people, options,
        latents=inputs[f"{name}_latents_in"], noise=inputs[f"{name}_noise"],
    )  # fmt: skip
    hidden = hidden_states(networks, reading, options)
    outputs = _run_outputs(case, name, reading.placement, first, last, hidden, latents, image)
    return outputs | {f"{name}_image_u8": made.images}


def delayed_sdk(case: Any) -> Wrong:
    guidance, way = case.scalars["guidance"], sampler_of(case.scalars, case.scalars["steps"])
    weights = np.array([1 - guidance, guidance], np.float32)
    with bundle_of(case) as networks:
        got = {"null": networks.hidden(networks.embed(networks.tokenizer.encode([""])))}
        contexts = {name: networks.context(case.inputs[name]) for name in ("txt", "aug")}
        null = networks.context(got["null"])
        for merge in case.scalars["start_merge_steps"]:
            segments = ((0, stacked([null, contexts["txt"]])), (merge + 1, stacked([null, contexts["aug"]])))
            noise = case.inputs[f"start{merge}_noise"]
            told = Conditioning(weights, segments)
            got[f"start{merge}_traj"] = trajectory(networks, way, told, case.inputs["latents_in"], noise)
    return wrong(case, got)


def text2img_sdk(case: Any) -> Wrong:
    scalars, way = case.scalars, sampler_of(case.scalars, case.scalars["steps"])
    options = GenerateOptions(negative=scalars["negative_prompt"])
    with bundle_of(case) as networks:
        reading = read_prompt(networks, scalars["prompt"], {}, options)
        told = condition(networks, reading, options, scalars["guidance"])
        latents = trajectory(networks, way, told, case.inputs["latents"])
        # the network's own prediction: one condition, and a matrix that keeps nothing else
        prediction = dataclasses.replace(
            way, timesteps=way.timesteps[:1], scales=way.scales[:1], matrices=np.array([[[0.0, 1.0, 0.0]]]),
            levels=way.levels[:2], clean=way.clean[:1],
        )  # fmt: skip
        alone = condition(networks, reading, options, 1.0)
        first = denoise(networks, prediction, alone, case.inputs["latents"])
        hidden = [networks.hidden(networks.embed(networks.tokenizer.encode([scalars[name]])))
                  for name in ("prompt", "negative_prompt")]  # fmt: skip
        image = networks.engines.run("vae_decoder", latent=latents[-1])["image"]
    return wrong_text2img(case, *hidden, way, first, latents, image)


# -- Dense-Face's step, of its sampler --------------------------------------------------------------------


def ddim_step(case: Any) -> Wrong:
    """What the sampler makes of the recorded predictions; the networks of this case are others."""
    scalars = case.scalars
    options = SamplerOptions("ddim", scalars["steps"], spacing="ldm", eta=scalars["eta"])
    way = sampler(options, schedule_of(scalars))
    index = len(way.timesteps) - 1 - scalars["index"]
    assert way.timesteps[index] == scalars["t"]
    without, with_text = case.arrays["eps_uncond"], case.arrays["eps_cond"]
    eps = without + scalars["guidance"] * (with_text - without)
    columns = np.stack([case.inputs["x"], eps, case.inputs["noise"]]).astype(np.float64)
    got = {
        "x_prev": np.tensordot(way.matrices[index, 0], columns, 1),
        "pred_x0": np.tensordot(way.clean[index], columns, 1),
    }
    return [text for name, value in got.items() if (text := compare(case, name, value))]


FACE2DIFFUSION = {
    "loop": {"torch": loop_torch, "sdk": loop_sdk},
    "delayed": {"torch": delayed_torch, "sdk": delayed_sdk},
}
DENSE_FACE = {
    "text2img_loop": {"torch": text2img_torch, "sdk": text2img_sdk},
    "ddim_step": {"sdk": ddim_step, "torch": None, "onnx": None},
}
