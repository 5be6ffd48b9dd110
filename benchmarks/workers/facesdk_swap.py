"""Worker: HifiFace on engines.  Arguments: bundle folder, device, precision, threads."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from facesdk import Bundle
from facesdk.machine import peak_resident_mb
from facesdk.swap.networks import SourceFace, SwapNetworks
from harness import serve, timed

folder, device, precision, threads = sys.argv[1:]
networks = SwapNetworks(Bundle(folder), device, int(threads), precision=precision)
face, crop = (np.random.default_rng(seed).random((256, 256, 3), np.float32) for seed in (0, 1))
source, target = networks.source(face), networks.target(crop)


def core():
    encoded = networks.run("target", target=target.crop)
    vector = np.concatenate([source.shape, target.coefficients[80:], source.identity])[None]
    return networks.run("decoder", target=target.crop, vector=vector, **encoded)


def series():
    """What `interpolate` does: the target once, then a vector and the decoder for every frame."""
    seen = networks.target(crop)
    own = networks.own(seen)
    first = networks.source(face)
    return [networks.swap(networks.between(first, own, rate, rate), seen) for rate in np.linspace(0, 1, 21)]


def recomputed():
    frames = []
    for rate in np.linspace(0, 1, 21):
        seen = networks.target(crop)
        between = networks.between(networks.source(face), networks.own(seen), rate, rate)
        frames.append(networks.swap(between, seen))
    return frames


WORK = {"core": core, "frame": lambda: networks.swap(source, networks.target(crop)), "series": series,
        "recomputed": recomputed}  # fmt: skip


def answer(question):
    if question["do"] == "about":
        return networks.description
    if question["do"] == "memory":
        return peak_resident_mb()
    if question["do"] == "outputs":
        fixed = SourceFace(np.eye(1, 512, dtype=np.float32)[0], np.zeros(80, np.float32))
        return networks.swap(fixed, target)[0].ravel()[::37].tolist()
    return timed(WORK[question["do"]], question["calls"])


serve(answer)
