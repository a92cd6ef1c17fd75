// Matrix products for CPU kernels. torch's bmm is MKL's, which was measured at 0.4 of this speed on an AMD processor.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

namespace tk {

// A row-major matrix; `along` is the distance between neighbours of a row.
template <class T>
struct Matrix {
  T* at;
  int64_t down, along = 1;

  T* row(int64_t i) const { return at + i * down; }
};

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kMostRows = 14;  // 28 sums, 2 vectors and a factor in 32 registers
#elif defined(__AVX__)
constexpr int kVectorBytes = 32, kMostRows = 6;
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16, kMostRows = 12;
#else
constexpr int kVectorBytes = 16, kMostRows = 6;
#endif

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
};
template <class T>
constexpr int64_t kWidth = kVectorBytes / sizeof(T);

template <class T>
typename VectorOf<T>::type load(const T* from) {
  typename VectorOf<T>::type value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

// The sums of R rows and V vectors of columns stay in registers.
template <class T, int R, int V>
void multiply_block(int64_t depth, Matrix<const T> a, Matrix<const T> b, Matrix<T> c, bool add) {
  constexpr int64_t W = kWidth<T>;
  typename VectorOf<T>::type sums[R][V] = {}, of_b[V];
  if (add) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) sums[r][v] = load(c.row(r) + v * W);
  }
  for (int64_t k = 0; k < depth; ++k) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) of_b[v] = load(b.row(k) + v * W);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const T factor = a.row(r)[k * a.along];
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) sums[r][v] += factor * of_b[v];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) std::memcpy(c.row(r) + v * W, &sums[r][v], sizeof(sums[r][v]));
}

template <class T>
using MultiplyBlock = void (*)(int64_t, Matrix<const T>, Matrix<const T>, Matrix<T>, bool);

template <class T, int V, int... R>
MultiplyBlock<T> block_of(int64_t rows, std::integer_sequence<int, R...>) {
  static constexpr MultiplyBlock<T> all[] = {multiply_block<T, R + 1, V>...};
  return all[rows - 1];
}

// c = a b, or c + a b: [rows, depth] [depth, columns]. Rows of b and c are contiguous. The terms of an element are added
// one after another, whatever the number of rows and columns.
template <class T>
void multiply(int64_t rows, int64_t depth, int64_t columns, Matrix<const T> a, Matrix<const T> b, Matrix<T> c, bool add) {
  const int64_t num_blocks = (rows + kMostRows - 1) / kMostRows;
  std::vector<T> room;
  for (int64_t first = 0; first < columns;) {
    const int64_t num_vectors = columns - first > kWidth<T> ? 2 : 1, width = num_vectors * kWidth<T>;
    const int64_t used = std::min(width, columns - first);
    Matrix<const T> of_b{b.at + first, b.down};
    if (used < width) {  // with zeros up to a whole vector
      room.assign(size_t((depth + kMostRows) * width), T(0));
      for (int64_t k = 0; k < depth; ++k) std::copy_n(of_b.row(k), used, room.data() + k * width);
      of_b = {room.data(), width};
    }
    for (int64_t i = 0; i < num_blocks; ++i) {
      const int64_t begin = i * rows / num_blocks, num = (i + 1) * rows / num_blocks - begin;
      constexpr auto counts = std::make_integer_sequence<int, kMostRows>();
      const auto block = num_vectors == 2 ? block_of<T, 2>(num, counts) : block_of<T, 1>(num, counts);
      const Matrix<T> of_c{c.row(begin) + first, c.down};
      const Matrix<const T> of_a{a.row(begin), a.down, a.along};
      if (used == width) {
        block(depth, of_a, of_b, of_c, add);
        continue;
      }
      const Matrix<T> whole{room.data() + depth * width, width};
      for (int64_t r = 0; r < num; ++r) std::copy_n(of_c.row(r), used, whole.row(r));
      block(depth, of_a, of_b, whole, add);
      for (int64_t r = 0; r < num; ++r) std::copy_n(whole.row(r), used, of_c.row(r));
    }
    first += used;
  }
}

}  // namespace tk
