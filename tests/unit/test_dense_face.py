"""Dense-Face's data products: crop, masks, pose hint and files, on a drawn head whose geometry is known."""

import ast
import csv
import dataclasses
import math

import cv2
import numpy as np
import pytest
from PIL import Image

from facesdk.annotation import labels
from facesdk.annotation.geometry import CanonicalFace, HeadPose, facial_transform, head_pose
from facesdk.annotation.region import Region
from facesdk.dense_face import (
    COLUMNS,
    AlignedFace,
    IndexRow,
    add_subjects,
    append_index,
    crop,
    crop_landmarks,
    crop_pose,
    draw_pose_axes,
    face_box,
    load_landmarks,
    save_landmarks,
    write_inference_inputs,
    write_sample,
)
from facesdk.errors import ImageArrayError, NoFaceFound, OutputError, UsageError
from facesdk.face import Face

RINGS = dict(labels.POLYGONS)
# x, y of centre and half axes of each part of the head; y down, unit: distance of the eyes
PARTS = {
    "nose": (0, 0.35, 0.16, 0.4), "left_eye": (0.5, 0, 0.2, 0.08), "right_eye": (-0.5, 0, 0.2, 0.08),
    "left_brow": (0.5, -0.3, 0.3, 0.06), "right_brow": (-0.5, -0.3, 0.3, 0.06),
}  # fmt: skip
MOUTH_Y, SIDE = 1.1, 4.0  # 2 * max(2.0 * 1, 1.8 * 1.1) = 4 eye distances
CENTRE = np.array([0.0, 0.1 * MOUTH_Y])


def head():
    """(478, 3) points and (n, 3) triangles: the parts as ellipses, the outline on free landmarks, the rest inside."""
    points = np.random.default_rng(0).uniform([-0.7, -0.5, -0.3], [0.7, 1.2, 0.3], (478, 3))
    for name, (x, y, a, b) in PARTS.items():
        angle = np.linspace(0, 2 * np.pi, len(RINGS[name]), endpoint=False)
        points[RINGS[name], :2] = np.column_stack([x + a * np.cos(angle), y + b * np.sin(angle)])
    for name, outer, inner in (("upper_lip", -0.15, -0.08), ("lower_lip", 0.15, 0.08)):
        across = np.linspace(np.pi, 0, 11)
        for indices, bow, width in ((RINGS[name][:11], outer, 0.4), (RINGS[name][:10:-1], inner, 0.35)):
            points[indices, :2] = np.column_stack([width * np.cos(across), MOUTH_Y + bow * np.sin(across)])
    used = {195, *(index for ring in RINGS.values() for index in ring)}
    outline = [index for index in range(468) if index not in used][:40]
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    points[outline, :2] = np.column_stack([1.2 * np.cos(angle), 0.4 + 1.5 * np.sin(angle)])
    points[195] = 0, 0.4, 0
    return points, np.array([[195, a, b] for a, b in zip(outline, outline[1:] + outline[:1], strict=True)])


def pattern(x, y):
    """RGB 0..255 of a place on the head: smooth, and without symmetry."""
    return 127 + 120 * np.stack([np.sin(2 * x + y), np.cos(1.5 * y - x), np.sin(x) * np.cos(2 * y)], axis=-1)


def photo(scale=60.0, angle_deg=0.0, centre=(320.0, 260.0), size=(640, 480), points=478):
    """A picture of the head and its Face: `scale` px between the eyes, turned x towards y by `angle_deg`."""
    turn = np.exp(1j * math.radians(angle_deg)) * scale
    mesh, triangles = head()
    place = mesh[:, :2] @ [1, 1j] * turn + complex(*centre)
    landmarks = np.column_stack([place.real, place.imag, mesh[:, 2] * scale])[:points].astype(np.float32)
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    back = (x + 1j * y - complex(*centre)) / turn
    picture = np.rint(pattern(back.real, back.imag)).astype(np.uint8)
    five = landmarks[[33, 263, 4, 61, 291], :2]
    face = Face(
        box=np.zeros(4, np.float32), score=1, key_points=np.zeros((6, 2), np.float32), landmarks=landmarks, presence=1,
        five_points=five, transform=np.eye(4, dtype=np.float32), pose=HeadPose(10, -20, angle_deg), blendshapes=None,
        region=Region(*centre, 100, 100), image_size=size, triangles=triangles,
    )  # fmt: skip
    return picture, face


