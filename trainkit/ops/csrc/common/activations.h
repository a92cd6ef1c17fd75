// Activations with their first and second derivative, in float and double, for CPU and CUDA.
//
// The float forms have no branches and call no library: loops over them vectorise, and a CPU computes what CUDA does.
// exp, erf and tanh are within 3e-7 of the truth, relative (exp: 0 below 2^-125). The polynomials are minimax fits made
// for this file. The double forms are libm's.
#pragma once

#include <cmath>

#include "types.h"

namespace tk {

// -- exp, erf, tanh --------------------------------------------------------------------------------------------------

TK_HD double exp(double x) { return ::exp(x); }
TK_HD double erf(double x) { return ::erf(x); }
TK_HD double tanh(double x) { return ::tanh(x); }

TK_HD float abs(float x) { return bit_cast<float>(bit_cast<uint32_t>(x) & 0x7fffffffu); }
TK_HD double abs(double x) { return ::fabs(x); }

TK_HD float exp(float x) {
  const float shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the low bits are the rounded exponent
  const float n = shifted - 12582912.0f;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
  float p = 0.0013814219273626804f;
  p = p * r + 0.00836889911442995f;
  p = p * r + 0.04166840761899948f;
  p = p * r + 0.1666651964187622f;
  p = p * r + 0.4999999403953552f;
  p = p * (r * r) + r;
  // In two steps: 2^128 is no float.
  const float half_power = bit_cast<float>((bit_cast<uint32_t>(shifted) << 23) + 0x3f000000u);
  float value = (p * half_power + half_power) * 2.0f;
  value = x < -86.9f ? 0.0f : value;
  return x > 88.7228f ? bit_cast<float>(0x7f800000u) : value;
}

// The normal distribution's upper tail at |x|, as a share of exp(-x * x / 2).
TK_HD float scaled_tail(float x) {
  const float t = 1.0f / (1.0f + 0.3f * abs(x));
  float p = 0.03837840259075165f;
  p = p * t - 0.16916663944721222f;
  p = p * t + 0.22866109013557434f;
  p = p * t - 0.0765075534582138f;
  p = p * t + 0.1425362080335617f;
  p = p * t + 0.09468325972557068f;
  p = p * t + 0.1219203993678093f;
  p = p * t + 0.11948768049478531f;
  return p * t + 7.169252057792619e-06f;
}

TK_HD float erf(float x) {
  const float square = x * x, root = 1.41421356f * x;
  float p = 0.00471973791718483f;
  p = p * square - 0.026758072897791862f;
  p = p * square + 0.11282836645841599f;
  p = p * square - 0.37612608075141907f;
  p = p * square + 1.1283791065216064f;
  const float above = 1.0f - 2.0f * exp(-square) * scaled_tail(root);
  const float far = x < 0.0f ? -above : above;
  return square < 0.25f ? x * p : far;
}

TK_HD float tanh(float x) {
  const float square = x * x;
  float p = -0.00566078070551157f;
  p = p * square + 0.020601999014616013f;
  p = p * square - 0.05372922867536545f;
  p = p * square + 0.13331328332424164f;
  p = p * square - 0.33333277702331543f;
  const float far = 1.0f - 2.0f / (exp(2.0f * x) + 1.0f);
  return square < 0.4f ? x + x * (square * p) : far;
}

// The logistic function and its derivative, which does not vanish by rounding where the value nears 1.
template <class T>
struct Logistic {
  T value, slope;
};

template <class T>
TK_HD Logistic<T> logistic(T x) {
  const T e = exp(-abs(x));
  const T above = T(1) / (T(1) + e);
  const T below = e * above;
  return {x < T(0) ? below : above, below * above};
}

// The normal distribution at x: P(X < x), and its density.
template <class T>
struct Normal {
  T below, density;
};

TK_HD Normal<float> normal(float x) {
  const float e = exp(-0.5f * x * x);
  const float tail = e * scaled_tail(x);
  return {x < 0.0f ? tail : 1.0f - tail, e * 0.39894228f};
}

TK_HD Normal<double> normal(double x) {
  return {0.5 * ::erfc(-0.70710678118654752440 * x), 0.39894228040143267794 * ::exp(-0.5 * x * x)};
}

// -- activations: f, its derivative df, and the derivative of that, ddf -------------------------------------------------

struct Gelu {
  template <class T>
  static TK_HD T f(T x) {
    return x * normal(x).below;
  }
  template <class T>
  static TK_HD T df(T x) {
    const Normal<T> at = normal(x);
    return at.below + x * at.density;
  }
  template <class T>
  static TK_HD T ddf(T x) {
    return normal(x).density * (T(2) - x * x);
  }
};

// x * logistic(2 u), where u = sqrt(2 / pi) (x + 0.044715 x^3): the same as 0.5 x (1 + tanh(u)), with one exp.
struct GeluTanh {
  template <class T>
  static TK_HD T f(T x) {
    return x * logistic(twice(x)).value;
  }
  template <class T>
  static TK_HD T df(T x) {
    const Logistic<T> at = logistic(twice(x));
    return at.value + x * at.slope * slope(x);
  }
  template <class T>
  static TK_HD T ddf(T x) {
    const Logistic<T> at = logistic(twice(x));
    const T du = slope(x);
    return at.slope * (T(2) * du + x * ((T(1) - T(2) * at.value) * du * du + T(6 * kCubic) * x));
  }

 private:
  static constexpr double kFirst = 1.5957691216057307117, kCubic = kFirst * 0.044715;
  template <class T>
  static TK_HD T twice(T x) {
    return x * (T(kFirst) + T(kCubic) * (x * x));
  }
  template <class T>
  static TK_HD T slope(T x) {
    return T(kFirst) + T(3 * kCubic) * (x * x);
  }
};

struct Relu {
  template <class T>
  static TK_HD T f(T x) {
    return x < T(0) ? T(0) : x;
  }
  template <class T>
  static TK_HD T df(T x) {
    return x > T(0) ? T(1) : T(0);
  }
  template <class T>
  static TK_HD T ddf(T) {
    return T(0);
  }
};

// Slope 0.2 below zero.
struct LeakyRelu {
  template <class T>
  static TK_HD T f(T x) {
    return x > T(0) ? x : T(0.2) * x;
  }
  template <class T>
  static TK_HD T df(T x) {
    return x > T(0) ? T(1) : T(0.2);
  }
  template <class T>
  static TK_HD T ddf(T) {
    return T(0);
  }
};

struct Silu {
  template <class T>
  static TK_HD T f(T x) {
    return x * logistic(x).value;
  }
  template <class T>
  static TK_HD T df(T x) {
    const Logistic<T> at = logistic(x);
    return at.value + x * at.slope;
  }
  template <class T>
  static TK_HD T ddf(T x) {
    const Logistic<T> at = logistic(x);
    return at.slope * (T(2) + x * (T(1) - T(2) * at.value));
  }
};

}  // namespace tk
