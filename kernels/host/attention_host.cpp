// The kernels without a GPU, for tests: the same source, each thread block emulated. Pointers are host pointers.
#include <exception>
#include <string>

#include "../src/arguments.h"
#include "../src/attention.cuh"

namespace facesdk {
namespace {

std::string &failure() {
  static std::string text;
  return text;
}

template <int DTYPE, int DIM, int QUERIES>
void run(const facesdk_attention &a) {
  host::ThreadBlock block(THREADS, Tile<DIM, QUERIES>::shared_bytes(a.k2.data != nullptr));
  for (int batch = 0; batch < a.batch; batch++)
    for (int head = 0; head < a.heads; head++)
      for (int tile = 0; tile < (a.queries + QUERIES - 1) / QUERIES; tile++)
        block.run([&] { attention<DTYPE, DIM, QUERIES>(a, tile, head, batch); });
}

template <int DTYPE>
void run(const facesdk_attention &a, int queries) {
  with_head_dim(a.dim, 0, [&](auto dim) {
    constexpr int DIM = decltype(dim)::value, MOST = largest_query_tile(DIM);
    queries > 64 ? run<DTYPE, DIM, MOST>(a) : run<DTYPE, DIM, 64>(a);
    return 0;
  });
}

}  // namespace
}  // namespace facesdk

extern "C" {

// Runs with tiles of 64 or 128 queries (128: where the head dim has them). FACESDK_LAUNCH_FAILED: the emulated thread
// block met an error; facesdk_host_failure() tells which.
FACESDK_API int32_t facesdk_attention_host(const facesdk_attention *arguments, int32_t queries) {
  if (const int32_t code = facesdk::check(arguments)) return code;
  try {
    if (arguments->dtype == FACESDK_FP16)
      facesdk::run<FACESDK_FP16>(*arguments, queries);
    else
      facesdk::run<FACESDK_BF16>(*arguments, queries);
  } catch (const std::exception &error) {
    facesdk::failure() = error.what();
    return FACESDK_LAUNCH_FAILED;
  }
  return FACESDK_OK;
}

// Queries per thread block on a device of this many multiprocessors.
FACESDK_API int32_t facesdk_host_query_tile(const facesdk_attention *arguments, int32_t multiprocessors) {
  return facesdk::query_tile(*arguments, multiprocessors);
}

FACESDK_API const char *facesdk_host_failure(void) { return facesdk::failure().c_str(); }

FACESDK_API int32_t facesdk_attention_check(const facesdk_attention *arguments) { return facesdk::check(arguments); }

FACESDK_API const char *facesdk_error_text(int32_t code) { return facesdk::error_text(code); }
}
