"""The drawn overlay: it shows what was found, where it was found, and never fails."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from facesdk.annotation import labels
from facesdk.annotation.annotator import Annotator
from facesdk.face import Face
from facesdk.image import Picture, read_image
from facesdk.overlay import draw_overlay, draw_regions
from tests.bundles import DATA


@pytest.fixture(scope="module")
def photo() -> Picture:
    return read_image(DATA / "astronaut.png")


@pytest.fixture(scope="module")
def face(annotator_478: Annotator, photo: Picture) -> Face:
    return annotator_478(photo).faces[0]


def moved(face: Face, shift: tuple[float, float], scale: float = 1.0) -> Face:
    """The same face elsewhere."""
    offset = np.array(shift, np.float32)
    return dataclasses.replace(
        face,
        box=(face.box.reshape(2, 2) * scale + offset).reshape(-1).astype(np.float32),
        landmarks=(face.landmarks * scale + [*offset, 0]).astype(np.float32),
        five_points=(face.five_points * scale + offset).astype(np.float32),
    )


def test_small_faces_are_enlarged(photo: Picture, face: Face) -> None:
    """A face of 95 px: three times, which is the most."""
    assert draw_overlay(photo, [face]).shape == (3 * 512, 3 * 512, 3)


def test_large_faces_and_large_pictures_are_not(photo: Picture, face: Face) -> None:
    large = moved(face, (-200, 0), 4)
    assert draw_overlay(photo, [large]).shape == photo.shape
    assert draw_overlay(np.zeros((100, 6000, 3), np.uint8), [face]).shape == (100, 6000, 3)


def test_without_faces_it_is_a_copy(photo: Picture) -> None:
    drawn = draw_overlay(photo, [])
    np.testing.assert_array_equal(drawn, photo)
    assert not np.shares_memory(drawn, photo)


def test_the_drawing_is_where_the_face_is(photo: Picture, face: Face) -> None:
    """Every landmark is a white dot on the enlarged canvas; far from the face nothing changes."""
    large = moved(face, (-300, -150), 3)
    drawn = draw_overlay(photo, [large]).astype(int)
    changed = np.abs(drawn - photo).sum(axis=-1) > 0
    x0, y0, x1, y1 = large.landmarks[:, 0].min(), large.landmarks[:, 1].min(), *large.landmarks[:, :2].max(axis=0)
    reach = 40  # the box, its text, the axes of the pose
    outside = np.ones(changed.shape, bool)
    low, high = np.minimum((x0, y0), large.box[:2]) - reach, np.maximum((x1, y1), large.box[2:]) + reach
    outside[max(0, int(low[1])) : int(high[1]), max(0, int(low[0])) : int(high[0])] = False
    assert not changed[outside].any()
    inside = [(round(x), round(y)) for x, y in large.landmarks[:, :2].tolist() if 2 < x < 509 and 2 < y < 509]
    assert len(inside) > 300
    bright = [drawn[y - 1 : y + 2, x - 1 : x + 2].sum(axis=-1).max() > 500 for x, y in inside]
    assert np.mean(bright) > 0.9  # a few lie under the axes of the pose


def test_the_picture_is_not_drawn_on(photo: Picture, face: Face) -> None:
    before = photo.copy()
    draw_overlay(photo, [face])
    np.testing.assert_array_equal(photo, before)


@pytest.mark.parametrize("shift", [(-230, -130), (290, 330), (-600, 0), (0, 900), (50_000, -50_000)])
def test_faces_that_leave_the_picture(photo: Picture, face: Face, shift: tuple[float, float]) -> None:
    assert draw_overlay(photo, [moved(face, shift), face]).dtype == np.uint8


@pytest.mark.parametrize("size", [(1, 1), (3, 400), (400, 3)])
def test_pictures_of_extreme_sizes(face: Face, size: tuple[int, int]) -> None:
    drawn = draw_overlay(np.zeros((*size, 3), np.uint8), [face])
    assert drawn.shape[0] % size[0] == drawn.shape[1] % size[1] == 0


def test_memory_layout_does_not_matter(photo: Picture, face: Face) -> None:
    want = draw_overlay(photo, [face])
    view = np.ascontiguousarray(photo[..., ::-1])[..., ::-1]
    view.flags.writeable = False
    np.testing.assert_array_equal(draw_overlay(view, [face]), want)


def test_the_head_points_where_it_looks(photo: Picture, face: Face) -> None:
    """The blue axis leaves the nose towards the side to which the yaw points."""
    for sign in (1, -1):
        c, s = np.cos(0.6), np.sin(0.6) * sign
        transform = np.eye(4, dtype=np.float32)
        transform[:3, :3] = [[c, 0, s], [0, 1, 0], [-s, 0, c]]  # the normal, +z, goes to x = s
        turned = dataclasses.replace(moved(face, (-300, -150), 3), transform=transform)
        drawn = draw_overlay(np.full_like(photo, 20), [turned])
        blue = (drawn[..., 2] > 220) & (drawn[..., 0] < 120)
        offset = np.nonzero(blue)[1].mean() - turned.five_points[2, 0]
        assert np.sign(offset) == sign


def test_regions_of_several_faces_with_the_best_on_top(face: Face) -> None:
    other = moved(face, (60, 0))
    both = labels.from_colours(draw_regions([face, other], (512, 512)))
    own, second = face.region_labels(), other.region_labels()
    np.testing.assert_array_equal(both[own > 0], own[own > 0])
    alone = (own == 0) & (second > 0)
    assert alone.any()
    np.testing.assert_array_equal(both[alone], second[alone])
    assert not both[(own == 0) & (second == 0)].any()


def test_regions_of_no_face_are_background() -> None:
    picture = draw_regions([], (30, 20))
    assert picture.shape == (20, 30, 3)
    assert (picture == labels.PALETTE[0]).all()
