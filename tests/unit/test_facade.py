"""`FaceSDK`: errors, batches, threads, closing, and which bundles it takes."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

import facesdk
from facesdk.annotation.alignment import arcface_template
from facesdk.annotation.annotator import AnnotateOptions, Annotation
from facesdk.bundle import Bundle
from facesdk.errors import EngineClosed, ImageError, ModelNotFound, NoFaceFound, UsageError
from facesdk.facade import FaceSDK
from facesdk.face import Face
from facesdk.image import Picture, read_image
from facesdk.store import Store
from tests.bundles import DATA

PHOTOS = [DATA / "astronaut.png", DATA / "astronaut_rot35.png", DATA / "astronaut_wide.png"]
FAST = AnnotateOptions(search="fast")


@pytest.fixture(scope="module")
def sdk(models_home: Path, bundle_478: Bundle) -> Iterator[FaceSDK]:
    with FaceSDK("cpu", threads=1, annotation="annotation-478", store=Store(models_home)) as sdk:
        yield sdk


def same(a: Face, b: Face) -> bool:
    """Bit for bit."""
    arrays = ("box", "key_points", "landmarks", "five_points", "transform")
    return (
        all(np.array_equal(getattr(a, name), getattr(b, name)) for name in arrays)
        and (a.score, a.presence, a.pose, a.region) == (b.score, b.presence, b.pose, b.region)
        and a.blendshapes == b.blendshapes
    )


def all_same(one: list[Annotation], other: list[Annotation]) -> bool:
    return len(one) == len(other) and all(
        len(a.faces) == len(b.faces) and all(map(same, a.faces, b.faces)) for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize(("options", "name"), [({"device": "tensort"}, "tensorrt"), ({"precision": "half"}, "fp16")])
def test_a_device_or_precision_that_there_is_not(options: dict[str, str], name: str) -> None:
    with pytest.raises(UsageError) as found:
        FaceSDK(**options)  # type: ignore[arg-type]
    assert name in found.value.remedy


# -- one picture ----------------------------------------------------------------------------------------------


def test_a_face_and_all_that_is_known_of_it(sdk: FaceSDK) -> None:
    (face,) = sdk.annotate(PHOTOS[0])
    assert face.landmarks.shape == (478, 3)
    assert face.blendshapes is not None
    assert len(face.blendshapes) == 52
    assert all(0 <= score <= 1 for score in face.blendshapes.values())
    assert face.image_size == (512, 512)
    assert face.track_id is None
    low, high = face.landmarks[:, :2].min(axis=0), face.landmarks[:, :2].max(axis=0)
    assert ((face.five_points > low) & (face.five_points < high)).all()
    left_eye, right_eye, nose, left_mouth, right_mouth = face.five_points
    assert left_eye[0] < nose[0] < right_eye[0]
    assert left_mouth[0] < right_mouth[0]
    assert left_eye[1] < nose[1] < left_mouth[1]
    assert face.presence > 0.9
    assert face.transform[2, 3] < 0  # in front of the camera


def test_every_kind_of_source_gives_the_same_face(sdk: FaceSDK) -> None:
    picture = read_image(PHOTOS[0])
    mirrored = np.ascontiguousarray(picture[..., ::-1])[..., ::-1]
    mirrored.flags.writeable = False
    sources = [PHOTOS[0], str(PHOTOS[0]), PHOTOS[0].read_bytes(), Pillow.open(PHOTOS[0]), mirrored]
    (first,) = sdk.annotate(picture)
    for source in [*sources, io.BytesIO(PHOTOS[0].read_bytes())]:
        (face,) = sdk.annotate(source)
        assert same(face, first)


def test_no_face(sdk: FaceSDK) -> None:
    with pytest.raises(NoFaceFound) as caught:
        sdk.annotate(DATA / "no_face.png")
    assert caught.value.code == "no-face"
    assert caught.value.exit_code == 3
    assert caught.value.best_rejected is not None


def test_a_picture_that_cannot_be_read(sdk: FaceSDK, tmp_path: Path) -> None:
    with pytest.raises(ImageError):
        sdk.annotate(tmp_path / "absent.png")
    with pytest.raises(ImageError):
        sdk.annotate(b"not a picture")
    with pytest.raises(ImageError):
        sdk.annotate(np.full((8, 8, 3), np.nan))  # type: ignore[arg-type]


def test_one_pixel(sdk: FaceSDK) -> None:
    with pytest.raises(NoFaceFound) as caught:
        sdk.annotate(np.zeros((1, 1, 3), np.uint8))
    assert caught.value.reason == "too-small"


def test_as_dict_is_json(sdk: FaceSDK) -> None:
    (face,) = sdk.annotate(PHOTOS[0])
    found = json.loads(json.dumps(face.as_dict(), allow_nan=False))
    np.testing.assert_allclose(found["landmarks"], face.landmarks, atol=5e-4)
    np.testing.assert_allclose(found["box"], face.box, atol=5e-4)
    assert found["pose"]["approximate"] is True


def test_normalised_landmarks_are_shares_of_the_picture(sdk: FaceSDK) -> None:
    face = sdk.annotate(PHOTOS[2])[0]
    width, height = face.image_size
    assert width != height
    np.testing.assert_allclose(face.normalised_landmarks() * [width, height, width], face.landmarks, rtol=1e-6)


def test_the_aligned_crop_has_the_eyes_where_arcface_wants_them(sdk: FaceSDK) -> None:
    (face,) = sdk.annotate(PHOTOS[0])
    crop = face.aligned(read_image(PHOTOS[0]), 224)
    assert crop.shape == (224, 224, 3)
    (again,) = sdk.annotate(crop)
    # the template does not smile
    assert np.linalg.norm(again.five_points - arcface_template(224), axis=1).max() < 0.08 * 224


# -- batches --------------------------------------------------------------------------------------------------


def test_a_batch_keeps_order_and_one_unreadable_picture_does_not_stop_it(sdk: FaceSDK) -> None:
    sources = [PHOTOS[0], b"damaged", DATA / "no_face.png", PHOTOS[2], np.zeros((4, 4, 3)), None, PHOTOS[1]]
    results = list(sdk.annotate_batch(sources, FAST, workers=3))  # type: ignore[arg-type]
    assert [len(result.faces) > 0 for result in results] == [True, False, False, True, False, False, True]
    codes = [result.error.code if result.error else None for result in results]
    assert codes == [None, "image-unreadable", "no-face", None, "image-array", "image-array", None]
    assert results[3].image_size == read_image(PHOTOS[2]).shape[1::-1]


def test_four_workers_give_what_one_gives(sdk: FaceSDK) -> None:
    pictures = [read_image(path) for path in PHOTOS] * 4
    one, four = (list(sdk.annotate_batch(pictures, workers=workers)) for workers in (1, 4))
    assert all_same(one, four)


def test_a_batch_takes_pictures_as_it_needs_them(sdk: FaceSDK) -> None:
    """At most twice as many as workers are held; a consumer that stops early leaves the rest unread."""
    taken = []

    def pictures() -> Iterator[Picture]:
        for number in range(100):
            taken.append(number)
            yield np.zeros((1, 1, 3), np.uint8)

    batch = sdk.annotate_batch(pictures(), FAST, workers=2)
    next(batch)
    assert len(taken) <= 4
    batch.close()  # type: ignore[attr-defined]
    assert len(taken) <= 4


def test_an_empty_batch(sdk: FaceSDK) -> None:
    assert list(sdk.annotate_batch([])) == []


@pytest.mark.parametrize("workers", [0, -1])
def test_workers_that_cannot_work(sdk: FaceSDK, workers: int) -> None:
    with pytest.raises(UsageError, match="workers"):
        list(sdk.annotate_batch(PHOTOS, workers=workers))


@pytest.mark.parametrize(
    "options",
    [
        {"search": "foo"},
        {"min_score": 0.0},
        {"min_score": 2.0},
        {"min_presence": float("nan")},
        {"max_faces": 0},
        {"smallest_px": 0.5},
    ],
)
def test_options_without_meaning(options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))) as caught:
        AnnotateOptions(**options)  # type: ignore[arg-type]
    assert caught.value.remedy


def test_tracking_through_the_facade(sdk: FaceSDK) -> None:
    results = list(sdk.track([PHOTOS[0]] * 3, FAST))
    assert [[face.track_id for face in result.faces] for result in results] == [[1]] * 3


# -- threads --------------------------------------------------------------------------------------------------


def test_four_threads_at_once_on_one_sdk(models_home: Path, bundle_478: Bundle) -> None:
    """They also open it at once: the engines are opened a single time."""
    pictures = [read_image(path) for path in PHOTOS]
    found: dict[int, list[list[Face]]] = {}
    with FaceSDK("cpu", threads=1, annotation="annotation-478", store=Store(models_home)) as sdk:
        start, annotators = threading.Barrier(4), set()

        def work(number: int) -> None:
            start.wait()
            annotators.add(sdk.annotator)
            found[number] = [sdk.annotate(picture) for picture in pictures * 3]

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        alone = [sdk.annotate(picture) for picture in pictures] * 3
    assert len(annotators) == 1
    assert sorted(found) == [0, 1, 2, 3]
    for results in found.values():
        for one, other in zip(results, alone, strict=True):
            assert len(one) == len(other)
            assert all(map(same, one, other))


# -- opening and closing --------------------------------------------------------------------------------------


def test_closing_and_opening_again(models_home: Path, bundle_478: Bundle) -> None:
    sdk = FaceSDK("cpu", threads=1, annotation="annotation-478", store=Store(models_home))
    sdk.close()  # before anything was opened
    (first,) = sdk.annotate(PHOTOS[0])
    annotator = sdk.annotator
    sdk.close()
    sdk.close()
    with pytest.raises(EngineClosed):
        annotator(read_image(PHOTOS[0]))
    (again,) = sdk.annotate(PHOTOS[0])
    assert same(first, again)
    assert sdk.annotator is not annotator
    sdk.close()


def test_a_context_closes_what_it_opened(models_home: Path, bundle_478: Bundle) -> None:
    with FaceSDK("cpu", annotation="annotation-478", store=Store(models_home)) as sdk:
        annotator = sdk.annotator
    with pytest.raises(EngineClosed):
        annotator(read_image(PHOTOS[0]))


def test_the_package_gives_the_facade() -> None:
    assert facesdk.FaceSDK is FaceSDK


# -- bundles --------------------------------------------------------------------------------------------------


def test_nothing_installed(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound) as caught:
        FaceSDK(store=Store(tmp_path)).annotate(PHOTOS[0])
    assert caught.value.remedy == "facesdk models pull annotation"
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(("name", "remedy"), [("annotation", "facesdk models pull annotation"), ("other", "facesdk")])
def test_a_bundle_by_name_that_is_not_there(tmp_path: Path, name: str, remedy: str) -> None:
    with pytest.raises(ModelNotFound, match=name) as caught:
        FaceSDK(annotation=name, store=Store(tmp_path)).annotate(PHOTOS[0])
    assert remedy in caught.value.remedy


def test_478_points_and_the_wheels_full_range_detector(
    models_home: Path, bundle_478: Bundle, bundle_468: Bundle
) -> None:
    """The task's bundle comes first; what it lacks is taken from the wheel's."""
    assert "detector_full" not in bundle_478.engine_names
    with FaceSDK("cpu", store=Store(models_home)) as sdk:
        annotator = sdk.annotator
        assert annotator.bundle.name == "annotation-478"
        assert list(annotator.detectors) == ["detector_short", "detector_full"]
        assert annotator.detectors["detector_full"].engine.path.parent == bundle_468.folder
        assert annotator.detectors["detector_short"].engine.path.parent == bundle_478.folder
        assert annotator.detectors["detector_full"].size == 192


def test_only_the_wheels_bundle(models_home: Path, bundle_468: Bundle) -> None:
    with FaceSDK("cpu", annotation="annotation", store=Store(models_home)) as sdk:
        (face,) = sdk.annotate(PHOTOS[0])
    assert face.landmarks.shape == (468, 3)
    assert face.blendshapes is None


def test_a_bundle_by_folder(tmp_path: Path, bundle_478: Bundle) -> None:
    with FaceSDK("cpu", annotation=bundle_478.folder, store=Store(tmp_path)) as sdk:
        assert list(sdk.annotator.detectors) == ["detector_short"]
        assert len(sdk.annotate(PHOTOS[0])) == 1
