"""The command `facesdk VERB ...`: a thin shell over the library; verbs register as entry points."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points, version
from typing import Any, Protocol

from ..errors import FaceSDKError

GROUP = "facesdk.commands"


class Command(Protocol):
    """What an entry point of `facesdk.commands` is: a function that adds arguments and returns the action.

    Its docstring's first line is the verb's help.  The action returns what `--json` prints; it raises
    FaceSDKError, whose `exit_code` becomes the exit status (0 ok, 1 failed, 2 usage, 3 no face, 4 environment).
    """

    __doc__: str | None

    def __call__(self, parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], Any]: ...


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status of `facesdk` with these arguments (those of the process by default)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    verbs = {entry.name: entry for entry in entry_points(group=GROUP)}
    parser = _parser(verbs, words)
    options = parser.parse_args(words)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(message)s")
    try:
        result, status = options.action(options), 0
        if isinstance(result, tuple):
            result, status = result
        if options.json and result is not None:
            _print_json(result)
        sys.stdout.flush()
    except FaceSDKError as error:
        if options.json:
            _print_json({"error": error.as_dict()})
        else:
            print(f"facesdk {options.verb}: {error}\n  [{error.code}]", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader has had enough: facesdk ... | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def _parser(verbs: dict[str, EntryPoint], words: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="facesdk", description="Faces in photos, on ONNX engines.")
    parser.add_argument("--version", action="version", version=f"facesdk {version('facesdk')}")
    subparsers = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    # only the verb that was typed is imported, and all for the list of them: libraries would cost start-up time
    asked = {next((word for word in words if word in verbs), "")}
    if asked == {""} and {"-h", "--help"} & set(words):
        asked = set(verbs)
    for name in sorted(verbs):
        if name not in asked:
            subparsers.add_parser(name)
            continue
        command: Command = verbs[name].load()
        text = (command.__doc__ or "").strip()
        sub = subparsers.add_parser(name, help=text.splitlines()[0], description=text)
        sub.add_argument("--json", action="store_true", help="print one JSON document on standard output")
        sub.add_argument("-v", "--verbose", action="store_true", help="say which backend each engine runs on, and why")
        sub.set_defaults(action=command(sub))
    return parser


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, allow_nan=False))