WAYS = [{}, {"angle_deg": 33}, {"scale": 55, "centre": (250, 230)}, {"scale": 50, "angle_deg": -170}]


@pytest.mark.parametrize("way", WAYS)
def test_crop_shows_the_same_however_the_photo_was_taken(way):
    aligned, matrix = crop(*photo(**way))
    size = 128 * int(SIDE * way.get("scale", 60) / 128)
    assert aligned.shape == (size, size, 3)
    step = (np.arange(size) / (size - 1) - 0.5) * SIDE
    x, y = np.meshgrid(step + CENTRE[0], step + CENTRE[1])
    seen = aligned.any(axis=2)  # beyond the picture it is black
    assert seen.mean() > 0.8
    assert np.abs(aligned - pattern(x, y))[seen].mean() < 1.0
    assert np.allclose(matrix[:2, :2] @ matrix[:2, :2].T, np.eye(2) * ((size - 1) / SIDE / way.get("scale", 60)) ** 2)


@pytest.mark.parametrize("way", WAYS)
def test_crop_puts_eyes_and_mouth_where_the_rule_says(way):
    picture, face = photo(**way)
    aligned, matrix = crop(picture, face)
    points = crop_landmarks(face.landmarks, matrix, len(aligned))
    shrunk = (len(aligned) - 1) / len(aligned)
    for expected, indices in (((-0.5, 0), RINGS["right_eye"]), ((0.5, 0), RINGS["left_eye"]), ((0, 1.1), [61, 291])):
        assert points[indices, :2].mean(axis=0) == pytest.approx(((expected - CENTRE) / SIDE + 0.5) * shrunk, abs=1e-6)
    assert np.ptp(points[:, 2]) == pytest.approx(np.ptp(head()[0][:, 2]) / SIDE * shrunk, abs=1e-5)


@pytest.mark.parametrize("mouth_px", [(0, 0), (25, -10), (-30, 60)])
def test_crop_corners_are_those_of_the_rule_in_vectors(mouth_px):
    picture, face = photo(50, angle_deg=15)
    face.landmarks[[61, 291], :2] += mouth_px
    left, right = (face.landmarks[RINGS[eye], :2].astype(float).mean(axis=0) for eye in ("right_eye", "left_eye"))
    eyes, eye_to_eye = (left + right) / 2, right - left
    eye_to_mouth = face.landmarks[[61, 291], :2].astype(float).mean(axis=0) - eyes
    x = eye_to_eye - eye_to_mouth[::-1] * [-1, 1]
    x *= max(2.0 * np.hypot(*eye_to_eye), 1.8 * np.hypot(*eye_to_mouth)) / np.hypot(*x)
    y, centre = x[::-1] * [-1, 1], eyes + 0.1 * eye_to_mouth
    aligned, matrix = crop(picture, face)
    end = len(aligned) - 1
    for corner, place in zip(
        (centre - x - y, centre - x + y, centre + x + y, centre + x - y),
        ([0, 0], [0, end], [end, end], [end, 0]),
        strict=True,
    ):
        assert matrix @ [*corner, 1] == pytest.approx([*place, 1], abs=1e-6)


def test_landmarks_go_through_any_homography():
    matrix = np.array([[2, 0.1, 3], [-0.1, 2, 5], [1e-3, 2e-3, 1]])
    point = np.array([[10.0, 20.0, 4.0]])
    x, y, w = matrix @ [10, 20, 1]
    assert crop_landmarks(point, matrix, 128)[0] == pytest.approx([x / w / 128, y / w / 128, 4 * 4.01**0.5 / 128])


def test_crop_size_is_the_length_of_the_side_and_has_limits():
    sizes = {scale: len(crop(*photo(scale, angle_deg=45))[0]) for scale in (33.0, 95.0, 97.0, 400.0)}
    assert sizes == {33.0: 128, 95.0: 256, 97.0: 384, 400.0: 1024}
    with pytest.raises(NoFaceFound, match="124 px wide") as caught:
        crop(*photo(31))
    assert caught.value.reason == "too-small"


