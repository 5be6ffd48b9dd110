"""Region labels: palette, painting order, and polygons against a slow test of every pixel."""

from __future__ import annotations

import numpy as np
import pytest

from facesdk.annotation import labels
from facesdk.annotation.annotator import Annotator
from facesdk.face import Face
from facesdk.image import read_image
from tests.bundles import DATA

NO_TRIANGLES = np.empty((0, 3), np.int64)


def label(name: str) -> int:
    return labels.NAMES.index(name)


@pytest.fixture(scope="module")
def face(annotator_478: Annotator) -> Face:
    return annotator_478(read_image(DATA / "astronaut.png")).faces[0]


# -- palette --------------------------------------------------------------------------------------------------


def test_the_palette_has_one_colour_per_name() -> None:
    assert len(labels.PALETTE) == len(labels.NAMES) == len({tuple(c) for c in labels.PALETTE.tolist()}) == 10


def test_colours_round_trip() -> None:
    found = np.random.default_rng(0).integers(0, 10, (31, 17)).astype(np.uint8)
    picture = labels.to_colours(found)
    assert picture.dtype == np.uint8
    assert picture.shape == (31, 17, 3)
    np.testing.assert_array_equal(labels.from_colours(picture), found)


def test_colours_with_noise_go_to_the_nearest() -> None:
    """As after JPEG; a fourth channel is ignored."""
    rng = np.random.default_rng(0)
    found = rng.integers(0, 10, (40, 40)).astype(np.uint8)
    noisy = np.clip(labels.to_colours(found) + rng.integers(-8, 9, (40, 40, 3)), 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(labels.from_colours(noisy), found)
    np.testing.assert_array_equal(labels.from_colours(np.dstack([noisy, noisy[..., :1]])), found)


# -- polygons -------------------------------------------------------------------------------------------------


def test_every_ring_is_a_ring_of_the_mesh() -> None:
    for name, ring in labels.POLYGONS:
        assert name in labels.NAMES
        assert len(set(ring)) == len(ring) > 9
        assert 0 <= min(ring) <= max(ring) < 468
    assert {name for name, _ in labels.POLYGONS} == set(labels.NAMES) - {"background", "skin"}


def painted_alone(points: np.ndarray, name: str, side: int) -> np.ndarray:
    """Where the polygon of one label would be, if nothing else were painted: by even-odd ray casting."""
    ring = np.rint(points[dict(labels.POLYGONS)[name], :2] - 0.5)
    x, y = np.meshgrid(np.arange(side), np.arange(side))
    inside = np.zeros(x.shape, bool)
    for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        if y0 != y1:
            crosses = (y0 > y) != (y1 > y)
            inside ^= crosses & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return inside


def edges(points: np.ndarray, name: str, side: int) -> np.ndarray:
    """The pixels under the polygon's edges, which are painted too, however thin the polygon is."""
    ring = np.rint(points[dict(labels.POLYGONS)[name], :2] - 0.5)
    along = np.linspace(0, 1, 200)[:, None, None]
    x, y = np.rint(ring + along * (np.roll(ring, -1, axis=0) - ring)).astype(int).reshape(-1, 2).T
    found = np.zeros((side, side), bool)
    found[y, x] = True
    return found


def eroded(mask: np.ndarray) -> np.ndarray:
    return mask & np.roll(mask, 1, 0) & np.roll(mask, -1, 0) & np.roll(mask, 1, 1) & np.roll(mask, -1, 1)


def dilated(mask: np.ndarray) -> np.ndarray:
    return ~eroded(~mask)


@pytest.mark.parametrize("name", [name for name, _ in labels.POLYGONS])
def test_polygons_cover_their_inside(face: Face, name: str) -> None:
    """Everywhere but within a pixel of the edges, unless a later polygon covers it."""
    side = 512
    points = (face.landmarks[:, :2] - face.landmarks[:, :2].min(axis=0)) * 4 + 10
    found = labels.region_labels(points, side, side, face.triangles)
    alone = painted_alone(points, name, side)
    order = [other for other, _ in labels.POLYGONS]
    later = np.isin(found, [label(other) for other in order[order.index(name) + 1 :]])
    assert ((found == label(name)) | later)[eroded(alone)].all()
    assert not (found == label(name))[~dilated(alone | edges(points, name, side))].any()


RINGS = dict(labels.POLYGONS)
DISJOINT = [
    (one, other)
    for number, (one, ring) in enumerate(labels.POLYGONS)
    for other, members in labels.POLYGONS[number + 1 :]
    if not set(ring) & set(members)
]


@pytest.mark.parametrize(("earlier", "later"), DISJOINT)
def test_later_polygons_cover_earlier_ones(earlier: str, later: str) -> None:
    """Two rings laid on the same circle."""
    points = np.full((468, 2), -100.0)
    for name in (earlier, later):
        angle = np.linspace(0, 2 * np.pi, len(RINGS[name]), endpoint=False)
        points[RINGS[name]] = 20 + 10 * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    found = labels.region_labels(points, 40, 40, NO_TRIANGLES)[12:29, 20]
    if later.endswith("lip"):  # its ring runs there and back: a thin one, of which only the edge is sure
        assert label(later) in found
    else:
        assert (found == label(later)).all()


def test_skin_is_the_union_of_the_triangles() -> None:
    points = np.full((468, 2), -100.0)
    a, b, c, d = sorted(set(range(468)).difference(*RINGS.values()))[:4]
    points[[a, b, c, d]] = [(10.5, 10.5), (30.5, 10.5), (30.5, 30.5), (10.5, 30.5)]
    triangles = np.array([[a, b, c], [a, c, d]])
    found = labels.region_labels(points, 50, 40, triangles)
    want = np.zeros((40, 50), np.uint8)
    want[10:31, 10:31] = label("skin")
    np.testing.assert_array_equal(found, want)


def test_every_label_is_seen_on_a_real_face(face: Face) -> None:
    large = face.region_labels((2048, 2048))
    assert large.shape == (2048, 2048)
    assert set(np.unique(large)) == set(range(10))


def test_left_and_right_are_the_subjects_own(face: Face) -> None:
    found = face.region_labels()
    for part in ("eye", "brow"):
        left, right = (np.nonzero(found == label(f"{side}_{part}"))[1].mean() for side in ("left", "right"))
        assert right < left  # the subject's right is on the picture's left
    rows = [np.nonzero(found == label(name))[0].mean() for name in ("left_brow", "left_eye", "nose", "lower_lip")]
    assert rows == sorted(rows)


def test_scaled_labels_are_the_picture_scaled(face: Face) -> None:
    full, double = face.region_labels(), face.region_labels((1024, 1024))
    agree = double[::2, ::2] == full
    assert agree[~dilated(np.diff(np.pad(full, ((0, 0), (0, 1)), mode="edge").astype(int), axis=1) != 0)].mean() > 0.99
    assert face.mask().sum() * 4 == pytest.approx(face.mask((1024, 1024)).sum(), rel=0.03)


def test_the_mask_is_one_on_the_face(face: Face) -> None:
    mask = face.mask((100, 80))
    assert mask.shape == (80, 100)
    assert mask.dtype == np.float32
    assert set(np.unique(mask)) == {0.0, 1.0}


@pytest.mark.parametrize("shift", [-1e4, 1e4, 3e5])
def test_a_face_far_outside_paints_nothing(face: Face, shift: float) -> None:
    assert not labels.region_labels(face.landmarks[:, :2] + shift, 64, 64, face.triangles).any()


def test_a_face_that_leaves_the_picture_is_cut(face: Face) -> None:
    full = face.region_labels()
    cut = labels.region_labels(face.landmarks[:, :2] - [220, 100], 100, 100, face.triangles)
    assert (cut == full[100:200, 220:320]).mean() > 0.995
