"""The swap chain: which faces, what a swap guarantees, what is computed how often, series and grids, failures."""

from __future__ import annotations

import collections
import shutil
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from facesdk.bundle import Bundle
from facesdk.errors import BundleError, EngineClosed, EngineError, EngineUnreadable, ModelNotFound, UsageError
from facesdk.facade import FaceSDK
from facesdk.face import Face
from facesdk.image import Picture
from facesdk.store import Store
from facesdk.swap import swapper
from facesdk.swap.choose import choose_faces
from facesdk.swap.crop import crop_matrix
from facesdk.swap.interpolate import MODES, interpolate
from facesdk.swap.networks import SourceFace, SwapNetworks, find_bundle
from facesdk.swap.pairs import all_pairs
from facesdk.swap.paste import MASKS, PasteOptions
from facesdk.swap.swapper import SwapOptions, Swapper, SwapResult
from tests.bundles import DATA
from tests.photos import MEMBERS, astronaut, group, overlapping, stranger, turned_aside
from tests.swap_bundle import NAME, SIZE, write_swap_bundle

PLAIN = PasteOptions(colour=0)
NO_MATCH = SwapOptions(similarity=False)


@pytest.fixture(scope="module")
def sdk(swap_store: Store) -> Iterator[FaceSDK]:
    with FaceSDK("cpu", threads=1, store=swap_store) as sdk:
        yield sdk


@pytest.fixture(scope="module")
def networks(sdk: FaceSDK) -> SwapNetworks:
    return sdk.swapper.networks


@pytest.fixture(scope="module")
def photo() -> Picture:
    return astronaut()


@pytest.fixture(scope="module")
def face(sdk: FaceSDK, photo: Picture) -> Face:
    (face,) = sdk.annotate(photo)
    return face


@pytest.fixture(scope="module")
def source(sdk: FaceSDK) -> SourceFace:
    return sdk.swap_source(stranger())


