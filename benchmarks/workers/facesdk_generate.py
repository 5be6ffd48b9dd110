"""Worker: an engine of a Stable Diffusion bundle, or a graph of the UNet alone with the rest on the host.

Arguments: bundle folder, case or graph file, device, precision, threads.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from generation_inputs import GUIDANCE, NEXT_SIGMA, SCALE, SIGMA, TIMESTEP, inputs

from facesdk import Bundle, Engine
from facesdk.machine import peak_resident_mb
from harness import serve, timed

folder, case, device, precision, threads = sys.argv[1:]
bundle = Bundle(folder)
if case in ("step", "vae"):
    engine = bundle.open({"vae": "vae_decoder"}.get(case, case), device, precision=precision, threads=int(threads))
else:
    engine = Engine.open(case, device, precision=precision, threads=int(threads))
wanted = {tensor.name for tensor in engine.inputs}
latent, text = inputs()


def companion(name, **arrays):
    with bundle.open(name, "cpu") as opened:
        return opened(**arrays)


def fixed():
    """What does not change between steps: time row, keys and values, or the text itself."""
    if "timestep" in wanted:
        return {"timestep": np.float32([TIMESTEP]), "text": text}
    rows = companion("time", timestep=np.float32([TIMESTEP]))["rows"]
    return {"time": rows[0], **companion("context", text=text)}


def step():
    """Everything in the graph, scanned as a generation does it."""
    zeros = np.zeros_like(latent)
    fixed = {"noise": zeros, "blend_noise": zeros, "known": zeros, "mask": np.ones_like(latent[:, :1])}
    fixed |= {"level": np.zeros(2, np.float32), "weights": np.float32([1 - GUIDANCE, GUIDANCE]), **constants}
    rows = {"scale": np.float32([[SCALE]]), "matrix": np.float32([[[1, NEXT_SIGMA - SIGMA, 0]]])}
    return engine.scan({"bank": latent[:, None]}, rows, fixed)["bank"][:, 0]


def prediction():
    """Guidance and update on the host."""
    rows = np.concatenate([latent, latent]) * np.float32(SCALE)
    without, with_ = np.split(engine(x=rows, **constants)["prediction"], 2)
    return latent + np.float32(NEXT_SIGMA - SIGMA) * (without + np.float32(GUIDANCE) * (with_ - without))


def decode():
    return engine(latent=latent)["image"]


run = decode if case == "vae" else step if "bank" in wanted else prediction
constants = {} if case == "vae" else fixed()


def answer(question):
    if question["do"] == "about":
        return engine.description
    if question["do"] == "memory":
        return peak_resident_mb()
    if question["do"] == "output":
        result = run() if case == "vae" else run() - latent
        return result.ravel()[::37].tolist()
    return timed(run, question["calls"])


serve(answer)