def test_crop_is_black_beyond_the_picture():
    aligned, matrix = crop(*photo(centre=(20, 20)))
    corner = (matrix @ [0, 0, 1])[:2].astype(int)
    assert corner.min() > 20
    assert not aligned[: corner[1] - 1].any()
    assert not aligned[:, : corner[0] - 1].any()
    assert aligned[corner[1] + 2 :, corner[0] + 2 :].any(axis=2).all()


def test_padding_shows_more_without_squeezing():
    plain, padded = (crop(*photo(40, size=(640, 640)), padding=share)[1] for share in (0, 0.75))
    assert padded[0, 0] / plain[0, 0] == pytest.approx(255 / 127 / 1.75)
    assert padded[0, 0] == pytest.approx(padded[1, 1])


@pytest.mark.parametrize("padding", [-0.1, math.nan, math.inf])
def test_padding_is_checked(padding):
    with pytest.raises(UsageError, match="padding"):
        crop(*photo(), padding=padding)


def test_crop_wants_the_annotated_picture():
    picture, face = photo()
    with pytest.raises(UsageError, match=r"640 x 480, this one is 480 x 640"):
        crop(np.ascontiguousarray(picture.transpose(1, 0, 2)), face)
    with pytest.raises(ImageArrayError):
        crop(picture.astype(np.float32), face)


@pytest.mark.parametrize("angle_deg", [0, 25, -60, 150])
def test_pose_of_an_upright_crop_does_not_lean(angle_deg):
    mesh = head()[0][:468]
    canonical = CanonicalFace(np.arange(468), mesh * [6, -6, -6], np.ones(468))
    _, face = photo(20, angle_deg, size=(640, 640), centre=(320, 320))
    pose = head_pose(facial_transform(face.landmarks, 640, 640, canonical))
    assert pose.roll_deg == pytest.approx(angle_deg, abs=2)
    matrix = crop(*photo(60, angle_deg, size=(640, 640), centre=(320, 320)))[1]
    upright = crop_pose(pose, matrix)
    assert upright.roll_deg == pytest.approx(0, abs=2)
    assert dataclasses.replace(upright, roll_deg=pose.roll_deg) == pose


def test_box_is_the_smallest_on_the_grid():
    rng = np.random.default_rng(3)
    for count in (468, 478):
        points = rng.normal(0.5, 0.15, (count, 3))
        reach = np.abs(points[:, :2] - points[195, :2]).max(axis=1)
        steps = next(n for n in range(200) if (reach <= n * 0.02 / 2).mean() >= 0.97)
        expected = np.concatenate([points[195, :2] - steps * 0.01, points[195, :2] + steps * 0.01])
        assert face_box(points) == pytest.approx(expected, abs=1e-12)


def test_box_does_not_grow_by_rounding_noise():
    points = np.zeros((4, 2))
    points[:, 0] = 0, 0.01, 0.01, 0.07  # 2 * 0.07 / 0.02 is 7.000000000000001
    assert face_box(points, centre=0, cover=0.75) == pytest.approx([-0.01, -0.01, 0.01, 0.01])
    assert face_box(points, centre=0, cover=1.0) == pytest.approx([-0.07, -0.07, 0.07, 0.07])


def test_masks_have_opposite_polarity_and_soft_borders():
    aligned = AlignedFace.cut(*photo(angle_deg=20))
    mask, keep = aligned.mask_01(), aligned.keep_mask()
    assert (mask.shape, mask.dtype, keep.shape, keep.dtype) == ((32, 32), np.float32, (32, 32), np.uint8)
    assert np.abs(keep / 255 - (1 - mask)).max() <= 0.5 / 255 + 1e-6
    assert mask[16, 16] == 1
    assert keep[0, 0] == 255
    assert ((mask > 0) & (mask < 1)).sum() > 20
    # the outline's ellipse, 1.2 by 1.5 in a square of 4
    assert mask.mean() == pytest.approx(math.pi * 1.2 * 1.5 / 16, rel=0.03)


