// Rows gathered and scattered on CUDA, in units of up to 16 bytes; a warp a row.
#include "packing.h"

#include <cuda_runtime.h>

#include "common/types.h"

namespace tk {
namespace {

constexpr int kRowsABlock = 8;
constexpr int kMostBlocks = 1 << 20;  // larger tensors: a warp takes several rows

// to[i] = from[source[i]], rows of `num` units; zeros where the source is not in [0, num_from).
template <class Unit>
__global__ void __launch_bounds__(32 * kRowsABlock)
    copy_rows(const Unit* from, const int64_t* source, Unit* to, int64_t num_from, int64_t num_to, int64_t num) {
  const int64_t stride = int64_t(gridDim.x) * kRowsABlock;
  for (int64_t row = int64_t(blockIdx.x) * kRowsABlock + threadIdx.y; row < num_to; row += stride) {
    const int64_t place = source[row];
    const bool is_there = place >= 0 && place < num_from;
    const Unit* x = from + (is_there ? place : 0) * num;
    Unit* y = to + row * num;
#pragma unroll 4
    for (int64_t i = threadIdx.x; i < num; i += 32) y[i] = is_there ? x[i] : Unit{};
  }
}

__global__ void __launch_bounds__(256)
    invert(const int64_t* indices, int64_t* inverse, int64_t num_indices, int64_t num_to) {
  const int64_t i = int64_t(blockIdx.x) * 256 + threadIdx.x;
  if (i < num_indices && indices[i] >= 0 && indices[i] < num_to) inverse[indices[i]] = i;
}

template <class Unit>
void launch(const void* from, const int64_t* source, void* to, int64_t num_from, int64_t num_to, int64_t row_bytes,
            cudaStream_t stream) {
  const int64_t wanted = (num_to + kRowsABlock - 1) / kRowsABlock;
  const unsigned blocks = unsigned(wanted < kMostBlocks ? wanted : kMostBlocks);
  copy_rows<Unit><<<blocks, dim3(32, kRowsABlock), 0, stream>>>(static_cast<const Unit*>(from), source,
                                                                static_cast<Unit*>(to), num_from, num_to,
                                                                row_bytes / int64_t(sizeof(Unit)));
}

int copy(const void* from, const int64_t* source, void* to, int64_t num_from, int64_t num_to, int64_t row_bytes,
         cudaStream_t stream) {
  if (num_to == 0 || row_bytes == 0) return int(cudaGetLastError());
  const uintptr_t both = reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to) | uintptr_t(row_bytes);
  if (both % 16 == 0) {
    launch<uint4>(from, source, to, num_from, num_to, row_bytes, stream);
  } else if (both % 4 == 0) {
    launch<uint32_t>(from, source, to, num_from, num_to, row_bytes, stream);
  } else {
    launch<uint8_t>(from, source, to, num_from, num_to, row_bytes, stream);
  }
  return int(cudaGetLastError());
}

}  // namespace
}  // namespace tk

extern "C" int tk_gather_rows(const void* from, const int64_t* indices, void* to, int64_t num_from, int64_t num_to,
                              int64_t row_bytes, void* stream) {
  return tk::copy(from, indices, to, num_from, num_to, row_bytes, static_cast<cudaStream_t>(stream));
}

extern "C" int tk_scatter_rows(const void* from, const int64_t* indices, void* to, int64_t* inverse, int64_t num_from,
                               int64_t num_to, int64_t row_bytes, void* stream) {
  if (num_to == 0) return 0;
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  const cudaError_t code = cudaMemsetAsync(inverse, 0xff, num_to * sizeof(int64_t), on);  // -1 everywhere
  if (code != cudaSuccess) return int(code);
  if (num_from > 0) tk::invert<<<unsigned((num_from + 255) / 256), 256, 0, on>>>(indices, inverse, num_from, num_to);
  return tk::copy(from, inverse, to, num_from, num_to, row_bytes, on);
}
