"""Published checkpoints: reading every container they come in, and loading them strictly into networks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from facesdk.errors import ConversionError, FaceSDKError, ModelNotFound

from .archives import LEGACY, TorchZip, read_legacy
from .pickles import Inert, Refused
from .safetensors import read_safetensors

#: where training programs put the entries in what they saved: Lightning, 6DRepNet, Deep3DFaceRecon, Vec2Face
CONTAINERS = ("state_dict", "model_state_dict", "net_recon", "model_vec2face")
#: wrappers of torch around a whole network: DataParallel, torch.compile
_WRAPPERS = ("module.", "_orig_mod.")
_SAVE_TENSORS = (
    "where the file was made, save its tensors alone: torch.save(model.state_dict(), 'weights.pth'); "
    "or get the published file again"
)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    entries    name -> tensor, wrappers' prefixes removed; mapped from the file wherever its format allows.
    container  key in the file under which the entries were; "" where they were at the top.
    others     what else was beside them, as "key" or "key (class)": optimiser states, settings, other networks.
    """

    path: Path
    entries: Mapping[str, Tensor]
    container: str = ""
    others: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Report:
    """Names of the file's entries that a network took, and of those that none took and `ignore` does not cover.

    `a + b` reports on two networks loaded from one file.
    """

    loaded: frozenset[str]
    unused: tuple[str, ...]

    def __add__(self, other: Report) -> Report:
        left = set(other.unused)
        return Report(self.loaded | other.loaded, tuple(name for name in self.unused if name in left))

    def __str__(self) -> str:
        return f"{len(self.loaded)} entries loaded, unused: {_listed(self.unused) or 'none'}"


# -- reading ----------------------------------------------------------------------------------------------


def read_checkpoint(path: str | Path, container: str | None = None) -> Checkpoint:
    """The entries of a file of torch.save, TorchScript or safetensors; nothing in the file is executed.

    container  key of a network in a file of several; by default the published ones are tried, then the top.
    Raises ModelNotFound, or ConversionError where the file is damaged, something else, or wants to run code.
    """
    path = Path(path)
    saved = _read(path)
    if not isinstance(saved, dict):
        raise ConversionError(
            f"{path} holds a {type(saved).__name__}, not a table of tensors",
            remedy="identity vectors are read by read_features; of a whole network, save the state_dict()",
        )
    if container is None:
        container = next((key for key in CONTAINERS if isinstance(saved.get(key), dict)), "")
    table = saved.get(container) if container else saved
    if not isinstance(table, dict):
        raise ConversionError(
            f"{path} holds no table {container!r}", remedy=f"choose one of: {_listed([str(key) for key in saved])}"
        )
    return _checkpoint(path, saved, table, container)


def _checkpoint(path: Path, saved: dict[object, object], table: dict[object, object], container: str) -> Checkpoint:
    entries = {name: value for name, value in dict.items(table) if isinstance(name, str) and isinstance(value, Tensor)}
    others = [_described(key, value) for key, value in dict.items(table) if key not in entries]
    if container:
        others += [_described(key, value) for key, value in dict.items(saved) if key != container]
    if not entries:
        raise ConversionError(
            f"{path} holds no tensors{f' under {container!r}' if container else ''}",
            cause=f"it holds {_listed(others) or 'nothing'}",
            remedy="name the table that holds the network: read_checkpoint(path, container=...)",
        )
    return Checkpoint(path, _unwrapped(entries), container, tuple(others))


def _read(path: Path) -> object:
    try:
        with path.open("rb") as file:
            head = file.read(64)
        return _reader(path, head)(path)
    except FaceSDKError:
        raise
    except FileNotFoundError as error:
        raise ModelNotFound(f"{path} does not exist", remedy="check the path") from error
    except Refused as error:
        raise _refusal(path, error.args[0]) from error
    except (ValueError, OSError, RuntimeError) as error:
        raise ConversionError(
            f"{path} cannot be read as a checkpoint",
            cause=str(error).partition("\n")[0],
            remedy="download or copy it again, and compare its size and sha256 with the published ones",
        ) from error