def test_mouth_interior_is_part_of_the_face():
    aligned = AlignedFace.cut(*photo())
    regions = aligned.region_labels()
    assert set(np.unique(regions)) == set(range(10))
    rows, columns = np.nonzero(regions == labels.NAMES.index("mouth_interior"))
    assert (aligned.mask_01()[rows // 8, columns // 8] == 1).all()


def test_axes_of_a_frontal_head():
    picture = draw_pose_axes(0, 0, 0)
    assert (picture.shape, picture.dtype) == ((256, 256, 3), np.uint8)
    assert picture[127, 200].tolist() == [255, 0, 0]
    assert picture[200, 127].tolist() == [0, 255, 0]
    assert picture[127, 127].tolist() == [0, 0, 255]
    assert (picture[:120, :120] == 255).all()


def test_axes_are_the_columns_of_the_rotation():
    for yaw, pitch, roll in np.random.default_rng(5).uniform(-60, 60, (20, 3)):
        (cx, cy, cz), (sx, sy, sz) = (f(np.radians([pitch, -yaw, roll])) for f in (np.cos, np.sin))
        rotation = (
            np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
            @ np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
            @ np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
        )
        ends = np.trunc(rotation[:2] * [100, 100, 200] + 127.5).astype(int).T.tolist()
        expected = np.full((256, 256, 3), 255, np.uint8)
        for end, colour in zip(ends, np.eye(3) * 255, strict=True):
            cv2.line(expected, (127, 127), end, colour.tolist(), 4)
        assert (draw_pose_axes(yaw, pitch, roll) == expected).all()


def test_axes_turn_as_the_head_does():
    blue = {angles: np.argwhere((draw_pose_axes(*angles) == (0, 0, 255)).all(axis=2)).mean(axis=0)[::-1].tolist()
            for angles in ((40, 0, 0), (-40, 0, 0), (0, 40, 0), (0, -40, 0))}  # fmt: skip
    (x1, y1), (x2, y2), (x3, y3), (x4, y4) = blue.values()
    assert (x1 < 80, x2 > 170, y3 < 80, y4 > 170) == (True, True, True, True)
    assert [y1, y2, x3, x4] == pytest.approx([127] * 4, abs=2)


def test_axes_scale_and_check():
    picture = draw_pose_axes(20, 0, 0, size=64, axis_length=20, thickness=1, background=0)
    rows, columns = np.nonzero(picture.any(axis=2))
    assert picture.shape == (64, 64, 3)
    assert (columns.min(), columns.max(), rows.max()) == (17, 50, 51)
    with pytest.raises(UsageError, match="finite"):
        draw_pose_axes(math.nan, 0, 0)


def test_landmark_file_is_c_formatted(tmp_path):
    points = np.random.default_rng(1).uniform(0.1, 0.9, (478, 3))
    points[0] = 0.4428483843803406, 0.125, 9
    save_landmarks(tmp_path / "a.csv", points)
    data = (tmp_path / "a.csv").read_bytes()
    assert len(data) == 23_900
    assert data.startswith(b"4.428483843803405762e-01,1.250000000000000000e-01\n")
    assert data.count(b"\n") == 478
    assert b"\r" not in data
    assert (load_landmarks(tmp_path / "a.csv") == points[:, :2]).all()


def test_landmarks_without_irises_name_the_bundle(tmp_path):
    with pytest.raises(UsageError, match="bundle annotation-478"):
        save_landmarks(tmp_path / "a.csv", np.zeros((468, 3)))
    with pytest.raises(UsageError, match="finite"):
        save_landmarks(tmp_path / "a.csv", np.full((478, 2), np.nan))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "x,y\n", "1,2\n" * 477, "1,2,3\n" * 478, "1,2\n" * 477 + "1\n", "1,nan\n" * 478])
def test_landmark_files_are_checked(tmp_path, text):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(UsageError, match=r"a\.csv is not a landmark file"):
        load_landmarks(tmp_path / "a.csv")
    with pytest.raises(UsageError, match=r"b\.csv"):
        load_landmarks(tmp_path / "b.csv")


