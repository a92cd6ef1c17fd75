#include "vectors.h"

namespace {

constexpr int kThreads = 256;

template <class T>
__global__ void __launch_bounds__(kThreads) twice(const T* x, T* y, int64_t num) {
  constexpr int V = tk::kVector<T>;
  const int64_t vector = blockIdx.x * int64_t(kThreads) + threadIdx.x;
  if ((vector + 1) * V <= num) {
    tk::Accum<T> values[V];
    tk::load_vector(x, vector, values);
#pragma unroll
    for (int i = 0; i < V; ++i) values[i] *= 2;
    tk::store_vector(y, vector, values);
  } else {
    for (int64_t i = vector * V; i < num; ++i) tk::store(y, i, 2 * tk::load(x, i));
  }
}

}  // namespace

int tk_twice(const void* x, void* y, int64_t num, tk::DType dtype, void* stream) {
  TK_DISPATCH_CUDA(dtype, T, {
    const int64_t vectors = (num + tk::kVector<T> - 1) / tk::kVector<T>;
    twice<T><<<(vectors + kThreads - 1) / kThreads, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        static_cast<const T*>(x), static_cast<T*>(y), num);
  });
  return int(cudaGetLastError());
}
