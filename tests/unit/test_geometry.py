"""The facial transform: a synthetic face is projected with a known pose, and the pose comes back."""

from __future__ import annotations

import math

import numpy as np
import pytest

from facesdk.annotation.annotator import Annotator
from facesdk.annotation.geometry import (
    FACE_POINTS,
    NEAR,
    VERTICAL_FOV_DEG,
    CanonicalFace,
    euler_degrees,
    facial_transform,
    head_pose,
    weighted_similarity,
)


def rotation(pitch_deg: float, yaw_deg: float, roll_deg: float) -> np.ndarray:
    """R = Rz(roll) Ry(yaw) Rx(pitch)."""
    (cx, sx), (cy, sy), (cz, sz) = (
        (math.cos(a), math.sin(a)) for a in map(math.radians, (pitch_deg, yaw_deg, roll_deg))
    )
    x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return z @ y @ x


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


# -- weighted similarity --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_a_random_similarity_is_recovered(seed: int) -> None:
    rng = np.random.default_rng(seed)
    source, weight = rng.normal(size=(20, 3)) * 5, rng.uniform(0.01, 1, 20)
    want = np.eye(4)
    want[:3, :3], want[:3, 3] = rng.uniform(0.1, 10) * random_rotation(rng), rng.normal(size=3) * 30
    target = source @ want[:3, :3].T + want[:3, 3]
    np.testing.assert_allclose(weighted_similarity(source, target, weight), want, atol=1e-9)


def cost(matrix: np.ndarray, source: np.ndarray, target: np.ndarray, weight: np.ndarray) -> float:
    return float((weight * ((source @ matrix[:3, :3].T + matrix[:3, 3] - target) ** 2).sum(axis=1)).sum())


@pytest.mark.parametrize("seed", range(5))
def test_the_fit_is_a_minimum(seed: int) -> None:
    """With noise no small change of rotation or shift makes it better."""
    rng = np.random.default_rng(seed)
    source, weight = rng.normal(size=(15, 3)), rng.uniform(0.1, 1, 15)
    target = 2 * source @ random_rotation(rng).T + rng.normal(size=(15, 3)) * 0.3
    best = weighted_similarity(source, target, weight)
    for _ in range(50):
        change = np.eye(4)
        change[:3, :3] = rotation(*rng.normal(0, 1, 3))
        change[:3, 3] = rng.normal(0, 0.01, 3)
        assert cost(change @ best, source, target, weight) >= cost(best, source, target, weight) - 1e-9


@pytest.mark.parametrize("seed", range(5))
def test_there_is_no_reflection(seed: int) -> None:
    """Even for a mirrored target the best proper rotation is given."""
    rng = np.random.default_rng(seed)
    source = rng.normal(size=(20, 3))
    matrix = weighted_similarity(source, source * [-1, 1, 1], np.ones(20))
    scale = np.linalg.norm(matrix[:3, 0])
    assert np.linalg.det(matrix[:3, :3] / scale) == pytest.approx(1)
    np.testing.assert_allclose(matrix[:3, :3] @ matrix[:3, :3].T, np.eye(3) * scale**2, atol=1e-9)


def test_points_without_weight_do_not_count() -> None:
    rng = np.random.default_rng(0)
    source, weight = rng.normal(size=(10, 3)), np.ones(10)
    target, weight[0] = source + 3, 0
    target[0] = 1000
    np.testing.assert_allclose(weighted_similarity(source, target, weight)[:3, 3], [3, 3, 3])


# -- facial transform -----------------------------------------------------------------------------------------


@pytest.fixture(params=["annotator_478", "annotator_468"])
def canonical(request: pytest.FixtureRequest) -> CanonicalFace:
    annotator: Annotator = request.getfixturevalue(request.param)
    return annotator.mesh.canonical


def projected(face: CanonicalFace, transform: np.ndarray, width: int, height: int) -> np.ndarray:
    """Landmarks of a face as a weak-perspective network sees it: x, y by its camera, z in pixels about the mean."""
    camera = face.position @ transform[:3, :3].T + transform[:3, 3]
    unit = 2 * NEAR * math.tan(math.radians(VERTICAL_FOV_DEG) / 2) / height
    x, y, depth = camera[:, 0], camera[:, 1], -camera[:, 2]
    near = NEAR / depth.mean() / unit  # px per cm at the face's mean depth
    landmarks = np.zeros((FACE_POINTS, 3))
    landmarks[face.index, 0] = x / depth * NEAR / unit + width / 2
    landmarks[face.index, 1] = -y / depth * NEAR / unit + height / 2
    landmarks[face.index, 2] = (depth - depth.mean()) * near
    return landmarks


def angle_between_deg(a: np.ndarray, b: np.ndarray) -> float:
    return math.degrees(math.acos(min(1.0, max(-1.0, (np.trace(a.T @ b) - 1) / 2))))


