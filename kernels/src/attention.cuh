// Fused attention forward for one tile of queries: S = Q K^T, online softmax in fp32, O += P V, over the tiles of one
// or two sets of keys. Each warp owns 16 or 32 queries whole, so that a row's maximum and sum never leave the four
// lanes that hold it. Layouts of fragments are those of mma.sync: lane 4g + t holds rows g and g + 8, columns 2t and
// 2t + 1 of every 16x8 tile of S and O.
#pragma once

#include "primitives.cuh"

namespace facesdk {

constexpr int WARPS = 4;
constexpr int THREADS = 32 * WARPS;
constexpr int CHUNK = 8;         // elements of 16 bits in 16 bytes: the grain of copies and of ldmatrix rows
constexpr int CHUNK_BYTES = 16;
constexpr uint16_t FOR_ALL = 0;  // region codes of keys; 1..255 are subjects
constexpr uint16_t FOR_NONE = 256;

// Sizes of one (head dim, queries per thread block) variant.
template <int DIM, int QUERY_ROWS>
struct Tile {
  static constexpr int CHUNKS = DIM / CHUNK;
  static constexpr int K16 = DIM / 16;                    // steps of Q K^T, and one of half the depth where
  static constexpr bool ODD = CHUNKS % 2;                 // the head dim is an odd multiple of 8
  static constexpr int QUERIES = QUERY_ROWS;
  static constexpr int M16 = QUERIES / (16 * WARPS);      // 16-row tiles of a warp
  static constexpr int KEYS = DIM > 96 ? 32 : 64;         // keys per tile: two stages stay within 48 KB
  static constexpr int N8 = KEYS / 8;

  static constexpr int KEY_BYTES = KEYS * DIM * 2;        // of K, and again of V
  static constexpr int STAGE_BYTES = 2 * KEY_BYTES;
  static constexpr int CODES = 2 * STAGE_BYTES;           // offset of the two stages' region codes
  static constexpr int STASH = CODES + 2 * KEYS * 2;      // offset of the first set's result
  static constexpr int STASH_BYTES = QUERIES * DIM * 4;   // taken only where there is a second set

  static constexpr int shared_bytes(bool two_sets) { return STASH + (two_sets ? STASH_BYTES : 0); }

  static_assert(QUERIES * DIM * 2 <= STAGE_BYTES, "queries pass through one stage, and so does the output");
  static_assert(STASH + STASH_BYTES <= 99 * 1024, "what sm_86, sm_89 and sm_120 give a thread block");
};

// Offset in bytes of a chunk of a row in a tile without padding. ldmatrix reads one chunk of 8 consecutive rows at a
// time, free of bank conflicts if the 8 are distinct modulo 128 bytes. The rows' pitch alone spreads them over
// 8 / P places, where P is the largest power of two (up to 8) that divides CHUNKS; rows that would meet again get
// their chunks exchanged within aligned groups of P.
template <int CHUNKS>
FACESDK_DEVICE uint32_t offset(uint32_t row, uint32_t chunk) {
  constexpr uint32_t P = (CHUNKS & -CHUNKS) > 8 ? 8 : CHUNKS & -CHUNKS;
  return (row * CHUNKS + (chunk ^ (row * P / 8 % P))) * CHUNK_BYTES;
}

// A view of consecutive rows of one (batch, head).
struct Rows {
  const char *data;
  int32_t pitch;  // bytes
  int32_t count;  // rows that exist; copies fill up with zeros

