"""What a single look at a picture misses, and how the passes find it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from facesdk.annotation.annotator import AnnotateOptions, Annotator, same_face
from facesdk.annotation.search import OVERLAP, RELIABLE_SHARE, passes, tile_sides, tiles
from facesdk.errors import NoFaceFound
from facesdk.image import Picture, read_image
from tests.bundles import DATA

FACE_LOW, FACE_HIGH = np.array([180, 72]), np.array([272, 179])  # mesh of the astronaut's face
FACE_PX = 107


@pytest.fixture(scope="module")
def astronaut() -> Picture:
    return read_image(DATA / "astronaut.png")


@pytest.fixture(scope="module", params=["annotator_478", "annotator_468"])
def annotator(request: pytest.FixtureRequest) -> Annotator:
    return request.getfixturevalue(request.param)


def on_canvas(face: Picture, width: int, height: int, x: int, y: int) -> Picture:
    """The picture on a smooth canvas with a little texture."""
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    planes = [
        110 + 40 * np.sin(columns / 300),
        120 + 30 * np.cos(rows / 250),
        100 + 20 * np.sin((columns + rows) / 400),
    ]
    canvas = np.stack(planes, axis=-1).astype(np.uint8)
    canvas[y : y + face.shape[0], x : x + face.shape[1]] = face
    return canvas


def scaled(picture: Picture, factor: float) -> Picture:
    return np.asarray(cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA), np.uint8)


def mesh_error(face_points: np.ndarray, wanted: np.ndarray) -> float:
    """Mean distance in percent of the face's size."""
    return float(np.linalg.norm(face_points[:, :2] - wanted, axis=1).mean() / np.ptp(wanted, axis=0).max() * 100)


@pytest.mark.parametrize("share", [0.9, 1.1, 1.3, 1.5])
def test_close_up(annotator: Annotator, astronaut: Picture, share: float) -> None:
    """A face that fills the frame, up to one half larger than it."""
    centre, half = (FACE_LOW + FACE_HIGH) / 2, FACE_PX / share / 2
    low, high = (centre - half).astype(int), (centre + half).astype(int)
    result = annotator(np.ascontiguousarray(astronaut[low[1] : high[1], low[0] : high[0]]))
    assert len(result.faces) == 1
    wanted = annotator(astronaut).faces[0].landmarks[:, :2] - low
    assert mesh_error(result.faces[0].landmarks, wanted) < 4


@pytest.mark.parametrize("size_px", [20, 40])
def test_small_face_in_a_large_photo(annotator_468: Annotator, astronaut: Picture, size_px: int) -> None:
    """A 20 px face in a 4000 x 3000 photo is found in tiles."""
    small = scaled(astronaut, size_px / FACE_PX)
    photo = on_canvas(small, 4000, 3000, 2600, 1700)
    assert not annotator_468(photo, AnnotateOptions(search="fast")).faces
    result = annotator_468(photo)
    assert result.passes[-1].startswith("tiles")
    (face,) = result.faces
    middle = (FACE_LOW + FACE_HIGH) / 2 * size_px / FACE_PX + (2600, 1700)
    assert np.abs(face.landmarks[:, :2].mean(axis=0) - middle).max() < 0.15 * size_px


def test_small_face_without_the_full_range_detector(annotator_478: Annotator, astronaut: Picture) -> None:
    photo = on_canvas(scaled(astronaut, 20 / FACE_PX), 1000, 750, 600, 400)
    (face,) = annotator_478(photo).faces
    assert 15 < np.ptp(face.landmarks[:, :2], axis=0).max() < 26


@pytest.mark.parametrize("angle", range(0, 360, 30))
def test_turned_head(annotator: Annotator, astronaut: Picture, angle: int) -> None:
    """Heads at every angle, 90 and 180 degrees among them; the mesh is that of the upright picture, turned."""
    matrix = cv2.getRotationMatrix2D((256.0, 200.0), angle, 1)
    matrix[:, 2] += 100
    turned = np.asarray(cv2.warpAffine(astronaut, matrix, (712, 712)), np.uint8)
    (face,) = annotator(turned).faces
    wanted = annotator(astronaut).faces[0].landmarks[:, :2] @ matrix[:, :2].T + matrix[:, 2]
    assert mesh_error(face.landmarks, wanted) < 2.5
    difference = face.pose.roll_deg - annotator(astronaut).faces[0].pose.roll_deg + angle
    assert abs((difference + 180) % 360 - 180) < 10


