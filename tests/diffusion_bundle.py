"""A complete diffusion bundle of the right signature, made in a moment: what it computes can be foretold.

Every token is a row of numbers that grow with its id and its place; the text encoder and the cross-attentions pass
them on.  The network's answer is linear in the latent, in the mean of the conditions' rows and in the time; the
autoencoder paints each latent value as a square of 8 x 8 pixels and reads it back.  Every operator treats a row by
itself: results have the same bits whoever shares the batch.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facesdk.bundle import Bundle
from facesdk.card import Card
from facesdk.diffusion.face_tokens import FaceTokens
from facesdk.diffusion.networks import DiffusionNetworks
from facesdk.identity import Identity
from facesdk.store import Store

NAME, PLAIN_NAME = "face2diffusion-tiny", "stable-diffusion-tiny"
TOKENS, WIDTH, IDENTITY, EXPRESSION, CELL, SIZE = 77, 8, 12, 6, 8, 64
CHANNELS = (4, 6)  # of the keys and values of two cross-attentions
SCALING = 0.18215
DIFFUSION = {
    "scaling_factor": SCALING, "cell": CELL, "latent_channels": 4, "tokens": TOKENS, "width": WIDTH,
    "layers": len(CHANNELS), "time_width": 2, "timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012,
    "prediction": "epsilon", "scheduler": "euler-ancestral", "spacing": "linspace", "steps": 6, "guidance": 3.0,
    "size": SIZE,
}  # fmt: skip
ENCODER = {"size": 112, "template": "arcface", "space": NAME, "preprocessing": "rgb-112", "normalised": False}
#: of the answer: latent, conditions, time and its square
LAW = (1.2, 0.04, -0.3, 0.05)
LOGVAR = -3.0

Node = tuple[str, Sequence[str], Sequence[str], dict[str, Any]]
Graph = tuple[list[Node], dict[str, tuple[str, list[Any]]], dict[str, list[Any]]]


def write_diffusion_bundle(
    folder: Path,
    *,
    faces: bool = True,
    methods: Sequence[str] = ("f2d", "mf2d"),
    broken: str = "",
    leave_out: Sequence[str] = (),
    **constants: Any,
) -> Path:
    """The folder, after a bundle was written there.

    faces      with encoder and mapping networks.   broken  an output ("next_bank", "image", ...) that is all NaN.
    leave_out  engines that are missing.   constants  of [constants.diffusion]; None: left out.
    """
    pytest.importorskip("onnx", reason="onnx is not installed")
    from facesdk_engines.writing import write_engine, write_manifest
    from tests.unit.clip_table import write_table

    folder.mkdir(parents=True)
    mapping = {"f2d": "mapping", "mf2d": "mapping_mf2d"}
    face_engines = ("encoder", *(mapping[method] for method in methods)) if faces else ()
    unwanted = {"encoder", *mapping.values()} - set(face_engines) | set(leave_out)
    graphs = {name: graph for name, graph in _graphs().items() if name not in unwanted}
    for name, graph in graphs.items():
        card = Card("face2diffusion", name, source_sha256="5eed" * 16, deviation=dict.fromkeys(graph[2], 0.0))
        write_engine(folder / f"{name}.onnx", _model(name, graph, broken), card)
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copy(write_table(Path(scratch)), folder)
    system = "face2diffusion" if faces else "stable-diffusion"
    about = {"name": folder.name, "system": system, "licence": "MIT", "recipe": "tiny 1"}
    settings = {name: value for name, value in {**DIFFUSION, **constants}.items() if value is not None}
    tables: dict[str, Mapping[str, Any]] = {"diffusion": settings}
    if faces:
        tables |= {"faces": {"identifiers": ["f", "g"], "second": "l", "methods": list(methods)}, "encoder": ENCODER}
    write_manifest(folder, about, {name: {"default": f"{name}.onnx"} for name in graphs}, tables)
    return folder


def tokens_of(networks: DiffusionNetworks, seed: int, method: str = "f2d") -> FaceTokens:
    """The words of someone."""
    vector = np.random.default_rng(seed).normal(size=IDENTITY).astype(np.float32)
    return networks.face_tokens(Identity(vector, networks.encoder.space), method)


# -- what it computes -----------------------------------------------------------------------------------------


def embedded(ids: np.ndarray) -> np.ndarray:
    """(n, 77, WIDTH) of (n, 77) ids."""
    return ids[..., None] * _of_id() + _of_place()


def hidden(embeddings: np.ndarray) -> np.ndarray:
    return embeddings * 1.5 - 0.25


def told(rows: np.ndarray) -> np.ndarray:
    """(n, 4): what a condition of hidden rows (n, 77, WIDTH) adds to the four channels of the answer."""
    keys, values = [rows[..., :count] for count in CHANNELS], [rows[..., -count:] * 0.5 for count in CHANNELS]
    each = keys[0].mean(axis=1)
    return each + sum(part.mean(axis=(1, 2)) for part in (*keys, *values))[:, None]


def answer(latent: np.ndarray, timestep: float, condition: np.ndarray) -> np.ndarray:
    """The network's output for a latent (4, h, w) as the network sees it, told (4,)."""
    time = timestep / 1000
    return LAW[0] * latent + LAW[1] * condition[:, None, None] + LAW[2] * time + LAW[3] * time**2