  FACESDK_DEVICE Rows(const facesdk_tensor &t, int batch, int head, int first, int rows)
      : data(static_cast<const char *>(t.data) + 2 * (batch * t.batch + head * t.head + first * t.row)),
        pitch(static_cast<int32_t>(2 * t.row)),
        count(rows - first) {}
};

template <int CHUNKS, int ROWS>
FACESDK_DEVICE void copy_rows(uint32_t target, const Rows &rows) {
#pragma unroll
  for (int first = 0; first < ROWS * CHUNKS; first += THREADS) {
    const int i = first + thread_index(), row = i / CHUNKS, chunk = i % CHUNKS;
    if (first + THREADS > ROWS * CHUNKS && i >= ROWS * CHUNKS) return;
    copy_async(target + offset<CHUNKS>(row, chunk),
               rows.data + static_cast<int64_t>(row) * rows.pitch + chunk * CHUNK_BYTES, row < rows.count);
  }
}

// A tile of keys on its way to a stage. Thread i brings the region code of key i; it is stored after the work on the
// tile before, when its load has long arrived.
struct Fetch {
  bool masked;
  uint16_t code;
};

// Starts copying key tile `index`; the second set's tiles follow the `first_tiles` of the first set.
template <class T>
FACESDK_DEVICE Fetch fetch(const facesdk_attention &a, int batch, int head, int index, int first_tiles, uint32_t stage) {
  const bool second = index >= first_tiles;
  const int first = (second ? index - first_tiles : index) * T::KEYS;
  const int keys = second ? a.keys2 : a.keys;
  const Rows k(second ? a.k2 : a.k, batch, head, first, keys);
  copy_rows<T::CHUNKS, T::KEYS>(stage, k);
  copy_rows<T::CHUNKS, T::KEYS>(stage + T::KEY_BYTES, Rows(second ? a.v2 : a.v, batch, head, first, keys));

  const uint8_t *subject = second ? a.subject2 : a.subject;
  Fetch f{subject != nullptr || k.count < T::KEYS, FOR_ALL};
  const int i = thread_index();
  if (i >= k.count)
    f.code = FOR_NONE;
  else if (subject != nullptr && i < T::KEYS)
    f.code = subject[static_cast<int64_t>(batch) * keys + first + i];
  return f;
}

template <class T>
FACESDK_DEVICE void store_code(const Fetch &f, uint32_t codes) {
  if (thread_index() < T::KEYS) store_shared(codes + 2 * thread_index(), f.code);
}

// Q as left factors: 16x16 fragments, and a 16x8 one where the head dim is an odd multiple of 8.
template <class T>
struct Queries {
  uint32_t q[T::M16][T::K16][4];
  uint32_t last[T::M16][2];
};

template <class T>
FACESDK_DEVICE void load_queries(Queries<T> &f, uint32_t tile) {
  const int warp = thread_index() / 32, lane = thread_index() % 32;
#pragma unroll
  for (int m = 0; m < T::M16; m++) {
    const int row = (warp * T::M16 + m) * 16 + lane % 16;
#pragma unroll
    for (int k = 0; k < T::K16; k++) load_matrices(f.q[m][k], tile + offset<T::CHUNKS>(row, 2 * k + lane / 16));
    if constexpr (T::ODD) {
      uint32_t last[4];  // matrices 2 and 3 repeat 0 and 1
      load_matrices(last, tile + offset<T::CHUNKS>(row, T::CHUNKS - 1));
      f.last[m][0] = last[0];
      f.last[m][1] = last[1];
    }
  }
}

// The two factors' sum, rounded once.
template <int DTYPE>
FACESDK_DEVICE void add(uint32_t &x, uint32_t y) {
  float x0, x1, y0, y1;
  unpack<DTYPE>(x, x0, x1);
  unpack<DTYPE>(y, y0, y1);
  x = pack<DTYPE>(x0 + y0, x1 + y1);
}

// `bias`: the head's, two elements a word.
template <int DTYPE, class T>
FACESDK_DEVICE void add_bias(Queries<T> &f, const uint32_t *bias) {
  const int t = thread_index() % 4;
#pragma unroll
  for (int chunk = 0; chunk < T::CHUNKS; chunk++) {
    const uint32_t word = bias[4 * chunk + t];
#pragma unroll
    for (int m = 0; m < T::M16; m++)
#pragma unroll
      for (int half = 0; half < 2; half++)
        if (T::ODD && chunk == T::CHUNKS - 1)
          add<DTYPE>(f.last[m][half], word);
        else
          add<DTYPE>(f.q[m][chunk / 2][chunk % 2 * 2 + half], word);
  }
}

template <class T>
struct Scores {
  float s[T::M16][T::N8][4];
};

// S = Q K^T of one tile of keys.
template <int DTYPE, class T>
FACESDK_DEVICE void multiply_keys(Scores<T> &scores, const Queries<T> &f, uint32_t keys) {
  const int lane = thread_index() % 32;
  uint32_t b[4];
#pragma unroll
  for (int n = 0; n < T::N8; n += 2) {
#pragma unroll
    for (int m = 0; m < T::M16; m++)
#pragma unroll
      for (int i = 0; i < 4; i++) scores.s[m][n][i] = scores.s[m][n + 1][i] = 0.f;
#pragma unroll
    for (int k = 0; k < T::K16; k++) {
      load_matrices(b, keys + offset<T::CHUNKS>(8 * n + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
#pragma unroll
      for (int m = 0; m < T::M16; m++) {
        multiply_k16<DTYPE>(scores.s[m][n], f.q[m][k], b[0], b[1]);
        multiply_k16<DTYPE>(scores.s[m][n + 1], f.q[m][k], b[2], b[3]);
      }
    }
  }
  if constexpr (T::ODD) {
#pragma unroll
    for (int n = 0; n < T::N8; n += 4) {
      load_matrices(b, keys + offset<T::CHUNKS>(8 * n + lane, T::CHUNKS - 1));
#pragma unroll
      for (int m = 0; m < T::M16; m++)
#pragma unroll
        for (int i = 0; i < 4; i++) multiply_k8<DTYPE>(scores.s[m][n + i], f.last[m][0], f.last[m][1], b[i]);
    }
  }
}

// The regions of the lane's rows, a byte each to spare registers.
template <class T>
FACESDK_DEVICE uint32_t load_regions(const uint8_t *region, int query0, int queries) {
  uint32_t packed = 0;
#pragma unroll
  for (int i = 0; i < 2 * T::M16; i++) {
    const int query = query0 + thread_index() / 32 * 16 * T::M16 + 8 * i + thread_index() % 32 / 4;
    if (query < queries) packed |= static_cast<uint32_t>(region[query]) << 8 * i;
  }
  return packed;
}

// Takes out keys beyond the last one and those of other regions.
template <class T>
FACESDK_DEVICE void mask(Scores<T> &scores, uint32_t regions, uint32_t codes) {
  const int t = thread_index() % 4;
#pragma unroll
  for (int n = 0; n < T::N8; n++) {
    const uint32_t pair = load_shared(codes + 2 * (8 * n + 2 * t));
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const uint32_t code = i % 2 ? pair >> 16 : pair & 0xffff;
#pragma unroll
      for (int m = 0; m < T::M16; m++)
        if (code != FOR_ALL && code != (regions >> 8 * (2 * m + i / 2) & 0xff)) scores.s[m][n][i] = -INFINITY;
    }
  }
}

// The running state of one set: unnormalised output, and per row the largest score and the lane's share of the sum.
template <class T>
struct Running {
  float o[T::M16][T::CHUNKS][4];
  float largest[T::M16][2];
  float sum[T::M16][2];
};

template <class T>
FACESDK_DEVICE void reset(Running<T> &r) {
#pragma unroll
  for (int m = 0; m < T::M16; m++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      r.largest[m][half] = -INFINITY;
      r.sum[m][half] = 0.f;
    }
#pragma unroll
    for (int c = 0; c < T::CHUNKS; c++)
#pragma unroll
      for (int i = 0; i < 4; i++) r.o[m][c][i] = 0.f;
  }
}

// Turns scores into probabilities up to the row's final factor, 2^(scale2 (s - largest)), and brings the output and
// the sum of the tiles before to the new largest score. scale2 = scale log2(e), positive.
template <class T>
FACESDK_DEVICE void softmax(Scores<T> &scores, Running<T> &r, float scale2) {
#pragma unroll
  for (int m = 0; m < T::M16; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float largest = r.largest[m][half];
#pragma unroll
      for (int n = 0; n < T::N8; n++)
        largest = fmaxf(largest, fmaxf(scores.s[m][n][2 * half], scores.s[m][n][2 * half + 1]));
      largest = fmaxf(largest, shuffle_xor(largest, 1));
      largest = fmaxf(largest, shuffle_xor(largest, 2));

      // a row without any allowed key so far: 2^(-inf - 0) = 0, where -inf - -inf would not be a number
      const float shift = largest == -INFINITY ? 0.f : largest * scale2;
      const float rescale = exp2_fast(r.largest[m][half] * scale2 - shift);
      r.largest[m][half] = largest;

      float sum = r.sum[m][half] * rescale;
#pragma unroll
      for (int n = 0; n < T::N8; n++)
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; i++) {
          scores.s[m][n][i] = exp2_fast(scores.s[m][n][i] * scale2 - shift);
          sum += scores.s[m][n][i];
        }
      r.sum[m][half] = sum;
#pragma unroll
      for (int c = 0; c < T::CHUNKS; c++) {
        r.o[m][c][2 * half] *= rescale;
        r.o[m][c][2 * half + 1] *= rescale;
      }
    }
}

