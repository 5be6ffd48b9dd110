"""Tracking: the One-Euro filter, and faces through a video made of one photo."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import pytest

from facesdk.annotation.annotator import AnnotateOptions, Annotation, Annotator
from facesdk.annotation.tracking import OneEuro, Tracker, TrackOptions
from facesdk.errors import NoFaceFound, UsageError
from facesdk.image import Picture, read_image
from tests.bundles import DATA

FAST = AnnotateOptions(search="fast")
FACE = (slice(20, 260), slice(120, 330))  # the astronaut's head


# -- filter ---------------------------------------------------------------------------------------------------


def points(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(0, 200, (30, 3)).astype(np.float32)


def test_the_first_frame_is_unchanged() -> None:
    first = points(np.random.default_rng(0))
    np.testing.assert_array_equal(OneEuro(TrackOptions())(first), first)


def test_what_stands_still_stays() -> None:
    still, smooth = points(np.random.default_rng(0)), OneEuro(TrackOptions())
    for _ in range(50):
        np.testing.assert_allclose(smooth(still), still, rtol=1e-6)


def test_jitter_is_reduced() -> None:
    rng = np.random.default_rng(0)
    still, smooth = points(rng), OneEuro(TrackOptions())
    noisy = [(still + rng.normal(0, 0.3, still.shape)).astype(np.float32) for _ in range(200)]
    smoothed = [smooth(frame) for frame in noisy]
    before, after = np.diff(noisy, axis=0)[50:].std(), np.diff(smoothed, axis=0)[50:].std()
    assert after < 0.6 * before
    assert np.abs(np.mean(smoothed[50:], axis=0) - still).max() < 0.2


def test_a_step_is_followed() -> None:
    """A jump by a third of the face is made up for within a few frames."""
    start, smooth = points(np.random.default_rng(0)), OneEuro(TrackOptions())
    for _ in range(10):
        smooth(start)
    end = start + np.float32(70)
    error = [np.abs(smooth(end) - end).max() for _ in range(30)]
    assert error[0] < 20
    assert error[10] < 1
    assert error[-1] < 0.1
    assert np.diff(error).max() < 1e-3


def test_speed_is_measured_in_faces_so_size_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    frames = [points(rng) for _ in range(5)]
    small, large = OneEuro(TrackOptions()), OneEuro(TrackOptions())
    for frame in frames:
        np.testing.assert_allclose(large(frame * 8), small(frame) * 8, rtol=1e-4)


def test_a_point_set_without_extent_is_no_trouble() -> None:
    smooth = OneEuro(TrackOptions())
    for value in (1, 2, 2):
        assert np.isfinite(smooth(np.full((3, 3), value, np.float32))).all()


@pytest.mark.parametrize(
    "options",
    [
        {"frames_per_second": 0},
        {"detect_every": 0},
        {"min_cutoff": -1},
        {"derivative_cutoff": float("nan")},
        {"beta": -1},
    ],
)
def test_options_without_meaning(options: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        TrackOptions(**options)  # type: ignore[arg-type]


# -- video ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photo() -> Picture:
    return read_image(DATA / "astronaut.png")


def moved(photo: Picture, frame: int) -> np.ndarray:
    """(2, 3) of a slow shift, turn and growth, around the face."""
    matrix = cv2.getRotationMatrix2D((226.0, 128.0), 0.6 * frame, 1 + 0.006 * frame)
    matrix[:, 2] += [1.5 * frame, 0.8 * frame]
    return np.asarray(matrix)


def warped(photo: Picture, matrix: np.ndarray) -> Picture:
    return np.asarray(cv2.warpAffine(photo, matrix, (512, 400), borderMode=cv2.BORDER_REPLICATE), np.uint8)


def video(photo: Picture, frames: int) -> Iterator[Picture]:
    return (warped(photo, moved(photo, frame)) for frame in range(frames))


def tracked(annotator: Annotator, frames: Iterator[Picture], **tracking: object) -> list[Annotation]:
    tracker = Tracker(annotator, FAST, TrackOptions(**tracking))  # type: ignore[arg-type]
    return [tracker(frame) for frame in frames]


def identifiers(results: list[Annotation]) -> list[list[int | None]]:
    return [[face.track_id for face in result.faces] for result in results]


def test_one_face_keeps_its_identifier_and_is_followed(annotator_478: Annotator, photo: Picture) -> None:
    results = tracked(annotator_478, video(photo, 40))
    assert identifiers(results) == [[1]] * 40
    start = results[0].faces[0].landmarks[:, :2]
    for frame in (10, 25, 39):
        matrix = moved(photo, frame)
        want = start @ matrix[:, :2].T + matrix[:, 2]
        found = results[frame].faces[0].landmarks[:, :2]
        assert np.linalg.norm(found - want, axis=1).mean() < 0.04 * np.ptp(want, axis=0).max()
    assert results[39].faces[0].pose.roll_deg == pytest.approx(results[0].faces[0].pose.roll_deg - 0.6 * 39, abs=5)


def test_the_detector_looks_only_now_and_then(annotator_478: Annotator, photo: Picture) -> None:
    results = tracked(annotator_478, video(photo, 12), detect_every=5)
    assert [bool(result.passes) for result in results] == [n in (0, 5, 10) for n in range(12)]
    assert all("track" in result.timings_ms for result in results)
    assert identifiers(results) == [[1]] * 12


def test_smoothing_reduces_jitter(annotator_478: Annotator, photo: Picture) -> None:
    """A face that stands still under noise: how far its points jump from frame to frame."""

    def noisy() -> Iterator[Picture]:
        rng = np.random.default_rng(0)
        for _ in range(24):
            yield np.clip(photo[:400] + rng.normal(0, 14, (400, 512, 3)), 0, 255).astype(np.uint8)

    jumps = {}
    for smooth in (True, False):
        results = tracked(annotator_478, noisy(), smooth=smooth, detect_every=100)
        meshes = np.array([result.faces[0].landmarks[:, :2] for result in results])
        jumps[smooth] = np.diff(meshes[6:], axis=0).std()
    assert jumps[True] < 0.7 * jumps[False]


def test_a_lost_face_ends_its_track_and_a_new_one_gets_a_new_identifier(
    annotator_478: Annotator, photo: Picture
) -> None:
    empty = read_image(DATA / "no_face.png")
    frames = [photo] * 3 + [empty] * 2 + [photo] * 3
    results = tracked(annotator_478, iter(frames))
    assert identifiers(results) == [[1]] * 3 + [[]] * 2 + [[2]] * 3
    for result in results[3:5]:
        assert isinstance(result.error, NoFaceFound)
        assert result.image_size == (empty.shape[1], empty.shape[0])
    assert all(result.error is None for result in results[:3] + results[5:])


def pair(photo: Picture, left: bool = True, right: bool = True) -> Picture:
    head = photo[FACE]
    blank = np.full_like(head, 120)
    gap = np.full((head.shape[0], 30, 3), 120, np.uint8)
    return np.ascontiguousarray(np.hstack([head if left else blank, gap, head[:, ::-1] if right else blank]))


def test_two_faces_keep_their_identifiers_when_one_leaves(annotator_478: Annotator, photo: Picture) -> None:
    frames = [pair(photo)] * 4 + [pair(photo, left=False)] * 4 + [pair(photo)] * 4
    results = tracked(annotator_478, iter(frames), detect_every=3)
    middle = pair(photo).shape[1] / 2

    def sides(result: Annotation) -> dict[str, int | None]:
        return {"left" if f.landmarks[:, 0].mean() < middle else "right": f.track_id for f in result.faces}

    first = sides(results[0])
    assert set(first.values()) == {1, 2}
    assert all(sides(result) == first for result in results[:4])
    assert all(sides(result) == {"right": first["right"]} for result in results[4:8])
    assert sides(results[-1]) == {"left": 3, "right": first["right"]}


def test_a_new_face_is_found_beside_a_tracked_one(annotator_478: Annotator, photo: Picture) -> None:
    frames = [pair(photo, right=False)] * 3 + [pair(photo)] * 6
    results = tracked(annotator_478, iter(frames), detect_every=4)
    assert identifiers(results)[:3] == [[1]] * 3
    assert identifiers(results)[-1] == [1, 2]


@pytest.mark.parametrize("most", [1, 2])
def test_never_more_faces_than_asked(annotator_478: Annotator, photo: Picture, most: int) -> None:
    tracker = Tracker(annotator_478, AnnotateOptions(search="fast", max_faces=most), TrackOptions(detect_every=2))
    results = [tracker(pair(photo)) for _ in range(6)]
    assert identifiers(results) == [list(range(1, most + 1))] * 6
    assert [bool(result.passes) for result in results] == [True] + [False] * 5  # full: nothing new to look for


def test_never_more_faces_than_asked_when_better_ones_appear(annotator_478: Annotator, photo: Picture) -> None:
    """One face is tracked, and the two best of three are both others."""
    heads = [photo[FACE], photo[FACE][:, ::-1], cv2.GaussianBlur(photo[FACE], (0, 0), 2)]
    width = heads[0].shape[1]
    worst = int(annotator_478(np.ascontiguousarray(np.hstack(heads)), FAST).faces[-1].landmarks[0, 0] // width)
    first = [head if number == worst else np.full_like(head, 120) for number, head in enumerate(heads)]
    tracker = Tracker(annotator_478, AnnotateOptions(search="fast", max_faces=2), TrackOptions(detect_every=1))
    results = [tracker(np.ascontiguousarray(np.hstack(frame))) for frame in (first, heads, heads)]
    assert identifiers(results) == [[1], [1, 2], [1, 2]]
    assert len(tracker._tracks) == 2  # none is followed in secret


def test_a_new_size_of_frame(annotator_478: Annotator, photo: Picture) -> None:
    """The picture may be cut in the middle of a video."""
    results = tracked(annotator_478, iter([photo, photo[:400, :450], photo]))
    assert [result.image_size for result in results] == [(512, 512), (450, 400), (512, 512)]
    assert identifiers(results) == [[1]] * 3
