"""The attribute optimisation: whose result it is, what it costs, and when it gives up."""

from __future__ import annotations

import dataclasses
import itertools
import math
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facesdk.bundle import Bundle
from facesdk.errors import EngineError, UsageError
from facesdk.synthesis.attributes import Adam, AttributeOptions, Reached, Row, optimise
from facesdk.synthesis.masks import MaskLaw, Masks, token_masks
from facesdk.synthesis.networks import Step, SynthesisNetworks
from tests.synthesis_bundle import write_synthesis_bundle

TURNED = AttributeOptions(yaw=45.0)
LIMITS = {"identity": 0.3, "quality": 1.0, "yaw": 5.0}


@pytest.fixture(scope="module")
def networks(synthesis_bundle: Bundle) -> Iterator[SynthesisNetworks]:
    with SynthesisNetworks(synthesis_bundle, "cpu") as opened:
        yield opened


def masks_of(key: int, step: int) -> Masks:
    rng = np.random.default_rng([key, step])
    return token_masks(rng.random((1, 49)), rng.uniform(0.1, 0.6), MaskLaw())


def row(key: int) -> Row:
    vector, noise = np.random.default_rng(key).normal(size=(2, 512)).astype(np.float32)
    return Row(key, vector, vector + 0.2 * noise, lambda step: masks_of(key, step))


def by_key(results: Iterable[Reached]) -> dict[Any, Reached]:
    return {result.key: result for result in results}


def same(first: Reached, second: Reached) -> bool:
    """Bit for bit."""
    arrays = ((first.vector, second.vector), (first.picture, second.picture))
    facts = [(one.key, one.steps, one.values, one.failed) for one in (first, second)]
    return facts[0] == facts[1] and all(np.array_equal(*pair) for pair in arrays)


class Recorder:
    """Networks that remember every step."""

    def __init__(self, networks: SynthesisNetworks) -> None:
        self._networks = networks
        self.vectors: list[np.ndarray] = []
        self.weights: list[np.ndarray] = []
        self.steps: list[Step] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._networks, name)

    def step(self, vectors: Any, references: Any, masks: Any, targets: Any, weights: Any) -> Step:
        self.vectors.append(vectors.copy())
        self.weights.append(weights)
        self.steps.append(self._networks.step(vectors, references, masks, targets, weights))
        return self.steps[-1]


# -- Adam -----------------------------------------------------------------------------------------------------


def test_adam_is_the_published_algorithm() -> None:
    rng = np.random.default_rng(0)
    vector, adam = rng.normal(size=(3, 7)).astype(np.float32), Adam(0.1)
    slow = [[float(x) for x in line] for line in vector]
    first = [[0.0] * 7 for _ in range(3)]
    second = [[0.0] * 7 for _ in range(3)]
    for count in range(1, 26):
        gradient = (rng.normal(size=(3, 7)) * 10.0 ** rng.integers(-6, 3, (3, 7))).astype(np.float32)
        vector = adam(vector, gradient)
        for i, j in itertools.product(range(3), range(7)):
            slope = float(gradient[i, j])
            first[i][j] = 0.9 * first[i][j] + 0.1 * slope
            second[i][j] = 0.999 * second[i][j] + 0.001 * slope * slope
            mean, square = first[i][j] / (1 - 0.9**count), second[i][j] / (1 - 0.999**count)
            slow[i][j] -= 0.1 * mean / (math.sqrt(square) + 1e-8)
        np.testing.assert_allclose(vector, slow, atol=1e-5)
    assert vector.dtype == np.float32


def test_the_first_step_of_adam_is_the_rate_against_the_sign() -> None:
    moved = Adam(0.25)(np.zeros((1, 4), np.float32), np.array([[3, -0.01, 0, 1e-8]], np.float32))
    np.testing.assert_allclose(moved, [[-0.25, 0.25, 0, -0.125]], atol=1e-6)


# -- rule "row" -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [AttributeOptions(), TURNED, AttributeOptions(yaw=85.0, steps=6)])
@pytest.mark.parametrize("batch", [3, 8, 64])
def test_a_result_depends_on_its_row_alone(networks: SynthesisNetworks, options: AttributeOptions, batch: int) -> None:
    rows = [row(key) for key in range(20)]
    alone = by_key(optimise(networks, rows, options, batch=1))
    together = by_key(optimise(networks, rows[::-1], options, batch=batch))
    assert alone.keys() == together.keys() == set(range(20))
    assert all(same(alone[key], together[key]) for key in alone)
    assert len({result.steps for result in alone.values()}) > 1 or options.steps == 6


