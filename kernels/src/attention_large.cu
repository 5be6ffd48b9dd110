// Head dims 96 to 160.
#include "launch.cuh"

namespace facesdk {

template cudaError_t launch<96>(const facesdk_attention &, int, cudaStream_t);
template cudaError_t launch<128>(const facesdk_attention &, int, cudaStream_t);
template cudaError_t launch<160>(const facesdk_attention &, int, cudaStream_t);

}  // namespace facesdk