@pytest.mark.parametrize("angles", [(0, 0, 0), (10, 20, 5), (-15, -30, 10), (5, 45, -20), (-20, 0, 40), (0, 0, 170)])
@pytest.mark.parametrize("size", [(640, 480), (300, 900)])
def test_the_pose_of_a_projected_canonical_face_is_recovered(
    canonical: CanonicalFace, angles: tuple[float, float, float], size: tuple[int, int]
) -> None:
    want = np.eye(4)
    want[:3, :3], want[:3, 3] = rotation(*angles), [2, -3, -60]
    landmarks = projected(canonical, want, *size)
    # the mean depth over all 468 points is what the fit subtracts: give it the one of the projection
    landmarks[:, 2] -= landmarks[:, 2].mean()
    got = facial_transform(landmarks, *size, canonical)
    scale = np.linalg.norm(got[:3, 0])
    assert angle_between_deg(got[:3, :3] / scale, want[:3, :3]) < 0.1
    assert scale == pytest.approx(1, abs=0.01)  # canonical and camera space are both in cm
    np.testing.assert_allclose(got[:3, 3], want[:3, 3], rtol=0.02)


def test_a_nearer_face_is_nearer(canonical: CanonicalFace) -> None:
    depths = []
    for distance in (40, 80):
        want = np.eye(4)
        want[2, 3] = -distance
        got = facial_transform(projected(canonical, want, 640, 480), 640, 480, canonical)
        depths.append(-got[2, 3] / np.linalg.norm(got[:3, 0]))
    assert depths[1] / depths[0] == pytest.approx(2, rel=0.1)


# -- head pose ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_angles_make_the_rotation_that_they_were_read_from(seed: int) -> None:
    matrix = random_rotation(np.random.default_rng(seed))
    np.testing.assert_allclose(rotation(*euler_degrees(matrix)), matrix, atol=1e-9)


@pytest.mark.parametrize("angles", [(10.0, 20.0, 30.0), (-80.0, 40.0, -170.0), (0.0, 0.0, 0.0), (170.0, -85.0, 90.0)])
def test_angles_come_back(angles: tuple[float, float, float]) -> None:
    np.testing.assert_allclose(euler_degrees(rotation(*angles)), angles, atol=1e-9)


@pytest.mark.parametrize("yaw", [90.0, -90.0])
@pytest.mark.parametrize(("pitch", "roll"), [(0.0, 0.0), (30.0, 0.0), (20.0, -50.0)])
def test_the_singular_case(yaw: float, pitch: float, roll: float) -> None:
    """Only one combination of pitch and roll is visible: roll is 0, and the rotation is the same."""
    matrix = rotation(pitch, yaw, roll)
    found = euler_degrees(matrix)
    assert found[2] == 0
    assert found[1] == pytest.approx(yaw)
    np.testing.assert_allclose(rotation(*found), matrix, atol=1e-6)


def turned_face(axis: str, degrees: float) -> np.ndarray:
    """A transform of a head turned about one axis of the camera's frame (x right, y up, z to the viewer)."""
    transform = np.eye(4)
    angles = {"x": (degrees, 0, 0), "y": (0, degrees, 0), "z": (0, 0, degrees)}[axis]
    transform[:3, :3], transform[:3, 3] = 1.7 * rotation(*angles), [0, 0, -50]
    return transform


def test_signs_of_the_head_pose() -> None:
    """Each seen in the picture: the face's normal is +z of the canonical face, its top +y."""
    right = turned_face("y", 30)  # the normal goes to camera +x, the picture's right
    assert (right[:3, :3] @ [0, 0, 1])[0] > 0
    assert head_pose(right).yaw_deg == pytest.approx(-30)
    left = turned_face("y", -30)
    assert head_pose(left).yaw_deg == pytest.approx(30)

    up = turned_face("x", -20)
    assert (up[:3, :3] @ [0, 0, 1])[1] > 0  # the normal goes up
    assert head_pose(up).pitch_deg == pytest.approx(20)

    clockwise = turned_face("z", -25)
    assert (clockwise[:3, :3] @ [0, 1, 0])[0] > 0  # the top of the head leans to the picture's right
    assert head_pose(clockwise).roll_deg == pytest.approx(25)


def test_signs_from_landmarks(canonical: CanonicalFace) -> None:
    """The whole way from points in the picture: a face turned to the picture's left has a positive yaw."""
    for axis, degrees, name in (("y", -25, "yaw_deg"), ("x", -25, "pitch_deg"), ("z", -25, "roll_deg")):
        landmarks = projected(canonical, turned_face(axis, degrees), 640, 480)
        pose = head_pose(facial_transform(landmarks, 640, 480, canonical))
        assert getattr(pose, name) == pytest.approx(25, abs=1.5)
        assert pose.approximate


def test_scale_and_place_do_not_change_the_pose() -> None:
    transform = turned_face("y", 33)
    other = transform.copy()
    other[:3, :3] *= 5
    other[:3, 3] = [9, 9, -9]
    assert head_pose(other).yaw_deg == pytest.approx(head_pose(transform).yaw_deg)
