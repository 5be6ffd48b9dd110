"""Worker: Vec2Face's published form in torch's eager mode.  Arguments: folder of checkpoints, case, threads."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from synthesis_inputs import inputs

from facesdk.machine import peak_resident_mb
from facesdk_export.attribute_step import IdentityTerm, PoseTerm, QualityTerm, attribute_step
from facesdk_export.checkpoints import load_into, read_checkpoint
from facesdk_export.networks import IResNet, SixDRepNet
from facesdk_export.networks.vec2face import Generator, ImageDecoder
from harness import serve, timed

checkpoints, case, threads = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
torch.set_num_threads(threads)


def loaded(network, file):
    load_into(network, read_checkpoint(checkpoints / file))
    return network.eval()


generator = loaded(Generator(ImageDecoder()), "vec2face_generator.pth").requires_grad_(False)
if case == "step":
    arcface, magface = (loaded(IResNet(), f"{name}-r100-glint360k.pth") for name in ("arcface", "magface"))
    pose = loaded(SixDRepNet(), "6DRepNet_300W_LP_AFLW2000.pth")
    step = attribute_step(generator, [IdentityTerm(arcface), QualityTerm(magface), PoseTerm(pose)])


def answer(question):
    if question["do"] == "about":
        return f"torch {torch.__version__}"
    if question["do"] == "memory":
        return peak_resident_mb()
    arrays = [torch.from_numpy(array) for array in inputs(case, question["batch"]).values()]
    with torch.inference_mode(case == "generator"):
        if question["do"] == "output":
            result = generator(*arrays) if case == "generator" else step(*arrays)[0]
            return result.detach().numpy().ravel()[::37].tolist()
        return timed(lambda: generator(*arrays) if case == "generator" else step(*arrays), question["calls"])


serve(answer)
