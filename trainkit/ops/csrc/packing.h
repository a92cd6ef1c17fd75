// Rows gathered and scattered: CUDA's launchers. They return int(cudaGetLastError()).
#pragma once

#include <cstdint>

// to[i] = from[indices[i]], rows of row_bytes bytes; zeros where an index is not in [0, num_from).
extern "C" int tk_gather_rows(const void* from, const int64_t* indices, void* to, int64_t num_from, int64_t num_to,
                              int64_t row_bytes, void* stream);
// to[indices[i]] = from[i], and zeros in the other rows. Indices differ; those out of [0, num_to) are left out.
// inverse: space for num_to numbers.
extern "C" int tk_scatter_rows(const void* from, const int64_t* indices, void* to, int64_t* inverse, int64_t num_from,
                               int64_t num_to, int64_t row_bytes, void* stream);
