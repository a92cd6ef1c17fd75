// CPU kernels of the resampling ops, and their registration for both devices.
#include "resample.h"

#include <tuple>

#include "common/tensor.h"

namespace tk {
namespace {

// f(plane) over all planes.
template <class F>
void for_planes(const ResampleShape& shape, const F& f) {
  parallel_for(shape.planes, 16384 / (shape.height * shape.width), [&](int64_t begin, int64_t end) {
    for (int64_t plane = begin; plane < end; ++plane) f(plane);
  });
}

template <class T>
void upsample2(const ResampleShape& s, double scale_, const T* x, T* y) {
  const Accum<T> scale(scale_);
  const int64_t W = s.width;
  for_planes(s, [&](int64_t plane) {
    for (int64_t i = 0; i < s.height; ++i) {
      const T* __restrict from = x + (plane * s.height + i) * W;
      T* __restrict to = y + (plane * s.height + i) * 4 * W;
#pragma omp simd
      for (int64_t j = 0; j < W; ++j) {
        const T value = narrow<T>(scale * load(from, j));
        to[2 * j] = value;
        to[2 * j + 1] = value;
      }
      std::copy_n(to, 2 * W, to + 2 * W);
    }
  });
}

template <class T>
void downsample2(const ResampleShape& s, double scale_, const T* y, T* x) {
  const Accum<T> scale(scale_);
  const int64_t W = s.width;
  for_planes(s, [&](int64_t plane) {
    for (int64_t i = 0; i < s.height; ++i) {
      const T* __restrict upper = y + (plane * s.height + i) * 4 * W;
      const T* __restrict lower = upper + 2 * W;
      T* __restrict to = x + (plane * s.height + i) * W;
#pragma omp simd
      for (int64_t j = 0; j < W; ++j) {
        const auto sum = load(upper, 2 * j) + load(upper, 2 * j + 1) + load(lower, 2 * j) + load(lower, 2 * j + 1);
        store(to, j, scale * sum);
      }
    }
  });
}

// One row of twice the length from `row`, which has one more element at each end.
template <class T>
void widened_row(const Accum<T>* __restrict row, int64_t width, T* __restrict to) {
  for (int64_t j = 0; j < width; ++j) {
    const Accum<T> left = row[j], middle = row[j + 1], right = row[j + 2];
    store(to, 2 * j, nearer(middle, left));
    store(to, 2 * j + 1, nearer(middle, right));
  }
}

template <class T>
void upsample_blur(const ResampleShape& s, const T* x, T* y) {
  using A = Accum<T>;
  const int64_t H = s.height, W = s.width;
  for_planes(s, [&](int64_t plane) {
    thread_local std::vector<A> memory;
    memory.resize(W + 2);
    for (int64_t row = 0; row < 2 * H; ++row) {
      const int64_t i = row / 2, other = std::clamp<int64_t>(row % 2 ? i + 1 : i - 1, 0, H - 1);
      const T* __restrict near = x + (plane * H + i) * W;
      const T* __restrict far = x + (plane * H + other) * W;
      A* __restrict blurred = memory.data() + 1;
#pragma omp simd
      for (int64_t j = 0; j < W; ++j) blurred[j] = nearer(load(near, j), load(far, j));
      blurred[-1] = blurred[0];
      blurred[W] = blurred[W - 1];
      widened_row(memory.data(), W, y + (plane * 2 * H + row) * 2 * W);
    }
  });
}

template <class T>
void upsample_blur_adjoint(const ResampleShape& s, const T* y, T* x) {
  using A = Accum<T>;
  const int64_t H = s.height, W = s.width;
  for_planes(s, [&](int64_t plane) {
    thread_local std::vector<A> memory;
    memory.resize(2 * W + 2);
    const T* image = y + plane * 4 * H * W;
    for (int64_t i = 0; i < H; ++i) {
      const T* __restrict above = image + std::max<int64_t>(2 * i - 1, 0) * 2 * W;
      const T* __restrict upper = image + 2 * i * 2 * W;
      const T* __restrict lower = upper + 2 * W;
      const T* __restrict below = image + std::min(2 * i + 2, 2 * H - 1) * 2 * W;
      A* __restrict sum = memory.data() + 1;
#pragma omp simd
      for (int64_t j = 0; j < 2 * W; ++j)
        sum[j] = nearer(load(upper, j), load(above, j)) + nearer(load(lower, j), load(below, j));
      sum[-1] = sum[0];
      sum[2 * W] = sum[2 * W - 1];
      T* __restrict to = x + (plane * H + i) * W;
#pragma omp simd
      for (int64_t j = 0; j < W; ++j)
        store(to, j, nearer(sum[2 * j], sum[2 * j - 1]) + nearer(sum[2 * j + 1], sum[2 * j + 2]));
    }
  });
}

template <class T>
void fade_in(const ResampleShape& s, double fade_, const T* below, const T* image, T* y) {
  const Accum<T> fade(fade_);
  const int64_t W = s.width;
  for_planes(s, [&](int64_t plane) {
    for (int64_t row = 0; row < 2 * s.height; ++row) {
      const T* __restrict from = below + (plane * s.height + row / 2) * W;
      const int64_t at = (plane * s.height * 2 + row) * 2 * W;
      const T* __restrict over = image + at;
      T* __restrict to = y + at;
#pragma omp simd
      for (int64_t j = 0; j < W; ++j) {
        const auto value = load(from, j);
        store(to, 2 * j, mixed(value, load(over, 2 * j), fade));
        store(to, 2 * j + 1, mixed(value, load(over, 2 * j + 1), fade));
      }
    }
  });
}

template <class T>
void fade_in_adjoint(const ResampleShape& s, double fade_, const T* y, T* below, T* image) {
  const Accum<T> fade(fade_);
  const int64_t W = s.width;
  downsample2(s, 1.0 - fade_, y, below);
  for_planes(s, [&](int64_t plane) {
    const T* __restrict from = y + plane * 4 * s.height * W;
    T* __restrict to = image + plane * 4 * s.height * W;
#pragma omp simd
    for (int64_t j = 0; j < 4 * s.height * W; ++j) store(to, j, fade * load(from, j));
  });
}

// -- ops, for CPU and CUDA --------------------------------------------------------------------------------------------

void check(const Tensor& x, const char* name) {
  STD_TORCH_CHECK(x.dim() == 4, "trainkit: ", name, " must be [batch, channels, height, width]");
  check_contiguous(x, name);
}

ResampleShape of_small(const Tensor& x) {
  check(x, "x");
  return {x.size(0) * x.size(1), x.size(2), x.size(3)};
}

ResampleShape of_large(const Tensor& y) {
  check(y, "x");
  STD_TORCH_CHECK(y.size(2) % 2 == 0 && y.size(3) % 2 == 0, "trainkit: height and width must be even");
  return {y.size(0) * y.size(1), y.size(2) / 2, y.size(3) / 2};
}

Tensor larger(const Tensor& x) { return unset(x, {x.size(0), x.size(1), 2 * x.size(2), 2 * x.size(3)}); }
Tensor smaller(const Tensor& y) { return unset(y, {y.size(0), y.size(1), y.size(2) / 2, y.size(3) / 2}); }

#if defined(TRAINKIT_CUDA)
#define TK_ON_CUDA(x, name, launcher, ...) \
  if ((x).is_cuda()) { \
    const OnDevice device(x); \
    check_launch(launcher(cuda_dtype_of(x), shape, __VA_ARGS__, device.stream()), name); \
  } else
#else
#define TK_ON_CUDA(x, name, launcher, ...)
#endif

Tensor upsample2_op(Tensor x, double scale) {
  const ResampleShape shape = of_small(x);
  Tensor y = larger(x);
  if (x.numel() == 0) return y;
  TK_ON_CUDA(x, "upsample2", tk_upsample2_cuda, scale, x.const_data_ptr(), y.mutable_data_ptr())
  TK_DISPATCH(dtype_of(x), T, { upsample2<T>(shape, scale, data<T>(x), mutable_data<T>(y)); });
  return y;
}

Tensor downsample2_op(Tensor y, double scale) {
  const ResampleShape shape = of_large(y);
  Tensor x = smaller(y);
  if (x.numel() == 0) return x;
  TK_ON_CUDA(y, "downsample2", tk_downsample2_cuda, scale, y.const_data_ptr(), x.mutable_data_ptr())
  TK_DISPATCH(dtype_of(y), T, { downsample2<T>(shape, scale, data<T>(y), mutable_data<T>(x)); });
  return x;
}

Tensor upsample_blur_op(Tensor x) {
  const ResampleShape shape = of_small(x);
  Tensor y = larger(x);
  if (x.numel() == 0) return y;
  TK_ON_CUDA(x, "upsample_blur", tk_upsample_blur_cuda, x.const_data_ptr(), y.mutable_data_ptr())
  TK_DISPATCH(dtype_of(x), T, { upsample_blur<T>(shape, data<T>(x), mutable_data<T>(y)); });
  return y;
}

Tensor upsample_blur_adjoint_op(Tensor y) {
  const ResampleShape shape = of_large(y);
  Tensor x = smaller(y);
  if (x.numel() == 0) return x;
  TK_ON_CUDA(y, "upsample_blur_adjoint", tk_upsample_blur_adjoint_cuda, y.const_data_ptr(), x.mutable_data_ptr())
  TK_DISPATCH(dtype_of(y), T, { upsample_blur_adjoint<T>(shape, data<T>(y), mutable_data<T>(x)); });
  return x;
}

Tensor fade_in_op(Tensor below, Tensor image, double fade) {
  const ResampleShape shape = of_large(image);
  check(below, "below");
  check_same_dtype(below, image, "image");
  STD_TORCH_CHECK(4 * below.numel() == image.numel(), "trainkit: image must be twice as high and wide as below");
  Tensor y = larger(below);
  if (y.numel() == 0) return y;
  TK_ON_CUDA(image, "fade_in", tk_fade_in_cuda, fade, below.const_data_ptr(), image.const_data_ptr(),
             y.mutable_data_ptr())
  TK_DISPATCH(dtype_of(image), T, { fade_in<T>(shape, fade, data<T>(below), data<T>(image), mutable_data<T>(y)); });
  return y;
}

std::tuple<Tensor, Tensor> fade_in_adjoint_op(Tensor y, double fade) {
  const ResampleShape shape = of_large(y);
  Tensor below = smaller(y), image = unset_like(y);
  if (y.numel() == 0) return {below, image};
  TK_ON_CUDA(y, "fade_in_adjoint", tk_fade_in_adjoint_cuda, fade, y.const_data_ptr(), below.mutable_data_ptr(),
             image.mutable_data_ptr())
  TK_DISPATCH(dtype_of(y), T,
              { fade_in_adjoint<T>(shape, fade, data<T>(y), mutable_data<T>(below), mutable_data<T>(image)); });
  return {below, image};
}

}  // namespace
}  // namespace tk

