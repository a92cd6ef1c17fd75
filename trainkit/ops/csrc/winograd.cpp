// The transforms of Winograd's F(4x4, 3x3) (Lavin and Gray, CVPR 2016, arXiv 1509.09308), points 0, 1, -1, 2, -2 and
// infinity, for the CPU: one side of a 3x3 convolution with padding 1 becomes 36 matrix products.
//
// An image [B, H, W, C] is B * H/4 * W/4 tiles of 4x4 pixels, numbered from 0. It is transformed in parts, matrices
// [36, tiles, C] that stay in a core's cache; `first` is the number of a part's first tile. Each transform is linear, and
// along rows and columns the same.
#include "common/products.h"
#include "common/tensor.h"

namespace tk {
namespace {

// Of a tile's 6x6 pixels, which overlap those of its neighbours: B^T d.
struct OfInput {
  static constexpr int kIn = 6, kOut = 6;
  template <class T, class V>
  static void apply(const V (&d)[kIn], V (&y)[kOut]) {
    const V a = d[4] - T(4) * d[2], b = d[3] - T(4) * d[1], c = d[4] - d[2], e = T(2) * (d[3] - d[1]);
    y[0] = T(4) * d[0] - T(5) * d[2] + d[4];
    y[1] = a + b;
    y[2] = a - b;
    y[3] = c + e;
    y[4] = c - e;
    y[5] = T(4) * d[1] - T(5) * d[3] + d[5];
  }
};

// Of products, to 4x4 pixels: A^T m.
struct OfOutput {
  static constexpr int kIn = 6, kOut = 4;
  template <class T, class V>
  static void apply(const V (&m)[kIn], V (&y)[kOut]) {
    const V p = m[1] + m[2], q = m[1] - m[2], r = m[3] + m[4], s = m[3] - m[4];
    y[0] = m[0] + p + r;
    y[1] = q + T(2) * s;
    y[2] = p + T(4) * r;
    y[3] = q + T(8) * s + m[5];
  }
};

// Of a gradient of 4x4 pixels: A g, the adjoint of OfOutput.
struct OfGradient {
  static constexpr int kIn = 4, kOut = 6;
  template <class T, class V>
  static void apply(const V (&g)[kIn], V (&y)[kOut]) {
    const V a = g[0] + g[2], b = g[1] + g[3], c = g[0] + T(4) * g[2], e = T(2) * g[1] + T(8) * g[3];
    y[0] = g[0];
    y[1] = a + b;
    y[2] = a - b;
    y[3] = c + e;
    y[4] = c - e;
    y[5] = g[3];
  }
};

// Both sides of a tile: to(i, j, value) of get(i, j), vectors of channels.
template <class F, class T, class Get, class To>
void transform(const Get& get, const To& to) {
  using V = typename VectorOf<T>::type;
  V half[F::kOut][F::kIn];
#pragma GCC unroll 6
  for (int j = 0; j < F::kIn; ++j) {
    V column[F::kIn], transformed[F::kOut];
#pragma GCC unroll 6
    for (int i = 0; i < F::kIn; ++i) column[i] = get(i, j);
    F::template apply<T>(column, transformed);
#pragma GCC unroll 6
    for (int i = 0; i < F::kOut; ++i) half[i][j] = transformed[i];
  }
#pragma GCC unroll 6
  for (int i = 0; i < F::kOut; ++i) {
    V transformed[F::kOut];
    F::template apply<T>(half[i], transformed);
#pragma GCC unroll 6
    for (int j = 0; j < F::kOut; ++j) to(i, j, transformed[j]);
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

// f(first channel, load, store), for each vector of channels; load and store take the address of the first channel.
template <class T, class F>
void for_channels(int64_t channels, const F& f) {
  using V = typename VectorOf<T>::type;
  int64_t c = 0;
  for (; c + kWidth<T> <= channels; c += kWidth<T>)
    f(c, [](const T* from) { return load(from); }, [](T* to, V value) { std::memcpy(to, &value, sizeof(V)); });
  if (const int64_t rest = channels - c) {
    const auto load_some = [rest](const T* from) {
      V value = {};
      std::memcpy(&value, from, size_t(rest) * sizeof(T));
      return value;
    };
    f(c, load_some, [rest](T* to, V value) { std::memcpy(to, &value, size_t(rest) * sizeof(T)); });
  }
}

// scale 2: of x doubled in height and width by nearest neighbour.
template <class T>
void input(const Shape& s, int64_t scale, int64_t first, int64_t num, const T* x, T* v) {
  using V = typename VectorOf<T>::type;
  const int64_t height = s.height / scale, width = s.width / scale;
  for_tiles(s, first, num, [&](int64_t t, int64_t sample, int64_t row, int64_t column) {
    const T* from[6][6];  // null: padding
    for (int64_t i = 0; i < 6; ++i)
      for (int64_t j = 0; j < 6; ++j) {
        const int64_t y = row + i - 1, z = column + j - 1;
        const bool is_inside = y >= 0 && y < s.height && z >= 0 && z < s.width;
        from[i][j] = is_inside ? x + ((sample * height + y / scale) * width + z / scale) * s.channels : nullptr;
      }
    for_channels<T>(s.channels, [&](int64_t c, const auto& load, const auto& store) {
      transform<OfInput, T>([&](int i, int j) { return from[i][j] ? load(from[i][j] + c) : V{}; },
                            [&](int i, int j, V value) { store(v + ((i * 6 + j) * num + t) * s.channels + c, value); });
    });
  });
}

template <class T>
void gradient(const Shape& s, int64_t first, int64_t num, const T* g, T* v) {
  using V = typename VectorOf<T>::type;
  for_tiles(s, first, num, [&](int64_t t, int64_t sample, int64_t row, int64_t column) {
    const T* from = g + ((sample * s.height + row) * s.width + column) * s.channels;
    for_channels<T>(s.channels, [&](int64_t c, const auto& load, const auto& store) {
      transform<OfGradient, T>(
          [&](int i, int j) { return load(from + (i * s.width + j) * s.channels + c); },
          [&](int i, int j, V value) { store(v + ((i * 6 + j) * num + t) * s.channels + c, value); });
    });
  });
}

// y = leaky ReLU of slope `slope` of the convolution plus bias; bias: [C], or null.
template <class T>
void output(const Shape& s, int64_t first, int64_t num, const T* m, const T* bias, T slope, T* y) {
  using V = typename VectorOf<T>::type;
  for_tiles(s, first, num, [&](int64_t t, int64_t sample, int64_t row, int64_t column) {
    T* to = y + ((sample * s.height + row) * s.width + column) * s.channels;
    for_channels<T>(s.channels, [&](int64_t c, const auto& load, const auto& store) {
      const V added = bias ? load(bias + c) : V{};
      transform<OfOutput, T>([&](int i, int j) { return load(m + ((i * 6 + j) * num + t) * s.channels + c); },
                             [&](int i, int j, V value) {
                               const V u = value + added, low = slope * u;
                               store(to + (i * s.width + j) * s.channels + c, u > low ? u : low);  // slope <= 1
                             });
    });
  });
}

// -- convolutions -----------------------------------------------------------------------------------------------------

template <class T>
T* matrix_of(const Tensor& like, int64_t num_tiles, int64_t channels, Tensor& memory) {
  memory = unset(like, {36 * num_tiles * channels});
  return mutable_data<T>(memory);
}

// f(first tile, number of tiles), for each part.
template <class F>
void for_parts(int64_t begin, int64_t end, int64_t num_parts, int64_t num_tiles, const F& f) {
  for (int64_t i = begin; i < end; ++i) {
    const int64_t first = i * num_tiles / num_parts;
    f(first, (i + 1) * num_tiles / num_parts - first);
  }
}

template <class T>
void convolve(const Tensor& x, const Tensor& weight, const T* bias, T slope, int64_t scale, int64_t most, Tensor& y) {
  const Shape of_x{y.size(1), y.size(2), x.size(3)}, of_y{y.size(1), y.size(2), y.size(3)};
  const int64_t num_tiles = y.size(0) * of_y.tiles(), num_parts = (num_tiles + most - 1) / most;
  const int64_t C = of_x.channels, D = of_y.channels;
  parallel_for(num_parts, 1, [&](int64_t begin, int64_t end) {
    Tensor memory[2];
    T *v = matrix_of<T>(x, most, C, memory[0]), *m = matrix_of<T>(x, most, D, memory[1]);
    for_parts(begin, end, num_parts, num_tiles, [&](int64_t first, int64_t num) {
      input<T>(of_x, scale, first, num, data<T>(x), v);
      for (int64_t p = 0; p < 36; ++p)
        multiply<T>(num, C, D, {v + p * num * C, C}, {data<T>(weight) + p * C * D, D}, {m + p * num * D, D}, false);
      output<T>(of_y, first, num, m, bias, slope, mutable_data<T>(y));
    });
  });
}

// Parts one after another, so that the sum does not depend on the number of threads.
template <class T>
void correlate(const Tensor& x, const Tensor& g, int64_t scale, int64_t most, Tensor& sum) {
  const Shape of_x{g.size(1), g.size(2), x.size(3)}, of_g{g.size(1), g.size(2), g.size(3)};
  const int64_t num_tiles = g.size(0) * of_g.tiles(), num_parts = (num_tiles + most - 1) / most;
  const int64_t C = of_x.channels, D = of_g.channels;
  Tensor memory[2];
  T *v = matrix_of<T>(x, most, C, memory[0]), *m = matrix_of<T>(x, most, D, memory[1]), *to = mutable_data<T>(sum);
  for_parts(0, num_parts, num_parts, num_tiles, [&](int64_t first, int64_t num) {
    input<T>(of_x, scale, first, num, data<T>(x), v);
    gradient<T>(of_g, first, num, data<T>(g), m);
    parallel_for(36, std::max<int64_t>(1, (int64_t(1) << 18) / (num * C * D)), [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p)
        multiply<T>(C, num, D, {v + p * num * C, 1, C}, {m + p * num * D, D}, {to + p * C * D, D}, first > 0);
    });
  });
}

// -- ops --------------------------------------------------------------------------------------------------------------

// x: [B, H, W, C]; y: [B, H, W, D], of twice the height and width with scale 2; matrices: [36, C, D].
void check(const Tensor& x, const Tensor& y, const Tensor& matrices, int64_t scale, int64_t most) {
  STD_TORCH_CHECK(x.dim() == 4 && y.dim() == 4 && matrices.dim() == 3 && matrices.size(0) == 36,
                  "trainkit: winograd takes [batch, height, width, channels] and [36, in, out]");
  STD_TORCH_CHECK(matrices.size(1) == x.size(3) && matrices.size(2) == y.size(3),
                  "trainkit: winograd's matrices do not fit the channels");
  for (const Tensor* each : {&x, &y, &matrices}) {
    check_contiguous(*each, "an operand");
    check_same_dtype(x, *each, "an operand");
  }
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double,
                  "trainkit: winograd takes float32 and float64");
  STD_TORCH_CHECK(y.size(0) == x.size(0) && y.size(1) == scale * x.size(1) && y.size(2) == scale * x.size(2),
                  "trainkit: winograd's images do not match");
  STD_TORCH_CHECK(y.size(1) % 4 == 0 && y.size(2) % 4 == 0, "trainkit: height and width must be multiples of 4");
  STD_TORCH_CHECK(most > 0, "trainkit: a part must have tiles");
}

#define TK_OF_DTYPE(x, call) \
  if ((x).scalar_type() == ScalarType::Double) { \
    using T = double; \
    call; \
  } else { \
    using T = float; \
    call; \
  }

void winograd_convolve_(Tensor x, Tensor weight, std::optional<Tensor> bias, double slope, bool doubled, int64_t most,
                        Tensor y) {
  check(x, y, weight, doubled ? 2 : 1, most);
  if (bias) {
    check_contiguous(*bias, "bias");
    check_same_dtype(y, *bias, "bias");
    STD_TORCH_CHECK(bias->numel() == y.size(3), "trainkit: bias must have one element a channel");
  }
  TK_OF_DTYPE(x, convolve<T>(x, weight, bias ? data<T>(*bias) : nullptr, T(slope), doubled ? 2 : 1, most, y))
}

void winograd_correlate_(Tensor x, Tensor g, bool doubled, int64_t most, Tensor sum) {
  check(x, g, sum, doubled ? 2 : 1, most);
  TK_OF_DTYPE(x, correlate<T>(x, g, doubled ? 2 : 1, most, sum))
}

}  // namespace
}  // namespace tk

STABLE_TORCH_LIBRARY_FRAGMENT(trainkit, m) {
  m.def(
      "winograd_convolve_(Tensor x, Tensor weight, Tensor? bias, float slope, bool doubled, int most, Tensor(a!) y)"
      " -> ()");
  m.def("winograd_correlate_(Tensor x, Tensor g, bool doubled, int most, Tensor(a!) sum) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(trainkit, CPU, m) {
  m.impl("winograd_convolve_", TORCH_BOX(&tk::winograd_convolve_));
  m.impl("winograd_correlate_", TORCH_BOX(&tk::winograd_correlate_));
}
