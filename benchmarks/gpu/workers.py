"""Either side of the comparison in a process of its own: `engines` of FaceSDK, or the same networks in `torch`.

    python -m benchmarks.gpu.workers engines|torch PLACE DEVICE

Questions are JSON lines: open a case in a way, run it, close everything.  What fails answers with "failed".
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from facesdk.measurement_gpu import used_mb

from ..harness import serve, timed
from .cases import SHARES, Place, judge, summary
from .running import Running, start

Question = dict[str, Any]
_WARM = 3
_LONGEST = 500  # characters of an error: torch.compile's are pages


class Side(Protocol):
    def about(self, question: Question) -> str: ...
    def open(self, question: Question) -> dict[str, Any]: ...
    def run(self, question: Question) -> list[float]: ...
    def close(self, question: Question) -> None: ...


class Engines:
    """Cases on engines, by case and way."""

    def __init__(self, place: Place, device: Any) -> None:
        self._place, self._device = place, device
        self._open: dict[str, Running] = {}

    def about(self, question: Question) -> str:
        import onnxruntime

        return f"onnxruntime {onnxruntime.__version__}"

    def open(self, question: Question) -> dict[str, Any]:
        """Milliseconds and megabytes of opening, and how far the results are from the processor's in fp32."""
        case, way = question["case"], question["way"]
        before, begin = used_mb(self._device), time.perf_counter()
        running = start(
            self._place.bundle, case, self._device, question["precision"], graph=question.get("graph", False)
        )
        self._open[way] = running
        load_ms = (time.perf_counter() - begin) * 1e3
        kept, exact = self._place.kept(case), question["precision"] == "fp32"
        verdicts = judge(kept, running.call(), exact, lambda name: running.deviation.get(name, 0.0))
        for call in [running.call, running.resident or running.call]:
            timed(call, _WARM)
        after = used_mb(self._device)
        memory = None if before is None or after is None else round(after - before)
        facts = {"load_ms": round(load_ms), "gpu_mb": memory, "timed_by": "clock", "versions": running.backend}
        return {**facts, "resident": running.resident is not None, **summary(verdicts)}

    def run(self, question: Question) -> list[float]:
        running = self._open[question["way"]]
        call = running.resident if question["resident"] else running.call
        assert call is not None
        return _shares(question, timed(call, question["calls"]))

    def close(self, question: Question) -> None:
        for running in self._open.values():
            running.close()
        self._open.clear()


class Torch:
    """The same in torch, in eager mode or compiled; on a GPU by CUDA's events around each call."""

    def __init__(self, place: Place, device: str) -> None:
        self._place, self._device, self._peers = place, device, None
        self._open: dict[str, Callable[[], Any]] = {}

    def about(self, question: Question) -> str:
        if importlib.util.find_spec("torch") is None:
            return ""
        import torch

        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # as FaceSDK's fp32
        torch.set_grad_enabled(False)
        return f"torch {torch.__version__}"

    def open(self, question: Question) -> dict[str, Any]:
        """Milliseconds and megabytes, and the distance from the processor's results; {} where there is no network."""
        import torch

        from .peers import Peers

        self._peers = self._peers or Peers(self._place)
        peer, half = self._peers.peer(question["case"]), question["precision"] == "fp16"
        if peer is None or half > peer.half:
            return {}
        before, begin = self._allocated(), time.perf_counter()
        network, arrays = peer.on(self._device, half)
        work = torch.compile(network) if question["compiled"] else network
        call = self._open[question["way"]] = lambda: peer.run(work, arrays)
        made = {name: value.float().cpu().numpy() for name, value in call().items()}
        self._times(call, _WARM)
        load_ms = (time.perf_counter() - begin) * 1e3
        memory = None if before is None else round((torch.cuda.max_memory_allocated() - before) / 1e6)
        clock, versions = "events" if self._device == "cuda" else "clock", f"torch {torch.__version__}"
        facts = {"load_ms": round(load_ms), "gpu_mb": memory, "timed_by": clock, "versions": versions}
        return {**facts, **self._distance(question["case"], made)}

    def _allocated(self) -> int | None:
        """Bytes on the GPU; the peak is counted from here."""
        import torch

        if self._device != "cuda":
            return None
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()

    def _distance(self, case: str, made: dict[str, Any]) -> dict[str, Any]:
        """Figures only: torch is not what is checked."""
        if case == "denoise":
            from .cases import Denoising

            made = {"latent": Denoising.of(self._place.bundle).share_of_the_network(made["latent"])}
        found = summary(judge(self._place.kept(case), made, False, lambda name: 0.0))
        return {**found, "wrong": ""}

    def run(self, question: Question) -> list[float]:
        return _shares(question, self._times(self._open[question["way"]], question["calls"]))

    def _times(self, call: Callable[[], Any], calls: int) -> list[float]:
        import torch

        if self._device != "cuda":
            return timed(call, calls)
        times = []
        for _ in range(calls):
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            first.record()
            call()
            last.record()
            last.synchronize()
            times.append(first.elapsed_time(last))
        return times

    def close(self, question: Question) -> None:
        import torch

        self._open.clear()
        if self._device == "cuda":
            torch.cuda.empty_cache()


def _shares(question: Question, times: list[float]) -> list[float]:
    return [ms / SHARES.get(question["case"], 1) for ms in times]


def answering(side: Side) -> Callable[[Question], Any]:
    """What answers a question by the side's method of that name."""

    def answer(question: Question) -> Any:
        try:
            return getattr(side, question["do"])(question)
        except Exception as error:  # whatever a package under measurement raises becomes a line of the report
            return {"failed": f"{type(error).__name__}: {' '.join(str(error).split())}"[:_LONGEST]}

    return answer


def main() -> None:
    kind, folder, device = sys.argv[1:]
    place = Place.read(Path(folder))
    # answers have standard output for themselves: compilers and native libraries print there
    answers = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(answers, "w")
    serve(answering(Engines(place, device) if kind == "engines" else Torch(place, device)))


if __name__ == "__main__":
    main()
