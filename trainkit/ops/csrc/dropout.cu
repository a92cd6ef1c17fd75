#include "common/cuda.cuh"
#include "dropout.h"

namespace tk {
namespace {

constexpr int kThreads = 256;

// Each thread takes W elements at a time; W divides a sample, so that they lie in one.
template <class T, int W>
__global__ void __launch_bounds__(kThreads) drop(DropoutArgs args) {
  const int64_t num_items = args.num_samples * args.sample_size / W, step = int64_t(gridDim.x) * kThreads;
  for (int64_t item = int64_t(blockIdx.x) * kThreads + threadIdx.x; item < num_items; item += step) {
    const int64_t at = item * W, sample = divide(at, args.sample_size);
    float values[W], factors[W];
    load_some<W>(static_cast<const T*>(args.x), at, values);
    draw_some(args.mask, args.mask.positions[sample], at - sample * args.sample_size, factors);
#pragma unroll
    for (int i = 0; i < W; ++i) values[i] *= factors[i];
    store_some<W>(static_cast<T*>(args.y), at, values);
  }
}

template <class T, int W>
void launch(const DropoutArgs& args, cudaStream_t stream) {
  const int64_t num_blocks = (args.num_samples * args.sample_size / W + kThreads - 1) / kThreads;
  drop<T, W><<<unsigned(num_blocks < 16384 ? num_blocks : 16384), kThreads, 0, stream>>>(args);
}

}  // namespace
}  // namespace tk

extern "C" int tk_dropout_cuda(const tk::DropoutArgs* args, void* stream) {
  using namespace tk;
  if (args->num_samples * args->sample_size == 0) return 0;
  TK_DISPATCH_CUDA(args->dtype, T, {
    constexpr int W = kVector<T>;
    if (is_aligned(args->x) && is_aligned(args->y) && args->sample_size % W == 0)
      launch<T, W>(*args, static_cast<cudaStream_t>(stream));
    else
      launch<T, 1>(*args, static_cast<cudaStream_t>(stream));
  });
  return int(cudaGetLastError());
}
