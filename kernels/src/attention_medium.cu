// Head dims 48 to 80.
#include "launch.cuh"

namespace facesdk {

template cudaError_t launch<48>(const facesdk_attention &, int, cudaStream_t);
template cudaError_t launch<64>(const facesdk_attention &, int, cudaStream_t);
template cudaError_t launch<80>(const facesdk_attention &, int, cudaStream_t);

}  // namespace facesdk
