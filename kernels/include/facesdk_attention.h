/* Fused attention forward:
 *
 *   out = softmax(scale * (q + bias) k^T) v  +  weight2[b] * softmax(scale * (q + bias) k2^T) v2
 *
 * Tensors are (batch, heads, rows, dim) through element strides; the dim axis is contiguous.
 * Base pointers must be 16-byte aligned, strides multiples of 8 elements and not negative (0 repeats an input), row
 * strides below 2^30. Batch and heads: up to 65535 each. Scale: positive. Head dims: 24 32 40 48 64 80 96 128 160.
 *
 * fp16 or bf16 in and out; products accumulate in fp32, the softmax is fp32; probabilities are rounded to the dtype
 * before they meet v, (q + bias) before it meets k, and the output once.
 *
 * Region rule, per key set and only where `subject` is given: query i of sample b may attend key j
 * iff subject[b, j] == 0 or subject[b, j] == region[b, i]. A query without any such key gets 0 from that set.
 */
#ifndef FACESDK_ATTENTION_H
#define FACESDK_ATTENTION_H

#include <stdint.h>

#if defined(_WIN32)
#define FACESDK_API __declspec(dllexport)
#else
#define FACESDK_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum {
  FACESDK_OK = 0,
  FACESDK_NO_DEVICE,
  FACESDK_BAD_ARGUMENT,
  FACESDK_UNSUPPORTED_HEAD_DIM,
  FACESDK_UNSUPPORTED_DEVICE,
  FACESDK_MISALIGNED,
  FACESDK_LAUNCH_FAILED
};

enum { FACESDK_FP16 = 0, FACESDK_BF16 = 1 };

/* Strides in elements. */
typedef struct {
  const void *data;
  int64_t batch, head, row;
} facesdk_tensor;

typedef struct {
  void *data;
  int64_t batch, head, row;
} facesdk_output;

typedef struct {
  facesdk_tensor q, k, v, k2, v2; /* k2.data NULL: no second key/value set */
  facesdk_output out;
  const void *query_bias;   /* (heads, dim) in dtype, contiguous, 16-byte aligned; NULL: no bias */
  const float *weight2;     /* (batch); NULL: 1 */
  const uint8_t *region;    /* (batch, queries); needed where subject or subject2 is given */
  const uint8_t *subject;   /* (batch, keys); NULL: no region rule for the first set */
  const uint8_t *subject2;  /* (batch, keys2); NULL: no region rule for the second set */
  int32_t batch, heads, dim, queries, keys, keys2, dtype;
  float scale;
} facesdk_attention;

/* Argument errors only; needs no device. */
FACESDK_API int32_t facesdk_attention_check(const facesdk_attention *arguments);

/* Enqueues one launch on `stream` (a cudaStream_t; NULL: the default stream) and returns without waiting.
 * All pointers are device pointers of the current device. */
FACESDK_API int32_t facesdk_attention_forward(const facesdk_attention *arguments, void *stream);

FACESDK_API const char *facesdk_error_text(int32_t code);

/* 1 where a device with compute capability 8.0 or later is usable, else 0. */
FACESDK_API int32_t facesdk_cuda_available(void);

/* Version of this interface; changes whenever the struct above does. */
FACESDK_API int32_t facesdk_attention_version(void);

#ifdef __cplusplus
}
#endif

#endif
