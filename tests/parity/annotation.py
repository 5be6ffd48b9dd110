"""Ways of the annotation cases."""

from __future__ import annotations

import functools
import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from facesdk.annotation import alignment, labels, scrfd
from facesdk.annotation.annotator import AnnotateOptions, Annotator
from facesdk.bundle import Bundle
from facesdk.dense_face import draw_pose_axes, face_box
from facesdk.image import read_image
from facesdk_engines.annotation import builder

from .reference import ROOT, compare

Wrong = list[str]


@functools.cache
def annotator(file: str, digest: str, iou: float, region_scale: float, five_points: tuple[int, ...]) -> Annotator:
    """The chain on the bundle that a case names, converted anew, with the case's constants."""
    source = ROOT / "annotation" / "models" / file
    assert hashlib.sha256(source.read_bytes()).hexdigest() == digest
    folder = Path(tempfile.mkdtemp(prefix="facesdk-parity-"))
    builder.build(source, folder)
    bundle = Bundle(folder)
    five = [[point] for point in five_points]
    landmarks = {**bundle.constants["landmarks"], "region_scale": region_scale, "five_points": five}
    bundle.constants = {**bundle.constants, "detection": {"iou": iou}, "landmarks": landmarks}
    return Annotator(bundle, "cpu")


def chain_of(case: Any) -> Annotator:
    scalars = case.scalars
    return annotator(
        scalars["bundle"], scalars["bundle_sha256"], scalars["nms_iou"], scalars["roi_scale"],
        tuple(scalars["five_from_mesh"]),
    )  # fmt: skip


def options_of(case: Any) -> AnnotateOptions:
    scalars = case.scalars
    return AnnotateOptions(
        search="fast", max_faces=scalars["num_faces"], min_score=scalars["min_detection_score"],
        min_presence=scalars["min_presence"],
    )  # fmt: skip


def face_landmarks_sdk(case: Any) -> Wrong:
    chain, image = chain_of(case), case.image
    picture = read_image(ROOT / "annotation" / "golden" / image["image"])
    size = (image["width"], image["height"])
    assert picture.shape[:2] == size[::-1]
    got = {**_detections(chain, picture, case), **_faces(chain, picture, case)}
    if image["faces"]:
        got |= _first_face(case, picture)
    return _compare_all(case, got, size)


def _detections(chain: Annotator, picture: Any, case: Any) -> dict[str, Any]:
    from facesdk.annotation.region import letterbox

    options, (height, width) = options_of(case), picture.shape[:2]
    found, _ = chain.detectors["detector_short"](
        picture, letterbox(width, height), options.min_score, case.scalars["nms_iou"]
    )
    boxes = np.array([d.box for d in found]).reshape(-1, 4)
    points = np.array([d.key_points for d in found]).reshape(-1, 6, 2)
    corners = np.floor(np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]])).astype(np.int64)
    scores = np.array([d.score for d in found])
    return {"boxes": boxes, "mp_boxes": corners, "keypoints": points, "mp_keypoints": points / [width, height],
            "scores": scores, "mp_scores": scores}  # fmt: skip


def _faces(chain: Annotator, picture: Any, case: Any) -> dict[str, Any]:
    faces = chain(picture, options_of(case)).faces
    points = case.arrays["landmarks"].shape[1:]
    landmarks = np.array([face.normalised_landmarks() for face in faces]).reshape(len(faces), *points)
    shapes = np.array([list(face.blendshapes.values()) for face in faces]).reshape(-1, 52)
    transforms = np.array([face.transform for face in faces]).reshape(-1, 4, 4)
    regions = [face.region for face in faces]
    rois = np.array([(r.centre_x, r.centre_y, r.width, r.height, r.angle) for r in regions]).reshape(-1, 5)
    return {"landmarks": landmarks, "mp_landmarks": landmarks, "blendshapes": shapes, "mp_blendshapes": shapes,
            "transforms": transforms, "mp_transforms": transforms, "rois": rois,
            "presence": np.array([face.presence for face in faces])}  # fmt: skip


def _first_face(case: Any, picture: Any) -> dict[str, Any]:
    """Labels and alignment from the recorded landmarks of the first face."""
    height, width = picture.shape[:2]
    five = case.arrays["mp_landmarks"][0][case.scalars["five_from_mesh"], :2] * [width, height]
    got = {"five_points": five}
    for name in case.facts["outputs"]:
        if name.startswith("norm_matrix_"):
            size = int(name.removeprefix("norm_matrix_"))
            got[name] = alignment.similarity(case.arrays["five_points"], alignment.arcface_template(size))
        elif name.startswith("norm_crop_"):
            size = int(name.removeprefix("norm_crop_").removesuffix("_bgr"))
            got[name] = alignment.align(picture, case.arrays["five_points"], size)[0][..., ::-1]
        elif name.startswith("region_labels_") and name in case.arrays:
            size = int(name.removeprefix("region_labels_"))
            points, triangles = case.arrays["landmarks"][0] * size, chain_of(case).mesh.triangles
            got[name] = labels.region_labels(points, size, size, triangles)
    return got


