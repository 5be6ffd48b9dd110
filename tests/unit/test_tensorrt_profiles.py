"""Profiles: from a bundle's table, from examples, by the names of axes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from facesdk.annotation.annotator import AnnotateOptions, Annotator
from facesdk.annotation.tracking import Tracker, TrackOptions
from facesdk.bundle import Bundle
from facesdk.encoder import Encoder
from facesdk.errors import BundleError
from facesdk.graph import Value
from facesdk.plans.profiles import MOST_ROWS, profile, said
from tests.engine_calls import assert_all_said, assert_served, profile_of, recorded
from tests.photos import astronaut

STEP = (
    Value("bank", "float32", ("batch", "memory", 4, "height", "width")),
    Value("matrix", "float32", ("memory", "memory + 2")),
    Value("mask", "float32", ("batch", 1, "height", "width")),
    Value("image", "uint8", ("batch", "8*height", "8*width", 3)),
    Value("scale", "float32", (1,)),
)
EXAMPLES = {
    "bank": (3, 2, 4, 8, 10), "matrix": (2, 4), "mask": (3, 1, 8, 10), "image": (3, 64, 80, 3), "scale": (1,),
}  # fmt: skip


def test_what_is_not_said_comes_from_the_example() -> None:
    found = profile("step", STEP, {}, EXAMPLES)
    assert found == {
        "bank": ((1, 1, 4, 8, 10), (3, 2, 4, 8, 10), (MOST_ROWS, MOST_ROWS, 4, 8, 10)),
        "matrix": ((1, 3), (2, 4), (4, 6)),
        "mask": ((1, 1, 8, 10), (3, 1, 8, 10), (4, 1, 8, 10)),
        "image": ((1, 64, 80, 3), (3, 64, 80, 3), (4, 64, 80, 3)),
    }


def test_more_rows_than_usual_in_the_example() -> None:
    found = profile("e", [Value("x", "float32", ("n", 5))], {}, {"x": (9, 5)})
    assert found == {"x": ((1, 5), (9, 5), (9, 5))}


def test_a_size_said_once_holds_wherever_the_axis_recurs() -> None:
    table = {"bank": [[1, 2, 4, 32, 32], [2, 2, 4, 64, 64], [8, 3, 4, 96, 128]]}
    found = profile("step", STEP, table, EXAMPLES)
    assert found["mask"] == ((1, 1, 32, 32), (2, 1, 64, 64), (8, 1, 96, 128))
    assert found["matrix"] == ((2, 4), (2, 4), (3, 5))
    assert found["image"] == ((1, 256, 256, 3), (2, 512, 512, 3), (8, 768, 1024, 3))


def test_sizes_of_axes() -> None:
    found = profile("step", STEP, {"height": [8, 64, 96], "memory": (1, 1, 6), "batch": [1, 1, 4]}, EXAMPLES)
    assert found == {
        "bank": ((1, 1, 4, 8, 10), (1, 1, 4, 64, 10), (4, 6, 4, 96, 10)),
        "matrix": ((1, 3), (1, 3), (6, 8)),
        "mask": ((1, 1, 8, 10), (1, 1, 64, 10), (4, 1, 96, 10)),
        "image": ((1, 64, 80, 3), (1, 512, 80, 3), (4, 768, 80, 3)),
    }


def test_sizes_of_axes_beside_whole_shapes() -> None:
    """What is said of a whole input holds there, and of its axes elsewhere."""
    found = profile("step", STEP, {"memory": [1, 2, 3], "mask": [[1, 1, 4, 4], [2, 1, 8, 8], [3, 1, 9, 9]]}, EXAMPLES)
    assert found["bank"] == ((1, 1, 4, 4, 4), (2, 2, 4, 8, 8), (3, 3, 4, 9, 9))


def test_an_input_that_is_called_like_an_axis() -> None:
    inputs = [Value("time", "float32", ("time", 2)), Value("x", "float32", ("time",))]
    found = profile("e", inputs, {"time": [[1, 2], [5, 2], [9, 2]]}, {})
    assert found["x"] == ((1,), (5,), (9,))


def test_fixed_shapes_need_no_profile() -> None:
    assert profile("e", [Value("x", "float32", (1, 3)), Value("s", "float32", ())], {}, {}) == {}


def test_axes_without_a_name() -> None:
    found = profile("e", [Value("x", "float32", (None, None))], {}, {"x": (2, 7)})
    assert found == {"x": ((1, 7), (2, 7), (4, 7))}


def test_an_axis_that_cannot_be_worked_out_is_as_in_the_example() -> None:
    inputs = [Value("x", "float32", ("n", "(height//8)"))]
    assert profile("e", inputs, {}, {"x": (2, 7)}) == {"x": ((1, 7), (2, 7), (4, 7))}


def test_a_free_axis_of_which_nothing_is_known() -> None:
    with pytest.raises(
        BundleError, match=r"step: input mask float32\[batch, 1, height, width\] has free axes"
    ) as caught:
        profile("step", STEP[2:3], {}, {})
    assert "[profiles.step] mask =" in caught.value.remedy


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"nose": [[1], [1], [1]]}, "there is no input or free axis nose"),
        ({"height": [1, 2]}, r"profiles.step.height is \[1, 2\]"),
        ({"height": [[8], [8], [8]]}, "smallest, best and largest size"),
        ({"height": [8, 16, 12]}, "do not shrink"),
        ({"height": [0, 8, 8]}, "whole numbers"),
        ({"height": 8}, "smallest, best and largest size"),
        ({"height": [8, 8, 8], "mask": [[1, 1, 9, 9]] * 3}, r"axis height is both .*8.* and .*9"),
        ({"mask": [[1, 1, 8, 8], [1, 1, 8, 8]]}, "smallest, best and largest"),
        ({"mask": [[1, 8, 8], [1, 8, 8], [1, 8, 8]]}, "smallest, best and largest"),
        ({"mask": [[1, 1, 8, 8.5]] * 3}, "smallest, best and largest"),
        ({"mask": [[0, 1, 8, 8]] * 3}, "smallest, best and largest"),
        ({"mask": "large"}, "smallest, best and largest"),
        ({"mask": [[2, 1, 8, 8], [1, 1, 8, 8], [2, 1, 8, 8]]}, "axis 0 is 2, 1, 2"),
        ({"mask": [[1, 2, 8, 8]] * 3}, "axis 1 is 2, 2, 2"),
        ({"mask": [[1, 1, 8, 8]] * 3, "bank": [[1, 1, 4, 8, 9]] * 3}, r"axis width is both .*9.* and .*8"),
    ],
)
def test_tables_that_cannot_be(table: dict[str, Any], said: str) -> None:
    with pytest.raises(BundleError, match=said):
        profile("step", STEP, table, EXAMPLES)


def test_the_table_is_read_from_a_file_or_a_bundle(tmp_path: Path) -> None:
    text = "[profiles.step]\nmask = [[1], [2], [3]]\n"
    for path in (tmp_path / "own.toml", tmp_path / "bundle.toml"):
        path.write_text(text)
    assert said(tmp_path, "step") == said(tmp_path / "own.toml", "step") == {"mask": [[1], [2], [3]]}
    assert said(tmp_path, "text") == {}


@pytest.mark.parametrize("text", ["[profiles", "profiles = 3", "[profiles]\nstep = 3"])
def test_files_without_such_tables(tmp_path: Path, text: str) -> None:
    (tmp_path / "bundle.toml").write_text(text)
    with pytest.raises(BundleError):
        said(tmp_path, "step")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"own\.toml cannot be read"):
        said(tmp_path / "own.toml", "step")


# -- bundles ------------------------------------------------------------------------------------------------------


def test_plans_serve_annotation(bundle_478: Bundle) -> None:
    assert_all_said(bundle_478)
    annotator = Annotator(bundle_478, "cpu", threads=1)
    with recorded() as calls:
        assert annotator(astronaut(), AnnotateOptions(search="thorough", smallest_px=100)).faces
        tracker = Tracker(annotator, AnnotateOptions(), TrackOptions())
        for _ in range(2):
            tracker(astronaut())
    annotator.close()
    assert_served(bundle_478, calls, bundle_478.engine_names)


def test_plans_take_a_batch_of_faces(bundle_478: Bundle) -> None:
    assert profile_of(bundle_478, "landmarks")["image"][2] == (16, 256, 256, 3)


def test_plans_serve_insightface_packs(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed")
    from facesdk.annotation.scrfd import ScrfdOptions, prepare
    from tests.unit.test_insightface_pack import build, pack, whole

    bundle = build(pack(tmp_path / "buffalo_l.zip", whole()), tmp_path / "bundle")
    assert_all_said(bundle)
    encoder = Encoder(bundle, "cpu", threads=1)
    with recorded() as calls, bundle.open("scrfd", "cpu", threads=1) as detector:
        encoder.vectors([astronaut()[:112, :112]] * 20, flip=True)
        for options in (ScrfdOptions(size=320), ScrfdOptions(), ScrfdOptions(size=1280)):
            detector(image=prepare(astronaut(), options)[0])
    encoder.close()
    assert_served(bundle, calls, {"encoder", "scrfd"})


def test_axes_that_a_pack_fixes_get_no_sizes(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed")
    from tests.unit.test_insightface_pack import build, detector, one_picture, pack

    networks = {"det_10g.onnx": detector(9, (1, 3, 640, 640)), "w600k_r50.onnx": one_picture(112, 16, batch=1)}
    bundle = build(pack(tmp_path / "fixed.zip", networks), tmp_path / "bundle")
    assert [profile_of(bundle, name) for name in bundle.engine_names] == [{}, {}]


def test_bundles_from_before_profiles(swap_bundle: Bundle) -> None:
    assert "[profiles" not in (swap_bundle.folder / "bundle.toml").read_text()
    with pytest.raises(BundleError, match="has free axes and no profile"):
        profile_of(swap_bundle, "identity")
