"""Worker: diffusers in torch's eager mode.  Arguments: folder of diffusers, case, threads."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import diffusers
from diffusers import AutoencoderKL, UNet2DConditionModel
from generation_inputs import GUIDANCE, NEXT_SIGMA, SCALE, SIGMA, TIMESTEP, inputs

from facesdk.machine import peak_resident_mb
from harness import serve, timed

folder, case, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.set_num_threads(threads)
kind, part = {"step": (UNet2DConditionModel, "unet"), "vae": (AutoencoderKL, "vae")}[case]
network = kind.from_pretrained(folder, subfolder=part)
network.eval().requires_grad_(False)
latent, text = map(torch.from_numpy, inputs())


def step():
    rows = torch.cat([latent, latent]) * SCALE
    without, with_ = network(rows, TIMESTEP, text).sample.chunk(2)
    guided = without + GUIDANCE * (with_ - without)
    return latent + (NEXT_SIGMA - SIGMA) * guided


def decode():
    return network.decode(latent / network.config.scaling_factor).sample


run = {"step": step, "vae": decode}[case]


def answer(question):
    if question["do"] == "about":
        return f"torch {torch.__version__}, diffusers {diffusers.__version__}"
    if question["do"] == "memory":
        return peak_resident_mb()
    with torch.inference_mode():
        if question["do"] == "output":
            result = run() - latent if case == "step" else run()
            return result.ravel()[::37].tolist()
        return timed(run, question["calls"])


serve(answer)
