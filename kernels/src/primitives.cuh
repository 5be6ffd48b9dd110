// The machine instructions attention.cuh is written in. This is the only file with inline PTX; compiled without
// CUDA it gives way to host/primitives.h, which carries out the same functions on an emulated thread block.
#pragma once

#include <stdint.h>

#include "../include/facesdk_attention.h"

#if !defined(__CUDACC__)
#include "../host/primitives.h"
#else

#define FACESDK_DEVICE __device__ __forceinline__

namespace facesdk {

FACESDK_DEVICE int thread_index() { return threadIdx.x; }

// Shared memory is addressed by 32-bit byte addresses throughout, as the instructions want them.
FACESDK_DEVICE uint32_t shared_memory() {
  extern __shared__ __align__(128) char memory[];
  return static_cast<uint32_t>(__cvta_generic_to_shared(memory));
}

FACESDK_DEVICE void barrier() { __syncthreads(); }
FACESDK_DEVICE void warp_barrier() { __syncwarp(); }

FACESDK_DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }

// -- asynchronous copies -----------------------------------------------------------------------------------------

// 16 bytes from device to shared memory; zeros where `valid` is false, and then `source` is not read.
FACESDK_DEVICE void copy_async(uint32_t target, const void *source, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(target), "l"(__cvta_generic_to_global(source)), "r"(valid ? 16 : 0)
               : "memory");
}

// Waits for the calling thread's copies; other threads' copies need a barrier behind this.
FACESDK_DEVICE void wait_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// -- shared memory -----------------------------------------------------------------------------------------------

// Four 8x8 matrices of 16-bit elements: lane 8i + r passes the address of row r of matrix i.
FACESDK_DEVICE void load_matrices(uint32_t (&m)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(row)
               : "memory");
}

FACESDK_DEVICE void load_matrices_transposed(uint32_t (&m)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(row)
               : "memory");
}

FACESDK_DEVICE void store_shared(uint32_t target, uint16_t value) {
  asm volatile("st.shared.b16 [%0], %1;" : : "r"(target), "h"(value) : "memory");
}

FACESDK_DEVICE void store_shared(uint32_t target, uint32_t value) {
  asm volatile("st.shared.b32 [%0], %1;" : : "r"(target), "r"(value) : "memory");
}

FACESDK_DEVICE uint32_t load_shared(uint32_t source) {
  uint32_t value;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(value) : "r"(source) : "memory");
  return value;
}

FACESDK_DEVICE void store_shared(uint32_t target, const float (&v)[4]) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};"
               :
               : "r"(target), "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3])
               : "memory");
}

FACESDK_DEVICE void load_shared(float (&v)[4], uint32_t source) {
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v[0]), "=f"(v[1]), "=f"(v[2]), "=f"(v[3])
               : "r"(source)
               : "memory");
}

// 16 bytes from shared to device memory.
FACESDK_DEVICE void copy_out(void *target, uint32_t source) {
  uint4 v;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(source)
               : "memory");
  *static_cast<uint4 *>(target) = v;
}

// -- arithmetic --------------------------------------------------------------------------------------------------

// 2^x; ex2.approx gives exactly 0 for -infinity.
FACESDK_DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

FACESDK_DEVICE float reciprocal_fast(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Two numbers rounded to the nearest and packed, the first in the low half.
template <int DTYPE>
FACESDK_DEVICE uint32_t pack(float low, float high) {
  uint32_t packed;
  if constexpr (DTYPE == FACESDK_FP16)
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  else
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

template <int DTYPE>
FACESDK_DEVICE void unpack(uint32_t packed, float &low, float &high) {
  if constexpr (DTYPE == FACESDK_FP16) {
    asm("{ .reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h; }"
        : "=f"(low), "=f"(high)
        : "r"(packed));
  } else {
    low = __uint_as_float(packed << 16);
    high = __uint_as_float(packed & 0xffff0000u);
  }
}

// d (16x8) += a (16x16) b (16x8)
template <int DTYPE>
FACESDK_DEVICE void multiply_k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (DTYPE == FACESDK_FP16)
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// d (16x8) += a (16x8) b (8x8)
template <int DTYPE>
FACESDK_DEVICE void multiply_k8(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b) {
  if constexpr (DTYPE == FACESDK_FP16)
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(b));
  else
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(b));
}

}  // namespace facesdk

#endif
