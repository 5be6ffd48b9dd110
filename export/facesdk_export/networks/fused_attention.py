"""One attention operator: torch's own in eager mode, a single node in a traced graph."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from facesdk_engines.attention import DOMAIN, OPERATOR


def attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """softmax(query key^T / sqrt(d)) value, head by head: (b, s, heads * d).

    query (b, s, heads * d), key and value (r, t, heads * d): r divides b, and b / r successive rows of the query share
    a row of keys.  Traced, it is one node of DOMAIN, so that no size relation of b and r has to be proved.
    """
    if torch.onnx.is_in_onnx_export():
        scale = (query.shape[-1] // heads) ** -0.5
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{OPERATOR}", (query, key, value), {"heads": heads, "scale": scale},
            dtype=query.dtype, shape=query.shape, version=1,
        )  # fmt: skip
    grouped = query.reshape(key.shape[0], -1, query.shape[-1])
    q, k, v = (torch.unflatten(each, -1, (heads, -1)).transpose(1, 2) for each in (grouped, key, value))
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(query.shape)
