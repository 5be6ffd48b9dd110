// Head dims 24 to 40.
#include "launch.cuh"

namespace facesdk {

template cudaError_t launch<24>(const facesdk_attention &, int, cudaStream_t);
template cudaError_t launch<32>(const facesdk_attention &, int, cudaStream_t);
template cudaError_t launch<40>(const facesdk_attention &, int, cudaStream_t);

}  // namespace facesdk
