// One image: nvcc -ptx -DFACESDK_DTYPE=0 -DFACESDK_DIM=40 -DFACESDK_QUERIES=64 -DFACESDK_ENTRY=name; every image of a
// plan has a name of its own. The parameters are in TensorRT's order: inputs, integers, output.
#include "../src/launch.cuh"
#include "image.cuh"

using Image = facesdk::Image<FACESDK_DTYPE, FACESDK_DIM, FACESDK_QUERIES>;

extern "C" __global__ void
__launch_bounds__(facesdk::THREADS, facesdk::resident_blocks(FACESDK_DIM, FACESDK_QUERIES))
    FACESDK_ENTRY(const void *query, const void *key, const void *value, int queries, int keys, int heads, void *out) {
  Image::run(query, key, value, queries, keys, heads, out, blockIdx.x, blockIdx.y, blockIdx.z);
}