STABLE_TORCH_LIBRARY_FRAGMENT(trainkit, m) {
  m.def("upsample2(Tensor x, float scale) -> Tensor");
  m.def("downsample2(Tensor x, float scale) -> Tensor");
  m.def("upsample_blur(Tensor x) -> Tensor");
  m.def("upsample_blur_adjoint(Tensor x) -> Tensor");
  m.def("fade_in(Tensor below, Tensor image, float fade) -> Tensor");
  m.def("fade_in_adjoint(Tensor x, float fade) -> (Tensor, Tensor)");
}

#define TK_IMPLEMENT(m) \
  m.impl("upsample2", TORCH_BOX(&tk::upsample2_op)); \
  m.impl("downsample2", TORCH_BOX(&tk::downsample2_op)); \
  m.impl("upsample_blur", TORCH_BOX(&tk::upsample_blur_op)); \
  m.impl("upsample_blur_adjoint", TORCH_BOX(&tk::upsample_blur_adjoint_op)); \
  m.impl("fade_in", TORCH_BOX(&tk::fade_in_op)); \
  m.impl("fade_in_adjoint", TORCH_BOX(&tk::fade_in_adjoint_op))

STABLE_TORCH_LIBRARY_IMPL(trainkit, CPU, m) { TK_IMPLEMENT(m); }

#if defined(TRAINKIT_CUDA)
STABLE_TORCH_LIBRARY_IMPL(trainkit, CUDA, m) { TK_IMPLEMENT(m); }
#endif
