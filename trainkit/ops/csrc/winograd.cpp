// The transforms of Winograd's F(4x4, 3x3) (Lavin and Gray, CVPR 2016, arXiv 1509.09308), points 0, 1, -1, 2, -2 and
// infinity, for the CPU: one side of a 3x3 convolution with padding 1 becomes 36 matrix products.
//
// An image [B, H, W, C] is B * H/4 * W/4 tiles of 4x4 pixels, numbered from 0; `first` is that of the first one in a
// matrix [36, tiles, C]. Each transform is linear, and along rows and columns the same.
#include <array>

#include "common/tensor.h"

namespace tk {
namespace {

constexpr int kLanes = 16;  // channels at once

template <class T>
using Lanes = std::array<T, kLanes>;

// Of a tile's 6x6 pixels, which overlap those of its neighbours: B^T d.
struct OfInput {
  static constexpr int kIn = 6, kOut = 6;
  template <class T>
  static void apply(const T* __restrict d, int from, T* __restrict y, int to) {
    const T d0 = d[0], d1 = d[from], d2 = d[2 * from], d3 = d[3 * from], d4 = d[4 * from], d5 = d[5 * from];
    const T a = d4 - T(4) * d2, b = d3 - T(4) * d1, c = d4 - d2, e = T(2) * (d3 - d1);
    y[0] = T(4) * d0 - T(5) * d2 + d4;
    y[to] = a + b;
    y[2 * to] = a - b;
    y[3 * to] = c + e;
    y[4 * to] = c - e;
    y[5 * to] = T(4) * d1 - T(5) * d3 + d5;
  }
};

// Of products, to 4x4 pixels: A^T m.
struct OfOutput {
  static constexpr int kIn = 6, kOut = 4;
  template <class T>
  static void apply(const T* __restrict m, int from, T* __restrict y, int to) {
    const T p = m[from] + m[2 * from], q = m[from] - m[2 * from];
    const T r = m[3 * from] + m[4 * from], s = m[3 * from] - m[4 * from];
    y[0] = m[0] + p + r;
    y[to] = q + T(2) * s;
    y[2 * to] = p + T(4) * r;
    y[3 * to] = q + T(8) * s + m[5 * from];
  }
};

// Of a gradient of 4x4 pixels: A g, the adjoint of OfOutput.
struct OfGradient {
  static constexpr int kIn = 4, kOut = 6;
  template <class T>
  static void apply(const T* __restrict g, int from, T* __restrict y, int to) {
    const T g0 = g[0], g1 = g[from], g2 = g[2 * from], g3 = g[3 * from];
    const T a = g0 + g2, b = g1 + g3, c = g0 + T(4) * g2, e = T(2) * g1 + T(8) * g3;
    y[0] = g0;
    y[to] = a + b;
    y[2 * to] = a - b;
    y[3 * to] = c + e;
    y[4 * to] = c - e;
    y[5 * to] = g3;
  }
};

// Both sides of `tile`, kIn x kIn, into kOut x kOut of `out`, which may be `tile`.
template <class F, class T>
void transform(const Lanes<T>* tile, Lanes<T>* out) {
  Lanes<T> half[F::kOut * F::kIn];
  for (int j = 0; j < F::kIn; ++j) {
#pragma omp simd
    for (int k = 0; k < kLanes; ++k)
      F::template apply<T>(&tile[j][k], F::kIn * kLanes, &half[j][k], F::kIn * kLanes);
  }
  for (int i = 0; i < F::kOut; ++i) {
#pragma omp simd
    for (int k = 0; k < kLanes; ++k)
      F::template apply<T>(&half[i * F::kIn][k], kLanes, &out[i * F::kOut][k], kLanes);
  }
}

struct Shape {
  int64_t height, width, channels;

  int64_t tiles() const { return height / 4 * (width / 4); }
};

// f(number of the tile in the matrix, sample, first row, first column).
template <class F>
void for_tiles(const Shape& s, int64_t first, int64_t num, const F& f) {
  const int64_t across = s.width / 4;
  parallel_for(num, 16384 / (36 * s.channels), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const int64_t number = first + t, within = number % s.tiles();
      f(t, number / s.tiles(), within / across * 4, within % across * 4);
    }
  });
}

template <class T>
void copy_lanes(const T* from, T* to, int64_t n) {
  if (n >= kLanes) {
    std::copy_n(from, kLanes, to);
  } else {
    std::copy_n(from, n, to);
  }
}

// scale 2: of x doubled in height and width by nearest neighbour.
template <class T>
void input(const Shape& s, int64_t scale, int64_t first, int64_t num, const T* x, T* v) {
  const int64_t height = s.height / scale, width = s.width / scale;
  for_tiles(s, first, num, [&](int64_t t, int64_t sample, int64_t row, int64_t column) {
    const T* from[36];  // null: padding
    for (int64_t i = 0; i < 6; ++i)
      for (int64_t j = 0; j < 6; ++j) {
        const int64_t y = row + i - 1, z = column + j - 1;
        const bool is_inside = y >= 0 && y < s.height && z >= 0 && z < s.width;
        const int64_t pixel = (sample * height + y / scale) * width + z / scale;
        from[i * 6 + j] = is_inside ? x + pixel * s.channels : nullptr;
      }
    for (int64_t c = 0; c < s.channels; c += kLanes) {
      Lanes<T> tile[36];
      for (int p = 0; p < 36; ++p) {
        if (from[p]) {
          copy_lanes(from[p] + c, tile[p].data(), s.channels - c);
        } else {
          tile[p].fill(T(0));
        }
      }
      transform<OfInput, T>(tile, tile);
      for (int p = 0; p < 36; ++p) copy_lanes(tile[p].data(), v + (p * num + t) * s.channels + c, s.channels - c);
    }
  });
}

