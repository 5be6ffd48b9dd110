"""Every backend computes the same: calls, scans, threads.  The CPU's ONNX Runtime is the reference."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from facesdk.engine import Engine
from facesdk.errors import EngineClosed, EngineError, EngineUnreadable, ProviderUnavailable
from facesdk.verify import compare

DEVICES = ("cpu", "openvino")


@pytest.fixture(params=DEVICES)
def device(request):
    if request.param == "openvino":
        pytest.importorskip("openvino", reason="openvino is not installed")
    return request.param


@pytest.fixture
def network(save_graph):
    """Convolution, per-channel PReLU, global mean, dense layer: (n, 3, 16, 16) -> (n, 5)."""
    rng = np.random.default_rng(7)
    weights = {
        "kernel": rng.normal(0, 0.2, (8, 3, 3, 3)), "slope": rng.random((8, 1, 1)), "dense": rng.normal(0, 0.3, (8, 5)),
    }  # fmt: skip
    nodes = [
        ("Conv", ["image", "kernel"], ["a"], {"pads": [1, 1, 1, 1]}),
        ("PRelu", ["a", "slope"], ["b"]),
        ("ReduceMean", ["b"], ["c"], {"axes": [2, 3], "keepdims": 0}),
        ("MatMul", ["c", "dense"], ["vector"]),
    ]
    single = {name: value.astype(np.float32) for name, value in weights.items()}
    return save_graph(nodes, {"image": ["n", 3, 16, 16]}, {"vector": ["n", 5]}, weights=single, name="network")


@pytest.fixture
def steps(save_graph):
    """Two carried arrays, a scalar and a vector per step, a constant: next_p = p * t + c, next_q = q + p * v."""
    nodes = [
        ("Mul", ["p", "t"], ["pt"]), ("Add", ["pt", "c"], ["next_p"]),
        ("Mul", ["p", "v"], ["pv"]), ("Add", ["q", "pv"], ["next_q"]),
    ]  # fmt: skip
    inputs = {"p": ["n", 3], "q": ["n", 3], "t": [], "v": [3], "c": ["n", 3]}
    return save_graph(nodes, inputs, {"next_p": ["n", 3], "next_q": ["n", 3]}, name="steps")


def images(count=2, seed=0):
    return np.random.default_rng(seed).random((count, 3, 16, 16), np.float32)


def scan_arrays(count, rows=4):
    rng = np.random.default_rng(3)
    draw = lambda *shape: rng.random(shape, np.float32)  # noqa: E731
    return {"p": draw(rows, 3), "q": draw(rows, 3)}, {"t": draw(count), "v": draw(count, 3)}, {"c": draw(rows, 3)}


def test_openvino_is_the_cpu_within_1e_5(network):
    pytest.importorskip("openvino", reason="openvino is not installed")
    with Engine.open(network, "cpu") as cpu, Engine.open(network, "openvino") as other:
        assert cpu.inputs == other.inputs
        (deviation,) = compare(cpu, other, {"image": images(3)})
    assert deviation.max_abs < 1e-5
    assert deviation.nan == 0


def test_bf16_is_near_and_not_the_same(network):
    pytest.importorskip("openvino", reason="openvino is not installed")
    try:
        half = Engine.open(network, "openvino", precision="bf16")
    except ProviderUnavailable as error:
        pytest.skip(error.fact)
    with half, Engine.open(network, "openvino") as full:
        (deviation,) = compare(full, half, {"image": images()})
    assert 0 < deviation.max_abs < 0.05
    assert "bf16" in half.description


def test_what_is_prepared_runs_as_often_as_it_is_called(device, network):
    with Engine.open(network, device) as engine:
        image = images()
        once = engine.prepare(image=image)
        expected = engine(image=image)["vector"]
        image[:] = 0  # the copies stay
        assert [once() for _ in range(3)] == [None] * 3
        np.testing.assert_array_equal(engine(image=images())["vector"], expected)
    with pytest.raises(EngineClosed):
        engine.prepare(image=image)


def test_results_belong_to_the_caller(device, network):
    with Engine.open(network, device) as engine:
        first = engine(image=images(seed=1))["vector"]
        kept = first.copy()
        engine(image=images(seed=2))
        np.testing.assert_array_equal(first, kept)
        first[:] = 0  # writable


def test_arrays_of_any_layout_give_the_same(device, network):
    image = images()
    with Engine.open(network, device) as engine:
        expected = engine(image=image)["vector"]
        frozen = image.copy()
        frozen.flags.writeable = False
        for variant in (np.asfortranarray(image), image[::-1][::-1], frozen):
            np.testing.assert_array_equal(engine(image=variant)["vector"], expected)


@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
def test_arrays_of_any_rank(device, save_graph, shape):
    path = save_graph([("Add", ["x", "x"], ["y"])], {"x": shape}, {"y": shape})
    with Engine.open(path, device) as engine:
        result = engine(x=np.full(shape, 2, np.float32))["y"]
    assert result.shape == shape
    assert np.all(result == 4)


@pytest.mark.parametrize("kind", ["float16", "float64", "uint8", "int8", "int16", "int32", "int64", "bool"])
def test_plain_dtypes_pass_through(device, save_graph, kind):
    onnx = pytest.importorskip("onnx")
    code = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    path = save_graph([("Cast", ["x"], ["y"], {"to": 1})], {"x": [3]}, {"y": [3]}, dtypes={"x": code})
    with Engine.open(path, device) as engine:
        assert engine.inputs[0].dtype == kind
        np.testing.assert_array_equal(engine(x=np.array([0, 1, 1], kind))["y"], [0, 1, 1])


@pytest.mark.parametrize("code", [8, 16], ids=["string", "bfloat16"])
def test_dtypes_that_numpy_lacks_are_refused(device, save_graph, code):
    path = save_graph([("Identity", ["x"], ["y"])], {"x": [3]}, {"y": [3]}, dtypes={"x": code, "y": code})
    with pytest.raises(EngineUnreadable, match="tensor x has type"):
        Engine.open(path, device)


def test_outputs_that_share_a_tensor_keep_their_names(device, save_graph):
    nodes = [("Add", ["x", "x"], ["a"]), ("Identity", ["a"], ["b"]), ("Identity", ["x"], ["c"])]
    path = save_graph(nodes, {"x": [2]}, {"b": [2], "a": [2], "c": [2]})
    with Engine.open(path, device) as engine:
        result = engine(x=np.array([1, 2], np.float32))
    assert {name: list(value) for name, value in result.items()} == {"b": [2, 4], "a": [2, 4], "c": [1, 2]}
    assert list(result) == ["b", "a", "c"]


def test_a_failing_graph_is_an_engine_error(device, save_graph):
    nodes = [("Reshape", ["x", "shape"], ["y"])]
    path = save_graph(nodes, {"x": ["n", 3]}, {"y": [2, 3]}, weights={"shape": np.array([2, 3])})
    with Engine.open(path, device) as engine:
        with pytest.raises(EngineError, match="failed to run the graph"):
            engine(x=np.zeros((3, 3), np.float32))
        with pytest.raises(EngineError, match="failed to run the graph"):
            engine.prepare(x=np.zeros((3, 3), np.float32))()
        assert engine(x=np.zeros((2, 3), np.float32))["y"].shape == (2, 3)  # and works on


def test_an_unloadable_graph_is_unreadable(device, save_graph):
    path = save_graph([("NoSuchOperator", ["x"], ["y"])], {"x": [1]}, {"y": [1]})
    with pytest.raises(EngineUnreadable):
        Engine.open(path, device)


# -- scan -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 7])
def test_scan_is_a_loop_of_calls(device, steps, count):
    carry, xs, constants = scan_arrays(count)
    with Engine.open(steps, device) as engine:
        expected = dict(carry)
        for step in range(count):
            row = {name: np.array(series[step]) for name, series in xs.items()}
            result = engine(**expected, **row, **constants)
            expected = {name: result[f"next_{name}"] for name in expected}
        actual = engine.scan(carry, xs, constants)
    assert actual.keys() == carry.keys()
    rounding = 1e-6 if device == "openvino" else 0  # which compiles a graph anew for the shapes of a scan
    for name in carry:
        np.testing.assert_allclose(actual[name], expected[name], rtol=rounding, atol=rounding)


def test_scan_of_other_shapes_after_a_scan(device, steps):
    with Engine.open(steps, device) as engine:
        for rows in (4, 2, 4):
            carry, xs, constants = scan_arrays(3, rows)
            first, again = (engine.scan(carry, xs, constants) for _ in range(2))
            for name in carry:
                assert first[name].shape == carry[name].shape
                np.testing.assert_array_equal(first[name], again[name])


def test_scan_leaves_the_callers_arrays_alone(device, steps):
    given = scan_arrays(5)
    kept = [{name: array.copy() for name, array in arrays.items()} for arrays in given]
    for arrays in given:
        for array in arrays.values():
            array.flags.writeable = False
    with Engine.open(steps, device) as engine:
        engine.scan(*given)
    for arrays, before in zip(given, kept, strict=True):
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, before[name])


def test_scan_results_outlive_the_engine(device, save_graph):
    # large enough that freed memory goes back to the system: a view of it would crash
    size = 1 << 20
    path = save_graph([("Add", ["s", "t"], ["next_s"])], {"s": [size], "t": []}, {"next_s": [size]})
    with Engine.open(path, device) as engine:
        results = [engine.scan({"s": np.zeros(size, np.float32)}, {"t": np.ones(n, np.float32)})["s"] for n in (2, 3)]
    assert [float(result.sum()) / size for result in results] == [2, 3]


def test_scan_reports_and_can_be_ended(device, steps):
    calls = []

    def stop_at_three(step, total):
        calls.append((step, total))
        if step == 3:
            raise InterruptedError("enough")

    with Engine.open(steps, device) as engine:
        with pytest.raises(InterruptedError, match="enough"):
            engine.scan(*scan_arrays(5), on_step=stop_at_three)
        assert calls == [(1, 5), (2, 5), (3, 5)]
        assert engine.scan(*scan_arrays(5)).keys() == {"p", "q"}  # and works on


def test_a_carry_that_grows_is_an_error(device, save_graph):
    path = save_graph(
        [("Concat", ["s", "t"], ["next_s"], {"axis": 0})], {"s": ["n", 3], "t": [1, 3]}, {"next_s": ["m", 3]}
    )
    with Engine.open(path, device) as engine, pytest.raises(EngineError):
        engine.scan({"s": np.ones((2, 3), np.float32)}, {"t": np.ones((4, 1, 3), np.float32)})


def test_a_carry_that_shrinks_by_data_is_an_error(device, save_graph):
    nodes = [("Slice", ["s", "from", "to"], ["next_s"])]
    inputs, weights = {"s": ["n", 3], "to": [1]}, {"from": np.array([0])}
    path = save_graph(nodes, inputs, {"next_s": ["m", 3]}, weights=weights, dtypes={"to": 7})
    carry = {"s": np.ones((2, 3), np.float32)}
    with Engine.open(path, device) as engine:
        np.testing.assert_array_equal(engine.scan(carry, {"to": np.array([[2], [2]])})["s"], carry["s"])
        with pytest.raises(EngineError):
            engine.scan(carry, {"to": np.array([[2], [1]])})


# -- threads --------------------------------------------------------------------------------------------------


def test_threads_share_an_engine(device, network):
    pictures = [images(1, seed) for seed in range(50)]
    with Engine.open(network, device) as engine:
        expected = [engine(image=picture)["vector"] for picture in pictures]

        def run(_):
            return [engine(image=picture)["vector"] for picture in pictures]

        with ThreadPoolExecutor(4) as pool:
            for results in pool.map(run, range(4)):
                np.testing.assert_array_equal(results, expected)


def test_closing_under_way_ends_in_engine_closed(device, network):
    engine = Engine.open(network, device)

    def forever():
        while True:
            engine(image=images(1))

    def run(_):
        with pytest.raises(EngineClosed):
            forever()

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(run, index) for index in range(4)]
        engine.close()
        for future in running:
            future.result(timeout=30)
