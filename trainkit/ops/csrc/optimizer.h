// LAMB over many pieces of parameters at once, in two passes with a sum over whole parameters between them:
//   moments: g, w, m, v -> m, v and the squared norms of w and u         24 bytes an element
//   apply:   w, m, v, the norms -> w and a bf16 copy of it               16 (18) bytes; u is computed again
// u = m / (scale sqrt(v) + offset) + decay w, where scale and offset hold what is divided by 1 - b^t.
#pragma once

#include "common/types.h"

#if !defined(__CUDACC__)
#include <cmath>
#endif

namespace tk {

// A piece of a parameter; bits and copy may be null. Where bits are 0, w and u count as 0.
struct LambPiece {
  float* weight;
  const float* gradient;
  float* m;
  float* v;
  const uint8_t* bits;
  bfloat16* copy;
  int64_t numel;
  int64_t first_chunk;  // chunks of all pieces are numbered on
  float keep1, take1, keep2, take2;  // m = keep1 m + take1 g;  v = keep2 v + take2 g^2
  float scale, offset, decay, lr;
};

constexpr int64_t kLambChunk = 16384;  // elements; a multiple of 8, so that a chunk's bits begin with a byte

TK_HD float lamb_update(const LambPiece& piece, float weight, float m, float v) {
  return m / (sqrtf(v) * piece.scale + piece.offset) + piece.decay * weight;
}

TK_HD bool is_kept(const uint8_t* bits, int64_t index) {
  return bits == nullptr || ((bits[index >> 3] >> (index & 7)) & 1u);
}

// The piece that has chunk number `chunk`; pieces without elements have none.
TK_HD int find_piece(const LambPiece* pieces, int num_pieces, int64_t chunk) {
  int low = 0, high = num_pieces;  // the last one whose first_chunk <= chunk is in [low, high)
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    if (pieces[middle].first_chunk <= chunk) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// |w| / |u| where the piece's group has weight decay and neither is 0.
TK_HD float lamb_ratio(float decay, double weight_square, double update_square) {
  return decay != 0.0f && weight_square > 0.0 && update_square > 0.0 ? float(sqrt(weight_square / update_square)) : 1.0f;
}

}  // namespace tk

// Pointers are of the device, except `host`: the same pieces in memory of the host, which may go once this returns.
// factor: null, or what gradients are multiplied by.  partial: float32 [num_chunks, 2].
// squares: float64 [num_pieces, 2], of w and of u. Each returns int(cudaGetLastError()).
extern "C" {
int trainkit_lamb_moments_cuda(const tk::LambPiece* host, tk::LambPiece* pieces, int num_pieces, int64_t num_chunks,
                               const float* factor, float* partial, double* squares, void* stream);
int trainkit_lamb_apply_cuda(const tk::LambPiece* host, tk::LambPiece* pieces, int num_pieces, int64_t num_chunks,
                             const double* squares, void* stream);
}