ROW = IndexRow(
    face_file="CASIAFaces/0000012/images/003.jpg",
    depth_range=(-0.25, 0.5),
    landmark_file="CASIAFaces/0000012/landmarks/003.csv",
    mask_file="CASIAFaces/0000012/masks/003.png",
    annot_size=256,
    aligned_size=512,
    src_nose_xy=(252.0, 288.0),
    bbox=(0.1, 0.2, 0.7, 0.8),
    subject_id=12,
    caption='a "man", smiling',
    head_pose=("-4.5", "5.25", "-1.0"),
)
HEADER = (
    "face_file,depth_range,label_uncertainty,landmark_file,mask_file,xyz_file,annot_size,aligned_size,src_nose_xy,bbox,"
    "subject_id,caption_file,msmask_file,msmask_score,attr_file,feat_file,reference image,reference image bbox,caption,"
    "head_pose\n"
)
LINE = (
    'CASIAFaces/0000012/images/003.jpg,"[-0.25, 0.5]",,CASIAFaces/0000012/landmarks/003.csv,'
    'CASIAFaces/0000012/masks/003.png,,256,512,"[252.0, 288.0]","[0.1, 0.2, 0.7, 0.8]",12,,,,,,,,'
    '"a ""man"", smiling","[\'-4.5\', \'5.25\', \'-1.0\']"\n'
)


def test_index_is_written_byte_by_byte_and_only_once(tmp_path):
    path = tmp_path / "index.csv"
    append_index(path, [ROW])
    assert path.read_bytes() == (HEADER + LINE).encode()
    append_index(path, [ROW, ROW])
    append_index(path, [])
    assert path.read_bytes() == (HEADER + LINE).encode()
    assert [entry.name for entry in tmp_path.iterdir()] == ["index.csv"]


def test_index_replaces_in_place_and_keeps_foreign_rows(tmp_path):
    path = tmp_path / "index.csv"
    foreign = LINE.replace("003", "004").replace(",,CASIA", ",0.00307,CASIA", 1)
    path.write_text(HEADER + LINE + foreign)
    reference = {"reference_image": "CASIAFaces/0000012/images/004.jpg", "reference_image_bbox": (0.0, 0.5)}
    append_index(path, [dataclasses.replace(ROW, **reference), dataclasses.replace(ROW, face_file="new.jpg")])
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) == 4
    assert 'images/004.jpg,"[0.0, 0.5]","a ""man' in lines[1]
    assert lines[2] == foreign
    assert lines[3] == LINE.replace(ROW.face_file, "new.jpg")


@pytest.mark.parametrize("content", [b"a,b\n1,2\n", b"\xff\xfe", HEADER.encode() + b"1,2\n"])
def test_index_refuses_other_files(tmp_path, content):
    path = tmp_path / "index.csv"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"index\.csv"):
        append_index(path, [ROW])
    assert path.read_bytes() == content


def test_subjects(tmp_path):
    path = tmp_path / "subjects.txt"
    add_subjects(path, [45, 7, 45])
    assert path.read_bytes() == b"0000045\n0000007"
    add_subjects(path, [7, 1234567])
    assert path.read_bytes() == b"0000045\n0000007\n1234567"
    with pytest.raises(UsageError, match="7 digits"):
        add_subjects(path, [10_000_000])
    path.write_text("hello\n")
    with pytest.raises(UsageError, match="not a list of subjects"):
        add_subjects(path, [1])


