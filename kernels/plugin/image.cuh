// The kernel of an ahead-of-time plugin: pointers and 32-bit integers only, so that the scale, the dtype and the
// head dim belong to the image. TensorRT gives a thread block no more than 48 KB of shared memory.
#pragma once

#include "../src/attention.cuh"
#include "packed.h"

namespace facesdk {

// The compiler has no square root that is a constant expression.
constexpr float root(float x) {
  float r = x;
  for (int i = 0; i < 32; i++) r = 0.5f * (r + x / r);
  return r;
}

template <int DTYPE, int DIM, int QUERIES>
struct Image {
  static constexpr int SHARED_BYTES = Tile<DIM, QUERIES>::shared_bytes(false);
  static constexpr float SCALE = 1.f / root(DIM);
  static_assert(SHARED_BYTES <= 48 * 1024, "more has to be asked for with cuFuncSetAttribute");

  static FACESDK_DEVICE void run(const void *query, const void *key, const void *value, int queries, int keys,
                                 int heads, void *out, int tile, int head, int row) {
    // the number of rows is the grid's
    const Packed packed{query, key, value, out, 0, queries, keys, heads, DIM, DTYPE, SCALE};
    attention<DTYPE, DIM, QUERIES>(arguments_of(packed), tile, head, row);
  }
};

}  // namespace facesdk
