// CUDA kernels of concatenation and minibatch standard deviation.
#include "concat.h"

#include "common/rows.h"

namespace tk {
namespace {

// blockIdx.y: a part. blockIdx.z: one of outer, and those gridDim.z further on. A thread: V neighbouring elements.
template <class T, int V>
__global__ void __launch_bounds__(kThreads) concat(ConcatParts parts, float slope, const float* bias, T* y) {
  const int part = blockIdx.y;
  const int64_t length = parts.channels[part] * parts.inner;
  const int64_t i = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * V;
  if (i >= length) return;
  const int64_t start = parts.starts[part] * parts.inner;
  const float b = bias ? bias[parts.starts[part] + i / parts.inner] : 0.0f;
  const T* from = static_cast<const T*>(parts.from[part]);
  for (int64_t o = blockIdx.z; o < parts.outer; o += gridDim.z) {
    float u[V];
    read<V>(from, o * length + i, u);
#pragma unroll
    for (int m = 0; m < V; ++m) u[m] = activated(u[m] + b, slope);
    write<V>(y, o * parts.total * parts.inner + start + i, u);
  }
}

struct ConcatLaunch {
  dim3 threads, blocks;

  ConcatLaunch(const ConcatParts& parts, int vector) {
    int64_t longest = 1;
    for (int p = 0; p < parts.num; ++p) longest = longest > parts.channels[p] ? longest : parts.channels[p];
    const int64_t span = int64_t(kThreads) * vector;
    threads = dim3(kThreads);
    blocks = dim3(unsigned((longest * parts.inner + span - 1) / span), parts.num,
                  unsigned(parts.outer < 65535 ? parts.outer : 65535));
  }
};

template <class T>
bool can_read_parts(const ConcatParts& parts, const void* y) {
  bool can = can_read_vectors<T>(parts.inner, y);
  for (int p = 0; p < parts.num; ++p) can = can && is_aligned(parts.from[p]);
  return can;
}

// -- minibatch standard deviation: a block a group, as the op belongs at 4x4, where all of it is microseconds ---------

constexpr int kGroupThreads = 1024;

// The sum over the block's threads, in all of them. All call, and none writes `shared` before the next barrier.
__device__ float add_threads(float value) {
  __shared__ float shared[kGroupThreads / 32];
  for (int away = 16; away > 0; away /= 2) value += __shfl_xor_sync(0xffffffffu, value, away);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  value = shared[threadIdx.x % 32];
  for (int away = 16; away > 0; away /= 2) value += __shfl_xor_sync(0xffffffffu, value, away);
  __syncthreads();
  return value;
}

struct Deviation {
  float mean, d;
};

// Of feature f of group j.
template <class T>
TK_DEVICE Deviation deviation(const StddevShape& s, const T* x, int64_t j, int64_t f) {
  const int64_t step = s.num_groups * s.features(), first = j * s.features() + f;
  float mean = 0.0f, square = 0.0f;
  for (int64_t k = 0; k < s.group; ++k) mean += load(x, first + k * step);
  mean /= float(s.group);
  for (int64_t k = 0; k < s.group; ++k) {
    const float e = load(x, first + k * step) - mean;
    square += e * e;
  }
  return {mean, sqrtf(square / float(s.group) + float(kStddevEps))};
}

// Sets the appended channel of all samples of group j.
template <class T>
TK_DEVICE void fill(const StddevShape& s, T* y, int64_t j, float value) {
  for (int64_t i = threadIdx.x; i < s.group * s.pixels; i += kGroupThreads) {
    const int64_t k = i / s.pixels;
    store(y, (k * s.num_groups + j) * s.row() + s.features() + (i - k * s.pixels), value);
  }
}

// The sum over group and pixels of the gradient of the appended channel. All threads call.
template <class T>
TK_DEVICE float appended_gradient(const StddevShape& s, const T* g, int64_t j) {
  float t = 0.0f;
  for (int64_t i = threadIdx.x; i < s.group * s.pixels; i += kGroupThreads) {
    const int64_t k = i / s.pixels;
    t += load(g, (k * s.num_groups + j) * s.row() + s.features() + (i - k * s.pixels));
  }
  return add_threads(t);
}

template <class T>
__global__ void __launch_bounds__(kGroupThreads) stddev(StddevShape s, const T* x, T* y) {
  const int64_t j = blockIdx.x;
  float sum = 0.0f;
  for (int64_t f = threadIdx.x; f < s.features(); f += kGroupThreads) {
    sum += deviation(s, x, j, f).d;
    for (int64_t k = 0; k < s.group; ++k) {
      const int64_t sample = k * s.num_groups + j;
      y[sample * s.row() + f] = x[sample * s.features() + f];
    }
  }
  fill(s, y, j, add_threads(sum) / float(s.features()));
}

template <class T>
__global__ void __launch_bounds__(kGroupThreads) stddev_backward(StddevShape s, const T* g, const T* x, T* grad_x) {
  const int64_t j = blockIdx.x;
  const float t = appended_gradient(s, g, j) / (float(s.group) * float(s.features()));
  for (int64_t f = threadIdx.x; f < s.features(); f += kGroupThreads) {
    const Deviation found = deviation(s, x, j, f);
    for (int64_t k = 0; k < s.group; ++k) {
      const int64_t sample = k * s.num_groups + j, at = sample * s.features() + f;
      store(grad_x, at, load(g, sample * s.row() + f) + t / found.d * (load(x, at) - found.mean));
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kGroupThreads)
    stddev_backward_backward(StddevShape s, const T* v, const T* g, const T* x, T* grad_g, T* grad_x) {
  const int64_t j = blockIdx.x;
  const float t = appended_gradient(s, g, j), count = float(s.group), all = count * float(s.features());
  float in_t = 0.0f;
  for (int64_t f = threadIdx.x; f < s.features(); f += kGroupThreads) {
    const Deviation found = deviation(s, x, j, f);
    float mean_v = 0.0f, V = 0.0f;
    for (int64_t k = 0; k < s.group; ++k) {
      const int64_t sample = k * s.num_groups + j, at = sample * s.features() + f;
      mean_v += load(v, at) / count;
      V += load(v, at) * (load(x, at) - found.mean);
      grad_g[sample * s.row() + f] = v[at];
    }
    const StddevTerms<float> terms{t, mean_v, V, found.d, count, all};
    for (int64_t k = 0; k < s.group; ++k) {
      const int64_t at = (k * s.num_groups + j) * s.features() + f;
      store(grad_x, at, terms.in_x(load(v, at), load(x, at) - found.mean));
    }
    in_t += V / found.d;
  }
  fill(s, grad_g, j, add_threads(in_t) / all);
}

}  // namespace
}  // namespace tk

extern "C" int tk_concat_cuda(tk::DType dtype, tk::ConcatParts parts, double slope, const float* bias, void* y,
                              void* stream) {
  TK_DISPATCH_CUDA(dtype, T, {
    TK_LAUNCH(tk::concat, (tk::can_read_parts<T>(parts, y)), (tk::ConcatLaunch{parts, V}), parts, float(slope), bias,
              TK_OUT(y));
  });
  return int(cudaGetLastError());
}

#define TK_A_BLOCK_A_GROUP(kernel, ...) \
  do { \
    const auto on = static_cast<cudaStream_t>(stream); \
    const dim3 groups(shape.num_groups); \
    TK_DISPATCH_CUDA(dtype, T, { tk::kernel<T><<<groups, tk::kGroupThreads, 0, on>>>(shape, __VA_ARGS__); }); \
    return int(cudaGetLastError()); \
  } while (false)

extern "C" int tk_minibatch_stddev_cuda(tk::DType dtype, tk::StddevShape shape, const void* x, void* y, void* stream) {
  TK_A_BLOCK_A_GROUP(stddev, TK_IN(x), TK_OUT(y));
}

extern "C" int tk_minibatch_stddev_backward_cuda(tk::DType dtype, tk::StddevShape shape, const void* g, const void* x,
                                                 void* grad_x, void* stream) {
  TK_A_BLOCK_A_GROUP(stddev_backward, TK_IN(g), TK_IN(x), TK_OUT(grad_x));
}

extern "C" int tk_minibatch_stddev_backward_backward_cuda(tk::DType dtype, tk::StddevShape shape, const void* v,
                                                          const void* g, const void* x, void* grad_g, void* grad_x,
                                                          void* stream) {
  TK_A_BLOCK_A_GROUP(stddev_backward_backward, TK_IN(v), TK_IN(g), TK_IN(x), TK_OUT(grad_g), TK_OUT(grad_x));
}