@pytest.fixture
def calls(networks: SwapNetworks, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """(Engine, inputs) of every run from here on."""
    made: list[tuple[str, dict[str, Any]]] = []
    run = networks.run

    def counted(name: str, **arrays: Any) -> dict[str, Any]:
        made.append((name, arrays))
        return run(name, **arrays)

    monkeypatch.setattr(networks, "run", counted)
    return made


def counts(calls: list[tuple[str, dict[str, Any]]]) -> dict[str, int]:
    return dict(collections.Counter(name for name, _ in calls))


def changed_members(result: SwapResult, picture: Picture) -> list[int]:
    """Which heads of `group` hold changed pixels."""
    changed = (result.picture != picture).any(axis=2)
    return [i for i, (x, y, side, _) in enumerate(MEMBERS) if changed[y : y + side, x : x + side].any()]


def check_untouched(result: SwapResult, picture: Picture) -> None:
    """Bit-identical wherever the paste weighs nothing, and changed somewhere."""
    weight = result.pasted.mask_full()
    assert weight.shape == picture.shape[:2]
    np.testing.assert_array_equal(result.picture[weight == 0], picture[weight == 0])
    assert (weight == 0).any()
    assert (result.picture != picture).any()


# -- which faces ----------------------------------------------------------------------------------------------


def test_all_five_of_a_group(sdk: FaceSDK, source: SourceFace) -> None:
    picture = group()
    result = sdk.swap(source, picture)
    assert len(result.faces) == 5
    assert changed_members(result, picture) == [0, 1, 2, 3, 4]
    check_untouched(result, picture)
    for swapped in result.faces:
        assert swapped.similarity_source is not None
        assert swapped.similarity_source > 0.7


@pytest.mark.parametrize(
    ("which", "member"),
    [("largest", 0), ("1", 1), ("2", 3), ("3", 0), ("5", 2), ("370,160", 3), ("1130.5,240", 4), ("-50,600", 1)],
)
def test_one_of_five(sdk: FaceSDK, source: SourceFace, which: str, member: int) -> None:
    picture = group()
    result = sdk.swap(source, picture, which, NO_MATCH)
    assert len(result.faces) == 1
    assert changed_members(result, picture) == [member]


def test_the_one_that_is_most_like_a_person(sdk: FaceSDK, source: SourceFace) -> None:
    """The mirrored heads are like the mirrored photo; of the two, one alone is offered."""
    picture, like = group(), sdk.swap_source(astronaut()[:, ::-1].copy())
    (member,) = changed_members(sdk.swap(source, picture, "all", NO_MATCH, like=like), picture)
    assert MEMBERS[member][3]
    plain = sdk.swap_source(astronaut())
    (member,) = changed_members(sdk.swap(source, picture, "all", NO_MATCH, like=plain), picture)
    assert not MEMBERS[member][3]


@pytest.mark.parametrize("which", ["0", "9", "-1", "first", "", "1.5", "²", "1,2,3", "x,2", "nan,1", "1,inf"])
def test_choices_without_meaning(face: Face, which: str) -> None:
    with pytest.raises(UsageError) as caught:
        choose_faces([face], which)
    assert caught.value.remedy


# -- odd views ------------------------------------------------------------------------------------------------


def test_a_head_turned_aside(sdk: FaceSDK, source: SourceFace, face: Face) -> None:
    picture = turned_aside(face, 40)
    result = sdk.swap(source, picture)
    assert result.faces[0].face.pose.yaw_deg > 20
    check_untouched(result, picture)
    region = result.faces[0].face.mask() > 0
    assert (result.picture != picture).any(axis=2)[region].mean() > 0.8


@pytest.mark.parametrize(("top", "left"), [(0, 215), (100, 0)])
def test_a_face_that_the_border_cuts(sdk: FaceSDK, source: SourceFace, photo: Picture, top: int, left: int) -> None:
    picture = np.ascontiguousarray(photo[top:, left:])
    result = sdk.swap(source, picture)
    box = result.faces[0].face.box
    assert min(box[0], box[1]) < 0
    check_untouched(result, picture)
    edge = result.pasted.mask_full()[:, 0] if left else result.pasted.mask_full()[0]
    assert edge.max() > 0.5  # no seam along the border


def test_two_faces_that_overlap(sdk: FaceSDK, source: SourceFace) -> None:
    """Both are swapped, the larger on top: alone it has the same pixels."""
    picture = overlapping()
    paste = PasteOptions(mask="box")
    result = sdk.swap(source, picture, options=NO_MATCH, paste=paste)
    assert len(result.faces) == 2
    check_untouched(result, picture)
    one, other = (sdk.swap(source, picture, number, NO_MATCH, paste) for number in ("1", "2"))
    both = (one.pasted.mask_full() > 0) & (other.pasted.mask_full() > 0)
    assert both.sum() > 200
    full = one.pasted.mask_full() == 1
    np.testing.assert_array_equal(result.picture[full], one.picture[full])
    for alone, rest in ((one, other), (other, one)):
        free = rest.pasted.mask_full() == 0
        np.testing.assert_array_equal(result.picture[free], alone.picture[free])


@pytest.mark.parametrize("sides", [(900, 300), (300, 900)])
def test_targets_that_are_not_square(sdk: FaceSDK, source: SourceFace, sides: tuple[int, int]) -> None:
    picture = np.full((*sides, 3), 90, np.uint8)
    picture[40:340, 0:300] = astronaut()[0:300, 80:380] if sides[0] > 340 else 90
    if sides[0] < 340:
        picture[0:300, 500:800] = astronaut()[0:300, 80:380]
    result = sdk.swap(source, picture)
    assert result.picture.shape == picture.shape
    check_untouched(result, picture)


@pytest.mark.parametrize("enlarged", [False, True], ids=["small face", "face of half the picture"])
def test_twenty_megapixels(sdk: FaceSDK, source: SourceFace, enlarged: bool) -> None:
    """Memory: the new picture, and a bound that is the face's share, not several copies; time: seconds."""
    photo = astronaut()[0:400, 20:520] if enlarged else astronaut()
    picture = np.full((4000, 5000, 3), 100, np.uint8)
    if enlarged:
        picture = cv2.resize(photo, (5000, 4000), interpolation=cv2.INTER_LINEAR)
    else:
        picture[2000:2512, 3000:3512] = photo
    faces = sdk.annotate(picture)
    tracemalloc.start()
    try:
        start = time.perf_counter()
        result = sdk.swapper.swap(picture, faces, source)
        seconds, peak = time.perf_counter() - start, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    check_untouched(result, picture)

    assert peak < picture.nbytes + (120e6 if enlarged else 8e6)
    assert seconds < (10 if enlarged else 2)


# -- strength, sources, iterations, boost -----------------------------------------------------------------------


def test_strength_0_is_the_own_identity_and_1_the_source(sdk: FaceSDK, source: SourceFace, photo: Picture) -> None:
    found = [sdk.swap(source, photo, options=SwapOptions(strength=s)).faces[0] for s in (0, 0.25, 0.5, 0.75, 1)]
    to_source, to_own = ([getattr(one, name) for one in found] for name in ("similarity_source", "similarity_target"))
    assert to_own[0] > 0.97
    assert to_source[-1] > 0.8
    assert to_source == sorted(to_source)
    assert to_own == sorted(to_own, reverse=True)
    assert to_source[0] < to_source[-1] - 0.3


def test_strength_0_asks_for_the_own_identity_and_shape(
    sdk: FaceSDK, source: SourceFace, photo: Picture, calls: list[tuple[str, dict[str, Any]]]
) -> None:
    sdk.swap(source, photo, options=SwapOptions(strength=0, similarity=False))
    vector = dict(calls)["decoder"]["vector"][0]
    crop = dict(calls)["target"]["target"]
    np.testing.assert_allclose(vector[257:], sdk.swapper.networks.run("identity", face=crop)["identity"][0], atol=1e-6)
    coefficients = sdk.swapper.networks.run("shape", face=crop)["coefficients"][0]
    np.testing.assert_allclose(vector[:257], coefficients, atol=1e-6)


def test_several_photos_of_the_source_are_averaged(sdk: FaceSDK, photo: Picture) -> None:
    photos = [DATA / "astronaut.png", DATA / "astronaut_rot35.png", photo[:, ::-1].copy()]
    singles = [sdk.swap_source(one) for one in photos]
    mean = sdk.swap_source(photos)
    expected = sum(one.identity for one in singles)
    np.testing.assert_allclose(mean.identity, expected / np.linalg.norm(expected), atol=1e-6)
    np.testing.assert_allclose(mean.shape, np.mean([one.shape for one in singles], axis=0), atol=1e-6)
    assert np.linalg.norm(mean.identity) == pytest.approx(1, abs=1e-6)
    one = sdk.swap_source([photos[0]])
    np.testing.assert_allclose(one.identity, singles[0].identity, atol=1e-6)
    with pytest.raises(UsageError, match="no source"):
        sdk.swap_source([])


def test_a_source_is_read_once_for_many_targets(
    sdk: FaceSDK, photo: Picture, calls: list[tuple[str, dict[str, Any]]]
) -> None:
    source = sdk.swap_source(stranger())
    assert counts(calls) == {"shape": 1, "identity": 1}
    for _ in range(3):
        sdk.swap(source, photo, options=NO_MATCH)
    assert counts(calls) == {"shape": 4, "identity": 1, "target": 3, "decoder": 3}


def test_iterations_feed_the_result_back(
    sdk: FaceSDK, source: SourceFace, photo: Picture, calls: list[tuple[str, dict[str, Any]]]
) -> None:
    once, thrice = (sdk.swap(source, photo, options=SwapOptions(iterations=n)) for n in (1, 3))
    targets = [arrays["target"] for name, arrays in calls if name == "target"]
    assert len(targets) == 4
    np.testing.assert_array_equal(targets[0], targets[1])
    assert np.abs(targets[2] - targets[1]).max() > 0.05
    assert 0 <= targets[2].min() <= targets[2].max() <= 1
    np.testing.assert_array_equal(once.pasted.mask_full(), thrice.pasted.mask_full())
    assert (once.picture != thrice.picture).any()


def test_the_greatest_mask_of_all_iterations_counts(sdk: FaceSDK, source: SourceFace, monkeypatch: Any) -> None:
    """What the first changed is in the result, also where the last changes nothing more."""
    masks = iter([np.eye(SIZE, dtype=np.float32), np.zeros((SIZE, SIZE), np.float32)])
    crop = np.full((SIZE, SIZE, 3), 0.5, np.float32)
    monkeypatch.setattr(sdk.swapper.networks, "swap", lambda source, target: (crop, next(masks)))
    _, mask = sdk.swapper.infer(crop, source, SwapOptions(iterations=2))
    np.testing.assert_array_equal(mask, np.eye(SIZE))


@pytest.mark.parametrize("factor", [2, 4])
def test_boost_is_a_crop_of_more_pixels(
    sdk: FaceSDK, source: SourceFace, factor: int, calls: list[tuple[str, dict[str, Any]]], monkeypatch: Any
) -> None:
    """The network sees crops of its own size; what is pasted has `factor` times their side, and more detail."""
    picture = cv2.resize(astronaut()[0:300, 80:380], (1200, 1200), interpolation=cv2.INTER_CUBIC)
    pasted: list[Any] = []
    real = swapper.paste_all
    monkeypatch.setattr(swapper, "paste_all", lambda *words: pasted.extend(words[1]) or real(*words))
    result = sdk.swap(source, picture, options=SwapOptions(boost=factor))
    (crop,) = pasted
    assert crop.result.shape == crop.seen.shape == (factor * SIZE, factor * SIZE, 3)
    assert crop.mask.shape == crop.model_mask.shape == (factor * SIZE, factor * SIZE)
    assert {arrays["target"].shape for name, arrays in calls if name == "target"} == {(1, 3, SIZE, SIZE)}
    assert counts(calls)["decoder"] == factor**2
    plain = crop_matrix(result.faces[0].face, SIZE)
    np.testing.assert_allclose(crop.matrix, factor * plain, rtol=1e-9)
    assert result.faces[0].similarity_source == pytest.approx(
        sdk.swap(source, picture).faces[0].similarity_source, abs=0.05
    )


# -- what a result says ---------------------------------------------------------------------------------------


def test_fields_of_a_result(sdk: FaceSDK, source: SourceFace, photo: Picture) -> None:
    before = photo.copy()
    result = sdk.swap(source, photo)
    np.testing.assert_array_equal(photo, before)
    assert set(result.timings_ms) == {"align", "infer", "paste", "similarity"}
    assert all(ms > 0 for ms in result.timings_ms.values())
    (swapped,) = result.faces
    assert -1 <= swapped.similarity_source <= 1
    assert -1 <= swapped.similarity_target <= 1
    unmeasured = sdk.swap(source, photo, options=NO_MATCH)
    assert unmeasured.faces[0].similarity_source is None
    assert unmeasured.faces[0].similarity_target is None
    assert unmeasured.timings_ms["similarity"] < 0.1
    np.testing.assert_array_equal(unmeasured.picture, result.picture)


def test_similarity_is_the_cosine_of_the_result_read_again(sdk: FaceSDK, source: SourceFace, photo: Picture) -> None:
    result = sdk.swap(source, photo, paste=PLAIN)
    again = sdk.swapper.source(result.picture, result.faces[0].face)
    assert float(again.identity @ source.identity) == pytest.approx(result.faces[0].similarity_source, abs=0.03)


@pytest.mark.parametrize("mask", MASKS)
def test_every_mask(sdk: FaceSDK, source: SourceFace, photo: Picture, mask: Any) -> None:
    check_untouched(sdk.swap(source, photo, options=NO_MATCH, paste=PasteOptions(mask=mask)), photo)


@pytest.mark.parametrize("template", ["arcface", "ffhq_512"])
def test_another_template_moves_both_crops(sdk: FaceSDK, photo: Picture, face: Face, template: str) -> None:
    ffhq, other = (sdk.swap_source(photo, name) for name in ("ffhq", template))
    assert float(ffhq.identity @ other.identity) < 0.99
    options = SwapOptions(template=template)
    own = sdk.swap(photo, photo, options=options)  # the photo's own face, aligned alike on both sides
    assert own.faces[0].similarity_source > 0.97
    assert sdk.swapper.most_like(photo, [face], other, template) is face


@pytest.mark.parametrize(
    "options",
    [{"strength": 2.0}, {"strength": -0.1}, {"strength": float("nan")}, {"iterations": 0}, {"iterations": 11},
     {"boost": 3}, {"boost": 0}, {"template": "mine"}],
)  # fmt: skip
def test_options_without_meaning(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))) as caught:
        SwapOptions(**options)
    assert caught.value.remedy