def face_landmarks_onnx(case: Any) -> Wrong:
    """The converted graphs on the recorded patches, and the patches themselves."""
    from facesdk.annotation.region import Region, cut, letterbox

    chain, image = chain_of(case), case.image
    picture = read_image(ROOT / "annotation" / "golden" / image["image"])
    detector = chain.detectors["detector_short"]
    view = letterbox(image["width"], image["height"])
    outputs = detector.engine(image=case.arrays["detector_patch"][None])
    got = {
        "detector_patch": cut(picture, view, detector.size, zero_border=True),
        "detector_regressors": outputs["regressors"][0],
        "detector_logits": outputs["logits"][0, :, 0],
    }
    if image["faces"]:
        region = Region(*case.arrays["rois"][0].tolist())
        got["landmark_patch"] = cut(picture, region, case.arrays["landmark_patch"].shape[0], zero_border=False)
    return _compare_all(case, got, (image["width"], image["height"]))


def _compare_all(case: Any, got: dict[str, Any], size: tuple[int, int]) -> Wrong:
    present = {name: value for name, value in got.items() if name in case.arrays}
    absent = [name for name, rule in case.facts["outputs"].items()
              if name in case.arrays and case.image["name"] in rule.get("absent_from", ())]  # fmt: skip
    wrong = [compare(case, name, value, size) for name, value in present.items() if name not in absent]
    return [text for text in wrong if text]


def casia_authors(case: Any) -> Wrong:
    """Labels and boxes from the original authors' landmarks.  Their triangles are those of the bundle."""
    scalars, points = case.scalars, case.inputs["landmarks"]
    bundle = next(other for other in _bundle_cases() if other.name == "face_landmarks")
    triangles, size = chain_of(bundle).mesh.triangles, scalars["label_size"]
    maps = np.stack([labels.region_labels(face * size, size, size, triangles) for face in points])
    assert len(labels.NAMES) == scalars["classes"]
    boxes = np.stack([
        face_box(face, centre=scalars["bbox_centre_landmark"], step=scalars["bbox_step"], cover=scalars["bbox_cover"])
        for face in points
    ])  # fmt: skip
    wrong = [compare(case, "region_labels", maps), compare(case, "bbox", boxes)]
    return [text for text in wrong if text]


def test_samples_authors(case: Any) -> Wrong:
    """The landmarks that the original authors published of some images."""
    images = {other.image["name"]: other for other in _bundle_cases() if other.name == "face_landmarks"}
    wrong = []
    for run in case.scalars["runs"]:
        other = images[run["image"]]
        picture = read_image(ROOT / "annotation" / "golden" / other.image["image"])
        face = chain_of(other)(picture, options_of(other)).faces[0]
        wrong.append(compare(case, run["dense"], face.normalised_landmarks(), face.image_size))
    return [text for text in wrong if text]


def pose_axes(case: Any) -> Wrong:
    scalars = case.scalars
    assert scalars["centre"] == (scalars["size"] - 1) / 2
    pictures = [
        draw_pose_axes(
            yaw, pitch, roll, size=scalars["size"], axis_length=scalars["axis_length"],
            thickness=scalars["line_thickness"], background=scalars["background"],
        )
        for yaw, pitch, roll in case.inputs["yaw_pitch_roll"].tolist()
    ]  # fmt: skip
    text = compare(case, "bgr", np.stack(pictures)[..., ::-1])
    return [text] if text else []


def scrfd_decode(case: Any) -> Wrong:
    scalars = case.scalars
    options = scrfd.ScrfdOptions(
        size=scalars["size"], min_score=scalars["det_thresh"], iou=scalars["nms_thresh"], max_faces=scalars["max_num"],
        metric=scalars["metric"], strides=tuple(scalars["strides"]), anchors_per_cell=scalars["anchors_per_cell"],
        mean=scalars["mean"], std=scalars["std"],
    )  # fmt: skip
    picture = np.ascontiguousarray(case.inputs["image"][..., ::-1])
    blob, scale = scrfd.prepare(picture, options)
    outputs = [case.inputs[f"out{i}"] for i in range(3 * len(options.strides))]
    boxes, points = scrfd.decode(outputs, scale, (picture.shape[1], picture.shape[0]), options)
    wrong = [compare(case, "input_blob", blob), compare(case, "det", boxes), compare(case, "kps", points)]
    return [text for text in wrong if text]


def _bundle_cases() -> list[Any]:
    from .reference import cases

    return [case for case in cases() if case.system == "annotation"]


WAYS: dict[str, dict[str, Callable[[Any], Wrong]]] = {
    "face_landmarks": {"onnx": face_landmarks_onnx, "sdk": face_landmarks_sdk},
    "casia_authors": {"sdk": casia_authors},
    "test_samples_authors": {"sdk": test_samples_authors},
    "pose_axes": {"sdk": pose_axes},
    "scrfd_decode": {"sdk": scrfd_decode},
}
