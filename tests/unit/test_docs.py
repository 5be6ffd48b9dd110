"""The documentation says what the code says: error pages, options, names, and blocks that run."""

from __future__ import annotations

import argparse
import ast
import builtins
import importlib
import inspect
import re
import shlex
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from facesdk import cli, errors

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
PACKAGES = {"facesdk": "sdk", "facesdk_engines": "engines", "facesdk_export": "export"}
FENCE = re.compile(r"^(<!-- run -->\n)?```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([\w./-]+\.md)")
SECTION = re.compile(r"^#+ `facesdk ([\w -]+)`\n(.*?)(?=^#|\Z)", re.MULTILINE | re.DOTALL)
OF_EVERY_VERB = {"--help", "--json", "--verbose"}  # documented once, above the verbs


def blocks(page: Path, *languages: str) -> list[tuple[bool, str]]:
    """(Whether it is to be run, text) of the fenced blocks of a page."""
    return [(bool(run), text) for run, language, text in FENCE.findall(page.read_text()) if language in languages]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


# -- errors -----------------------------------------------------------------------------------------------------


def error_classes() -> dict[str, tuple[list[str], str]]:
    """Name -> (bases, own code) of every subclass of FaceSDKError, read from the sources: nothing need be installed."""
    files = [file for name, room in PACKAGES.items() for file in sorted((ROOT / room / name).rglob("*.py"))]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ClassDef)]
    found: dict[str, tuple[list[str], str]] = {}
    family = {"FaceSDKError"}
    while new := [node for node in nodes if node.name not in family and family & set(map(_last_name, node.bases))]:
        for node in new:
            family.add(node.name)
            found[node.name] = ([_last_name(base) for base in node.bases], _code(node))
    return found


def _last_name(base: ast.expr) -> str:
    return base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "")


def _code(node: ast.ClassDef) -> str:
    assigned = [item for item in node.body if isinstance(item, ast.Assign)]
    values = [item.value for item in assigned if _last_name(item.targets[0]) == "code"]
    return str(ast.literal_eval(values[0])) if values else ""


CLASSES = error_classes()


def test_the_sources_hold_the_errors_that_python_knows() -> None:
    classes = [value for value in vars(errors).values() if inspect.isclass(value)]
    known = {value.__name__ for value in classes if issubclass(value, errors.FaceSDKError)}
    assert known - {"FaceSDKError"} <= CLASSES.keys()


def test_every_error_has_a_code_of_its_own() -> None:
    codes = [code for _, code in CLASSES.values()]
    assert all(codes)
    assert len({*codes, errors.FaceSDKError.code}) == len(codes) + 1


def test_every_code_has_a_page_that_is_linked_and_none_is_left_over() -> None:
    codes = {code for _, code in CLASSES.values()}
    assert {page.stem for page in (DOCS / "errors").glob("*.md")} == codes | {"index"}
    assert {Path(link).stem for link in LINK.findall((DOCS / "errors" / "index.md").read_text())} >= codes


@pytest.mark.parametrize("name", CLASSES)
def test_error_page(name: str) -> None:
    code = CLASSES[name][1]
    text = (DOCS / "errors" / f"{code}.md").read_text()
    title, _, facts, *_ = text.splitlines()
    assert title == f"# {code}"
    example = FENCE.findall(text)[0][2]
    assert f"[{code}]" in example or f"facesdk.errors.{name}: " in example
    for heading in ("**Usual causes**", "**What to do**", "**Example**"):
        assert heading in text
    if kind := getattr(errors, name, None):
        assert f"`{name}`" in facts
        assert f"exit status {kind.exit_code}." in facts
        (builtin,) = re.findall(r"an? `(\w+)`;", facts)
        assert issubclass(kind, getattr(builtins, builtin))