def test_sample_on_disk(tmp_path):
    picture, face = photo(70, angle_deg=12)
    row = write_sample(tmp_path, 45, 2, picture, face, caption="a man")
    subject = tmp_path / "CASIA" / "CASIAFaces" / "0000045"
    files = {path.relative_to(subject).as_posix() for path in subject.rglob("*") if path.is_file()}
    assert files == {"images/002.jpg", "images_v2/002.png", "landmarks/002.csv", "masks/002.png"}
    modes = {name: _opened(subject / name) for name in files if not name.endswith("csv")}
    assert modes == {
        "images/002.jpg": ("JPEG", "RGB", (256, 256)),
        "images_v2/002.png": ("PNG", "RGB", (512, 512)),
        "masks/002.png": ("PNG", "RGB", (256, 256)),
    }
    aligned = AlignedFace.cut(picture, face)
    assert np.abs(np.asarray(Image.open(subject / "images/002.jpg")).astype(int) - aligned.picture).mean() < 2
    mask = np.asarray(Image.open(subject / "masks/002.png"))
    assert (mask == labels.PALETTE[aligned.region_labels()]).all()
    assert (load_landmarks(subject / "landmarks/002.csv") == aligned.landmarks[:, :2]).all()
    cells = dict(zip(COLUMNS, row.cells(), strict=True))
    assert cells["face_file"] == "CASIAFaces/0000045/images/002.jpg"
    assert (tmp_path / "CASIA" / cells["landmark_file"]).exists()
    assert (cells["annot_size"], cells["aligned_size"], cells["subject_id"], cells["xyz_file"]) == (
        "256", "256", "45", "",
    )  # fmt: skip
    assert cells["depth_range"] == str([aligned.landmarks[:, 2].min().item(), aligned.landmarks[:, 2].max().item()])
    assert ast.literal_eval(cells["bbox"]) == face_box(aligned.landmarks).tolist()
    pitch, yaw, roll = ast.literal_eval(cells["head_pose"])
    assert (pitch, yaw) == ("10.0", "-20.0")
    assert float(roll) == pytest.approx(0, abs=1e-4)
    assert cells["src_nose_xy"] == str([float(round(value)) for value in face.five_points[2].tolist()])


def test_rows_of_samples_read_back(tmp_path):
    rows = [write_sample(tmp_path, 45, number, *photo()) for number in (1, 2, 1)]
    append_index(tmp_path / "index.csv", rows)
    with (tmp_path / "index.csv").open(newline="") as file:
        assert [entry["face_file"][-7:] for entry in csv.DictReader(file)] == ["001.jpg", "002.jpg"]


def test_sample_leaves_nothing_without_irises(tmp_path):
    with pytest.raises(UsageError, match="annotation-478"):
        write_sample(tmp_path, 45, 2, *photo(points=468))
    for subject, number in ((10**7, 1), (-1, 1), (1, 1000)):
        with pytest.raises(UsageError, match="number"):
            write_sample(tmp_path, subject, number, *photo())
    assert not any(tmp_path.iterdir())


def test_inference_inputs_on_disk(tmp_path):
    picture, face = photo(45, angle_deg=8, points=468)
    inputs = write_inference_inputs(tmp_path, 0, 1, 2, picture, face)
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {f"{folder}/prompt_0_1_02.png" for folder in ("cropped_face", "mask", "pose_hint")}
    assert _opened(inputs.cropped_face) == ("PNG", "RGB", (512, 512))
    assert _opened(inputs.mask) == ("PNG", "L", (32, 32))
    assert _opened(inputs.pose_hint) == ("PNG", "RGB", (256, 256))
    assert (np.asarray(Image.open(inputs.mask)) == inputs.face.keep_mask()).all()
    hint = draw_pose_axes(-20, 10, inputs.face.pose.roll_deg)
    assert (np.asarray(Image.open(inputs.pose_hint)) == hint).all()
    with pytest.raises(UsageError, match="numbers"):
        write_inference_inputs(tmp_path, 0, -1, 0, picture, face)


@pytest.mark.parametrize("scale", [60, 200])
def test_large_picture_shows_what_the_crop_shows(tmp_path, scale):
    inputs = write_inference_inputs(tmp_path, 0, 0, 0, *photo(scale, size=(1000, 1000), centre=(500, 450)))
    large = Image.open(inputs.cropped_face)
    shrunk = np.asarray(large.resize(inputs.face.picture.shape[1::-1], Image.Resampling.BICUBIC)).astype(int)
    inside = slice(4, -4)
    assert np.abs(shrunk - inputs.face.picture)[inside, inside].mean() < 1.5


def test_failed_writes_leave_what_was_there(tmp_path):
    (tmp_path / "mask").write_text("a file where a folder should be")
    with pytest.raises(OutputError):
        write_inference_inputs(tmp_path, 0, 0, 0, *photo())
    assert (tmp_path / "mask").read_text().startswith("a file")


def _opened(path):
    with Image.open(path) as picture:
        return picture.format, picture.mode, picture.size
