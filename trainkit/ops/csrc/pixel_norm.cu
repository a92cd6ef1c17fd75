// CUDA kernels of bias + leaky ReLU + pixel norm. x is [batch, channels, inner].
//
// A block has `lanes` x `slices` threads. A lane is V neighbouring pixels of one sample, 16 bytes of a channel; its
// channels are dealt to the slices. Every channel is visited twice, first for the sums over channels, then for the
// results: a block's share of x is small enough to be in the cache the second time.
#include "pixel_norm.h"

#include "common/rows.h"

namespace tk {
namespace {

// The first pixel of this thread's lane in channel 0, or -1 beyond the last lane.
template <int V>
__device__ __forceinline__ int64_t first_of_lane(const PixelNormShape& shape) {
  const int64_t lanes_a_sample = shape.inner / V;
  const int64_t lane = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (lane >= shape.batch * lanes_a_sample) return -1;
  const int64_t sample = lane / lanes_a_sample;
  return sample * shape.channels * shape.inner + (lane - sample * lanes_a_sample) * V;
}

// sums[k][i]: this thread's share in sum k of its lane's pixel i; afterwards the sum over slices, in all of them.
// All threads of the block call.
template <int K, int V>
__device__ __forceinline__ void add_slices(float (&sums)[K][V]) {
  __shared__ float shared[kThreads * K * V];  // [slices][K * V][lanes]
  const int lanes = blockDim.x, slices = blockDim.y, columns = K * V * lanes;
#pragma unroll
  for (int k = 0; k < K; ++k)
#pragma unroll
    for (int i = 0; i < V; ++i) shared[threadIdx.y * columns + (k * V + i) * lanes + threadIdx.x] = sums[k][i];
  __syncthreads();
  for (int column = threadIdx.y * lanes + threadIdx.x; column < columns; column += kThreads) {
    float sum = 0.0f;
    for (int slice = 0; slice < slices; ++slice) sum += shared[slice * columns + column];
    shared[column] = sum;  // of slice 0, which this thread alone has read in this column
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < K; ++k)
#pragma unroll
    for (int i = 0; i < V; ++i) sums[k][i] = shared[(k * V + i) * lanes + threadIdx.x];
}

__device__ __forceinline__ float inverse_norm(float sum, float channels, float eps) {
  return rsqrtf(sum / channels + eps);
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    forward(PixelNormShape shape, Rectifier<float> f, float eps, const T* x, const float* bias, T* y) {
  const int64_t first = first_of_lane<V>(shape);
  float sums[1][V] = {};
  if (first >= 0) {
    for (int c = threadIdx.y; c < shape.channels; c += blockDim.y) {
      const float b = bias ? bias[c] : 0.0f;
      float u[V];
      read<V>(x, first + c * shape.inner, u);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const float a = f(u[i] + b);
        sums[0][i] += a * a;
      }
    }
  }
  add_slices(sums);
  if (first < 0) return;
#pragma unroll
  for (int i = 0; i < V; ++i) sums[0][i] = inverse_norm(sums[0][i], shape.channels, eps);
  for (int c = threadIdx.y; c < shape.channels; c += blockDim.y) {
    const float b = bias ? bias[c] : 0.0f;
    float u[V];
    read<V>(x, first + c * shape.inner, u);
#pragma unroll
    for (int i = 0; i < V; ++i) u[i] = f(u[i] + b) * sums[0][i];
    write<V>(y, first + c * shape.inner, u);
  }
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads) backward(PixelNormShape shape, Rectifier<float> f, float eps, const T* g,
                                                     const T* x, const float* bias, T* grad_x) {
  const int64_t first = first_of_lane<V>(shape);
  float sums[2][V] = {};  // of a^2 and g a, then r and -r^3/C S
  if (first >= 0) {
    for (int c = threadIdx.y; c < shape.channels; c += blockDim.y) {
      const float b = bias ? bias[c] : 0.0f;
      float u[V], gi[V];
      read<V>(x, first + c * shape.inner, u);
      read<V>(g, first + c * shape.inner, gi);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const float a = f(u[i] + b);
        sums[0][i] += a * a;
        sums[1][i] += gi[i] * a;
      }
    }
  }
  add_slices(sums);
  if (first < 0) return;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    const float r = inverse_norm(sums[0][i], shape.channels, eps);
    sums[0][i] = r;
    sums[1][i] *= -r * r * r / float(shape.channels);
  }
  for (int c = threadIdx.y; c < shape.channels; c += blockDim.y) {
    const float b = bias ? bias[c] : 0.0f;
    float u[V], gi[V];
    read<V>(x, first + c * shape.inner, u);
    read<V>(g, first + c * shape.inner, gi);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const float ui = u[i] + b;
      u[i] = f.derivative(ui) * (sums[0][i] * gi[i] + sums[1][i] * f(ui));
    }
    write<V>(grad_x, first + c * shape.inner, u);
  }
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    backward_backward(PixelNormShape shape, Rectifier<float> f, float eps, const T* v, const T* g, const T* x,
                      const float* bias, T* grad_g, T* grad_x) {
  const int64_t first = first_of_lane<V>(shape);
  float sums[4][V] = {};  // of a^2, g a, w a and w g
  if (first >= 0) {
    for (int c = threadIdx.y; c < shape.channels; c += blockDim.y) {
      const float b = bias ? bias[c] : 0.0f;
      float u[V], gi[V], w[V];
      read<V>(x, first + c * shape.inner, u);
      read<V>(g, first + c * shape.inner, gi);
      read<V>(v, first + c * shape.inner, w);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const float ui = u[i] + b, a = f(ui), wi = f.derivative(ui) * w[i];
        sums[0][i] += a * a;
        sums[1][i] += gi[i] * a;
        sums[2][i] += wi * a;
        sums[3][i] += wi * gi[i];
      }
    }
  }
  add_slices(sums);
  if (first < 0) return;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    const float r = inverse_norm(sums[0][i], shape.channels, eps);
    const SecondTerms<float> terms(r, shape.channels, sums[1][i], sums[2][i], sums[3][i]);
    sums[0][i] = terms.r;
    sums[1][i] = terms.of_a;
    sums[2][i] = terms.of_g;
    sums[3][i] = terms.of_w;
  }
  for (int c = threadIdx.y; c < shape.channels; c += blockDim.y) {
    const float b = bias ? bias[c] : 0.0f;
    float u[V], gi[V], w[V];
    read<V>(x, first + c * shape.inner, u);
    read<V>(g, first + c * shape.inner, gi);
    read<V>(v, first + c * shape.inner, w);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const float ui = u[i] + b, a = f(ui), m = f.derivative(ui), wi = m * w[i];
      w[i] = sums[0][i] * wi + sums[2][i] * a;
      u[i] = m * (sums[1][i] * a + sums[2][i] * gi[i] + sums[3][i] * wi);
    }
    write<V>(grad_g, first + c * shape.inner, w);
    write<V>(grad_x, first + c * shape.inner, u);
  }
}

