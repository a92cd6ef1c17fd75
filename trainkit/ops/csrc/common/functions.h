// The functions of a user's expression beside those of activations.h, in float and double, for CPU and CUDA.
#pragma once

#include "activations.h"

namespace tk {

// -- the library's own -----------------------------------------------------------------------------------------------

#define TK_FUNCTION(name)                                     \
  TK_HD float name(float x) { return ::name##f(x); }          \
  TK_HD double name(double x) { return ::name(x); }

TK_FUNCTION(atan)
TK_FUNCTION(cos)
TK_FUNCTION(cosh)
TK_FUNCTION(expm1)
TK_FUNCTION(log)
TK_FUNCTION(log1p)
TK_FUNCTION(sin)
TK_FUNCTION(sinh)
TK_FUNCTION(sqrt)
TK_FUNCTION(tan)

#undef TK_FUNCTION

TK_HD float pow(float x, float y) { return ::powf(x, y); }
TK_HD double pow(double x, double y) { return ::pow(x, y); }

TK_HD double erfc(double x) { return ::erfc(x); }
TK_HD float erfc(float x) {
  const float tail = 2.0f * exp(-x * x) * scaled_tail(1.41421356f * x);
  return x < 0.0f ? 2.0f - tail : tail;
}

// -- of these --------------------------------------------------------------------------------------------------------

template <class T>
TK_HD T sigmoid(T x) {
  return T(1) / (T(1) + exp(-x));
}

template <class T>
TK_HD T sign(T x) {
  return x > T(0) ? T(1) : x < T(0) ? T(-1) : x * T(0);  // NaN stays
}

template <class T>
TK_HD T max(T x, T y) {
  return x > y || x != x ? x : y;
}

template <class T>
TK_HD T min(T x, T y) {
  return x < y || x != x ? x : y;
}

template <class T>
TK_HD T relu(T x) {
  return x < T(0) ? T(0) : x;
}

template <class T>
TK_HD T rsqrt(T x) {
  return T(1) / sqrt(x);
}

template <class T>
TK_HD T square(T x) {
  return x * x;
}

// log(1 + exp(x))
template <class T>
TK_HD T softplus(T x) {
  return relu(x) + log1p(exp(-abs(x)));
}

template <int kTimes, class T>
TK_HD T power(T x) {
  if constexpr (kTimes == 1) {
    return x;
  } else {
    const T half = power<kTimes / 2>(x);
    return kTimes % 2 ? half * half * x : half * half;
  }
}

}  // namespace tk
