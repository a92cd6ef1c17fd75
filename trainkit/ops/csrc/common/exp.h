// exp for loops that a compiler vectorises: no call and no branch.
#pragma once

#include <cmath>

#include "types.h"

namespace tk {

// e^x within 1.5 units in the last place; 0 below -87.3, infinity above 88.3, NaN of NaN.
TK_HD float exp(float x) {
#if defined(__CUDA_ARCH__)
  return ::expf(x);
#else
  // x = n ln 2 + r with |r| <= ln 2 / 2: adding 1.5 * 2^23 leaves n, rounded, in the lowest bits.
  const float shifted = x * 1.44269504f + 12582912.0f;
  const float n = shifted - 12582912.0f;
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;  // ln 2 in two parts; n times the first is exact
  // e^r = 1 + r + r^2 q(r), with q the minimax polynomial of that degree: relative error 3.1e-9.
  float q = 1.381459860e-03f;
  q = q * r + 8.368717129e-03f;
  q = q * r + 4.166838806e-02f;
  q = q * r + 1.666652063e-01f;
  q = q * r + 4.999999345e-01f;
  const float power = (q * r) * r + r + 1.0f;
  const float result = power * bit_cast<float>((bit_cast<uint32_t>(shifted) + 127u) << 23);
  // Chosen by bits: a conditional between floats that may trap would keep the loop from being vectorised.
  const uint32_t too_low = x < -87.3f ? ~0u : 0u;
  const uint32_t too_high = x > 88.3f ? ~0u : 0u;
  return bit_cast<float>((bit_cast<uint32_t>(result) & ~(too_low | too_high)) | (0x7f800000u & too_high));
#endif
}

TK_HD double exp(double x) { return ::exp(x); }

}  // namespace tk
