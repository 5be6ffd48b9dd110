"""Dense-Face's data products: from a photo and its `Face` to the files that its inference and its training read.

`write_inference_inputs` prepares one face of a base image for generation; `write_sample`, `append_index` and
`add_subjects` build a data set in the layout of T2I-Dense-Face.  The rest are their parts.
"""

from .aligned import AlignedFace, face_box
from .crop import crop, crop_landmarks, crop_pose
from .index import COLUMNS, IndexRow, add_subjects, append_index
from .landmark_file import load_landmarks, save_landmarks
from .pose_hint import draw_pose_axes
from .sample import InferenceInputs, next_number, write_inference_inputs, write_sample

__all__ = [
    "COLUMNS",
    "AlignedFace",
    "IndexRow",
    "InferenceInputs",
    "add_subjects",
    "append_index",
    "crop",
    "crop_landmarks",
    "crop_pose",
    "draw_pose_axes",
    "face_box",
    "load_landmarks",
    "next_number",
    "save_landmarks",
    "write_inference_inputs",
    "write_sample",
]