def test_what_is_delivered_is_what_was_tested(networks: SynthesisNetworks) -> None:
    for result in optimise(networks, [row(key) for key in range(12)], TURNED, batch=5):
        masks = masks_of(result.key, result.steps - 1)
        np.testing.assert_array_equal(networks.pictures(result.vector[None], masks)[0], result.picture)
        measured = networks.measure(result.picture[None])
        assert result.passed
        assert result.failed == ()
        assert abs(abs(measured["yaw"][0]) - 45) < 5.5
        assert measured["quality"][0] > 25.9
        assert 45 - 5 <= abs(result.values["yaw"]) <= 45 + 5
        assert result.values["quality"] >= 26
        assert result.values["identity"] >= 0.7


def test_a_row_that_is_good_as_it_is_does_not_move(networks: SynthesisNetworks) -> None:
    result = next(optimise(networks, [row(4)], AttributeOptions(quality=10.0, quality_limit=0.0)))
    assert (result.steps, result.passed) == (1, True)
    np.testing.assert_array_equal(result.vector, row(4).vector)


def test_the_head_turns_to_either_side(networks: SynthesisNetworks) -> None:
    yaws = [result.values["yaw"] for result in optimise(networks, map(row, range(16)), TURNED)]
    assert min(yaws) < -40
    assert max(yaws) > 40


def test_every_angle_is_reached_on_its_own_side(networks: SynthesisNetworks) -> None:
    options = AttributeOptions(quality=None, pitch=20.0, roll=-15.0, angle_limit=3.0)
    for result in optimise(networks, map(row, range(6)), options):
        assert abs(result.values["pitch"] - 20) <= 3
        assert abs(result.values["roll"] + 15) <= 3


def test_batches_stay_full_while_rows_wait(networks: SynthesisNetworks) -> None:
    sizes: list[int] = []
    results = list(optimise(networks, map(row, range(40)), TURNED, 8, sizes.append))
    full = sizes.index(next(size for size in sizes if size < 8))
    assert sum(sizes) == sum(result.steps for result in results)
    assert sizes[full:] == sorted(sizes[full:], reverse=True)
    assert full > len(sizes) / 2


def test_the_row_rule_needs_fewer_calls_than_the_batch_rule(networks: SynthesisNetworks) -> None:
    calls, accepted = {}, {}
    for rule in ("row", "batch"):
        sizes: list[int] = []
        options = AttributeOptions(yaw=45.0, quality_limit=0.1, angle_limit=1.0, rule=rule)  # type: ignore[arg-type]
        results = list(optimise(networks, map(row, range(48)), options, 8, sizes.append))
        off = [(45 - abs(result.values["yaw"]), 27 - result.values["quality"]) for result in results]
        accepted[rule] = sum(abs(yaw) <= 1 and quality <= 0.1 for yaw, quality in off)
        calls[rule] = len(sizes)
    assert accepted["row"] > 40
    assert calls["row"] / accepted["row"] < calls["batch"] / max(accepted["batch"], 1)


@pytest.mark.parametrize("identity_limit", [0.3, 0.0])
def test_an_impossible_target_ends_with_the_best_try(networks: SynthesisNetworks, identity_limit: float) -> None:
    options = AttributeOptions(yaw=45.0, angle_limit=0.0, identity_limit=identity_limit, steps=20)
    best = []
    for key in range(4):
        recorder = Recorder(networks)
        [result] = optimise(recorder, [row(key)], options)  # type: ignore[arg-type]
        losses = np.concatenate([step.losses for step in recorder.steps])
        over = np.maximum(losses[:, :3] - [identity_limit, 1, 0], 0) @ [100, 1, 1]
        best.append(int(over.argmin()))
        np.testing.assert_array_equal(result.vector, recorder.vectors[best[-1]][0])
        np.testing.assert_array_equal(result.picture, recorder.steps[best[-1]].pictures[0])
        assert list(result.values.values()) == recorder.steps[best[-1]].values[0].tolist()
        assert (result.steps, result.passed) == (20, False)
        assert result.failed == (("yaw",) if identity_limit else ("identity", "yaw"))
    assert min(best) < 19  # else the last try was the best of all, and nothing was shown


def test_what_cannot_be_reached_is_named(tmp_path: Path) -> None:
    bundle = Bundle(write_synthesis_bundle(tmp_path / "dull", reachable=False))
    with SynthesisNetworks(bundle, "cpu") as networks:
        results = list(optimise(networks, map(row, range(5)), AttributeOptions(yaw=20.0, steps=12), batch=2))
    assert [result.failed for result in results] == [("quality",)] * 5
    assert {result.steps for result in results} == {12}
    assert all(result.values["quality"] < 15 for result in results)


