// Softmax cross-entropy of rows of logits on CUDA: a block a row. The forward pass reads the logits once, the backward
// pass reads and writes them once.
#include "cross_entropy.h"

#include <cuda_runtime.h>

namespace tk {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kUnroll = 4;  // loads in flight, a thread

__device__ __forceinline__ LogSumExp<float> reduced_in_warp(LogSumExp<float> part) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    LogSumExp<float> other;
    other.maximum = __shfl_xor_sync(0xffffffffu, part.maximum, offset);
    other.sum = __shfl_xor_sync(0xffffffffu, part.sum, offset);
    part.add(other);
  }
  return part;
}

// Of the whole block, in its thread 0.
__device__ __forceinline__ LogSumExp<float> reduced_in_block(LogSumExp<float> part) {
  __shared__ LogSumExp<float> of_warp[kWarps];
  part = reduced_in_warp(part);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = part;
  __syncthreads();
  return reduced_in_warp(threadIdx.x < kWarps ? of_warp[threadIdx.x] : LogSumExp<float>{});
}

template <int N>
__device__ __forceinline__ LogSumExp<float> part_of(const float (&x)[N]) {
  LogSumExp<float> part;
#pragma unroll
  for (int i = 0; i < N; ++i) part.maximum = x[i] > part.maximum ? x[i] : part.maximum;
  const float shift = part.shift();
#pragma unroll
  for (int i = 0; i < N; ++i) part.sum += softmax_exp(x[i] - shift);
  return part;
}

template <class T>
__device__ __forceinline__ LogSumExp<float> of_vectors(const T* row, int64_t num_vectors) {
  LogSumExp<float> total;
  int64_t v = threadIdx.x;
  for (; v + (kUnroll - 1) * kThreads < num_vectors; v += kUnroll * kThreads) {
    float x[kUnroll][kVector<T>];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) load_vector(row, v + u * kThreads, x[u]);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) total.add(part_of(x[u]));
  }
  for (; v < num_vectors; v += kThreads) {
    float x[kVector<T>];
    load_vector(row, v, x);
    total.add(part_of(x));
  }
  return total;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const T* logits, const int64_t* labels, float* losses, Statistics<float>* statistics,
                   int64_t classes, int64_t ignore_index, bool has_vectors) {
  const int64_t label = labels[blockIdx.x];
  if (label == ignore_index) {  // the same for the whole block
    if (threadIdx.x == 0) losses[blockIdx.x] = 0.0f;
    return;
  }
  const T* row = logits + blockIdx.x * classes;
  LogSumExp<float> part;
  if (has_vectors) {
    part = of_vectors(row, classes / kVector<T>);
  } else {
    for (int64_t i = threadIdx.x; i < classes; i += kThreads) {
      const float x[1] = {load(row, i)};
      part.add(part_of(x));
    }
  }
  const LogSumExp<float> total = reduced_in_block(part);
  if (threadIdx.x == 0) {
    const bool is_allowed = label >= 0 && label < classes;
    losses[blockIdx.x] = is_allowed ? total.loss(load(row, label)) : NAN;
    statistics[blockIdx.x] = {total.shift(), is_allowed ? total.sum : NAN};
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const float* grad, int64_t grad_stride, const T* logits, const Statistics<float>* statistics,
                    const int64_t* labels, T* out, int64_t classes, int64_t ignore_index, bool has_vectors) {
  const int64_t label = labels[blockIdx.x];
  const bool is_used = label != ignore_index;
  const CrossEntropyGradient<float> gradient(is_used ? statistics[blockIdx.x] : Statistics<float>{0.0f, 1.0f},
                                             grad[blockIdx.x * grad_stride]);
  const T* row = logits + blockIdx.x * classes;
  T* to = out + blockIdx.x * classes;
  if (!has_vectors) {
    for (int64_t i = threadIdx.x; i < classes; i += kThreads) {
      const float x = load(row, i);
      store(to, i, !is_used ? 0.0f : i == label ? gradient.of_label(x) : gradient.of_other(x));
    }
    return;
  }
  const int64_t num_vectors = classes / kVector<T>;
#pragma unroll kUnroll
  for (int64_t v = threadIdx.x; v < num_vectors; v += kThreads) {
    float x[kVector<T>] = {};
    if (is_used) load_vector(row, v, x);
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) {
      const bool is_label = v * kVector<T> + i == label;
      x[i] = !is_used ? 0.0f : is_label ? gradient.of_label(x[i]) : gradient.of_other(x[i]);
    }
    store_vector(to, v, x);
  }
}

}  // namespace
}  // namespace tk

extern "C" int tk_cross_entropy_forward(const void* logits, const int64_t* labels, float* losses,
                                        tk::Statistics<float>* statistics, int64_t rows, int64_t classes, int64_t ignore_index, int32_t dtype,
                                        void* stream) {
  if (rows == 0) return 0;
  TK_DISPATCH_CUDA(tk::DType(dtype), T, {
    const bool has_vectors = tk::is_aligned(logits) && classes % tk::kVector<T> == 0;
    tk::forward_kernel<T><<<unsigned(rows), tk::kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        static_cast<const T*>(logits), labels, losses, statistics, classes, ignore_index, has_vectors);
  });
  return int(cudaGetLastError());
}

extern "C" int tk_cross_entropy_backward(const float* grad, int64_t grad_stride, const void* logits,
                                         const tk::Statistics<float>* statistics, const int64_t* labels, void* out,
                                         int64_t rows, int64_t classes, int64_t ignore_index, int32_t dtype, void* stream) {
  if (rows == 0 || classes == 0) return 0;
  TK_DISPATCH_CUDA(tk::DType(dtype), T, {
    const bool has_vectors = tk::is_aligned(logits) && tk::is_aligned(out) && classes % tk::kVector<T> == 0;
    tk::backward_kernel<T><<<unsigned(rows), tk::kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        grad, grad_stride, static_cast<const T*>(logits), statistics, labels, static_cast<T*>(out), classes, ignore_index,
        has_vectors);
  });
  return int(cudaGetLastError());
}