// O += P V of one tile of keys; two neighbouring 16x8 tiles of P make one left factor without moving a number.
template <int DTYPE, class T>
FACESDK_DEVICE void multiply_values(Running<T> &r, const Scores<T> &scores, uint32_t values) {
  const int lane = thread_index() % 32;
  uint32_t p[T::M16][T::N8 / 2][4], b[4];
#pragma unroll
  for (int m = 0; m < T::M16; m++)
#pragma unroll
    for (int n = 0; n < T::N8; n++) {
      p[m][n / 2][n % 2 * 2] = pack<DTYPE>(scores.s[m][n][0], scores.s[m][n][1]);
      p[m][n / 2][n % 2 * 2 + 1] = pack<DTYPE>(scores.s[m][n][2], scores.s[m][n][3]);
    }
#pragma unroll
  for (int k = 0; k < T::N8 / 2; k++)
#pragma unroll
    for (int c = 0; c + 1 < T::CHUNKS; c += 2) {
      load_matrices_transposed(b, values + offset<T::CHUNKS>(16 * k + lane % 16, c + lane / 16));
#pragma unroll
      for (int m = 0; m < T::M16; m++) {
        multiply_k16<DTYPE>(r.o[m][c], p[m][k], b[0], b[1]);
        multiply_k16<DTYPE>(r.o[m][c + 1], p[m][k], b[2], b[3]);
      }
    }
  if constexpr (T::ODD) {
#pragma unroll
    for (int k = 0; k < T::N8 / 2; k += 2) {
      load_matrices_transposed(b, values + offset<T::CHUNKS>(16 * k + lane, T::CHUNKS - 1));
#pragma unroll
      for (int m = 0; m < T::M16; m++) {
        multiply_k16<DTYPE>(r.o[m][T::CHUNKS - 1], p[m][k], b[0], b[1]);
        multiply_k16<DTYPE>(r.o[m][T::CHUNKS - 1], p[m][k + 1], b[2], b[3]);
      }
    }
  }
}