def test_two_faces_touching(annotator: Annotator, astronaut: Picture) -> None:
    tight = astronaut[FACE_LOW[1] - 15 : FACE_HIGH[1] + 10, FACE_LOW[0] - 5 : FACE_HIGH[0] + 5]
    pair = np.ascontiguousarray(np.hstack([tight, tight[:, ::-1]]))
    faces = annotator(pair).faces
    assert len(faces) == 2
    assert not same_face(faces[0].box, faces[1].box)
    left, right = sorted(face.landmarks[:, 0].mean() for face in faces)
    assert left < pair.shape[1] / 2 < right


def test_small_face_beside_a_large_one(annotator: Annotator, astronaut: Picture) -> None:
    """Auto stops at the large face; thorough goes on."""
    photo = on_canvas(astronaut, 1400, 700, 20, 100)
    small = scaled(astronaut, 0.3)
    photo[300 : 300 + small.shape[0], 1100 : 1100 + small.shape[1]] = small
    assert len(annotator(photo).faces) == 1
    assert len(annotator(photo, AnnotateOptions(search="thorough")).faces) == 2


@pytest.mark.parametrize("search", ["fast", "auto", "thorough"])
def test_no_face(annotator: Annotator, search: str) -> None:
    """A cup of coffee: something there looks a little like a face, and the error says so."""
    result = annotator(read_image(DATA / "no_face.png"), AnnotateOptions(search=search))  # type: ignore[arg-type]
    assert not result.faces
    assert isinstance(result.error, NoFaceFound)
    assert result.error.reason == "too-uncertain"
    best = result.error.best_rejected
    assert best is result.rejected[0] or best in result.rejected
    assert 0.25 <= best.score < 0.9  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (np.full((300, 400, 3), 128, np.uint8), "none"),
        (np.full((1, 1, 3), 128, np.uint8), "too-small"),
        (np.full((19, 12, 3), 128, np.uint8), "too-small"),
    ],
)
def test_reason_of_pictures_without_content(annotator_478: Annotator, picture: Picture, reason: str) -> None:
    error = annotator_478(picture).error
    assert isinstance(error, NoFaceFound)
    assert error.reason == reason
    assert error.remedy


def test_max_faces_keeps_the_best(annotator: Annotator, astronaut: Picture) -> None:
    pair = np.hstack([astronaut, np.ascontiguousarray(scaled(astronaut, 0.5).repeat(2, axis=0).repeat(2, axis=1))])
    both, one = annotator(pair), annotator(pair, AnnotateOptions(max_faces=1))
    assert len(both.faces) == 2
    assert len(one.faces) == 1
    assert one.faces[0].score == max(face.score for face in both.faces)


def test_fast_is_one_pass(annotator: Annotator, astronaut: Picture) -> None:
    assert annotator(astronaut, AnnotateOptions(search="fast")).passes == ("whole",)


@pytest.mark.parametrize("detector", RELIABLE_SHARE)
@pytest.mark.parametrize("longer_px", [300, 1234, 4000, 30000])
def test_every_size_is_covered(detector: str, longer_px: int) -> None:
    """Each row of tiles begins where the one before ends, down to the smallest size."""
    found = RELIABLE_SHARE[detector] * longer_px
    for side in tile_sides(longer_px, detector, 20):
        assert OVERLAP[detector] * side >= found - 1e-6 or side == pytest.approx(20 / RELIABLE_SHARE[detector])
        assert RELIABLE_SHARE[detector] * side < found
        found = RELIABLE_SHARE[detector] * side
    assert found <= 20 + 1e-6


@pytest.mark.parametrize(
    ("width", "height", "side", "overlap"), [(1000, 700, 250, 0.25), (333, 999, 111, 0.5), (80, 90, 99, 0.25)]
)
def test_tiles_cover_and_overlap(width: int, height: int, side: float, overlap: float) -> None:
    """Every window as large as the overlap lies wholly in some tile."""
    views = list(tiles(width, height, side, overlap))
    window = overlap * side
    rng = np.random.default_rng(0)
    for _ in range(200):
        x, y = rng.uniform(0, max(width - window, 1)), rng.uniform(0, max(height - window, 1))
        assert any(
            abs(x + window / 2 - view.centre_x) <= (side - window) / 2 + 1e-6
            and abs(y + window / 2 - view.centre_y) <= (side - window) / 2 + 1e-6
            for view in views
        )


def test_first_pass_is_mediapipes() -> None:
    first = next(iter(passes(640, 360, ("detector_short", "detector_full"), 20)))
    assert (first.name, first.detector, len(first.views)) == ("whole", "detector_short", 1)
