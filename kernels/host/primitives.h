// src/primitives.cuh on an emulated thread block. Fragments are laid out as the PTX ISA tells for mma.m16n8k16,
// mma.m16n8k8 (16-bit floating point) and ldmatrix: "groupID" is lane / 4, "threadID_in_group" is lane % 4.
#pragma once

#include <cmath>

#include "numbers.h"
#include "thread_block.h"

#define FACESDK_DEVICE inline

namespace facesdk {

inline host::ThreadBlock &block() { return *host::ThreadBlock::current(); }

inline int thread_index() { return block().thread(); }
inline uint32_t shared_memory() { return 0; }
inline void barrier() { block().barrier(); }
inline void warp_barrier() { block().warp_barrier(); }

inline float shuffle_xor(float value, int mask) {
  return block().together<float>("shuffle", value, [mask](const float **in, float **out) {
    for (int lane = 0; lane < host::LANES; lane++) *out[lane] = *in[lane ^ mask];
  });
}

inline void copy_async(uint32_t target, const void *source, bool valid) { block().copy_async(target, source, valid); }
inline void wait_copies() { block().wait_copies(); }

namespace host {

struct Matrices {
  uint32_t m[4];
};

// Lane 8i + r passes row r of matrix i. Register i of lane 4g + t receives elements 2t and 2t + 1 of row g of matrix
// i, or, transposed, rows 2t and 2t + 1 of column g.
inline Matrices load_matrices(uint32_t address, bool transposed) {
  const char *name = transposed ? "ldmatrix.trans" : "ldmatrix";
  return block().together<Matrices>(name, address, [transposed](const uint32_t **row, Matrices **out) {
    for (int i = 0; i < 4; i++) {
      uint16_t matrix[8][8];
      unsigned banks = 0;
      for (int r = 0; r < 8; r++) {
        block().read(*row[8 * i + r], matrix[r], 16);
        banks |= 1u << *row[8 * i + r] / 16 % 8;
      }
      if (banks != 0xff) ThreadBlock::fail("bank conflict in ldmatrix");
      for (int lane = 0; lane < LANES; lane++) {
        const int g = lane / 4, t = lane % 4;
        const uint32_t low = transposed ? matrix[2 * t][g] : matrix[g][2 * t];
        const uint32_t high = transposed ? matrix[2 * t + 1][g] : matrix[g][2 * t + 1];
        out[lane]->m[i] = low | high << 16;
      }
    }
  });
}

}  // namespace host

inline void load_matrices(uint32_t (&m)[4], uint32_t row) { memcpy(m, host::load_matrices(row, false).m, 16); }

inline void load_matrices_transposed(uint32_t (&m)[4], uint32_t row) {
  memcpy(m, host::load_matrices(row, true).m, 16);
}

inline void store_shared(uint32_t target, uint16_t value) { block().write(target, &value, 2); }
inline void store_shared(uint32_t target, uint32_t value) { block().write(target, &value, 4); }
inline void store_shared(uint32_t target, const float (&v)[4]) { block().write(target, v, 16); }
inline void load_shared(float (&v)[4], uint32_t source) { block().read(source, v, 16); }

inline uint32_t load_shared(uint32_t source) {
  uint32_t value;
  block().read(source, &value, 4);
  return value;
}

inline void copy_out(void *target, uint32_t source) {
  if (reinterpret_cast<uintptr_t>(target) % 16) host::ThreadBlock::fail("store to an unaligned address");
  block().read(source, target, 16);
}

inline float exp2_fast(float x) { return std::exp2(x); }
inline float reciprocal_fast(float x) { return 1.f / x; }

template <int DTYPE>
uint32_t pack(float low, float high) {
  if constexpr (DTYPE == FACESDK_FP16)
    return host::fp16_from_float(low) | static_cast<uint32_t>(host::fp16_from_float(high)) << 16;
  else
    return host::bf16_from_float(low) | static_cast<uint32_t>(host::bf16_from_float(high)) << 16;
}

template <int DTYPE>
float element(uint32_t packed, int i) {
  const uint16_t bits = static_cast<uint16_t>(packed >> 16 * i);
  return DTYPE == FACESDK_FP16 ? host::float_from_fp16(bits) : host::float_from_bf16(bits);
}

template <int DTYPE>
void unpack(uint32_t packed, float &low, float &high) {
  low = element<DTYPE>(packed, 0);
  high = element<DTYPE>(packed, 1);
}

namespace host {

// One lane's operands of mma.m16n8kK: K / 4 registers of A, K / 8 of B.
template <int K>
struct Operands {
  uint32_t a[K / 4], b[K / 8];
  float c[4];
};

struct Accumulator {
  float d[4];
};

// Exact products and sums, rounded once to fp32.
template <int DTYPE, int K>
Accumulator multiply(const Operands<K> &operands) {
  const char *name = K == 16 ? "mma.m16n8k16" : "mma.m16n8k8";
  return block().together<Accumulator>(name, operands, [](const Operands<K> **in, Accumulator **out) {
    float a[16][K], b[8][K];
    for (int lane = 0; lane < LANES; lane++) {
      const int g = lane / 4, t = lane % 4;
      for (int i = 0; i < K / 4; i++)  // registers of A: rows g, g + 8, then the same 8 columns further
        unpack<DTYPE>(in[lane]->a[i], a[g + i % 2 * 8][2 * t + i / 2 * 8], a[g + i % 2 * 8][2 * t + i / 2 * 8 + 1]);
      for (int i = 0; i < K / 8; i++)  // registers of B: rows 2t and 2t + 1, then 8 further, of column g
        unpack<DTYPE>(in[lane]->b[i], b[g][2 * t + i * 8], b[g][2 * t + i * 8 + 1]);
    }
    for (int lane = 0; lane < LANES; lane++)
      for (int i = 0; i < 4; i++) {
        const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        double sum = in[lane]->c[i];
        for (int k = 0; k < K; k++) sum += static_cast<double>(a[row][k]) * b[column][k];
        out[lane]->d[i] = static_cast<float>(sum);
      }
  });
}

}  // namespace host

template <int DTYPE>
void multiply_k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const host::Operands<16> operands{{a[0], a[1], a[2], a[3]}, {b0, b1}, {d[0], d[1], d[2], d[3]}};
  memcpy(d, host::multiply<DTYPE>(operands).d, 16);
}

template <int DTYPE>
void multiply_k8(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b) {
  const host::Operands<8> operands{{a0, a1}, {b}, {d[0], d[1], d[2], d[3]}};
  memcpy(d, host::multiply<DTYPE>(operands).d, 16);
}

}  // namespace facesdk