def test_what_is_not_asked_for_has_no_weight_and_no_limit(networks: SynthesisNetworks) -> None:
    recorder = Recorder(networks)
    [result] = optimise(recorder, [row(0)], AttributeOptions(quality=None))  # type: ignore[arg-type]
    assert recorder.weights[0].tolist() == [[100, 0, 0, 0, 0]]
    assert (result.passed, result.steps) == (True, 1)
    list(optimise(recorder, [row(0)], AttributeOptions(yaw=30.0, roll=0.0)))  # type: ignore[arg-type]
    assert recorder.weights[-1].tolist() == [[100, 1, 1, 0, 1]]


def test_a_term_of_the_bundles_own_is_measured_and_left_alone(tmp_path: Path, synthesis_bundle: Bundle) -> None:
    folder = shutil.copytree(synthesis_bundle.folder, tmp_path / "own")
    manifest = (folder / "bundle.toml").read_text()
    (folder / "bundle.toml").write_text(manifest.replace('"yaw", "pitch", "roll"]', '"yaw", "pitch", "smile"]'))
    with SynthesisNetworks(Bundle(folder), "cpu") as networks:
        recorder = Recorder(networks)
        [result] = optimise(recorder, [row(0)], AttributeOptions(yaw=30.0))  # type: ignore[arg-type]
        assert list(result.values) == ["identity", "quality", "yaw", "pitch", "smile"]
        assert recorder.weights[-1].tolist() == [[100, 1, 1, 0, 0]]
        with pytest.raises(UsageError, match="cannot control roll"):
            optimise(networks, [], AttributeOptions(roll=1.0))


@pytest.mark.parametrize("rule", ["row", "batch"])
def test_rows_are_read_when_there_is_room(networks: SynthesisNetworks, rule: Any) -> None:
    taken = 0

    def endless() -> Iterator[Row]:
        nonlocal taken
        for key in itertools.count():
            taken += 1
            yield row(key)

    results = optimise(networks, endless(), dataclasses.replace(TURNED, rule=rule), batch=6)
    assert taken == 0
    for done in range(30):
        assert next(results).key < taken <= done + 6


def test_an_interrupted_run_leaves_the_networks_sound(networks: SynthesisNetworks) -> None:
    calls = itertools.count(1)

    def interrupt(_: int) -> None:
        if next(calls) == 6:
            raise KeyboardInterrupt

    rows, before = [row(key) for key in range(12)], []
    expected = by_key(optimise(networks, rows, TURNED, batch=4))
    with pytest.raises(KeyboardInterrupt):
        before.extend(optimise(networks, rows, TURNED, batch=4, on_step=interrupt))
    stopped = optimise(networks, rows, TURNED, batch=4)
    next(stopped)
    stopped.close()  # type: ignore[attr-defined]
    after = by_key(optimise(networks, rows, TURNED, batch=4))
    assert all(same(after[key], expected[key]) for key in expected)


def test_no_rows_are_no_results(networks: SynthesisNetworks) -> None:
    assert list(optimise(networks, [], TURNED)) == []
    assert list(optimise(networks, [], AttributeOptions(rule="batch"))) == []


# -- rule "batch" ---------------------------------------------------------------------------------------------


