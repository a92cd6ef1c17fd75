// Dropout masks from a counter: Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
// The same words as trainkit.random: element e of a sample is word e % 4 of block e / 4. Own code: cuRAND draws in
// another order, and the CPU and CUDA masks must be the same bits.
#pragma once

#include <cmath>

#if defined(__AVX2__) && !defined(__CUDACC__)
#include <immintrin.h>
#endif

#include "types.h"

namespace tk {

// A sample holds at most 2^34 elements: its blocks are counted in 32 bits.
constexpr int64_t kMaxSampleSize = int64_t(1) << 34;

TK_HD void philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1, uint32_t (&out)[4]) {
#if defined(__CUDACC__)
#pragma unroll
#else
#pragma GCC unroll 10
#endif
  for (int round = 0; round < 10; ++round) {
    const uint64_t first = uint64_t(c0) * 0xD2511F53u, second = uint64_t(c2) * 0xCD9E8D57u;
    c0 = uint32_t(second >> 32) ^ c1 ^ k0;
    c1 = uint32_t(second);
    c2 = uint32_t(first >> 32) ^ c3 ^ k1;
    c3 = uint32_t(first);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  out[0] = c0;
  out[1] = c1;
  out[2] = c2;
  out[3] = c3;
}

// What a kernel needs to draw its masks. `positions` has one number a sample; without it nothing is dropped.
struct DropoutMask {
  const int64_t* positions = nullptr;
  uint32_t key_low = 0, key_high = 0, call = 0;
  uint32_t threshold = 0;  // of 24 bits
  double scale = 1.0;

  TK_HD bool drops() const { return positions != nullptr; }

  // The four words of elements [4 * block, 4 * block + 4) of a sample.
  TK_HD void words(int64_t position, int64_t block, uint32_t (&out)[4]) const {
    philox(uint32_t(block), call, uint32_t(position), uint32_t(uint64_t(position) >> 32), key_low, key_high, out);
  }

  // scale where kept, else 0.
  template <class A>
  TK_HD A factor(uint32_t word) const {
    return (word >> 8) >= threshold ? A(scale) : A(0);
  }
};

// positions: nullptr for no dropout; key: 63 bits.
inline DropoutMask make_mask(const int64_t* positions, double p, int64_t key, int64_t call) {
  DropoutMask mask;
  mask.positions = p > 0.0 ? positions : nullptr;
  mask.key_low = uint32_t(uint64_t(key));
  mask.key_high = uint32_t(uint64_t(key) >> 32);
  mask.call = uint32_t(uint64_t(call));
  // The uniform numbers are float32, and torch compares them with p as a float32.
  mask.threshold = uint32_t(std::ceil(double(float(p)) * 16777216.0));
  mask.scale = 1.0 / (1.0 - p);
  return mask;
}

#if !defined(__CUDACC__)

// Elements whose factors are drawn at a time on a CPU: they stay in the first cache.
constexpr int64_t kMaskTile = 1024;
// Room for the whole blocks that hold a tile's elements.
constexpr int64_t kMaskRoom = kMaskTile + 40;

#if defined(__AVX2__)

// Eight blocks from `block` on; each 64-bit lane holds a word of one block in its lower half. What the upper halves
// hold is never looked at: the multiplication reads lower halves.
inline void draw_blocks(const DropoutMask& mask, int64_t position, uint32_t block, uint32_t* words) {
  const __m256i multiplier0 = _mm256_set1_epi64x(0xD2511F53), multiplier2 = _mm256_set1_epi64x(0xCD9E8D57);
  const __m256i first = _mm256_add_epi64(_mm256_set1_epi64x(block), _mm256_setr_epi64x(0, 1, 2, 3));
  __m256i c0[2] = {first, _mm256_add_epi64(first, _mm256_set1_epi64x(4))}, c1[2], c2[2], c3[2];
  for (int half = 0; half < 2; ++half) {
    c1[half] = _mm256_set1_epi64x(mask.call);
    c2[half] = _mm256_set1_epi64x(position);
    c3[half] = _mm256_set1_epi64x(int64_t(uint64_t(position) >> 32));
  }
  uint32_t k0 = mask.key_low, k1 = mask.key_high;
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
    for (int half = 0; half < 2; ++half) {
      const __m256i product0 = _mm256_mul_epu32(c0[half], multiplier0);
      const __m256i product2 = _mm256_mul_epu32(c2[half], multiplier2);
      c0[half] = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(product2, 32), c1[half]), _mm256_set1_epi64x(k0));
      c2[half] = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(product0, 32), c3[half]), _mm256_set1_epi64x(k1));
      c1[half] = product2;
      c3[half] = product0;
    }
  }
  for (int half = 0; half < 2; ++half) {
    const __m256i low = _mm256_blend_epi32(c0[half], _mm256_slli_epi64(c1[half], 32), 0xAA);
    const __m256i high = _mm256_blend_epi32(c2[half], _mm256_slli_epi64(c3[half], 32), 0xAA);
    const __m256i even = _mm256_unpacklo_epi64(low, high), odd = _mm256_unpackhi_epi64(low, high);
    __m256i* to = reinterpret_cast<__m256i*>(words + 16 * half);
    _mm256_storeu_si256(to, _mm256_permute2x128_si256(even, odd, 0x20));
    _mm256_storeu_si256(to + 1, _mm256_permute2x128_si256(even, odd, 0x31));
  }
}

#else

inline void draw_blocks(const DropoutMask& mask, int64_t position, uint32_t block, uint32_t* words) {
  for (uint32_t lane = 0; lane < 8; ++lane) {
    uint32_t out[4];
    mask.words(position, block + lane, out);
    for (int word = 0; word < 4; ++word) words[4 * lane + word] = out[word];
  }
}

#endif

// factors[i] for elements [first, first + count) of a sample, count <= kMaskTile; `factors` has room for kMaskRoom.
// Returns where in it the first element's factor lies.
template <class A>
inline const A* draw_factors(const DropoutMask& mask, int64_t position, int64_t first, int64_t count, A* factors) {
  uint32_t words[kMaskRoom];
  const int64_t begin = first / 4, end = (first + count + 3) / 4;
  for (int64_t block = begin; block < end; block += 8)
    draw_blocks(mask, position, uint32_t(block), words + 4 * (block - begin));
  const uint32_t threshold = mask.threshold;
  const A scale = A(mask.scale);
  for (int64_t i = 0; i < 4 * (end - begin); ++i) factors[i] = (words[i] >> 8) >= threshold ? scale : A(0);
  return factors + first % 4;
}

#endif

}  // namespace tk