def painted(latent: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 of a latent (4, h, w)."""
    image = np.repeat(np.repeat(latent[:3] / SCALING, CELL, axis=1), CELL, axis=2).transpose(1, 2, 0)
    return np.rint(np.clip(image / 2 + 0.5, 0, 1) * 255).astype(np.uint8)


def read(picture: np.ndarray) -> np.ndarray:
    """(4, h, w) mean of the latent of a picture (H, W, 3)."""
    height, width = picture.shape[0] // CELL, picture.shape[1] // CELL
    means = (picture / 127.5 - 1).reshape(height, CELL, width, CELL, 3).mean(axis=(1, 3)).transpose(2, 0, 1)
    return np.concatenate([means, means.mean(axis=0, keepdims=True)])


def mapped(identity: np.ndarray, expression: np.ndarray | None, method: str) -> np.ndarray:
    """(2, WIDTH): the two words of an identity (IDENTITY,)."""
    mood = np.full(EXPRESSION, 0.3) if expression is None else expression
    first = (0.2 if method == "f2d" else 0.4) * identity[:WIDTH] + mood.mean()
    return np.stack([first, -0.5 * first])


def _of_id() -> np.ndarray:
    return np.linspace(1, 2, WIDTH) / 49408


def _of_place() -> np.ndarray:
    return np.outer(np.arange(TOKENS), np.linspace(-1, 1, WIDTH)) / 500


# -- graphs ---------------------------------------------------------------------------------------------------


def _graphs() -> dict[str, Graph]:
    """Engine -> nodes, inputs, outputs."""
    words, face = ["n", TOKENS, WIDTH], ["n", 112, 112, 3]
    latent, planes = ["n", 4, "h", "w"], {"mean": ["n", 4, "h", "w"], "logvar": ["n", 4, "h", "w"]}
    person = {
        "identity": ("FLOAT", ["n", IDENTITY]), "expression": ("FLOAT", ["n", EXPRESSION]), "given": ("FLOAT", ["n"]),
    }  # fmt: skip
    told_of = {f"{kind}_{i:02d}": ["r", TOKENS, size] for i, size in enumerate(CHANNELS) for kind in ("key", "value")}
    two_words = {"first": ["n", WIDTH], "last": ["n", WIDTH]}
    return {
        "embedding": (
            [
                ("Cast", ["ids"], ["number"], {"to": 1}),
                ("Unsqueeze", ["number", "minus_1"], ["column"], {}),
                ("Mul", ["column", "of_id"], ["scaled"], {}),
                ("Add", ["scaled", "of_place"], ["embeddings"], {}),
            ],
            {"ids": ("INT64", ["n", TOKENS])},
            {"embeddings": words},
        ),
        "text": (
            [("Mul", ["embeddings", "one_half"], ["half"], {}), ("Sub", ["half", "quarter"], ["hidden"], {})],
            {"embeddings": ("FLOAT", words)},
            {"hidden": words},
        ),
        "context": (_context(), {"text": ("FLOAT", ["r", TOKENS, WIDTH])}, told_of),
        "time": (
            [
                ("Mul", ["timestep", "thousandth"], ["share"], {}),
                ("Unsqueeze", ["share", "minus_1"], ["column"], {}),
                ("Mul", ["column", "column"], ["square"], {}),
                ("Concat", ["column", "square"], ["rows"], {"axis": 1}),
            ],
            {"timestep": ("FLOAT", ["s"])},
            {"rows": ["s", 2]},
        ),
        "step": _step(),
        "vae_decoder": (
            [
                ("Slice", ["latent", "zero", "three", "axis"], ["colours"], {}),
                ("Div", ["colours", "scaling"], ["small"], {}),
                ("Resize", ["small", "", "factor"], ["image"], {"mode": "nearest"}),
            ],
            {"latent": ("FLOAT", latent)},
            {"image": ["n", 3, "H", "W"]},
        ),
        "vae_encoder": (
            [
                *_signed("image"),
                ("AveragePool", ["planes"], ["means"], {"kernel_shape": [CELL] * 2, "strides": [CELL] * 2}),
                ("ReduceMean", ["means"], ["grey"], {"axes": [1]}),
                ("Concat", ["means", "grey"], ["mean"], {"axis": 1}),
                ("Mul", ["mean", "none"], ["no_mean"], {}),
                ("Add", ["no_mean", "log_variance"], ["logvar"], {}),
            ],
            {"image": ("UINT8", ["n", "H", "W", 3])},
            planes,
        ),
        "encoder": (
            [
                *_signed("image"),
                ("AveragePool", ["planes"], ["quarters"], {"kernel_shape": [56, 56], "strides": [56, 56]}),
                ("Flatten", ["quarters"], ["embedding"], {}),
            ],
            {"image": ("UINT8", face)},
            {"embedding": ["n", IDENTITY]},
        ),
        "mapping": (_mapping("fifth"), person, two_words),
        "mapping_mf2d": (_mapping("two_fifths"), person, two_words),
    }


def _signed(image: str) -> list[Node]:
    return [
        ("Cast", [image], ["levels"], {"to": 1}),
        ("Div", ["levels", "level_of_one"], ["lifted"], {}),
        ("Sub", ["lifted", "one"], ["signed"], {}),
        ("Transpose", ["signed"], ["planes"], {"perm": [0, 3, 1, 2]}),
    ]


def _context() -> list[Node]:
    nodes: list[Node] = []
    for i in range(len(CHANNELS)):
        nodes += [
            ("Slice", ["text", "zero", f"channels_{i}", "minus_1"], [f"key_{i:02d}"], {}),
            ("Slice", ["text", f"minus_channels_{i}", "many", "minus_1"], [f"last_{i}"], {}),
            ("Mul", [f"last_{i}", "half_of"], [f"value_{i:02d}"], {}),
        ]
    return nodes


def _mapping(share: str) -> list[Node]:
    return [
        ("Unsqueeze", ["given", "minus_1"], ["is_given"], {}),
        ("Sub", ["one", "is_given"], ["is_not"], {}),
        ("Mul", ["expression", "is_given"], ["theirs"], {}),
        ("Mul", ["is_not", "neutral"], ["learned"], {}),
        ("Add", ["theirs", "learned"], ["mood"], {}),
        ("ReduceMean", ["mood"], ["mean_mood"], {"axes": [1]}),
        ("Slice", ["identity", "zero", "width", "axis"], ["part"], {}),
        ("Mul", ["part", share], ["scaled"], {}),
        ("Add", ["scaled", "mean_mood"], ["first"], {}),
        ("Mul", ["first", "minus_half"], ["last"], {}),
    ]


def _step() -> Graph:
    names = [f"{kind}_{i:02d}" for i in range(len(CHANNELS)) for kind in ("key", "value")]
    picture, plane = ["n", 4, "h", "w"], ["n", 1, "h", "w"]
    sizes = {f"{kind}_{i:02d}": size for i, size in enumerate(CHANNELS) for kind in ("key", "value")}
    inputs: dict[str, tuple[str, list[Any]]] = {
        "bank": ("FLOAT", ["n", "K", 4, "h", "w"]), "scale": ("FLOAT", [1]), "time": ("FLOAT", [2]),
        "matrix": ("FLOAT", ["K", "columns"]), "weights": ("FLOAT", ["C"]), "noise": ("FLOAT", picture),
        "level": ("FLOAT", [2]), "blend_noise": ("FLOAT", picture), "known": ("FLOAT", picture),
        "mask": ("FLOAT", plane), **{name: ("FLOAT", ["R", TOKENS, sizes[name]]) for name in names},
    }  # fmt: skip
    nodes: list[Node] = [
        *_blended(),
        *_told_of(names),
        ("Mul", ["x", "scale"], ["seen"], {}),
        ("Mul", ["seen", "law_latent"], ["of_latent"], {}),
        ("Mul", ["time", "law_time"], ["times"], {}),
        ("ReduceSum", ["times"], ["of_time"], {"keepdims": 0}),
        ("Add", ["of_latent", "of_time"], ["same"], {}),
        ("Unsqueeze", ["same", "zero"], ["same_for_each"], {}),
        ("Add", ["same_for_each", "of_condition"], ["answers"], {}),  # (C, n, 4, h, w)
        ("Reshape", ["weights", "to_conditions"], ["weight_of_each"], {}),
        ("Mul", ["answers", "weight_of_each"], ["weighted"], {}),
        ("ReduceSum", ["weighted", "zero"], ["eps"], {"keepdims": 0}),
        ("Unsqueeze", ["eps", "axis"], ["eps_row"], {}),
        ("Unsqueeze", ["noise", "axis"], ["noise_row"], {}),
        ("Unsqueeze", ["x", "axis"], ["x_row"], {}),
        ("Slice", ["bank", "axis", "many", "axis"], ["memory"], {}),
        ("Concat", ["x_row", "memory", "eps_row", "noise_row"], ["columns_of"], {"axis": 1}),
        ("Unsqueeze", ["columns_of", "axis"], ["for_rows"], {}),  # (n, 1, K + 2, 4, h, w)
        ("Unsqueeze", ["matrix", "matrix_axes"], ["factors"], {}),
        ("Mul", ["for_rows", "factors"], ["terms"], {}),
        ("ReduceSum", ["terms", "two"], ["next_bank"], {"keepdims": 0}),
    ]
    return nodes, inputs, {"next_bank": ["n", "K", 4, "h", "w"]}


def _blended() -> list[Node]:
    """Row 0 of the bank, with what is known where the mask is 0."""
    return [
        ("Gather", ["bank", "first_of"], ["latent"], {"axis": 1}),
        ("Split", ["level"], ["signal", "spread"], {"axis": 0}),
        ("Mul", ["known", "signal"], ["kept"], {}),
        ("Mul", ["blend_noise", "spread"], ["kept_noise"], {}),
        ("Add", ["kept", "kept_noise"], ["noised"], {}),
        ("Sub", ["one", "mask"], ["outside"], {}),
        ("Mul", ["latent", "mask"], ["inner"], {}),
        ("Mul", ["noised", "outside"], ["outer"], {}),
        ("Add", ["inner", "outer"], ["x"], {}),
    ]


def _told_of(names: Sequence[str]) -> list[Node]:
    """Rows (C * p, ...) -> (C, p, 4, 1, 1)."""
    nodes: list[Node] = [("ReduceMean", ["key_00"], ["each"], {"axes": [1], "keepdims": 0})]
    nodes += [("ReduceMean", [name], [f"mean_{name}"], {"axes": [1, 2], "keepdims": 0}) for name in names]
    return [
        *nodes,
        ("Sum", [f"mean_{name}" for name in names], ["all"], {}),
        ("Unsqueeze", ["all", "minus_1"], ["all_column"], {}),
        ("Add", ["each", "all_column"], ["told"], {}),
        ("Mul", ["told", "law_condition"], ["of_rows"], {}),
        ("Shape", ["weights"], ["conditions"], {}),
        ("Concat", ["conditions", "to_rows"], ["told_shape"], {"axis": 0}),
        ("Reshape", ["of_rows", "told_shape"], ["of_condition"], {}),
    ]


def _weights() -> dict[str, np.ndarray]:
    numbers = {
        "one": 1, "none": 0, "one_half": 1.5, "quarter": 0.25, "half_of": 0.5, "minus_half": -0.5,
        "thousandth": 0.001, "level_of_one": 127.5, "scaling": SCALING, "log_variance": LOGVAR, "fifth": 0.2,
        "two_fifths": 0.4, "law_latent": LAW[0], "law_condition": LAW[1],
    }  # fmt: skip
    indices = {
        "minus_1": [-1], "zero": [0], "axis": [1], "two": [2], "three": [3], "width": [WIDTH], "many": [1 << 30],
        "to_conditions": [-1, 1, 1, 1, 1], "to_rows": [-1, 4, 1, 1], "matrix_axes": [0, 3, 4, 5],
    }  # fmt: skip
    for i, size in enumerate(CHANNELS):
        indices |= {f"channels_{i}": [size], f"minus_channels_{i}": [-size]}
    return {
        **{name: np.array(value, np.float32) for name, value in numbers.items()},
        **{name: np.array(value, np.int64) for name, value in indices.items()},
        "first_of": np.array(0, np.int64),
        "of_id": _of_id().astype(np.float32),
        "of_place": _of_place().astype(np.float32),
        "law_time": np.array(LAW[2:], np.float32),
        "neutral": np.full(EXPRESSION, 0.3, np.float32),
        "factor": np.array([1, 1, CELL, CELL], np.float32),
    }


def _model(name: str, graph: Graph, broken: str) -> Any:
    import onnx

    h, types, weights = onnx.helper, onnx.TensorProto, _weights()
    nodes, inputs, outputs = graph
    made = [h.make_node(operator, ins, outs, **attributes) for operator, ins, outs, attributes in nodes]
    if broken in outputs:
        next(node for node in made if broken in node.output).output[0] = "sound"
        weights = {**weights, "nan": np.array(np.nan, np.float32)}
        made.append(h.make_node("Add", ["sound", "nan"], [broken]))
    used = {tensor for node in made for tensor in node.input}
    model = h.make_graph(
        made, name,
        [h.make_tensor_value_info(key, getattr(types, kind), shape) for key, (kind, shape) in inputs.items()],
        [h.make_tensor_value_info(key, types.FLOAT, shape) for key, shape in outputs.items()],
        [onnx.numpy_helper.from_array(value, key) for key, value in weights.items() if key in used],
    )  # fmt: skip
    return h.make_model(model, opset_imports=[h.make_opsetid("", 17)], ir_version=8)


# -- fixtures -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def diffusion_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle(write_diffusion_bundle(tmp_path_factory.mktemp("diffusion") / NAME))


@pytest.fixture(scope="session")
def plain_diffusion_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """One that knows no faces."""
    return Bundle(write_diffusion_bundle(tmp_path_factory.mktemp("diffusion") / PLAIN_NAME, faces=False))


@pytest.fixture(scope="session")
def diffusion_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the diffusion bundle that knows faces."""
    home = tmp_path_factory.mktemp("diffusion-home")
    write_diffusion_bundle(home / "bundles" / NAME)
    return home


@pytest.fixture(scope="session")
def diffusion_store(diffusion_home: Path) -> Store:
    return Store(diffusion_home)
