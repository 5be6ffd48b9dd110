"""The frame of the command: version, help of every verb, unknown verbs, errors as JSON; and how little it imports."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from argparse import ArgumentParser
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Literal

import pytest

from facesdk import cli
from facesdk.cli.options import add_options, read_options
from facesdk.cli.progress import progress
from facesdk.errors import FaceSDKError, UsageError

VERBS = sorted(entry.name for entry in entry_points(group=cli.GROUP))
SCRIPT = Path(sys.executable).with_name("facesdk")
MAIN = "from facesdk.cli import main"


def python(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)


def imported_by(words: list[str], modules: set[str]) -> set[str]:
    """Which of these modules a process has after running the command."""
    code = (
        f"import sys\n{MAIN}\ntry:\n    main({words!r})\nexcept SystemExit:\n    pass\n"
        f"print(*({modules!r} & set(sys.modules)), file=sys.stderr)"
    )
    done = python(code)
    assert "Traceback" not in done.stderr
    return set(done.stderr.split("\n")[-2].split())


# -- version, help --------------------------------------------------------------------------------------------


@pytest.mark.skipif(not SCRIPT.exists(), reason="the package's script is not installed beside this Python")
def test_the_installed_script() -> None:
    done = subprocess.run([SCRIPT, "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"facesdk {version('facesdk')}\n")


@pytest.mark.parametrize("words", [["--version"], [], ["nonsense"]])
def test_what_needs_no_verb_imports_no_library(words: list[str]) -> None:
    heavy = {"cv2", "onnxruntime", "openvino", "numpy", "PIL", "onnx", "torch"}
    assert imported_by(words, heavy) == set()


def test_a_verb_imports_only_what_is_its_own() -> None:
    assert imported_by(["models", "--help"], {"cv2", "onnxruntime", "facesdk.cli.annotate"}) == set()
    assert imported_by(["annotate", "--help"], {"onnxruntime", "openvino", "onnx", "facesdk.cli.bench"}) == set()


def test_there_are_the_verbs_of_the_readme() -> None:
    assert {"annotate", "bench", "doctor", "inspect", "models"} <= set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_each_verb(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([verb, "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: facesdk {verb}")
    assert "--json" in out
    assert "--verbose" in out


def test_help_lists_every_verb_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    for verb in VERBS:  # behind the verb or, where that is long, below it
        assert re.search(rf"^    {verb}\s+[A-Z]\w+,? \w+", out, re.MULTILINE)


@pytest.mark.parametrize("words", [[], ["nonsense"], ["--nonsense"], ["nonsense", "--json"]])
def test_no_verb_and_unknown_verbs_are_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "usage: facesdk" in captured.err


def test_an_unknown_verb_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["annotat"])
    err = capsys.readouterr().err
    assert all(verb in err for verb in VERBS)


# -- a verb of our own ----------------------------------------------------------------------------------------


class Entry:
    """What an entry point of the group `facesdk.commands` does."""

    name = "demo"

    def __init__(self, action: object) -> None:
        self._action = action

    def load(self) -> object:
        def command(parser: ArgumentParser) -> object:
            """Do what the test says."""
            parser.add_argument("--flag", action="store_true")
            return self._action

        return command


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> object:
    """Runs `facesdk demo` with this action."""

    def run(action: object, *words: str) -> int:
        monkeypatch.setattr(cli, "entry_points", lambda group: [Entry(action)])
        return cli.main(["demo", *words])

    return run


def failing(error: BaseException) -> object:
    def action(options: object) -> None:
        raise error

    return action


def test_the_result_is_printed_as_json_and_only_then(demo, capsys) -> None:
    assert demo(lambda options: {"a": [1, 2]}, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"a": [1, 2]}
    assert demo(lambda options: {"a": 1}) == 0
    assert capsys.readouterr().out == ""
    assert demo(lambda options: ({"a": 1}, 3), "--json") == 3
    assert json.loads(capsys.readouterr().out) == {"a": 1}


def test_errors_become_text_or_json_and_their_exit_code(demo, capsys) -> None:
    error = UsageError("the fact", cause="the cause", remedy="the remedy")
    assert demo(failing(error)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "facesdk demo: the fact\n  cause: the cause\n  remedy: the remedy\n  [usage]\n"
    assert demo(failing(error), "--json") == 2
    captured = capsys.readouterr()
    assert captured.err == ""
    assert json.loads(captured.out) == {
        "error": {"code": "usage", "fact": "the fact", "cause": "the cause", "remedy": "the remedy"}
    }
    assert demo(failing(FaceSDKError("x"))) == 1


def test_an_interruption_is_130_without_a_traceback(demo, capsys) -> None:
    assert demo(failing(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_other_exceptions_are_not_hidden(demo) -> None:
    with pytest.raises(ZeroDivisionError):
        demo(failing(ZeroDivisionError()))


# -- options from dataclasses ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Example:
    mode: Literal["slow", "fast"] = "fast"
    many_words: float = 0.5
    limit: int | None = dataclasses.field(default=None, metadata={"help": "at most N"})
    smooth: bool = True
    goal: float | None = 27.0


def parsed(*words: str) -> Example:
    parser = ArgumentParser()
    add_options(parser, Example)
    return read_options(parser.parse_args(words), Example)


def test_defaults_are_those_of_the_class() -> None:
    assert parsed() == Example()


def test_every_kind_of_field() -> None:
    words = ("--mode", "slow", "--many-words", "2.5", "--limit", "3", "--no-smooth")
    assert parsed(*words) == Example("slow", 2.5, 3, False)


def test_none_is_a_value_where_there_may_be_none() -> None:
    assert parsed("--goal", "none").goal is None
    assert parsed("--goal", "12.5").goal == 12.5


@pytest.mark.parametrize(
    "words", [("--mode", "other"), ("--many-words", "x"), ("--many-words", "none"), ("--limit", "1.5")]
)
def test_values_that_do_not_fit(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parsed(*words)
    assert caught.value.code == 2
    assert words[0] in capsys.readouterr().err


def test_help_says_what_and_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed("--help")
    out = " ".join(capsys.readouterr().out.split())
    assert "at most N (default: None)" in out
    assert "(default: 0.5)" in out


# -- progress -------------------------------------------------------------------------------------------------


def test_no_bar_where_there_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    assert list(progress([1, 2, 3], "photo")) == [1, 2, 3]
    assert capfd.readouterr() == ("", "")


def test_facesdk_runs_from_any_folder(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"{MAIN}; main()", "doctor", "--json"],
        cwd=tmp_path, env={**os.environ, "FACESDK_HOME": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "findings" in json.loads(done.stdout)
    assert not list(tmp_path.iterdir())
