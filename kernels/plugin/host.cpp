// Both plugins without a GPU, for tests: what they launch runs on emulated thread blocks. Pointers are host pointers.
#include <exception>
#include <string>

#include "../src/arguments.h"
#include "image.cuh"

namespace facesdk {
namespace {

constexpr int32_t NO_KERNEL = FACESDK_UNSUPPORTED_HEAD_DIM;

struct Grid {
  int32_t x, y, z, shared_bytes;
};

std::string &failure() {
  static std::string text;
  return text;
}

template <class Body>
int32_t launch(const Grid &grid, Body body) {
  try {
    host::ThreadBlock block(THREADS, grid.shared_bytes);
    for (int z = 0; z < grid.z; z++)
      for (int y = 0; y < grid.y; y++)
        for (int x = 0; x < grid.x; x++) block.run([&] { body(x, y, z); });
    return FACESDK_OK;
  } catch (const std::exception &error) {
    failure() = error.what();
    return FACESDK_LAUNCH_FAILED;
  }
}

template <int DTYPE, int DIM>
int32_t launch(const facesdk_attention &a) {
  const Grid grid{(a.queries + 63) / 64, a.heads, a.batch, Tile<DIM, 64>::shared_bytes(a.k2.data != nullptr)};
  return launch(grid, [&](int tile, int head, int batch) { attention<DTYPE, DIM, 64>(a, tile, head, batch); });
}

template <int DTYPE, int DIM, int QUERIES>
int32_t launch_image(const Grid &grid, const Packed &p) {
  return launch(grid, [&](int tile, int head, int row) {
    Image<DTYPE, DIM, QUERIES>::run(p.query, p.key, p.value, p.queries, p.keys, p.heads, p.out, tile, head, row);
  });
}

template <int DTYPE, int DIM>
int32_t launch_image(const Grid &grid, const Packed &p, int32_t queries) {
  if constexpr (Tile<DIM, 64>::shared_bytes(false) > 48 * 1024) {
    return NO_KERNEL;
  } else {
    constexpr int MOST = largest_query_tile(DIM);
    return queries > 64 ? launch_image<DTYPE, DIM, MOST>(grid, p) : launch_image<DTYPE, DIM, 64>(grid, p);
  }
}

}  // namespace
}  // namespace facesdk

extern "C" {

// What the library of kernels launches, for the plugin that calls it.
FACESDK_API int32_t facesdk_attention_forward(const facesdk_attention *arguments, void *) {
  if (const int32_t code = facesdk::check(arguments)) return code;
  return facesdk::with_head_dim(arguments->dim, facesdk::NO_KERNEL, [&](auto dim) {
    constexpr int DIM = decltype(dim)::value;
    return arguments->dtype == FACESDK_FP16 ? facesdk::launch<FACESDK_FP16, DIM>(*arguments)
                                            : facesdk::launch<FACESDK_BF16, DIM>(*arguments);
  });
}

// An image, launched as TensorRT is told to: of `packed` it gets the pointers, queries, keys and heads.
FACESDK_API int32_t facesdk_host_image(const facesdk::Grid *grid, const facesdk::Packed *packed, int32_t queries) {
  return facesdk::with_head_dim(packed->dim, facesdk::NO_KERNEL, [&](auto dim) {
    constexpr int DIM = decltype(dim)::value;
    return packed->dtype == FACESDK_FP16 ? facesdk::launch_image<FACESDK_FP16, DIM>(*grid, *packed, queries)
                                         : facesdk::launch_image<FACESDK_BF16, DIM>(*grid, *packed, queries);
  });
}

FACESDK_API const char *facesdk_host_failure(void) { return facesdk::failure().c_str(); }
}
