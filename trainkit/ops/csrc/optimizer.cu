// A block takes a chunk, and a thread 4 elements at a time: 16 bytes where all of a piece's pointers are aligned to
// them, which pieces of ZeRO's flat partitions need not be.
#include <cuda_runtime.h>

#include "optimizer.h"

namespace {

using tk::LambPiece;

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kBlocks = 4;  // a multiprocessor: with 64 registers a thread, nothing is spilled

struct Chunk {
  int64_t begin, end;
};

__device__ Chunk chunk_of(const LambPiece& piece, int64_t chunk) {
  const int64_t begin = (chunk - piece.first_chunk) * tk::kLambChunk;
  return {begin, min(begin + tk::kLambChunk, piece.numel)};
}

// What the table points to, which the compiler cannot know.
__device__ LambPiece in_global_memory(const LambPiece& piece) {
  __builtin_assume(__isGlobal(piece.weight));
  __builtin_assume(piece.gradient == nullptr || __isGlobal(piece.gradient));
  __builtin_assume(__isGlobal(piece.m));
  __builtin_assume(__isGlobal(piece.v));
  __builtin_assume(piece.copy == nullptr || __isGlobal(piece.copy));
  return piece;
}

__device__ bool is_vectorised(const LambPiece& piece) {
  return tk::is_aligned(piece.weight) && tk::is_aligned(piece.gradient) && tk::is_aligned(piece.m) &&
         tk::is_aligned(piece.v) && (reinterpret_cast<uintptr_t>(piece.copy) & 7u) == 0;
}

struct Squares {
  float weight = 0.0f, update = 0.0f;
};

__device__ void take_gradient(const LambPiece& piece, float factor, bool kept, float weight, float gradient, float& m,
                              float& v, Squares& squares) {
  const float g = gradient * factor;
  m = piece.keep1 * m + piece.take1 * g;
  v = piece.keep2 * v + piece.take2 * (g * g);
  if (kept) {
    const float update = tk::lamb_update(piece, weight, m, v);
    squares.weight += weight * weight;
    squares.update += update * update;
  }
}

// Bits of elements [index, index + 4), index a multiple of 4.
__device__ unsigned nibble(const uint8_t* bits, int64_t index) {
  return bits == nullptr ? 15u : unsigned(bits[index >> 3]) >> (index & 4);
}

__global__ void __launch_bounds__(kThreads, kBlocks)
    moments_kernel(const LambPiece* __restrict__ pieces, int num_pieces, const float* __restrict__ factor_at,
                   float* __restrict__ partial) {
  const LambPiece piece = in_global_memory(pieces[tk::find_piece(pieces, num_pieces, blockIdx.x)]);
  const Chunk chunk = chunk_of(piece, blockIdx.x);
  const float factor = factor_at == nullptr ? 1.0f : *factor_at;
  Squares squares;
  int64_t rest = chunk.begin;
  if (is_vectorised(piece)) {
    rest = chunk.begin + ((chunk.end - chunk.begin) & ~int64_t(3));
    for (int64_t i = chunk.begin + 4 * threadIdx.x; i < rest; i += 4 * kThreads) {
      float weight[4], gradient[4], m[4], v[4];
      tk::load_vector(piece.weight, i / 4, weight);
      tk::load_vector(piece.gradient, i / 4, gradient);
      tk::load_vector(piece.m, i / 4, m);
      tk::load_vector(piece.v, i / 4, v);
      const unsigned kept = nibble(piece.bits, i);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        take_gradient(piece, factor, (kept >> k) & 1u, weight[k], gradient[k], m[k], v[k], squares);
      }
      tk::store_vector(piece.m, i / 4, m);
      tk::store_vector(piece.v, i / 4, v);
    }
  }
  for (int64_t i = rest + threadIdx.x; i < chunk.end; i += kThreads) {
    float m = piece.m[i], v = piece.v[i];
    take_gradient(piece, factor, tk::is_kept(piece.bits, i), piece.weight[i], piece.gradient[i], m, v, squares);
    piece.m[i] = m;
    piece.v[i] = v;
  }
  __shared__ float of_warps[2][kWarps];
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) {
    squares.weight += __shfl_down_sync(0xffffffffu, squares.weight, lane);
    squares.update += __shfl_down_sync(0xffffffffu, squares.update, lane);
  }
  if (threadIdx.x % 32 == 0) {
    of_warps[0][threadIdx.x / 32] = squares.weight;
    of_warps[1][threadIdx.x / 32] = squares.update;
  }
  __syncthreads();
  if (threadIdx.x < 2) {
    float sum = 0.0f;
    for (int warp = 0; warp < kWarps; ++warp) sum += of_warps[threadIdx.x][warp];
    partial[2 * int64_t(blockIdx.x) + threadIdx.x] = sum;
  }
}