// A row is a channel of a sample.
template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    rectify(PixelNormShape shape, Rectifier<float> f, const T* g, const T* x, const float* bias, T* y) {
  const int64_t plane = row_of_thread();
  if (plane >= shape.batch * shape.channels) return;
  const float b = bias ? bias[plane % shape.channels] : 0.0f;
  for (int64_t i = first_of_thread<V>(); i < shape.inner; i += step_of_thread<V>()) {
    float u[V];
    read<V>(x, plane * shape.inner + i, u);
    if (g) {
      float gi[V];
      read<V>(g, plane * shape.inner + i, gi);
#pragma unroll
      for (int j = 0; j < V; ++j) u[j] = f.derivative(u[j] + b) * gi[j];
    } else {
#pragma unroll
      for (int j = 0; j < V; ++j) u[j] = f(u[j] + b);
    }
    write<V>(y, plane * shape.inner + i, u);
  }
}

Rectifier<float> rectifier(const PixelNormOptions& options) { return {float(options.slope), float(options.clamp)}; }

// Lanes and slices of a block, and blocks for all lanes. 8 lanes are a line of 128 bytes.
struct LaneLaunch {
  dim3 threads, blocks;

  LaneLaunch(const PixelNormShape& shape, int vector) {
    const int slices = power_of_two_above(shape.channels, kThreads / 8);
    const int lanes = kThreads / slices;
    threads = dim3(lanes, slices);
    blocks = dim3(unsigned((shape.batch * (shape.inner / vector) + lanes - 1) / lanes));
  }
};

}  // namespace
}  // namespace tk

extern "C" int tk_pixel_norm_cuda(tk::DType dtype, tk::PixelNormShape shape, tk::PixelNormOptions options,
                                  const void* x, const float* bias, void* y, void* stream) {
  TK_DISPATCH_CUDA(dtype, T, {
    TK_LAUNCH(tk::forward, (tk::can_read_vectors<T>(shape.inner, x, y)), (tk::LaneLaunch{shape, V}),
              shape, tk::rectifier(options), float(options.eps), TK_IN(x), bias, TK_OUT(y));
  });
  return int(cudaGetLastError());
}

extern "C" int tk_pixel_norm_backward_cuda(tk::DType dtype, tk::PixelNormShape shape, tk::PixelNormOptions options,
                                           const void* g, const void* x, const float* bias, void* grad_x,
                                           void* stream) {
  TK_DISPATCH_CUDA(dtype, T, {
    TK_LAUNCH(tk::backward, (tk::can_read_vectors<T>(shape.inner, g, x, grad_x)), (tk::LaneLaunch{shape, V}),
              shape, tk::rectifier(options), float(options.eps), TK_IN(g), TK_IN(x), bias, TK_OUT(grad_x));
  });
  return int(cudaGetLastError());
}

extern "C" int tk_pixel_norm_backward_backward_cuda(tk::DType dtype, tk::PixelNormShape shape,
                                                    tk::PixelNormOptions options, const void* v, const void* g,
                                                    const void* x, const float* bias, void* grad_g, void* grad_x,
                                                    void* stream) {
  TK_DISPATCH_CUDA(dtype, T, {
    TK_LAUNCH(tk::backward_backward, (tk::can_read_vectors<T>(shape.inner, v, g, x, grad_g, grad_x)),
              (tk::LaneLaunch{shape, V}), shape, tk::rectifier(options), float(options.eps), TK_IN(v), TK_IN(g),
              TK_IN(x), bias, TK_OUT(grad_g), TK_OUT(grad_x));
  });
  return int(cudaGetLastError());
}

extern "C" int tk_bias_leaky_relu_cuda(tk::DType dtype, tk::PixelNormShape shape, tk::PixelNormOptions options,
                                       const void* g, const void* x, const float* bias, void* y, void* stream) {
  TK_DISPATCH_CUDA(dtype, T, {
    TK_LAUNCH(tk::rectify, (tk::can_read_vectors<T>(shape.inner, g, x, y)),
              (tk::RowLaunch{shape.batch * shape.channels, shape.inner, V}), shape, tk::rectifier(options), TK_IN(g),
              TK_IN(x), bias, TK_OUT(y));
  });
  return int(cudaGetLastError());
}
