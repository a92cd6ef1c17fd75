// CUDA kernels of the resampling ops. A thread has V neighbouring pixels of a row of the smaller image, and the two
// rows of 2V pixels of the larger one that belong to them. Rows of all planes are counted through: row r of the smaller
// images belongs to rows 2r and 2r + 1 of the larger ones, which start at element 4 r width.
#include "resample.h"

#include "common/rows.h"

namespace tk {
namespace {

template <int V, class T>
TK_DEVICE void read_pair(const T* from, int64_t at, float (&out)[2 * V]) {
  float half[V];
#pragma unroll
  for (int part = 0; part < 2; ++part) {
    read<V>(from, at + part * V, half);
#pragma unroll
    for (int i = 0; i < V; ++i) out[part * V + i] = half[i];
  }
}

template <int V, class T>
TK_DEVICE void write_pair(T* to, int64_t at, const float (&in)[2 * V]) {
  float half[V];
#pragma unroll
  for (int part = 0; part < 2; ++part) {
#pragma unroll
    for (int i = 0; i < V; ++i) half[i] = in[part * V + i];
    write<V>(to, at + part * V, half);
  }
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads) upsample2(int64_t rows, int64_t width, float scale, const T* x, T* y) {
  const int64_t row = row_of_thread();
  if (row >= rows) return;
  for (int64_t j = first_of_thread<V>(); j < width; j += step_of_thread<V>()) {
    float in[V], out[2 * V];
    read<V>(x, row * width + j, in);
#pragma unroll
    for (int i = 0; i < V; ++i) out[2 * i] = out[2 * i + 1] = scale * in[i];
    write_pair<V>(y, row * 4 * width + 2 * j, out);
    write_pair<V>(y, row * 4 * width + 2 * width + 2 * j, out);
  }
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads) downsample2(int64_t rows, int64_t width, float scale, const T* y, T* x) {
  const int64_t row = row_of_thread();
  if (row >= rows) return;
  for (int64_t j = first_of_thread<V>(); j < width; j += step_of_thread<V>()) {
    float upper[2 * V], lower[2 * V], out[V];
    read_pair<V>(y, row * 4 * width + 2 * j, upper);
    read_pair<V>(y, row * 4 * width + 2 * width + 2 * j, lower);
#pragma unroll
    for (int i = 0; i < V; ++i) out[i] = scale * (upper[2 * i] + upper[2 * i + 1] + lower[2 * i] + lower[2 * i + 1]);
    write<V>(x, row * width + j, out);
  }
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    upsample_blur(int64_t rows, int64_t height, int64_t width, const T* x, T* y) {
  const int64_t row = row_of_thread();
  if (row >= rows) return;
  const int64_t i = row % height;
  for (int64_t j = first_of_thread<V>(); j < width; j += step_of_thread<V>()) {
    const int64_t left = j > 0 ? j - 1 : 0, right = j + V < width ? j + V : width - 1;
    float rows_in[3][V + 2];  // above, this one, below, with a neighbour on each side
#pragma unroll
    for (int k = 0; k < 3; ++k) {
      const int64_t away = k == 0 ? (i > 0 ? -1 : 0) : (k == 2 && i + 1 < height ? 1 : 0);
      const T* from = x + (row + away) * width;
      float middle[V];
      read<V>(from, j, middle);
#pragma unroll
      for (int m = 0; m < V; ++m) rows_in[k][m + 1] = middle[m];
      rows_in[k][0] = load(from, left);
      rows_in[k][V + 1] = load(from, right);
    }
#pragma unroll
    for (int lower = 0; lower < 2; ++lower) {
      float blurred[V + 2], out[2 * V];
#pragma unroll
      for (int m = 0; m < V + 2; ++m) blurred[m] = nearer(rows_in[1][m], rows_in[2 * lower][m]);
#pragma unroll
      for (int m = 0; m < V; ++m) {
        out[2 * m] = nearer(blurred[m + 1], blurred[m]);
        out[2 * m + 1] = nearer(blurred[m + 1], blurred[m + 2]);
      }
      write_pair<V>(y, (2 * row + lower) * 2 * width + 2 * j, out);
    }
  }
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    upsample_blur_adjoint(int64_t rows, int64_t height, int64_t width, const T* y, T* x) {
  const int64_t row = row_of_thread();
  if (row >= rows) return;
  const int64_t i = row % height;
  for (int64_t j = first_of_thread<V>(); j < width; j += step_of_thread<V>()) {
    const int64_t left = j > 0 ? 2 * j - 1 : 0, right = j + V < width ? 2 * (j + V) : 2 * width - 1;
    float sum[2 * V + 2] = {};  // over four rows, with a neighbour on each side
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int64_t away = k == 0 ? (i > 0 ? -1 : 0) : (k == 3 ? (i + 1 < height ? 2 : 1) : k - 1);
      const float weight = k == 0 || k == 3 ? 0.25f : 0.75f;
      const T* from = y + (2 * row + away) * 2 * width;
      float middle[2 * V];
      read_pair<V>(from, 2 * j, middle);
#pragma unroll
      for (int m = 0; m < 2 * V; ++m) sum[m + 1] += weight * middle[m];
      sum[0] += weight * load(from, left);
      sum[2 * V + 1] += weight * load(from, right);
    }
    float out[V];
#pragma unroll
    for (int m = 0; m < V; ++m)
      out[m] = nearer(sum[2 * m + 1], sum[2 * m]) + nearer(sum[2 * m + 2], sum[2 * m + 3]);
    write<V>(x, row * width + j, out);
  }
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    fade_in(int64_t rows, int64_t width, float fade, const T* below, const T* image, T* y) {
  const int64_t row = row_of_thread();
  if (row >= rows) return;
  for (int64_t j = first_of_thread<V>(); j < width; j += step_of_thread<V>()) {
    float in[V];
    read<V>(below, row * width + j, in);
#pragma unroll
    for (int lower = 0; lower < 2; ++lower) {
      const int64_t at = (2 * row + lower) * 2 * width + 2 * j;
      float over[2 * V];
      read_pair<V>(image, at, over);
#pragma unroll
      for (int m = 0; m < 2 * V; ++m) over[m] = mixed(in[m / 2], over[m], fade);
      write_pair<V>(y, at, over);
    }
  }
}

template <class T, int V>
__global__ void __launch_bounds__(kThreads)
    fade_in_adjoint(int64_t rows, int64_t width, float fade, float rest, const T* y, T* below, T* image) {
  const int64_t row = row_of_thread();
  if (row >= rows) return;
  for (int64_t j = first_of_thread<V>(); j < width; j += step_of_thread<V>()) {
    float out[V] = {};
#pragma unroll
    for (int lower = 0; lower < 2; ++lower) {
      const int64_t at = (2 * row + lower) * 2 * width + 2 * j;
      float in[2 * V];
      read_pair<V>(y, at, in);
#pragma unroll
      for (int m = 0; m < 2 * V; ++m) {
        out[m / 2] += in[m];
        in[m] *= fade;
      }
      write_pair<V>(image, at, in);
    }
#pragma unroll
    for (int m = 0; m < V; ++m) out[m] *= rest;
    write<V>(below, row * width + j, out);
  }
}

}  // namespace
}  // namespace tk

// Over rows of the smaller image, by threads that read 16 bytes of it where its rows and all pointers allow that.
#define TK_RESAMPLE(kernel, first, second, third, ...) \
  do { \
    const int64_t rows = shape.planes * shape.height; \
    TK_DISPATCH_CUDA(dtype, T, { \
      TK_LAUNCH(tk::kernel, (tk::can_read_vectors<T>(shape.width, first, second, third)), \
                (tk::RowLaunch{rows, shape.width, V}), rows, __VA_ARGS__); \
    }); \
    return int(cudaGetLastError()); \
  } while (false)

extern "C" int tk_upsample2_cuda(tk::DType dtype, tk::ResampleShape shape, double scale, const void* x, void* y,
                                 void* stream) {
  TK_RESAMPLE(upsample2, x, y, nullptr, shape.width, float(scale), TK_IN(x), TK_OUT(y));
}

extern "C" int tk_downsample2_cuda(tk::DType dtype, tk::ResampleShape shape, double scale, const void* y, void* x,
                                   void* stream) {
  TK_RESAMPLE(downsample2, x, y, nullptr, shape.width, float(scale), TK_IN(y), TK_OUT(x));
}

extern "C" int tk_upsample_blur_cuda(tk::DType dtype, tk::ResampleShape shape, const void* x, void* y, void* stream) {
  TK_RESAMPLE(upsample_blur, x, y, nullptr, shape.height, shape.width, TK_IN(x), TK_OUT(y));
}

extern "C" int tk_upsample_blur_adjoint_cuda(tk::DType dtype, tk::ResampleShape shape, const void* y, void* x,
                                             void* stream) {
  TK_RESAMPLE(upsample_blur_adjoint, x, y, nullptr, shape.height, shape.width, TK_IN(y), TK_OUT(x));
}

extern "C" int tk_fade_in_cuda(tk::DType dtype, tk::ResampleShape shape, double fade, const void* below,
                               const void* image, void* y, void* stream) {
  TK_RESAMPLE(fade_in, below, image, y, shape.width, float(fade), TK_IN(below), TK_IN(image), TK_OUT(y));
}

extern "C" int tk_fade_in_adjoint_cuda(tk::DType dtype, tk::ResampleShape shape, double fade, const void* y,
                                       void* below, void* image, void* stream) {
  TK_RESAMPLE(fade_in_adjoint, below, image, y, shape.width, float(fade), float(1.0 - fade), TK_IN(y), TK_OUT(below),
              TK_OUT(image));
}
