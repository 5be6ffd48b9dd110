"""Worker: MediaPipe's FaceLandmarker with all its outputs.  Argument: task file.  Runs in MediaPipe's environment."""

import json
import sys
import time

import cv2
import mediapipe
from mediapipe.tasks import python as tasks
from mediapipe.tasks.python import vision

cv2.setNumThreads(1)
landmarker = vision.FaceLandmarker.create_from_options(
    vision.FaceLandmarkerOptions(
        base_options=tasks.BaseOptions(model_asset_path=sys.argv[1]),
        num_faces=1,
        output_face_blendshapes=True,
        output_facial_transformation_matrixes=True,
    )
)


def answer(question):
    if question["do"] == "about":
        return f"mediapipe {mediapipe.__version__}"
    picture = cv2.cvtColor(cv2.imread(question["picture"]), cv2.COLOR_BGR2RGB)
    image, times = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=picture), []
    for _ in range(question["calls"]):
        start = time.perf_counter()
        found = landmarker.detect(image)
        times.append((time.perf_counter() - start) * 1e3)
        assert found.face_blendshapes
        assert found.facial_transformation_matrixes
    return times


for line in sys.stdin:
    print(json.dumps(answer(json.loads(line))), flush=True)
