// What can be said about a call without a device: whether its arguments hold, and how many queries a thread block
// takes. Plain C++, shared by the CUDA library and the host build.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#include "../include/facesdk_attention.h"

namespace facesdk {

// Calls f(integral constant of the head dim) and returns its result; `otherwise` for a head dim without kernels.
template <int DIM>
struct HeadDim {
  static constexpr int value = DIM;
};

template <class Result, class F>
Result with_head_dim(int dim, Result otherwise, F f) {
  switch (dim) {
    case 24: return f(HeadDim<24>());
    case 32: return f(HeadDim<32>());
    case 40: return f(HeadDim<40>());
    case 48: return f(HeadDim<48>());
    case 64: return f(HeadDim<64>());
    case 80: return f(HeadDim<80>());
    case 96: return f(HeadDim<96>());
    case 128: return f(HeadDim<128>());
    case 160: return f(HeadDim<160>());
    default: return otherwise;
  }
}

constexpr int largest_query_tile(int dim) { return dim <= 64 ? 128 : 64; }

// 128 queries halve what each product reads from shared memory. They pay where the grid still gives every
// multiprocessor two thread blocks, and where rounding the queries up to 128 adds less than a quarter.
inline int query_tile(const facesdk_attention &a, int multiprocessors) {
  const int64_t blocks = (static_cast<int64_t>(a.queries) + 127) / 128 * a.heads * a.batch;
  return largest_query_tile(a.dim) == 128 && a.queries >= 512 && blocks >= 2 * multiprocessors ? 128 : 64;
}

inline bool aligned(const void *data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

inline int32_t check_tensor(const void *data, int64_t batch, int64_t head, int64_t row) {
  constexpr int64_t widest_row = int64_t(1) << 30;  // the kernel keeps a row's bytes in 32 bits
  if (data == nullptr || batch < 0 || head < 0 || row < 0 || row >= widest_row) return FACESDK_BAD_ARGUMENT;
  return aligned(data) && batch % 8 == 0 && head % 8 == 0 && row % 8 == 0 ? FACESDK_OK : FACESDK_MISALIGNED;
}

inline int32_t check_tensors(const facesdk_attention &a) {
  const facesdk_tensor *inputs[] = {&a.q, &a.k, &a.v, &a.k2, &a.v2};
  const int count = a.k2.data == nullptr ? 3 : 5;
  for (int i = 0; i < count; i++) {
    const facesdk_tensor &t = *inputs[i];
    if (const int32_t code = check_tensor(t.data, t.batch, t.head, t.row)) return code;
  }
  if (!aligned(a.query_bias)) return FACESDK_MISALIGNED;
  return check_tensor(a.out.data, a.out.batch, a.out.head, a.out.row);
}

inline int32_t check(const facesdk_attention *arguments) {
  constexpr int largest_grid = 65535;               // blocks along the grid's second and third axes
  constexpr int longest = INT32_MAX - 128;          // leaves room for rounding up to whole tiles
  if (arguments == nullptr) return FACESDK_BAD_ARGUMENT;
  const facesdk_attention &a = *arguments;
  const bool second = a.k2.data != nullptr;
  if (a.dtype != FACESDK_FP16 && a.dtype != FACESDK_BF16) return FACESDK_BAD_ARGUMENT;
  if (!with_head_dim(a.dim, false, [](auto) { return true; })) return FACESDK_UNSUPPORTED_HEAD_DIM;
  if (a.batch < 1 || a.batch > largest_grid || a.heads < 1 || a.heads > largest_grid) return FACESDK_BAD_ARGUMENT;
  if (a.queries < 1 || a.queries > longest || a.keys < 1 || a.keys > longest) return FACESDK_BAD_ARGUMENT;
  if (second && (a.keys2 < 1 || a.keys2 > longest)) return FACESDK_BAD_ARGUMENT;
  if (!(a.scale > 0.f) || !isfinite(a.scale)) return FACESDK_BAD_ARGUMENT;
  if (a.region == nullptr && (a.subject != nullptr || (second && a.subject2 != nullptr))) return FACESDK_BAD_ARGUMENT;
  return check_tensors(a);
}

inline const char *error_text(int32_t code) {
  switch (code) {
    case FACESDK_OK: return "no error";
    case FACESDK_NO_DEVICE: return "no CUDA device, or a driver too old for this library's CUDA runtime";
    case FACESDK_BAD_ARGUMENT:
      return "bad argument: a null pointer, a size or stride out of range, a scale that is not positive and finite, "
             "an unknown dtype, or subjects without regions";
    case FACESDK_UNSUPPORTED_HEAD_DIM: return "head dim is none of 24, 32, 40, 48, 64, 80, 96, 128, 160";
    case FACESDK_UNSUPPORTED_DEVICE: return "this library holds no kernels for the device's compute capability";
    case FACESDK_MISALIGNED: return "a base pointer is not 16-byte aligned, or a stride is no multiple of 8 elements";
    case FACESDK_LAUNCH_FAILED: return "the CUDA runtime refused the launch";
    default: return "unknown error code";
  }
}

}  // namespace facesdk