template <class T>
void gradient(const Shape& s, int64_t first, int64_t num, const T* g, T* v) {
  for_tiles(s, first, num, [&](int64_t t, int64_t sample, int64_t row, int64_t column) {
    const T* from = g + ((sample * s.height + row) * s.width + column) * s.channels;
    for (int64_t c = 0; c < s.channels; c += kLanes) {
      Lanes<T> tile[36], out[36];
      for (int64_t i = 0; i < 4; ++i)
        for (int64_t j = 0; j < 4; ++j)
          copy_lanes(from + (i * s.width + j) * s.channels + c, tile[i * 4 + j].data(), s.channels - c);
      transform<OfGradient, T>(tile, out);
      for (int p = 0; p < 36; ++p) copy_lanes(out[p].data(), v + (p * num + t) * s.channels + c, s.channels - c);
    }
  });
}

// y = leaky ReLU of slope `slope` of the convolution plus bias; bias: [C], or null.
template <class T>
void output(const Shape& s, int64_t first, int64_t num, const T* m, const T* bias, T slope, T* y) {
  for_tiles(s, first, num, [&](int64_t t, int64_t sample, int64_t row, int64_t column) {
    T* to = y + ((sample * s.height + row) * s.width + column) * s.channels;
    for (int64_t c = 0; c < s.channels; c += kLanes) {
      Lanes<T> tile[36], out[16], added{};
      if (bias) copy_lanes(bias + c, added.data(), s.channels - c);
      for (int p = 0; p < 36; ++p) copy_lanes(m + (p * num + t) * s.channels + c, tile[p].data(), s.channels - c);
      transform<OfOutput, T>(tile, out);
      for (int64_t i = 0; i < 4; ++i)
        for (int64_t j = 0; j < 4; ++j) {
          Lanes<T>& pixel = out[i * 4 + j];
#pragma omp simd
          for (int k = 0; k < kLanes; ++k) {
            const T u = pixel[k] + added[k], low = slope * u;
            pixel[k] = u > low ? u : low;  // slope <= 1
          }
          copy_lanes(pixel.data(), to + (i * s.width + j) * s.channels + c, s.channels - c);
        }
    }
  });
}

// -- ops --------------------------------------------------------------------------------------------------------------

// The shape of an image [B, H, W, C], checked together with a matrix [36, tiles, C] of some of its tiles.
Shape checked(const Tensor& image, const Tensor& matrix, int64_t first, int64_t scale = 1) {
  STD_TORCH_CHECK(image.dim() == 4 && matrix.dim() == 3 && matrix.size(0) == 36 && matrix.size(2) == image.size(3),
                  "trainkit: winograd takes [batch, height, width, channels] and [36, tiles, channels]");
  check_contiguous(image, "an image");
  check_contiguous(matrix, "a matrix");
  check_same_dtype(image, matrix, "a matrix");
  STD_TORCH_CHECK(image.scalar_type() == ScalarType::Float || image.scalar_type() == ScalarType::Double,
                  "trainkit: winograd takes float32 and float64");
  const Shape shape{scale * image.size(1), scale * image.size(2), image.size(3)};
  STD_TORCH_CHECK(shape.height % 4 == 0 && shape.width % 4 == 0, "trainkit: height and width must be multiples of 4");
  STD_TORCH_CHECK(first >= 0 && first + matrix.size(1) <= image.size(0) * shape.tiles(),
                  "trainkit: the image has no such tiles");
  return shape;
}

#define TK_OF_DTYPE(x, call) \
  if ((x).scalar_type() == ScalarType::Double) { \
    using T = double; \
    call; \
  } else { \
    using T = float; \
    call; \
  }

void winograd_input_(Tensor x, bool doubled, Tensor v, int64_t first) {
  const int64_t scale = doubled ? 2 : 1;
  const Shape shape = checked(x, v, first, scale);
  TK_OF_DTYPE(x, input<T>(shape, scale, first, v.size(1), data<T>(x), mutable_data<T>(v)))
}

void winograd_gradient_(Tensor g, Tensor v, int64_t first) {
  const Shape shape = checked(g, v, first);
  TK_OF_DTYPE(g, gradient<T>(shape, first, v.size(1), data<T>(g), mutable_data<T>(v)))
}

void winograd_output_(Tensor m, std::optional<Tensor> bias, double slope, Tensor y, int64_t first) {
  const Shape shape = checked(y, m, first);
  if (bias) {
    check_contiguous(*bias, "bias");
    check_same_dtype(y, *bias, "bias");
    STD_TORCH_CHECK(bias->numel() == shape.channels, "trainkit: bias must have one element a channel");
  }
  TK_OF_DTYPE(y, output<T>(shape, first, m.size(1), data<T>(m), bias ? data<T>(*bias) : nullptr, T(slope),
                           mutable_data<T>(y)))
}

}  // namespace
}  // namespace tk

STABLE_TORCH_LIBRARY_FRAGMENT(trainkit, m) {
  m.def("winograd_input_(Tensor x, bool doubled, Tensor(a!) v, int first) -> ()");
  m.def("winograd_gradient_(Tensor g, Tensor(a!) v, int first) -> ()");
  m.def("winograd_output_(Tensor m, Tensor? bias, float slope, Tensor(a!) y, int first) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(trainkit, CPU, m) {
  m.impl("winograd_input_", TORCH_BOX(&tk::winograd_input_));
  m.impl("winograd_gradient_", TORCH_BOX(&tk::winograd_gradient_));
  m.impl("winograd_output_", TORCH_BOX(&tk::winograd_output_));
}
