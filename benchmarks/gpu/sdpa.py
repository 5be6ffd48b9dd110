"""The peer: torch's scaled_dot_product_attention, one system for each of its backends that takes a problem."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from .problems import Problem

# system -> name in torch.nn.attention.SDPBackend
BACKENDS = {
    "sdpa flash": "FLASH_ATTENTION",
    "sdpa memory-efficient": "EFFICIENT_ATTENTION",
    "sdpa cudnn": "CUDNN_ATTENTION",
}


def peers(torch: Any, problem: Problem, tensors: Mapping[str, Any]) -> list[str]:
    """The systems that accept the problem; tensors as (batch, rows, heads, dim)."""
    accepted = []
    for name in BACKENDS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a backend that refuses warns of each reason
            try:
                call(torch, name, problem, tensors)()
                torch.cuda.synchronize()
            except RuntimeError:
                continue
        accepted.append(name)
    return accepted


def call(torch: Any, name: str, problem: Problem, tensors: Mapping[str, Any]) -> Callable[[], Any]:
    """A call of one backend that returns (batch, rows, heads, dim).

    A second set costs a call of its own and an addition: no backend has two softmaxes.
    """
    backend = getattr(torch.nn.attention.SDPBackend, BACKENDS[name])
    by_head = {key: tensor.transpose(1, 2) for key, tensor in tensors.items()}
    attend, only = torch.nn.functional.scaled_dot_product_attention, torch.nn.attention.sdpa_kernel

    def work() -> Any:
        with only(backend):
            out = attend(by_head["q"], by_head["k"], by_head["v"])
            if problem.keys2:
                out = out + attend(by_head["q"], by_head["k2"], by_head["v2"])
        return out.transpose(1, 2)

    return work