def _reader(path: Path, head: bytes) -> Callable[[Path], object]:
    """The function for the kind of file that its first bytes, not its name, announce."""
    if head.startswith(b"PK\x03\x04"):
        return lambda path: TorchZip(path).saved()
    if head.startswith(LEGACY):
        return read_legacy
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        return read_safetensors
    if not head:
        raise ValueError("it is empty")
    raise ValueError(f"it is no file of torch.save or safetensors; it begins with {head[:32]!r}")


def _refusal(path: Path, name: str) -> ConversionError:
    return ConversionError(
        f"{path} wants to create {name}; it was refused, and nothing was run",
        cause="a pickle can name any function of Python; checkpoints need tensors and settings alone",
        remedy=_SAVE_TENSORS,
    )


def _unwrapped(entries: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries without the prefixes that wrappers put before every name."""
    names = list(entries)
    while names and (prefix := next((w for w in _WRAPPERS if all(n.startswith(w) for n in names)), "")):
        names = [name.removeprefix(prefix) for name in names]
    return dict(zip(names, entries.values(), strict=True))


def _described(key: object, value: object) -> str:
    return f"{key} ({type(value).__module__}.{type(value).__name__})" if isinstance(value, Inert) else str(key)


def _listed(names: Sequence[str]) -> str:
    rest = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + rest


# -- loading ----------------------------------------------------------------------------------------------


def load_into(module: nn.Module, checkpoint: Checkpoint, prefix: str = "", *, ignore: Sequence[str] = ()) -> Report:
    """What was taken and what was left, after giving the module the tensors of the entries below `prefix`.

    The module may be on the meta device: it takes the tensors themselves, so that they exist once.  Other
    floating-point types are cast to the module's; batch counters (num_batches_tracked) may be absent.
    ignore  beginnings of full entry names that are known to be of no use, and are not reported.
    Raises ConversionError, and leaves the module as it was, where an entry is missing or has another shape.
    """
    wanted = module.state_dict()
    found = {name: checkpoint.entries[prefix + name] for name in wanted if prefix + name in checkpoint.entries}
    missing = [name for name in wanted if name not in found and not name.endswith("num_batches_tracked")]
    misfits = [_misfit(prefix + name, found[name], wanted[name]) for name in found]
    _check(checkpoint, prefix, missing, [text for text in misfits if text])
    counters = {name: torch.zeros_like(wanted[name], device="cpu") for name in wanted if name not in found}
    taken = {name: tensor.to(wanted[name].dtype) for name, tensor in found.items()}
    module.load_state_dict(taken | counters, assign=True)
    loaded = frozenset(prefix + name for name in found)
    unused = (name for name in checkpoint.entries if name not in loaded and not name.startswith(tuple(ignore)))
    return Report(loaded, tuple(unused))


def _misfit(name: str, got: Tensor, want: Tensor) -> str:
    if got.shape != want.shape:
        return f"{name} is {list(got.shape)}, not {list(want.shape)}"
    if got.is_floating_point() != want.is_floating_point():
        return f"{name} is {got.dtype}, not {want.dtype}"
    return ""


def _check(checkpoint: Checkpoint, prefix: str, missing: Sequence[str], misfits: Sequence[str]) -> None:
    if not missing and not misfits:
        return
    wrong = [f"{len(missing)} entries are missing: {_listed([prefix + name for name in missing])}"] if missing else []
    wrong += [f"{len(misfits)} entries have another form: {_listed(misfits)}"] if misfits else []
    roots = dict.fromkeys(name.partition(".")[0] for name in checkpoint.entries)
    raise ConversionError(
        f"{checkpoint.path} does not fit the network",
        cause=f"{'; '.join(wrong)}.  The file's {len(checkpoint.entries)} entries begin with: {_listed(list(roots))}",
        remedy="check that it is the file of this network and, if the network is a part of it, the prefix",
    )
