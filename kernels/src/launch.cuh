// The kernels' entry and how they are launched; included by the files that instantiate groups of head dims.
#pragma once

#include <cuda_runtime.h>

#include "arguments.h"
#include "attention.cuh"
#include "launch.h"

namespace facesdk {

// Thread blocks per multiprocessor that the compiler leaves registers for. One more spills on some architecture at
// head dims 64 to 128.
constexpr int resident_blocks(int dim, int queries) {
  if (queries > 64 || dim > 64) return 2;
  return dim > 48 ? 3 : 4;
}

template <int DTYPE, int DIM, int QUERIES>
__global__ void __launch_bounds__(THREADS, resident_blocks(DIM, QUERIES))
    attention_kernel(const __grid_constant__ facesdk_attention a) {
  attention<DTYPE, DIM, QUERIES>(a, blockIdx.x, blockIdx.y, blockIdx.z);
}

template <int DTYPE, int DIM, int QUERIES>
cudaError_t launch_tiles(const facesdk_attention &a, cudaStream_t stream) {
  const auto kernel = attention_kernel<DTYPE, DIM, QUERIES>;
  const int shared = Tile<DIM, QUERIES>::shared_bytes(a.k2.data != nullptr);
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  if (error != cudaSuccess) return error;
  const dim3 grid((a.queries + QUERIES - 1) / QUERIES, a.heads, a.batch);
  kernel<<<grid, THREADS, shared, stream>>>(a);
  return cudaGetLastError();
}

template <int DTYPE, int DIM>
cudaError_t launch_dtype(const facesdk_attention &a, int queries, cudaStream_t stream) {
  constexpr int MOST = largest_query_tile(DIM);
  return queries > 64 ? launch_tiles<DTYPE, DIM, MOST>(a, stream) : launch_tiles<DTYPE, DIM, 64>(a, stream);
}

template <int DIM>
cudaError_t launch(const facesdk_attention &a, int queries, cudaStream_t stream) {
  return a.dtype == FACESDK_FP16 ? launch_dtype<FACESDK_FP16, DIM>(a, queries, stream)
                                 : launch_dtype<FACESDK_BF16, DIM>(a, queries, stream);
}

}  // namespace facesdk
