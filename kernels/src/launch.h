// Between the C interface and the groups of head dims that are compiled side by side.
#pragma once

#include <cuda_runtime.h>

#include "../include/facesdk_attention.h"

namespace facesdk {

// Enqueues the kernel of a head dim with thread blocks of 64 or 128 queries.
template <int DIM>
cudaError_t launch(const facesdk_attention &a, int queries, cudaStream_t stream);

}  // namespace facesdk