// Divides the output by the rows' sums and multiplies it with `weight`; 0 where no key was allowed.
template <class T>
FACESDK_DEVICE void normalise(Running<T> &r, float weight) {
#pragma unroll
  for (int m = 0; m < T::M16; m++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float sum = r.sum[m][half];
      sum += shuffle_xor(sum, 1);
      sum += shuffle_xor(sum, 2);
      const float factor = sum > 0.f ? weight * reciprocal_fast(sum) : 0.f;
#pragma unroll
      for (int c = 0; c < T::CHUNKS; c++) {
        r.o[m][c][2 * half] *= factor;
        r.o[m][c][2 * half + 1] *= factor;
      }
    }
}

// The first set's result waits in shared memory while the second set takes its registers. Every thread reads back
// only what it wrote, so no barrier is needed.
template <class T>
FACESDK_DEVICE void stash(const Running<T> &r, uint32_t memory) {
#pragma unroll
  for (int m = 0; m < T::M16; m++)
#pragma unroll
    for (int c = 0; c < T::CHUNKS; c++)
      store_shared(memory + ((m * T::CHUNKS + c) * THREADS + thread_index()) * 16, r.o[m][c]);
}

template <class T>
FACESDK_DEVICE void add_stash(Running<T> &r, uint32_t memory) {
#pragma unroll
  for (int m = 0; m < T::M16; m++)
#pragma unroll
    for (int c = 0; c < T::CHUNKS; c++) {
      float first[4];
      load_shared(first, memory + ((m * T::CHUNKS + c) * THREADS + thread_index()) * 16);
#pragma unroll
      for (int i = 0; i < 4; i++) r.o[m][c][i] += first[i];
    }
}

