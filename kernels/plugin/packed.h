// Attention on packed tensors, as TensorRT holds those of `facesdk::FusedAttention`: queries and output
// (rows, queries, heads * dim), keys and values (rows, keys, heads * dim). Shared by both plugins.
#pragma once

#include "../include/facesdk_attention.h"

#if defined(__CUDACC__)
#define FACESDK_ANYWHERE __host__ __device__ inline
#else
#define FACESDK_ANYWHERE inline
#endif

namespace facesdk {

struct Packed {
  const void *query, *key, *value;
  void *out;
  int32_t rows, queries, keys, heads, dim, dtype;
  float scale;
};

FACESDK_ANYWHERE facesdk_tensor packed_tensor(const void *data, const Packed &p, int32_t length) {
  const int64_t row = static_cast<int64_t>(p.heads) * p.dim;
  return {data, length * row, p.dim, row};
}

FACESDK_ANYWHERE facesdk_attention arguments_of(const Packed &p) {
  facesdk_attention a{};
  a.q = packed_tensor(p.query, p, p.queries);
  a.k = packed_tensor(p.key, p, p.keys);
  a.v = packed_tensor(p.value, p, p.keys);
  a.out = {p.out, a.q.batch, a.q.head, a.q.row};
  a.batch = p.rows;
  a.heads = p.heads;
  a.dim = p.dim;
  a.queries = p.queries;
  a.keys = p.keys;
  a.dtype = p.dtype;
  a.scale = p.scale;
  return a;
}

}  // namespace facesdk
