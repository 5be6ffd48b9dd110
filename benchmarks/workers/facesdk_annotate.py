"""Worker: FaceSDK's annotation chain.  Arguments: bundle folder, device."""

import sys
from pathlib import Path

import cv2
import onnxruntime

sys.path.insert(0, str(Path(__file__).parents[1]))
from facesdk import AnnotateOptions, Bundle, read_image
from facesdk.annotation.annotator import Annotator
from harness import serve, timed

cv2.setNumThreads(1)
annotator = Annotator(Bundle(sys.argv[1]), sys.argv[2], threads=1)
options = AnnotateOptions(search="fast", max_faces=1)


def versions() -> str:
    if sys.argv[2] == "openvino":
        import openvino

        return f"openvino {openvino.__version__.split('-')[0]}, opencv {cv2.__version__}"
    return f"onnxruntime {onnxruntime.__version__}, opencv {cv2.__version__}"


def answer(question):
    if question["do"] == "about":
        return versions()
    picture = read_image(question["picture"])
    assert annotator(picture, options).faces[0].blendshapes is not None
    return timed(lambda: annotator(picture, options), question["calls"])


serve(answer)