// Rounds the output and writes it in whole chunks; each warp passes its own rows through shared memory for that.
template <int DTYPE, class T>
FACESDK_DEVICE void store_output(const Running<T> &r, uint32_t memory, char *out, int64_t pitch, int rows) {
  const int warp = thread_index() / 32, lane = thread_index() % 32;
  const int first = warp * 16 * T::M16;
#pragma unroll
  for (int m = 0; m < T::M16; m++)
#pragma unroll
    for (int c = 0; c < T::CHUNKS; c++)
#pragma unroll
      for (int half = 0; half < 2; half++)
        store_shared(memory + offset<T::CHUNKS>(first + 16 * m + 8 * half + lane / 4, c) + lane % 4 * 4,
                     pack<DTYPE>(r.o[m][c][2 * half], r.o[m][c][2 * half + 1]));
  warp_barrier();
#pragma unroll
  for (int n = 0; n < 16 * T::M16 * T::CHUNKS; n += 32) {
    const int row = first + (n + lane) / T::CHUNKS, chunk = (n + lane) % T::CHUNKS;
    if (row < rows && row < first + 16 * T::M16)
      copy_out(out + row * pitch + chunk * CHUNK_BYTES, memory + offset<T::CHUNKS>(row, chunk));
  }
}

// One thread block: queries [tile * QUERY_ROWS, ...) of one head of one sample.
template <int DTYPE, int DIM, int QUERY_ROWS>
FACESDK_DEVICE void attention(const facesdk_attention &a, int tile, int head, int batch) {
  using T = Tile<DIM, QUERY_ROWS>;
  const uint32_t memory = shared_memory();
  const int query0 = tile * T::QUERIES;
  const int first_tiles = (a.keys + T::KEYS - 1) / T::KEYS;
  const int tiles = first_tiles + (a.k2.data == nullptr ? 0 : (a.keys2 + T::KEYS - 1) / T::KEYS);

  // Q passes through the second stage, which is free until the loop below fetches into it
  copy_rows<T::CHUNKS, T::QUERIES>(memory + T::STAGE_BYTES, Rows(a.q, batch, head, query0, a.queries));
  Fetch next = fetch<T>(a, batch, head, 0, first_tiles, memory);
  store_code<T>(next, memory + T::CODES);
  wait_copies();
  barrier();
  Queries<T> q;
  load_queries(q, memory + T::STAGE_BYTES);
  if (a.query_bias != nullptr) add_bias<DTYPE>(q, static_cast<const uint32_t *>(a.query_bias) + head * (DIM / 2));

  uint32_t regions = 0;
  if (a.region != nullptr)
    regions = load_regions<T>(a.region + static_cast<int64_t>(batch) * a.queries, query0, a.queries);

  const float scale2 = a.scale * 1.4426950408889634f;  // log2(e)
  Running<T> running;
  reset(running);
  for (int i = 0; i < tiles; i++) {
    const uint32_t stage = memory + i % 2 * T::STAGE_BYTES, other = memory + (i + 1) % 2 * T::STAGE_BYTES;
    const bool masked = next.masked;
    wait_copies();
    barrier();  // tile i is here, and everybody is done with what the other stage holds
    if (i + 1 < tiles) next = fetch<T>(a, batch, head, i + 1, first_tiles, other);
    if (i == first_tiles) {
      normalise(running, 1.f);
      stash(running, memory + T::STASH);
      reset(running);
    }
    Scores<T> scores;
    multiply_keys<DTYPE>(scores, q, stage);
    if (masked) mask(scores, regions, memory + T::CODES + i % 2 * T::KEYS * 2);
    softmax(scores, running, scale2);
    multiply_values<DTYPE>(running, scores, stage + T::KEY_BYTES);
    store_code<T>(next, memory + T::CODES + (i + 1) % 2 * T::KEYS * 2);
  }

  if (a.k2.data == nullptr) {
    normalise(running, 1.f);
  } else {
    normalise(running, a.weight2 == nullptr ? 1.f : a.weight2[batch]);
    add_stash(running, memory + T::STASH);
  }
  barrier();  // nobody reads keys or values any more
  char *out = static_cast<char *>(a.out.data) + 2 * (batch * a.out.batch + head * a.out.head + query0 * a.out.row);
  store_output<DTYPE>(running, memory, out, 2 * a.out.row, a.queries - query0);
}

}  // namespace facesdk
