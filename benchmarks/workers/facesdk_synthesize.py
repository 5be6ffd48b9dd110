"""Worker: an engine of a vec2face bundle.  Arguments: bundle folder, case, device, precision, threads."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from synthesis_inputs import inputs

from facesdk import Bundle
from facesdk.machine import peak_resident_mb
from harness import serve, timed

folder, case, device, precision, threads = sys.argv[1:]
engine = Bundle(folder).open(case, device, precision=precision, threads=int(threads))
OUTPUT = {"generator": "image", "step": "gradient"}[case]


def answer(question):
    if question["do"] == "about":
        return engine.description
    if question["do"] == "memory":
        return peak_resident_mb()
    arrays = inputs(case, question["batch"])
    if question["do"] == "output":
        return engine(**arrays)[OUTPUT].ravel()[::37].tolist()
    return timed(lambda: engine(**arrays), question["calls"])


serve(answer)