// A block sums the chunks of a piece, always in the same order.
__global__ void __launch_bounds__(kThreads, kBlocks)
    sum_kernel(const LambPiece* __restrict__ pieces, const float* __restrict__ partial, double* __restrict__ squares) {
  const LambPiece& piece = pieces[blockIdx.x];
  const int64_t end = piece.first_chunk + (piece.numel + tk::kLambChunk - 1) / tk::kLambChunk;
  double weight = 0.0, update = 0.0;
  for (int64_t chunk = piece.first_chunk + threadIdx.x; chunk < end; chunk += kThreads) {
    weight += partial[2 * chunk];
    update += partial[2 * chunk + 1];
  }
  __shared__ double of_threads[2][kThreads];
  of_threads[0][threadIdx.x] = weight;
  of_threads[1][threadIdx.x] = update;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) {
      of_threads[0][threadIdx.x] += of_threads[0][threadIdx.x + half];
      of_threads[1][threadIdx.x] += of_threads[1][threadIdx.x + half];
    }
  }
  if (threadIdx.x == 0) {
    squares[2 * blockIdx.x] = of_threads[0][0];
    squares[2 * blockIdx.x + 1] = of_threads[1][0];
  }
}

__global__ void __launch_bounds__(kThreads, kBlocks)
    apply_kernel(const LambPiece* __restrict__ pieces, int num_pieces, const double* __restrict__ squares) {
  const int number = tk::find_piece(pieces, num_pieces, blockIdx.x);
  const LambPiece piece = in_global_memory(pieces[number]);
  const Chunk chunk = chunk_of(piece, blockIdx.x);
  __shared__ float shared_rate;
  if (threadIdx.x == 0) {
    shared_rate = piece.lr * tk::lamb_ratio(piece.decay, squares[2 * number], squares[2 * number + 1]);
  }
  __syncthreads();
  const float rate = shared_rate;
  int64_t rest = chunk.begin;
  if (is_vectorised(piece)) {
    rest = chunk.begin + ((chunk.end - chunk.begin) & ~int64_t(3));
    for (int64_t i = chunk.begin + 4 * threadIdx.x; i < rest; i += 4 * kThreads) {
      float weight[4], m[4], v[4];
      tk::load_vector(piece.weight, i / 4, weight);
      tk::load_vector(piece.m, i / 4, m);
      tk::load_vector(piece.v, i / 4, v);
      const unsigned kept = nibble(piece.bits, i);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float moved = weight[k] - rate * tk::lamb_update(piece, weight[k], m[k], v[k]);
        weight[k] = (kept >> k) & 1u ? moved : 0.0f;
      }
      tk::store_vector(piece.weight, i / 4, weight);
      if (piece.copy != nullptr) {
        tk::bfloat16 rounded[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) rounded[k] = tk::narrow<tk::bfloat16>(weight[k]);
        uint2 raw;
        memcpy(&raw, rounded, 8);
        reinterpret_cast<uint2*>(piece.copy)[i / 4] = raw;
      }
    }
  }
  for (int64_t i = rest + threadIdx.x; i < chunk.end; i += kThreads) {
    const float weight = piece.weight[i];
    const float moved = weight - rate * tk::lamb_update(piece, weight, piece.m[i], piece.v[i]);
    const float kept = tk::is_kept(piece.bits, i) ? moved : 0.0f;
    piece.weight[i] = kept;
    if (piece.copy != nullptr) piece.copy[i] = tk::narrow<tk::bfloat16>(kept);
  }
}

int send(const LambPiece* host, LambPiece* pieces, int num_pieces, cudaStream_t stream) {
  // Of pageable memory, which is copied before this returns.
  return int(cudaMemcpyAsync(pieces, host, sizeof(LambPiece) * num_pieces, cudaMemcpyHostToDevice, stream));
}

}  // namespace

extern "C" int trainkit_lamb_moments_cuda(const LambPiece* host, LambPiece* pieces, int num_pieces, int64_t num_chunks,
                                          const float* factor, float* partial, double* squares, void* stream) {
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  if (const int failed = send(host, pieces, num_pieces, on)) return failed;
  if (num_chunks > 0) moments_kernel<<<unsigned(num_chunks), kThreads, 0, on>>>(pieces, num_pieces, factor, partial);
  sum_kernel<<<num_pieces, kThreads, 0, on>>>(pieces, partial, squares);
  return int(cudaGetLastError());
}

extern "C" int trainkit_lamb_apply_cuda(const LambPiece* host, LambPiece* pieces, int num_pieces, int64_t num_chunks,
                                        const double* squares, void* stream) {
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  if (const int failed = send(host, pieces, num_pieces, on)) return failed;
  if (num_chunks > 0) apply_kernel<<<unsigned(num_chunks), kThreads, 0, on>>>(pieces, num_pieces, squares);
  return int(cudaGetLastError());
}