def test_every_page_is_in_the_navigation() -> None:
    navigation = re.findall(r"^\s+- ([\w./-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(navigation) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


def test_every_result_is_linked() -> None:
    text = (DOCS / "benchmarks.md").read_text()
    for path in (ROOT / "benchmarks" / "results").glob("*.csv"):
        assert f"(benchmarks/{path.name})" in text


# -- the command line -------------------------------------------------------------------------------------------


def parser_of(verb: EntryPoint) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(f"facesdk {verb.name}")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("-v", "--verbose", action="store_true")
    verb.load()(parser)
    return parser


def commands(name: str, parser: argparse.ArgumentParser) -> Iterator[tuple[str, list[argparse.Action]]]:
    """Verb, or verb and sub-verb, and its own arguments."""
    own = [action for action in parser._actions if not OF_EVERY_VERB & set(action.option_strings)]
    below = [action for action in own if isinstance(action, argparse._SubParsersAction)]
    yield name, [action for action in own if action not in below]
    for verb, sub in (item for action in below for item in action.choices.items()):
        yield from commands(f"{name} {verb}", sub)


PARSERS = {verb.name: parser_of(verb) for verb in entry_points(group=cli.GROUP)}
COMMANDS = dict(command for name, parser in sorted(PARSERS.items()) for command in commands(name, parser))
SECTIONS = dict(SECTION.findall((DOCS / "cli.md").read_text()))


def test_every_verb_has_a_section_and_every_section_a_verb() -> None:
    assert SECTIONS.keys() == COMMANDS.keys()


@pytest.mark.parametrize("verb", COMMANDS)
def test_options_are_documented_with_their_defaults_and_choices(verb: str) -> None:
    cells = [line.split("|")[1:-1] for line in SECTIONS[verb].splitlines() if line.startswith("| `-")]
    rows = {tuple(re.findall(r"`(-[\w-]+)`", flags)): (default.strip(), text) for flags, default, text in cells}
    options = {tuple(action.option_strings): action for action in COMMANDS[verb] if action.option_strings}
    assert rows.keys() == options.keys()
    for flags, action in options.items():
        default, text = rows[flags]
        assert default == ("" if action.default in (None, False, "") else f"`{action.default}`"), flags
        assert all(f"`{choice}`" in text for choice in action.choices or ()), flags
    for action in COMMANDS[verb]:
        if not action.option_strings:
            assert str(action.metavar or action.dest) in SECTIONS[verb]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_shell_blocks_are_understood_by_the_parser(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    lines = [line for _, text in blocks(page, "bash", "console") for line in text.splitlines()]
    for words in (shlex.split(line.removeprefix("$ "), comments=True) for line in lines):
        if words[:1] == ["make"]:
            assert words[1] in targets
        if words[:1] == ["facesdk"]:
            try:
                PARSERS[words[1]].parse_args(words[2:])
            except SystemExit:
                pytest.fail(f"{shlex.join(words)}: {capsys.readouterr().err}")


# -- Python -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_blocks_compile_and_name_what_exists(page: Path) -> None:
    names: dict[str, Any] = {}
    for _, text in blocks(page, "python"):
        tree = ast.parse(text)
        names |= _imported(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") in names:
                assert hasattr(names[node.value.id], node.attr), ast.unparse(node)  # type: ignore[attr-defined]
            if isinstance(node, ast.Call) and (function := _resolved(node.func, names)) is not None:
                inspect.signature(function).bind_partial(**{word.arg: None for word in node.keywords if word.arg})


def _imported(tree: ast.AST) -> dict[str, Any]:
    """Name in the block -> object of ours."""
    found: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            ours = [alias.name for alias in node.names if alias.name.split(".")[0] in PACKAGES]
            found |= {name.split(".")[0]: importlib.import_module(name.split(".")[0]) for name in ours}
            assert all(importlib.import_module(name) for name in ours)
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in PACKAGES:
            for alias in node.names:
                try:
                    value = getattr(importlib.import_module(str(node.module)), alias.name)
                except AttributeError:
                    value = importlib.import_module(f"{node.module}.{alias.name}")
                found[alias.asname or alias.name] = value
    return found


def _resolved(function: ast.expr, names: dict[str, Any]) -> Any:
    if isinstance(function, ast.Attribute) and (owner := _resolved(function.value, names)) is not None:
        return getattr(owner, function.attr)
    return names.get(function.id) if isinstance(function, ast.Name) else None


RUN = [page for page in PAGES if any(run for run, _ in blocks(page, "python"))]


def test_the_first_pages_are_executed() -> None:
    assert {DOCS / "index.md", DOCS / "quick-start.md"} <= set(RUN)


@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_marked_blocks_run(page: Path, demo_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACESDK_HOME", str(demo_home))
    monkeypatch.chdir(tmp_path)
    picture = cv2.imread(str(ROOT / "tests" / "data" / "astronaut.png"))
    cv2.imwrite("photo.jpg", picture)
    cv2.imwrite("landscape.jpg", picture[::2])
    film = cv2.VideoWriter("film.avi", cv2.VideoWriter.fourcc(*"MJPG"), 25, picture.shape[1::-1])
    for _ in range(2):
        film.write(picture)
    film.release()
    Path("film.avi").rename("video.mp4")  # the container is told by its content
    names: dict[str, Any] = {}
    for number, (run, text) in enumerate(blocks(page, "python")):
        if run:
            exec(compile(text, f"{name_of(page)}, block {number}", "exec"), names)


@pytest.fixture(scope="module")
def demo_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with an `annotation-478` whose networks find one face, always the same, in any picture."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    from facesdk.card import Card
    from facesdk_engines.writing import write_arrays, write_engine, write_manifest

    home = tmp_path_factory.mktemp("home")
    folder = home / "bundles" / "annotation-478"
    folder.mkdir(parents=True)
    engines = {}
    for name, (feed, values) in _networks().items():
        model = _constant(onnx, *feed, values)
        write_engine(folder / f"{name}.onnx", model, Card("annotation", name, example_shapes={feed[0]: feed[2]}))
        engines[name] = {"default": f"{name}.onnx"}
    points = np.random.default_rng(1).normal(size=(468, 3)).astype(np.float32)
    write_arrays(
        folder / "mesh.npz",
        triangles=np.arange(468).reshape(-1, 3), anchor_index=np.arange(468), anchor_position=points,
        anchor_weight=np.ones(468, np.float32), blendshape_landmarks=np.arange(146),
    )  # fmt: skip
    constants = {
        "detection": {"iou": 0.5},
        "landmarks": {"region_scale": 1.5, "region_square": False, "five_points": [[468], [473], [4], [61], [291]]},
        "blendshapes": {"names": ["_neutral", "jawOpen"]},
    }
    about = {"name": "annotation-478", "system": "annotation", "licence": "Apache-2.0"}
    write_manifest(folder, about, engines, constants)
    return home


def _networks() -> dict[str, Any]:
    """Name -> ((input, dtype, shape), outputs): a box of 40 in a view of 128, a mesh in a patch of 256."""
    regressors, logits = np.zeros((1, 896, 16), np.float32), np.full((1, 896, 1), -50, np.float32)
    middle = 2 * (16 * 7 + 7)  # an anchor near the centre
    regressors[0, middle] = [0, 0, 40, 40, -6, -4, 6, -4, 0, 2, 0, 9, -18, 0, 18, 0]
    logits[0, middle] = 6
    mesh = np.random.default_rng(0).uniform([70, 60, -30], [186, 210, 30], (478, 3)).astype(np.float32)
    left, right = [362, 263, 386, 374, 473], [33, 133, 159, 145, 468]
    mesh[left, :2], mesh[right, :2] = (168, 100), (88, 100)
    mesh[[61, 291], :2], mesh[4, :2] = ((100, 180), (156, 180)), (128, 140)
    return {
        "detector_short": (("image", np.uint8, (1, 128, 128, 3)), {"regressors": regressors, "logits": logits}),
        "landmarks": (
            ("image", np.uint8, (1, 256, 256, 3)),
            {"landmarks": mesh.reshape(1, 1, 1, -1), "presence": np.full((1, 1, 1, 1), 20, np.float32)},
        ),
        "blendshapes": (("points", np.float32, (1, 146, 2)), {"scores": np.array([0.1, 0.7], np.float32)}),
    }


def _constant(onnx: Any, name: str, dtype: Any, shape: tuple[int, ...], values: dict[str, np.ndarray]) -> Any:
    """A graph that reads its input and answers `values` whatever it holds."""
    h, floats = onnx.helper, onnx.TensorProto.FLOAT
    weights = [onnx.numpy_helper.from_array(value, f"{key}_value") for key, value in values.items()]
    weights.append(onnx.numpy_helper.from_array(np.zeros(1, np.float32), "zero"))
    nodes = [
        h.make_node("Cast", [name], ["floats"], to=floats),
        h.make_node("ReduceMax", ["floats"], ["most"], keepdims=0),
        h.make_node("Mul", ["most", "zero"], ["nothing"]),
        *(h.make_node("Add", [f"{key}_value", "nothing"], [key]) for key in values),
    ]
    inputs = [h.make_tensor_value_info(name, h.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)]
    outputs = [h.make_tensor_value_info(key, floats, value.shape) for key, value in values.items()]
    graph = h.make_graph(nodes, "constant", inputs, outputs, weights)
    return h.make_model(graph, opset_imports=[h.make_opsetid("", 18)], ir_version=8)
