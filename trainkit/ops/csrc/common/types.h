// What CPU and CUDA kernels share: dtypes, their conversion to the type that sums are kept in, 16-byte loads.
// Free of torch, so that a .cu compiles in seconds. A type's conversions round to nearest even on both devices.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define TK_HD __host__ __device__ __forceinline__
#define TK_DEVICE __device__ __forceinline__
#else
#define TK_HD inline
#endif

namespace tk {

enum class DType : int32_t { float32 = 0, bfloat16 = 1, float16 = 2, float64 = 3 };

// Storage of two bytes; arithmetic is done in float.
struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

// Accum<T>: what T is computed in.
template <class T>
struct AccumOf {
  using type = float;
};
template <>
struct AccumOf<double> {
  using type = double;
};
template <class T>
using Accum = typename AccumOf<T>::type;

template <class To, class From>
TK_HD To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

// -- T to Accum<T> ---------------------------------------------------------------------------------------------------

TK_HD float widen(float value) { return value; }
TK_HD double widen(double value) { return value; }
TK_HD float widen(bfloat16 value) { return bit_cast<float>(uint32_t(value.bits) << 16); }

TK_HD float widen(float16 value) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(value.bits));
#else
  // Exponent and mantissa move up; the multiplication mends the bias and makes subnormals normal. No branches, so
  // that loops over it vectorise.
  const uint32_t magnitude = uint32_t(value.bits & 0x7fff) << 13;
  const float scaled = bit_cast<float>(magnitude) * bit_cast<float>(uint32_t(254 - 15) << 23);
  const uint32_t special = scaled >= 65536.0f ? 0x7f800000u : 0u;  // infinity and NaN keep their mantissa
  return bit_cast<float>(bit_cast<uint32_t>(scaled) | special | (uint32_t(value.bits & 0x8000) << 16));
#endif
}

// -- Accum<T> to T ---------------------------------------------------------------------------------------------------

template <class T>
struct Narrow;

template <>
struct Narrow<float> {
  static TK_HD float from(float value) { return value; }
};

template <>
struct Narrow<double> {
  static TK_HD double from(double value) { return value; }
};

template <>
struct Narrow<bfloat16> {
  static TK_HD bfloat16 from(float value) {
#if defined(__CUDA_ARCH__)
    return bfloat16{__bfloat16_as_ushort(__float2bfloat16_rn(value))};
#else
    const uint32_t bits = bit_cast<uint32_t>(value);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return bfloat16{uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded)};
#endif
  }
};

template <>
struct Narrow<float16> {
  static TK_HD float16 from(float value) {
#if defined(__CUDA_ARCH__)
    return float16{__half_as_ushort(__float2half_rn(value))};
#else
    const uint32_t all = bit_cast<uint32_t>(value);
    const uint32_t sign = (all >> 16) & 0x8000u;
    const uint32_t bits = all & 0x7fffffffu;
    // Normal: the bias changes and 13 bits are rounded away; what rounds up to 65536 becomes infinity by itself.
    const uint32_t normal = (bits - (uint32_t(127 - 15) << 23) + 0xfffu + ((bits >> 13) & 1u)) >> 13;
    // Subnormal: the addition to 0.5 shifts and rounds the mantissa.
    const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(bits) + 0.5f) - 0x3f000000u;
    const uint32_t special = bits > 0x7f800000u ? 0x7e00u : 0x7c00u;
    const uint32_t finite = bits < (113u << 23) ? subnormal : normal;
    return float16{uint16_t(sign | (bits >= (143u << 23) ? special : finite))};
#endif
  }
};

template <class T>
TK_HD T narrow(Accum<T> value) {
  return Narrow<T>::from(value);
}

template <class T>
TK_HD Accum<T> load(const T* from, int64_t index) {
  return widen(from[index]);
}

template <class T>
TK_HD void store(T* to, int64_t index, Accum<T> value) {
  to[index] = narrow<T>(value);
}

// -- 16 bytes at a time ----------------------------------------------------------------------------------------------

// Elements in 16 bytes: 4 of float32, 8 of the two-byte types, 2 of float64.
template <class T>
constexpr int kVector = 16 / int(sizeof(T));

// Whether `pointer` may be read 16 bytes at a time. A row's start is aligned when the base is and the row's length is a
// multiple of kVector<T>.
TK_HD bool is_aligned(const void* pointer) { return (reinterpret_cast<uintptr_t>(pointer) & 15u) == 0; }

#if defined(__CUDACC__)

// Elements [vector * kVector<T>, (vector + 1) * kVector<T>) of `from`, which is 16-byte aligned.
template <class T>
TK_DEVICE void load_vector(const T* from, int64_t vector, Accum<T> (&out)[kVector<T>]) {
  const uint4 raw = reinterpret_cast<const uint4*>(from)[vector];
  T values[kVector<T>];
  memcpy(values, &raw, 16);
#pragma unroll
  for (int i = 0; i < kVector<T>; ++i) out[i] = widen(values[i]);
}

template <class T>
TK_DEVICE void store_vector(T* to, int64_t vector, const Accum<T> (&in)[kVector<T>]) {
  T values[kVector<T>];
#pragma unroll
  for (int i = 0; i < kVector<T>; ++i) values[i] = narrow<T>(in[i]);
  uint4 raw;
  memcpy(&raw, values, 16);
  reinterpret_cast<uint4*>(to)[vector] = raw;
}

#endif

}  // namespace tk

#define TK_CASE(name, Type, T, ...) \
  case ::tk::DType::name: {         \
    using T = Type;                 \
    __VA_ARGS__;                    \
    break;                          \
  }

#define TK_CASES_OF_CUDA(T, ...)                         \
  TK_CASE(float32, float, T, __VA_ARGS__)                \
  TK_CASE(bfloat16, ::tk::bfloat16, T, __VA_ARGS__)      \
  TK_CASE(float16, ::tk::float16, T, __VA_ARGS__)

// Runs the statements with `T` as the element type of `dtype`:  TK_DISPATCH(dtype, T, { kernel<T>(x, n); });
#define TK_DISPATCH(dtype, T, ...)                \
  do {                                            \
    switch (dtype) {                              \
      TK_CASES_OF_CUDA(T, __VA_ARGS__)            \
      TK_CASE(float64, double, T, __VA_ARGS__)    \
    }                                             \
  } while (false)

// The same for kernels on CUDA, which have no float64: tensor.h's `cuda_dtype_of` has refused it.
#define TK_DISPATCH_CUDA(dtype, T, ...) \
  do {                                  \
    switch (dtype) {                    \
      TK_CASES_OF_CUDA(T, __VA_ARGS__)  \
      case ::tk::DType::float64:        \
        break;                          \
    }                                   \
  } while (false)
