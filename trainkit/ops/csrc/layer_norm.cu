#include "common/cuda.cuh"
#include "layer_norm.h"

namespace tk {
namespace {

constexpr int kMaxThreads = 256;

// One block a row at a time. The fast kernels keep a row in registers: K vectors of W elements a thread. Rows that are
// too long, or not aligned, take the plain kernels, which read what they stored once more.

struct Pair {
  float first, second;
};

// Both sums over the block's threads, the same bits for each of them. `shared` may be used again after another of the
// block's barriers.
TK_DEVICE Pair block_sum(Pair mine, Pair (&shared)[kMaxThreads / kWarp]) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    mine.first += __shfl_xor_sync(0xffffffffu, mine.first, offset);
    mine.second += __shfl_xor_sync(0xffffffffu, mine.second, offset);
  }
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = mine;
  __syncthreads();
  Pair sum = {0.0f, 0.0f};
  for (int warp = 0; warp < int(blockDim.x) / kWarp; ++warp) {
    sum.first += shared[warp].first;
    sum.second += shared[warp].second;
  }
  return sum;
}

// residual + x * factor for W columns of a row, stored, and as it was rounded.
template <class T, int W>
TK_DEVICE void add_and_store(const LayerNormArgs& args, int64_t row, int64_t column, float (&summed)[W]) {
  const int64_t at = row * args.num_columns + column;
  float x[W], factors[W];
  load_some<W>(static_cast<const T*>(args.x), at, x);
  load_some<W>(static_cast<const T*>(args.residual), at, summed);
  draw_in_row(args.mask, row, args.rows_per_sample, args.num_columns, column, factors);
#pragma unroll
  for (int i = 0; i < W; ++i) summed[i] = widen(narrow<T>(summed[i] + x[i] * factors[i]));
  store_some<W>(static_cast<T*>(args.summed), at, summed);
}

template <class T, int W>
TK_DEVICE void normalise_and_store(const LayerNormArgs& args, int64_t row, int64_t column, float mean, float rstd,
                                   const float (&summed)[W]) {
  float weight[W], bias[W], out[W];
  load_floats(args.weight, column, weight);
  load_floats(args.bias, column, bias);
#pragma unroll
  for (int i = 0; i < W; ++i) out[i] = (summed[i] - mean) * rstd * weight[i] + bias[i];
  store_some<W>(static_cast<T*>(args.normed), row * args.num_columns + column, out);
}

TK_DEVICE void store_statistics(const LayerNormArgs& args, int64_t row, float mean, float rstd) {
  if (threadIdx.x != 0) return;
  static_cast<float*>(args.mean)[row] = mean;
  static_cast<float*>(args.rstd)[row] = rstd;
}

template <class T, int W, int K>
__global__ void __launch_bounds__(kMaxThreads) forward_kernel(LayerNormArgs args) {
  __shared__ Pair for_mean[kMaxThreads / kWarp], for_variance[kMaxThreads / kWarp];
  const float size = float(args.num_columns);
  for (int64_t row = blockIdx.x; row < args.num_rows; row += gridDim.x) {
    float summed[K][W];
    Pair total = {0.0f, 0.0f};
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int64_t column = int64_t(k * int(blockDim.x) + int(threadIdx.x)) * W;
      if (column >= args.num_columns) continue;
      add_and_store<T>(args, row, column, summed[k]);
#pragma unroll
      for (int i = 0; i < W; ++i) total.first += summed[k][i];
    }
    const float mean = block_sum(total, for_mean).first / size;
    Pair squares = {0.0f, 0.0f};
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int64_t column = int64_t(k * int(blockDim.x) + int(threadIdx.x)) * W;
      if (column >= args.num_columns) continue;
#pragma unroll
      for (int i = 0; i < W; ++i) squares.first += (summed[k][i] - mean) * (summed[k][i] - mean);
    }
    const float rstd = rsqrtf(block_sum(squares, for_variance).first / size + float(args.eps));
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int64_t column = int64_t(k * int(blockDim.x) + int(threadIdx.x)) * W;
      if (column < args.num_columns) normalise_and_store<T>(args, row, column, mean, rstd, summed[k]);
    }
    store_statistics(args, row, mean, rstd);
  }
}

