// What the CUDA kernels with dropout and sums over rows share. No torch here.
#pragma once

#include "philox.h"
#include "types.h"

namespace tk {

constexpr int kWarp = 32;

// W elements from `index` on: 16 bytes at once, or one element.
template <int W, class T>
TK_DEVICE void load_some(const T* from, int64_t index, Accum<T> (&out)[W]) {
  static_assert(W == kVector<T> || W == 1, "16 bytes, or one element");
  if constexpr (W == 1)
    out[0] = widen(from[index]);
  else
    load_vector(from, index / W, out);
}

template <int W, class T>
TK_DEVICE void store_some(T* to, int64_t index, const Accum<T> (&in)[W]) {
  static_assert(W == kVector<T> || W == 1, "16 bytes, or one element");
  if constexpr (W == 1)
    to[index] = narrow<T>(in[0]);
  else
    store_vector(to, index / W, in);
}

// W floats from `index` on, of values that are kept as float; `from` may be null for zeros.
template <int W>
TK_DEVICE void load_floats(const void* from, int64_t index, float (&out)[W]) {
#pragma unroll
  for (int i = 0; i < W; ++i) out[i] = 0.0f;
  if (from == nullptr) return;
  const float* values = static_cast<const float*>(from) + index;
  if constexpr (W % 4 == 0) {
#pragma unroll
    for (int i = 0; i < W; i += 4) {
      const float4 four = reinterpret_cast<const float4*>(values)[i / 4];
      out[i] = four.x;
      out[i + 1] = four.y;
      out[i + 2] = four.z;
      out[i + 3] = four.w;
    }
  } else {
    out[0] = values[0];
  }
}

// a / b for numbers that are not negative; in 32 bits where they fit, which is several times faster.
TK_DEVICE int64_t divide(int64_t a, int64_t b) {
  return ((a | b) >> 32) == 0 ? int64_t(uint32_t(a) / uint32_t(b)) : a / b;
}

// Factors of elements [first, first + W) of the sample at `position`; first is a multiple of W.
template <int W>
TK_DEVICE void draw_some(const DropoutMask& mask, int64_t position, int64_t first, float (&out)[W]) {
  uint32_t words[4];
  if constexpr (W == 1) {
    mask.words(position, first >> 2, words);
    const int word = int(first & 3);
    const uint32_t low = word & 1 ? words[1] : words[0], high = word & 1 ? words[3] : words[2];
    out[0] = mask.factor<float>(word & 2 ? high : low);
  } else {
#pragma unroll
    for (int i = 0; i < W; i += 4) {
      mask.words(position, (first + i) >> 2, words);
#pragma unroll
      for (int word = 0; word < 4; ++word) out[i + word] = mask.factor<float>(words[word]);
    }
  }
}

// The same for W columns of a row, or ones where nothing is dropped.
template <int W>
TK_DEVICE void draw_in_row(const DropoutMask& mask, int64_t row, int64_t rows_per_sample, int64_t num_columns,
                           int64_t column, float (&out)[W]) {
  if (mask.drops()) {
    const int64_t sample = divide(row, rows_per_sample);
    draw_some(mask, mask.positions[sample], (row - sample * rows_per_sample) * num_columns + column, out);
  } else {
#pragma unroll
    for (int i = 0; i < W; ++i) out[i] = 1.0f;
  }
}

// out[c] = runs[0][c] + runs[1][c] + ..., always in the same order. Launched with (32, 32) threads, one x a column.
static __global__ void __launch_bounds__(1024) add_runs(const float* runs, int64_t num_runs, int64_t num_columns,
                                                        float* out) {
  __shared__ float sums[32][33];
  const int64_t column = int64_t(blockIdx.x) * 32 + threadIdx.x;
  float sum = 0.0f;
  if (column < num_columns)
    for (int64_t run = threadIdx.y; run < num_runs; run += 32) sum += runs[run * num_columns + column];
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y == 0 && column < num_columns) {
    for (int i = 1; i < 32; ++i) sum += sums[i][threadIdx.x];
    out[column] = sum;
  }
}

inline void launch_add_runs(const void* runs, int64_t num_runs, int64_t num_columns, void* out, cudaStream_t stream) {
  add_runs<<<unsigned((num_columns + 31) / 32), dim3(32, 32), 0, stream>>>(static_cast<const float*>(runs), num_runs,
                                                                          num_columns, static_cast<float*>(out));
}

}  // namespace tk