# -- series and grids -----------------------------------------------------------------------------------------


def near(one: Picture, other: Picture) -> bool:
    """Within a grey level: a mean of one vector has other last bits than the vector."""
    return int(np.abs(one.astype(int) - other).max()) <= 1


def test_a_series_begins_and_ends_with_swaps(
    sdk: FaceSDK, networks: SwapNetworks, source: SourceFace, photo: Picture, face: Face
) -> None:
    second = sdk.swap_source(photo[:, ::-1].copy())
    first_swap, second_swap = (sdk.swap(one, photo, options=NO_MATCH).picture for one in (source, second))
    own_swap = sdk.swap(source, photo, options=SwapOptions(strength=0)).picture
    frames = list(interpolate(networks, photo, face, source, second, frames=3))
    assert near(frames[0], second_swap)
    assert near(frames[2], first_swap)
    assert not near(frames[1], frames[0])
    assert not near(frames[1], frames[2])
    own = list(interpolate(networks, photo, face, source, frames=2))
    assert near(own[0], own_swap)
    assert near(own[1], first_swap)


@pytest.mark.parametrize("mode", MODES)
def test_modes_move_what_they_name_and_the_encoder_runs_once(
    networks: SwapNetworks, photo: Picture, face: Face, source: SourceFace, mode: Any,
    calls: list[tuple[str, dict[str, Any]]],
) -> None:  # fmt: skip
    second = SourceFace(np.roll(source.identity, 7), source.shape + 1)
    frames = list(interpolate(networks, photo, face, source, second, mode, 5))
    assert len(frames) == 5
    assert counts(calls) == {"target": 1, "shape": 1, "decoder": 5}
    vectors = np.array([arrays["vector"][0] for name, arrays in calls if name == "decoder"])
    shape, rest, identity = vectors[:, :80], vectors[:, 80:257], vectors[:, 257:]
    assert (rest == rest[0]).all()
    np.testing.assert_allclose(np.linalg.norm(identity, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(identity[-1], source.identity, atol=1e-6)
    np.testing.assert_allclose(shape[-1], source.shape, atol=1e-6)
    for moves, values, begin in ((mode != "3d", identity, second.identity), (mode != "identity", shape, second.shape)):
        if moves:
            np.testing.assert_allclose(values[0], begin, atol=1e-5)
            assert len(np.unique(values.round(5), axis=0)) == 5
        else:
            np.testing.assert_allclose(values, values[-1:].repeat(5, 0), atol=1e-6)
    if mode != "identity":
        np.testing.assert_allclose(shape[2], (source.shape + second.shape) / 2, atol=1e-5)


def test_a_series_takes_masks_and_templates(
    sdk: FaceSDK, networks: SwapNetworks, photo: Picture, face: Face, source: SourceFace
) -> None:
    options = PasteOptions(mask="both")
    (_, last) = interpolate(networks, photo, face, source, None, "all", 2, options, "arcface")
    swap = sdk.swapper.swap(photo, [face], source, SwapOptions(template="arcface"), options)
    assert near(last, swap.picture)


def test_a_series_without_meaning(networks: SwapNetworks, photo: Picture, face: Face, source: SourceFace) -> None:
    with pytest.raises(UsageError, match="frames is 1"):
        next(interpolate(networks, photo, face, source, frames=1))
    with pytest.raises(UsageError, match="'pose'"):
        next(interpolate(networks, photo, face, source, mode="pose"))  # type: ignore[arg-type]


def test_pairs_are_rows_of_targets_and_columns_of_sources(
    sdk: FaceSDK, networks: SwapNetworks, calls: list[tuple[str, dict[str, Any]]]
) -> None:
    pictures = [astronaut(), stranger(), astronaut()[:, ::-1].copy()]
    faces = [(picture, sdk.annotate(picture)[0]) for picture in pictures]
    cells = list(all_pairs(networks, faces))
    assert counts(calls) == {"identity": 3, "shape": 6, "target": 3, "decoder": 9}
    assert [cell.shape for cell in cells] == [(SIZE, SIZE, 3)] * 9
    sources = [sdk.swapper.source(picture, face) for picture, face in faces]
    for index, cell in enumerate(cells):
        row, column = divmod(index, 3)
        identity = networks.identity(cell.astype(np.float32) / 255)
        closest = int(np.argmax([identity @ source.identity for source in sources]))
        assert closest == column
        corner = cells[3 * row][:4, :4].astype(int)  # beyond the ellipse: the target's
        assert np.abs(cell[:4, :4] - corner).max() <= 1
    assert np.abs(cells[0][:4, :4].astype(int) - cells[3][:4, :4]).max() > 5


def test_a_renormalised_identity_and_one_that_is_not(tmp_path: Path, networks: SwapNetworks) -> None:
    """maum-ai brings it back to unit length, xuehy does not."""
    one, other = (SourceFace(np.eye(512, dtype=np.float32)[i], np.full(80, float(i), np.float32)) for i in (0, 1))
    plain = SwapNetworks(Bundle(write_swap_bundle(tmp_path / "x", renormalise_identity=False)), "cpu", 1)
    assert np.linalg.norm(networks.between(one, other, 0.5, 0.5).identity) == pytest.approx(1, abs=1e-6)
    assert np.linalg.norm(plain.between(one, other, 0.5, 0.5).identity) == pytest.approx(0.5**0.5, abs=1e-6)
    assert plain.between(one, other, 0.25, 1).shape[0] == pytest.approx(0.75)
    plain.close()


# -- threads, opening and closing -----------------------------------------------------------------------------


def test_four_threads_at_once_give_what_one_gives(swap_store: Store, photo: Picture) -> None:
    pictures = [photo, photo[:, ::-1].copy(), group()]
    found: dict[int, list[Picture]] = {}
    with FaceSDK("cpu", threads=1, store=swap_store) as sdk:
        start = threading.Barrier(4)

        def work(number: int) -> None:
            start.wait()
            found[number] = [sdk.swap(stranger(), picture).picture for picture in pictures]

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        alone = [sdk.swap(stranger(), picture).picture for picture in pictures]
    assert sorted(found) == [0, 1, 2, 3]
    for pictures_found in found.values():
        for one, other in zip(pictures_found, alone, strict=True):
            np.testing.assert_array_equal(one, other)


def test_closing_and_opening_again(swap_store: Store, photo: Picture, face: Face) -> None:
    sdk = FaceSDK("cpu", threads=1, store=swap_store)
    source, opened = sdk.swap_source(stranger()), sdk.swapper
    first = sdk.swap(source, photo).picture
    sdk.close()
    with pytest.raises(EngineClosed):
        opened.swap(photo, [face], source)
    np.testing.assert_array_equal(sdk.swap(source, photo).picture, first)
    assert sdk.swapper is not opened
    sdk.close()


# -- bundles and broken networks ------------------------------------------------------------------------------


def test_no_bundle_and_several(tmp_path: Path, swap_store: Store) -> None:
    with pytest.raises(ModelNotFound) as caught:
        find_bundle(Store(tmp_path / "empty"))
    assert "facesdk export hififace --checkpoint hififace_opensouce_299999.ckpt -o bundle" in caught.value.remedy
    assert "facesdk models add bundle" in caught.value.remedy
    assert find_bundle(swap_store).name == NAME
    for name in ("one", "two"):
        shutil.copytree(swap_store.path(NAME), tmp_path / "many" / "bundles" / name)
    with pytest.raises(UsageError, match="one, two") as several:
        find_bundle(Store(tmp_path / "many"))
    assert "--bundle one" in several.value.remedy
    assert find_bundle(Store(tmp_path / "many"), "two").folder.name == "two"


def test_a_bundle_of_another_system(bundle_478: Bundle) -> None:
    with pytest.raises(BundleError, match="not a face swap bundle") as caught:
        SwapNetworks(bundle_478, "cpu")
    assert "engine identity" in caught.value.cause
    assert "facesdk export hififace" in caught.value.remedy


@pytest.mark.parametrize("constants", [{"size": "64"}, {"template": 5}, {"renormalise_identity": 1}])
def test_constants_that_are_malformed(tmp_path: Path, constants: dict[str, Any]) -> None:
    with pytest.raises(BundleError) as caught:
        SwapNetworks(Bundle(write_swap_bundle(tmp_path / "b", **constants)), "cpu")
    assert f"constant {next(iter(constants))}" in caught.value.cause


def test_engines_opened_before_one_that_is_damaged_are_closed(tmp_path: Path, monkeypatch: Any) -> None:
    folder = write_swap_bundle(tmp_path / "b")
    (folder / "decoder.onnx").write_bytes(b"damaged")
    closed = []
    monkeypatch.setattr(SwapNetworks, "close", lambda self: closed.append(sorted(self._engines)))
    with pytest.raises(EngineUnreadable):
        SwapNetworks(Bundle(folder), "cpu")
    assert closed == [["identity", "shape", "target"]]


@pytest.mark.parametrize(
    ("output", "engine"),
    [("swapped", "decoder"), ("mask", "decoder"), ("identity", "identity"), ("coefficients", "shape"),
     ("bottleneck", "target")],
)  # fmt: skip
@pytest.mark.parametrize("iterations", [1, 2])
def test_outputs_that_are_nan(
    tmp_path: Path, photo: Picture, face: Face, output: str, engine: str, iterations: int
) -> None:
    networks = SwapNetworks(Bundle(write_swap_bundle(tmp_path / "b", broken=output)), "cpu", 1)
    broken = Swapper(networks)

    def swap() -> None:
        broken.swap(photo, [face], broken.source(photo, face), SwapOptions(iterations=iterations))

    with pytest.raises(EngineError, match=f"engine {engine} of {NAME} gave NaN .* in {output}") as caught:
        swap()
    assert caught.value.remedy
    networks.close()