template <class T>
__global__ void __launch_bounds__(kMaxThreads) plain_forward_kernel(LayerNormArgs args) {
  __shared__ Pair for_mean[kMaxThreads / kWarp], for_variance[kMaxThreads / kWarp];
  const float size = float(args.num_columns);
  for (int64_t row = blockIdx.x; row < args.num_rows; row += gridDim.x) {
    const T* stored = static_cast<const T*>(args.summed) + row * args.num_columns;
    Pair total = {0.0f, 0.0f};
    for (int64_t column = threadIdx.x; column < args.num_columns; column += blockDim.x) {
      float summed[1];
      add_and_store<T>(args, row, column, summed);
      total.first += summed[0];
    }
    const float mean = block_sum(total, for_mean).first / size;
    Pair squares = {0.0f, 0.0f};
    for (int64_t column = threadIdx.x; column < args.num_columns; column += blockDim.x) {
      const float centred = widen(stored[column]) - mean;
      squares.first += centred * centred;
    }
    const float rstd = rsqrtf(block_sum(squares, for_variance).first / size + float(args.eps));
    for (int64_t column = threadIdx.x; column < args.num_columns; column += blockDim.x) {
      const float summed[1] = {widen(stored[column])};
      normalise_and_store<T>(args, row, column, mean, rstd, summed);
    }
    store_statistics(args, row, mean, rstd);
  }
}

// grad, and summed normalised, for W columns of a row.
template <class T, int W>
TK_DEVICE void load_gradient(const LayerNormArgs& args, int64_t row, int64_t column, float (&grad)[W],
                             float (&unit)[W]) {
  const int64_t at = row * args.num_columns + column;
  const float mean = static_cast<const float*>(args.mean)[row], rstd = static_cast<const float*>(args.rstd)[row];
  load_some<W>(static_cast<const T*>(args.grad), at, grad);
  load_some<W>(static_cast<const T*>(args.summed), at, unit);
#pragma unroll
  for (int i = 0; i < W; ++i) unit[i] = (unit[i] - mean) * rstd;
}

// means: of grad * weight, and of that times unit, over the row.
template <class T, int W>
TK_DEVICE void store_gradient(const LayerNormArgs& args, int64_t row, int64_t column, Pair means,
                              const float (&grad)[W], const float (&unit)[W]) {
  const int64_t at = row * args.num_columns + column;
  const float rstd = static_cast<const float*>(args.rstd)[row];
  float weight[W], out[W];
  load_floats(args.weight, column, weight);
#pragma unroll
  for (int i = 0; i < W; ++i) out[i] = rstd * (grad[i] * weight[i] - means.first - unit[i] * means.second);
  if (args.grad_summed != nullptr) {
    float other[W];
    load_some<W>(static_cast<const T*>(args.grad_summed), at, other);
#pragma unroll
    for (int i = 0; i < W; ++i) out[i] += other[i];
  }
  store_some<W>(static_cast<T*>(args.dresidual), at, out);
  if (args.dx == nullptr) return;
  float factors[W];
  draw_in_row(args.mask, row, args.rows_per_sample, args.num_columns, column, factors);
#pragma unroll
  for (int i = 0; i < W; ++i) out[i] *= factors[i];
  store_some<W>(static_cast<T*>(args.dx), at, out);
}

template <class T, int W, int K>
__global__ void __launch_bounds__(kMaxThreads) backward_kernel(LayerNormArgs args) {
  __shared__ Pair for_means[2][kMaxThreads / kWarp];
  float weight_sums[K][W] = {}, bias_sums[K][W] = {};
  int turn = 0;
  for (int64_t row = blockIdx.x; row < args.num_rows; row += gridDim.x, turn ^= 1) {
    float grad[K][W], unit[K][W];
    Pair means = {0.0f, 0.0f};
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int64_t column = int64_t(k * int(blockDim.x) + int(threadIdx.x)) * W;
      if (column >= args.num_columns) continue;
      float weight[W];
      load_floats(args.weight, column, weight);
      load_gradient<T>(args, row, column, grad[k], unit[k]);
#pragma unroll
      for (int i = 0; i < W; ++i) {
        weight_sums[k][i] += grad[k][i] * unit[k][i];
        bias_sums[k][i] += grad[k][i];
        means.first += grad[k][i] * weight[i];
        means.second += grad[k][i] * weight[i] * unit[k][i];
      }
    }
    means = block_sum(means, for_means[turn]);
    means.first /= float(args.num_columns);
    means.second /= float(args.num_columns);
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int64_t column = int64_t(k * int(blockDim.x) + int(threadIdx.x)) * W;
      if (column < args.num_columns) store_gradient<T>(args, row, column, means, grad[k], unit[k]);
    }
  }
  float* runs = static_cast<float*>(args.runs) + int64_t(blockIdx.x) * args.num_columns;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int64_t column = int64_t(k * int(blockDim.x) + int(threadIdx.x)) * W;
    if (column >= args.num_columns) continue;
