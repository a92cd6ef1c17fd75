// CUDA kernels of bias_activation.h, for a built-in activation or a user's.
#pragma once

#include "bias_activation.h"
#include "common/cuda.cuh"

namespace tk {

constexpr int kActivationThreads = 256;

// A block covers blockDim.x * W columns; its threadIdx.y, and the grid's y, go down the rows. A thread keeps its
// columns, so that the bias is read once and sums over rows stay in registers.
struct ActivationPlace {
  int64_t column, row, step;

  TK_DEVICE explicit ActivationPlace(int width)
      : column((int64_t(blockIdx.x) * blockDim.x + threadIdx.x) * width),
        row(int64_t(blockIdx.y) * blockDim.y + threadIdx.y),
        step(int64_t(gridDim.y) * blockDim.y) {}
};

template <class Activation, class T, int W>
__global__ void __launch_bounds__(kActivationThreads) activation_forward_kernel(BiasActivationArgs args) {
  const ActivationPlace place(W);
  if (place.column >= args.num_columns) return;
  float bias[W], values[W], factors[W];
  load_floats(args.bias, place.column, bias);
  for (int64_t row = place.row; row < args.num_rows; row += place.step) {
    const int64_t at = row * args.num_columns + place.column;
    load_some<W>(static_cast<const T*>(args.x), at, values);
    draw_in_row(args.mask, row, args.rows_per_sample, args.num_columns, place.column, factors);
#pragma unroll
    for (int i = 0; i < W; ++i) values[i] = Activation::f(values[i] + bias[i]) * factors[i];
    store_some<W>(static_cast<T*>(args.y), at, values);
  }
}

// The sums of a block's threads that share columns, in the order of threadIdx.y, to row blockIdx.y of `runs`. Called by
// every thread of the block.
template <int W>
TK_DEVICE void store_run(const float (&sums)[W], const BiasActivationArgs& args, int64_t column) {
  __shared__ float shared[kActivationThreads * W];
  const int at = int(threadIdx.x) * W, width = int(blockDim.x) * W;
#pragma unroll
  for (int i = 0; i < W; ++i) shared[int(threadIdx.y) * width + at + i] = sums[i];
  __syncthreads();
  if (threadIdx.y != 0 || column >= args.num_columns) return;
  float* to = static_cast<float*>(args.runs) + int64_t(blockIdx.y) * args.num_columns + column;
#pragma unroll
  for (int i = 0; i < W; ++i) {
    float sum = 0.0f;
    for (int y = 0; y < int(blockDim.y); ++y) sum += shared[y * width + at + i];
    to[i] = sum;
  }
}

template <class Activation, class T, int W>
__global__ void __launch_bounds__(kActivationThreads) activation_backward_kernel(BiasActivationArgs args) {
  const ActivationPlace place(W);
  float sums[W] = {};
  if (place.column < args.num_columns) {
    float bias[W], values[W], grad[W], factors[W];
    load_floats(args.bias, place.column, bias);
    for (int64_t row = place.row; row < args.num_rows; row += place.step) {
      const int64_t at = row * args.num_columns + place.column;
      load_some<W>(static_cast<const T*>(args.x), at, values);
      load_some<W>(static_cast<const T*>(args.grad), at, grad);
      draw_in_row(args.mask, row, args.rows_per_sample, args.num_columns, place.column, factors);
#pragma unroll
      for (int i = 0; i < W; ++i) {
        values[i] = grad[i] * factors[i] * Activation::df(values[i] + bias[i]);
        sums[i] += values[i];
      }
      store_some<W>(static_cast<T*>(args.dx), at, values);
    }
  }
  store_run(sums, args, place.column);
}

template <class Activation, class T, int W>
__global__ void __launch_bounds__(kActivationThreads) activation_second_kernel(BiasActivationArgs args) {
  const ActivationPlace place(W);
  float sums[W] = {};
  if (place.column < args.num_columns) {
    float bias[W], of_sum[W], values[W], grad[W], weight[W], factors[W];
    load_floats(args.bias, place.column, bias);
    load_floats(args.grad_dbias, place.column, of_sum);
    for (int64_t row = place.row; row < args.num_rows; row += place.step) {
      const int64_t at = row * args.num_columns + place.column;
      load_some<W>(static_cast<const T*>(args.x), at, values);
      load_some<W>(static_cast<const T*>(args.grad), at, grad);
      load_some<W>(static_cast<const T*>(args.grad_dx), at, weight);
      draw_in_row(args.mask, row, args.rows_per_sample, args.num_columns, place.column, factors);
#pragma unroll
      for (int i = 0; i < W; ++i) {
        const float at_x = values[i] + bias[i], share = (weight[i] + of_sum[i]) * factors[i];
        values[i] = share * grad[i] * Activation::ddf(at_x);
        sums[i] += values[i];
        grad[i] = share * Activation::df(at_x);
      }
      store_some<W>(static_cast<T*>(args.dgrad), at, grad);
      store_some<W>(static_cast<T*>(args.dx), at, values);
    }
  }
  store_run(sums, args, place.column);
}

template <class Activation, class T, int W>
void launch_activation_of(const BiasActivationArgs& args, Pass pass, cudaStream_t stream) {
  int across = kWarp;
  while (across > 1 && int64_t(across / 2) * W >= args.num_columns) across /= 2;
  const dim3 threads(across, kActivationThreads / across);
  const dim3 blocks(unsigned((args.num_columns + across * W - 1) / (across * W)), unsigned(args.num_runs));
  switch (pass) {
    case Pass::forward:
      activation_forward_kernel<Activation, T, W><<<blocks, threads, 0, stream>>>(args);
      return;
    case Pass::backward:
      activation_backward_kernel<Activation, T, W><<<blocks, threads, 0, stream>>>(args);
      break;
    case Pass::second:
      activation_second_kernel<Activation, T, W><<<blocks, threads, 0, stream>>>(args);
      break;
  }
  launch_add_runs(args.runs, args.num_runs, args.num_columns, args.dbias, stream);
}

// Returns int(cudaGetLastError()). The rows' pointers may be null or as they are; a null one counts as aligned.
template <class Activation>
int launch_activation(const BiasActivationArgs& args, Pass pass, void* stream) {
  const void* const rows[] = {args.x, args.grad, args.grad_dx, args.y, args.dgrad, args.dx, args.bias, args.grad_dbias};
  bool aligned = true;
  for (const void* pointer : rows) aligned = aligned && is_aligned(pointer);
  TK_DISPATCH_CUDA(args.dtype, T, {
    if (aligned && args.num_columns % kVector<T> == 0)
      launch_activation_of<Activation, T, kVector<T>>(args, pass, static_cast<cudaStream_t>(stream));
    else
      launch_activation_of<Activation, T, 1>(args, pass, static_cast<cudaStream_t>(stream));
  });
  return int(cudaGetLastError());
}

}  // namespace tk
