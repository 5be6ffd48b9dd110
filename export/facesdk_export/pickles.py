"""Reading pickles without running them: a file may name functions, but only these few can ever be called.

A pickle is a program for a small stack machine, which may call whatever `find_class` hands it.  Here that is
a constructor from the caller's table, or an `Inert` class that keeps what it is given and does nothing.  Any other
name ends the reading.
"""

from __future__ import annotations

import _compat_pickle
import collections
import pickle
from collections.abc import Callable, Mapping
from typing import IO, Any, ClassVar

from facesdk.errors import ConversionError

Global = tuple[str, str]  # module, name
#: what each name stands for: a function, or a value that is never called
Constructors = Mapping[Global, Any]

#: packages of settings that trainers left in published checkpoints: Lightning, OmegaConf, argparse, optimisers
_INERT_PACKAGES = ("omegaconf", "pytorch_lightning", "lightning", "lightning_fabric", "ml_collections", "easydict",
                   "torch.nn", "torch.optim", "__torch__")  # fmt: skip
_INERT_MODULES = ("argparse", "collections", "copyreg", "datetime", "pathlib", "typing", "_codecs",
                  "numpy", "numpy.core.multiarray", "numpy._core.multiarray",
                  "torch._utils", "torch._tensor", "torch.jit._pickle")  # fmt: skip
_INERT_NAMES = {
    "builtins": {"bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "object", "set",
                 "slice", "str", "tuple"},
    "torch": {"Size", "device", "Tensor", "float16", "float32", "float64", "bfloat16", "int8", "int16", "int32",
              "int64", "uint8", "bool", "complex64", "complex128"},
}  # fmt: skip
_MAX_DEPTH = 100


class Refused(Exception):
    """The pickle names something outside the table; `args[0]` is its dotted name."""


class Inert:
    """Stands for an object of a foreign class: takes any argument and state, and does nothing with them."""

    state: object = None

    def __new__(cls, *arguments: object, **keywords: object) -> Inert:
        return super().__new__(cls)

    def __init__(self, *arguments: object, **keywords: object) -> None:
        """Accept what the foreign class would have been given."""

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: object, value: object) -> None:
        """Forget an entry of a foreign dictionary."""

    def append(self, value: object) -> None:
        """Forget an item of a foreign list."""

    def add(self, value: object) -> None:
        """Forget an item of a foreign set."""

    def extend(self, values: object) -> None:
        """Forget items of a foreign list."""


def unpickle(
    stream: IO[bytes],
    constructors: Constructors,
    *,
    inert: bool,
    persistent: Callable[[object], object] | None = None,
) -> object:
    """The object of the pickle that comes next in a stream, made by `constructors` alone.

    persistent  finds what the pickle refers to outside itself.
    inert       whether settings of known packages become Inert objects; other names raise Refused either way.
    Raises ValueError where the bytes are no whole pickle.
    """
    try:
        return _Unpickler(stream, constructors, inert, persistent).load()
    except (Refused, ConversionError):
        raise
    except Exception as error:  # a damaged program can fail at any step of the machine, in any way
        raise ValueError(f"its pickle is damaged: {type(error).__name__} {error}".rstrip()) from error


_Step = Callable[[Any], None]
_STEPS: dict[int, _Step] = dict(pickle._Unpickler.dispatch)


class _Row(tuple[Any, ...]):
    """A tuple that knows how deep it nests: to hash a very deep one would overflow the C stack."""

    depth: int


def _row_step(code: int) -> _Step:
    def step(machine: _Unpickler) -> None:
        _STEPS[code](machine)
        row = machine.stack[-1] = _Row(machine.stack[-1])
        row.depth = 1 + max((item.depth for item in row if isinstance(item, _Row)), default=0)
        if row.depth > _MAX_DEPTH:
            raise ValueError("it nests too deeply")

    return step


def _state_step(machine: _Unpickler) -> None:
    if not isinstance(machine.stack[-2], Inert | collections.OrderedDict):
        raise ValueError("it changes what has no state")
    _STEPS[pickle.BUILD[0]](machine)


class _Unpickler(pickle._Unpickler):
    """The machine in Python, not in C: its memory grows with the file, whatever sizes the file announces."""

    proto: int
    stack: list[Any]
    # BYTEARRAY8 is the one opcode that allocates before it reads; torch.save does not write it
    dispatch: ClassVar[dict[int, _Step]] = {
        **{code: step for code, step in _STEPS.items() if code != pickle.BYTEARRAY8[0]},
        **{code[0]: _row_step(code[0]) for code in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3)},
        pickle.BUILD[0]: _state_step,
    }

    def __init__(
        self,
        stream: IO[bytes],
        constructors: Constructors,
        inert: bool,
        persistent: Callable[[object], object] | None,
    ) -> None:
        super().__init__(stream, encoding="utf-8")  # what Python 2 wrote are bytes of text
        self._constructors, self._inert, self._persistent = constructors, inert, persistent
        self._classes: dict[Global, type[Inert]] = {}

    def find_class(self, module: str, name: str) -> Any:
        if self.proto < 3:  # such pickles use Python 2's names
            today = _compat_pickle.IMPORT_MAPPING.get(module, module)
            module, name = _compat_pickle.NAME_MAPPING.get((module, name), (today, name))
        wanted = (module, name)
        if wanted in self._constructors:
            return self._constructors[wanted]
        if not self._inert or not _is_known_setting(module, name):
            raise Refused(f"{module}.{name}")
        if wanted not in self._classes:
            self._classes[wanted] = type(name, (Inert,), {"__module__": module})
        return self._classes[wanted]

    def persistent_load(self, pid: object) -> object:
        if self._persistent is None:
            raise ValueError("it refers to data outside itself")
        return self._persistent(pid)


def _is_known_setting(module: str, name: str) -> bool:
    package = any(module == known or module.startswith(f"{known}.") for known in _INERT_PACKAGES)
    return package or module in _INERT_MODULES or name in _INERT_NAMES.get(module, ())