def literal(
    networks: SynthesisNetworks, rows: list[Row], quality: float, yaw: float, limit: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Vec2Face gen_image as it is published, with means over the batch; moved vectors, pictures, tested pictures."""
    x, target = np.stack([row.vector for row in rows]), np.stack([row.reference for row in rows])
    m, v, i, count = np.zeros_like(x), np.zeros_like(x), 0, 0
    while i < 1 and count < limit:
        masks = [row.masks(count) for row in rows]
        keep, masked = (np.concatenate([getattr(each, name) for each in masks]) for name in ("keep", "masked"))
        arguments = {"vector": x, "reference": target, "keep": keep, "masked": masked}
        columns = {"targets": [0, quality, yaw, 0, 0], "weights": [100, 1, 1, 0, 0]}
        columns = {name: np.tile(np.array(each, np.float32), (len(rows), 1)) for name, each in columns.items()}
        outputs = networks.run("step", **arguments, **columns)
        identity, q, p = outputs["losses"].mean(0)[:3]
        if p > 5 or identity > 0.3 or q > 1:
            i -= 1
        count += 1
        slope = outputs["gradient"] / len(rows)
        m, v = 0.9 * m + 0.1 * slope, 0.999 * v + 0.001 * slope**2
        x = (x - 0.1 * (m / (1 - 0.9**count)) / (np.sqrt(v / (1 - 0.999**count)) + 1e-8)).astype(np.float32)
        i += 1
    masks = [row.masks(count) for row in rows]
    keep, masked = (np.concatenate([getattr(each, name) for each in masks]) for name in ("keep", "masked"))
    raw = np.clip(networks.run("generator", vector=x, keep=keep, masked=masked)["image"], -1, 1)
    return x, ((raw.transpose(0, 2, 3, 1) + 1) / 2 * 255).clip(0, 255).astype(np.uint8), count


@pytest.mark.parametrize(("yaw", "limit"), [(45.0, 30), (60.0, 30), (85.0, 5)])
def test_the_batch_rule_is_the_published_loop(networks: SynthesisNetworks, yaw: float, limit: int) -> None:
    options = AttributeOptions(yaw=yaw, steps=limit, rule="batch")
    rows = [row(key) for key in range(10)]
    results = list(optimise(networks, rows, options, batch=4))
    assert [result.key for result in results] == list(range(10))
    for start in (0, 4, 8):
        group = results[start : start + 4]
        vectors, pictures, count = literal(networks, rows[start : start + 4], 27.0, yaw, limit)
        for result, vector, picture in zip(group, vectors, pictures, strict=True):
            np.testing.assert_allclose(result.vector, vector, atol=2e-5)
            assert np.abs(result.picture.astype(int) - picture).max() <= 1
            assert result.steps == count
            assert result.failed == (("yaw",) if limit == 5 else ())


def test_the_batch_rule_moves_once_after_it_has_passed(networks: SynthesisNetworks) -> None:
    recorder = Recorder(networks)
    options = AttributeOptions(quality=10.0, rule="batch")
    [result] = optimise(recorder, [row(3)], options)  # type: ignore[arg-type]
    assert (result.steps, result.passed) == (1, True)
    assert np.abs(result.vector - row(3).vector).max() == pytest.approx(0.1, rel=1e-3)
    np.testing.assert_array_equal(networks.pictures(result.vector[None], masks_of(3, 1))[0], result.picture)
    assert list(result.values.values()) == recorder.steps[0].values[0].tolist()


# -- what is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("angle", ["yaw", "pitch", "roll"])
def test_an_angle_needs_the_head_pose_network(synthesis_bundle_without_pose: Bundle, angle: str) -> None:
    with SynthesisNetworks(synthesis_bundle_without_pose, "cpu") as networks:
        with pytest.raises(UsageError, match=f"cannot control {angle}(.|\n)*--headpose"):
            optimise(networks, [], AttributeOptions(**{angle: 10.0}))  # type: ignore[arg-type]
        results = list(optimise(networks, map(row, range(4)), AttributeOptions(), batch=3))
        assert all(result.passed and list(result.values) == ["identity", "quality"] for result in results)


@pytest.mark.parametrize(
    "options",
    [
        {"quality": math.nan}, {"quality": -1.0}, {"quality": math.inf}, {"yaw": -45.0}, {"yaw": 91.0},
        {"pitch": 100.0}, {"roll": math.nan}, {"identity_limit": -0.1}, {"identity_limit": math.nan},
        {"quality_limit": -1.0}, {"angle_limit": math.inf}, {"steps": 0}, {"steps": 2.5}, {"steps": 10**9},
        {"learning_rate": 0.0}, {"learning_rate": math.nan}, {"rule": "mean"},
    ],
)  # fmt: skip
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        AttributeOptions(**options)


def test_every_option_has_its_help() -> None:
    assert all(field.metadata["help"] for field in dataclasses.fields(AttributeOptions))


@pytest.mark.parametrize("batch", [0, -3])
def test_a_batch_has_rows(networks: SynthesisNetworks, batch: int) -> None:
    with pytest.raises(UsageError, match="batch is"):
        optimise(networks, [], TURNED, batch=batch)


@pytest.mark.parametrize("rule", ["row", "batch"])
@pytest.mark.parametrize("name", ["vector", "reference"])
@pytest.mark.parametrize("values", [np.full(512, np.nan, np.float32), np.zeros(511, np.float32), np.zeros(512, bool)])
def test_a_row_that_is_no_vector_is_named(networks: SynthesisNetworks, rule: Any, name: str, values: Any) -> None:
    rows = [row(0), dataclasses.replace(row(17), **{name: values})]
    with pytest.raises(UsageError, match=f"the {name} of row 17"):
        list(optimise(networks, rows, AttributeOptions(rule=rule)))


@pytest.mark.parametrize("rule", ["row", "batch"])
def test_a_gradient_that_is_no_number_is_an_error(tmp_path: Path, rule: Any) -> None:
    bundle = Bundle(write_synthesis_bundle(tmp_path / "odd", broken="gradient"))
    with SynthesisNetworks(bundle, "cpu") as networks, pytest.raises(EngineError, match="gradient"):
        list(optimise(networks, [row(0)], AttributeOptions(rule=rule)))