#pragma unroll
    for (int i = 0; i < W; ++i) {
      runs[column + i] = weight_sums[k][i];
      runs[args.num_runs * args.num_columns + column + i] = bias_sums[k][i];
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kMaxThreads) plain_backward_kernel(LayerNormArgs args) {
  __shared__ Pair for_means[2][kMaxThreads / kWarp];
  // A thread's columns are its own in these sums.
  float* weight_sums = static_cast<float*>(args.runs) + int64_t(blockIdx.x) * args.num_columns;
  float* bias_sums = weight_sums + args.num_runs * args.num_columns;
  for (int64_t column = threadIdx.x; column < args.num_columns; column += blockDim.x)
    weight_sums[column] = bias_sums[column] = 0.0f;
  int turn = 0;
  for (int64_t row = blockIdx.x; row < args.num_rows; row += gridDim.x, turn ^= 1) {
    float grad[1], unit[1];
    Pair means = {0.0f, 0.0f};
    for (int64_t column = threadIdx.x; column < args.num_columns; column += blockDim.x) {
      load_gradient<T>(args, row, column, grad, unit);
      const float weighted = grad[0] * static_cast<const float*>(args.weight)[column];
      weight_sums[column] += grad[0] * unit[0];
      bias_sums[column] += grad[0];
      means.first += weighted;
      means.second += weighted * unit[0];
    }
    means = block_sum(means, for_means[turn]);
    means.first /= float(args.num_columns);
    means.second /= float(args.num_columns);
    for (int64_t column = threadIdx.x; column < args.num_columns; column += blockDim.x) {
      load_gradient<T>(args, row, column, grad, unit);
      store_gradient<T>(args, row, column, means, grad, unit);
    }
  }
}

// -- launches ----------------------------------------------------------------------------------------------------------

template <class T, int W>
int threads_for(int64_t num_columns) {
  const int64_t needed = (num_columns + W - 1) / W, whole = (needed + kWarp - 1) / kWarp * kWarp;
  return int(whole < kMaxThreads ? whole : kMaxThreads);
}

// Vectors a thread holds of a row; 0 where the row has to take the plain kernels.
template <class T>
int vectors_a_thread(const LayerNormArgs& args) {
  constexpr int W = kVector<T>;
  const void* const rows[] = {args.x,    args.residual,    args.normed,    args.summed, args.weight, args.bias,
                              args.grad, args.grad_summed, args.dresidual, args.dx};
  for (const void* pointer : rows)
    if (!is_aligned(pointer)) return 0;
  if (args.num_columns % W != 0) return 0;
  const int64_t held = (args.num_columns + kMaxThreads * W - 1) / (kMaxThreads * W);
  return held <= 1 ? 1 : held <= 2 ? 2 : held <= 4 ? 4 : 0;
}

template <class T>
void launch_forward(const LayerNormArgs& args, cudaStream_t stream) {
  constexpr int W = kVector<T>;
  const unsigned blocks = unsigned(args.num_rows < 65536 ? args.num_rows : 65536);
  const int threads = threads_for<T, W>(args.num_columns);
  switch (vectors_a_thread<T>(args)) {
    case 1:
      forward_kernel<T, W, 1><<<blocks, threads, 0, stream>>>(args);
      break;
    case 2:
      forward_kernel<T, W, 2><<<blocks, threads, 0, stream>>>(args);
      break;
    case 4:
      forward_kernel<T, W, 4><<<blocks, threads, 0, stream>>>(args);
      break;
    default:
      plain_forward_kernel<T><<<blocks, threads_for<T, 1>(args.num_columns), 0, stream>>>(args);
  }
}

template <class T>
void launch_backward(const LayerNormArgs& args, cudaStream_t stream) {
  constexpr int W = kVector<T>;
  const unsigned blocks = unsigned(args.num_runs);
  const int threads = threads_for<T, W>(args.num_columns);
  switch (vectors_a_thread<T>(args)) {
    case 1:
      backward_kernel<T, W, 1><<<blocks, threads, 0, stream>>>(args);
      break;
    case 2:
      backward_kernel<T, W, 2><<<blocks, threads, 0, stream>>>(args);
      break;
    case 4:
      backward_kernel<T, W, 4><<<blocks, threads, 0, stream>>>(args);
      break;
    default:
      plain_backward_kernel<T><<<blocks, threads_for<T, 1>(args.num_columns), 0, stream>>>(args);
  }
  const float* runs = static_cast<const float*>(args.runs);
  launch_add_runs(runs, args.num_runs, args.num_columns, args.dweight, stream);
  launch_add_runs(runs + args.num_runs * args.num_columns, args.num_runs, args.num_columns, args.dbias, stream);
}

}  // namespace
}  // namespace tk

extern "C" int tk_layer_norm_cuda(const tk::LayerNormArgs* args, void* stream) {
  TK_DISPATCH_CUDA(args->dtype, T, tk::launch_forward<T>(*args, static_cast<cudaStream_t>(stream)));
  return int(cudaGetLastError());
}

extern "C" int tk_layer_norm_backward_cuda(const tk::LayerNormArgs* args, void* stream) {
  TK_DISPATCH_CUDA(args->dtype, T, tk::launch_backward<T>(*args, static_cast<cudaStream_t>(stream)));
  return int(cudaGetLastError());
}
