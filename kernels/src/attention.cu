// The C interface: checks, and the choice of a kernel.
#include "arguments.h"
#include "launch.h"

namespace facesdk {
namespace {

int32_t code_of(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return FACESDK_OK;
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorInitializationError: return FACESDK_NO_DEVICE;
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorUnsupportedPtxVersion: return FACESDK_UNSUPPORTED_DEVICE;
    default: return FACESDK_LAUNCH_FAILED;
  }
}

// The current device's attribute; `value` is untouched on errors.
cudaError_t attribute(cudaDeviceAttr which, int &value) {
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  return error == cudaSuccess ? cudaDeviceGetAttribute(&value, which, device) : error;
}

}  // namespace
}  // namespace facesdk

extern "C" {

int32_t facesdk_attention_check(const facesdk_attention *arguments) { return facesdk::check(arguments); }

int32_t facesdk_attention_forward(const facesdk_attention *arguments, void *stream) {
  if (const int32_t code = facesdk::check(arguments)) return code;
  const facesdk_attention &a = *arguments;
  int multiprocessors = 0;
  cudaError_t error = facesdk::attribute(cudaDevAttrMultiProcessorCount, multiprocessors);
  if (error == cudaSuccess) {
    const int queries = facesdk::query_tile(a, multiprocessors);
    error = facesdk::with_head_dim(a.dim, cudaErrorInvalidValue, [&](auto dim) {
      return facesdk::launch<decltype(dim)::value>(a, queries, static_cast<cudaStream_t>(stream));
    });
  }
  if (error != cudaSuccess) cudaGetLastError();  // leaves no error behind for the caller's next CUDA call
  return facesdk::code_of(error);
}

const char *facesdk_error_text(int32_t code) { return facesdk::error_text(code); }

int32_t facesdk_cuda_available(void) {
  int major = 0;
  const cudaError_t error = facesdk::attribute(cudaDevAttrComputeCapabilityMajor, major);
  if (error != cudaSuccess) cudaGetLastError();
  return error == cudaSuccess && major >= 8;
}

int32_t facesdk_attention_version(void) { return 1; }
}
