// For .cu files: threads over the rows of a matrix, of which each reads V neighbouring elements, 16 bytes, at a time.
#pragma once

#include <cuda_runtime.h>

#include "types.h"

namespace tk {

constexpr int kThreads = 256;

// V elements at `at`, which is a multiple of V where V is kVector<T>; V may also be 1.
template <int V, class T>
TK_DEVICE void read(const T* from, int64_t at, Accum<T> (&out)[V]) {
  if constexpr (V == 1) {
    out[0] = load(from, at);
  } else {
    load_vector(from, at / V, out);
  }
}

template <int V, class T>
TK_DEVICE void write(T* to, int64_t at, const Accum<T> (&in)[V]) {
  if constexpr (V == 1) {
    store(to, at, in[0]);
  } else {
    store_vector(to, at / V, in);
  }
}

// Whether rows of `width` elements can be read 16 bytes at a time.
template <class T, class... Pointers>
bool can_read_vectors(int64_t width, Pointers... pointers) {
  return width % kVector<T> == 0 && (is_aligned(pointers) && ...);
}

inline int power_of_two_above(int64_t n, int most) {
  int power = 1;
  while (power < n && power < most) power *= 2;
  return power;
}

// threadIdx.y and blockIdx.x: a row. threadIdx.x and blockIdx.y: V of its elements, and those a grid further on.
struct RowLaunch {
  dim3 threads, blocks;

  RowLaunch(int64_t rows, int64_t width, int vector) {
    const int64_t vectors = width / vector;
    const int across = power_of_two_above(vectors, kThreads), down = kThreads / across;
    const int64_t chunks = (vectors + across - 1) / across;
    threads = dim3(across, down);
    blocks = dim3(unsigned((rows + down - 1) / down), unsigned(chunks < 1024 ? chunks : 1024));
  }
};

TK_DEVICE int64_t row_of_thread() { return int64_t(blockIdx.x) * blockDim.y + threadIdx.y; }

// The thread's first element of its row, and how far its next is.
template <int V>
TK_DEVICE int64_t first_of_thread() {
  return (int64_t(blockIdx.y) * blockDim.x + threadIdx.x) * V;
}
template <int V>
TK_DEVICE int64_t step_of_thread() {
  return int64_t(gridDim.y) * blockDim.x * V;
}

}  // namespace tk

// Launches kernel<T, V> with V = kVector<T> where `can`, else 1; `launch` is an expression of V.
#define TK_LAUNCH(kernel, can, launch, ...) \
  do { \
    const auto on = static_cast<cudaStream_t>(stream); \
    if (can) { \
      constexpr int V = ::tk::kVector<T>; \
      const auto plan = launch; \
      kernel<T, V><<<plan.blocks, plan.threads, 0, on>>>(__VA_ARGS__); \
    } else { \
      constexpr int V = 1; \
      const auto plan = launch; \
      kernel<T, V><<<plan.blocks, plan.threads, 0, on>>>(__VA_ARGS__); \
    } \
  } while (false)

#define TK_IN(name) static_cast<const T*>(name)
#define TK_OUT(name) static_cast<T*>(name)
