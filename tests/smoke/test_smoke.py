"""The SDK in a few lines each; read these first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import facesdk
from tests.bundles import DATA


@pytest.fixture(scope="module")
def sdk(bundle_478: facesdk.Bundle) -> facesdk.FaceSDK:
    return facesdk.FaceSDK("cpu", annotation=bundle_478.folder)


def test_annotate_a_photo(sdk: facesdk.FaceSDK) -> None:
    (face,) = sdk.annotate(DATA / "astronaut.png")
    assert face.landmarks.shape == (478, 3)
    assert np.allclose(face.box, [177.6, 82.9, 272.9, 178.2], atol=1)
    assert abs(face.pose.roll_deg) < 10
    assert face.blendshapes is not None
    assert face.blendshapes["mouthSmileLeft"] > 0.5


def test_regions_and_mask(sdk: facesdk.FaceSDK) -> None:
    (face,) = sdk.annotate(DATA / "astronaut.png")
    regions, mask = face.region_labels(), face.mask()
    assert regions.shape == mask.shape == (512, 512)
    assert set(np.unique(regions)) == set(range(10))
    assert mask[130, 225] == 1
    assert mask[400, 100] == 0


def test_aligned_crop(sdk: facesdk.FaceSDK) -> None:
    picture = facesdk.read_image(DATA / "astronaut.png")
    (face,) = sdk.annotate(picture)
    assert face.aligned(picture).shape == (112, 112, 3)


def test_no_face_is_an_error_that_says_why(sdk: facesdk.FaceSDK) -> None:
    with pytest.raises(facesdk.NoFaceFound) as caught:
        sdk.annotate(DATA / "no_face.png")
    assert caught.value.code == "no-face"
    assert caught.value.reason == "too-uncertain"


def test_a_folder_of_photos(sdk: facesdk.FaceSDK) -> None:
    annotations = list(sdk.annotate_batch(sorted(DATA.glob("*.png"))))
    assert [len(annotation.faces) for annotation in annotations] == [1, 1, 1, 0]
    assert annotations[-1].error is not None


def test_follow_a_face_through_a_video(sdk: facesdk.FaceSDK) -> None:
    picture = facesdk.read_image(DATA / "astronaut.png")
    frames = (np.roll(picture, shift, axis=1) for shift in range(0, 30, 3))
    identifiers = {annotation.faces[0].track_id for annotation in sdk.track(frames)}
    assert identifiers == {1}


def test_run_an_engine(bundle_478: facesdk.Bundle) -> None:
    with bundle_478.open("blendshapes", "cpu") as engine:
        scores = engine(points=np.zeros((1, 146, 2), np.float32))["scores"]
    assert scores.shape == (52,)
    assert engine.card.licence == "Apache-2.0"


def test_a_device_that_is_not_there_is_an_error(bundle_478: facesdk.Bundle) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("CUDA is here")
    with pytest.raises(facesdk.FaceSDKError, match="facesdk doctor"):
        bundle_478.open("landmarks", "cuda")


def test_keep_a_result(sdk: facesdk.FaceSDK, tmp_path: Path) -> None:
    (face,) = sdk.annotate(DATA / "astronaut.png")
    facesdk.write_image(tmp_path / "mask.png", (face.mask() * 255).astype(np.uint8))
    assert (tmp_path / "mask.png").stat().st_size > 0
    assert face.as_dict()["pose"]["approximate"]
