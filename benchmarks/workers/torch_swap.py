"""Worker: HifiFace's published form as torch modules in eager mode.  Arguments: checkpoint, threads."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from facesdk.machine import peak_resident_mb
from facesdk_export.checkpoints import load_into, read_checkpoint
from facesdk_export.networks import Deep3DRecon, IResNet
from facesdk_export.networks.hififace import published_generator
from harness import serve, timed

torch.set_num_threads(int(sys.argv[2]))
generator = published_generator(Deep3DRecon(), IResNet((3, 13, 30, 3)))
load_into(generator, read_checkpoint(sys.argv[1]), "generator.")
source, target = (torch.rand((1, 3, 256, 256), generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
vector = generator.id_extractor(source, target).detach()
WORK = {
    "core": lambda: generator.swap(target, vector),
    "frame": lambda: generator(source, target),
    "series": lambda: [generator(source, target) for _ in range(21)],
}


def answer(question):
    if question["do"] == "about":
        return f"torch {torch.__version__}"
    if question["do"] == "memory":
        return peak_resident_mb()
    with torch.inference_mode():
        return timed(WORK[question["do"]], question["calls"])


serve(answer)
