// Sums over rows in two stages, in an order that does not depend on the number of threads. For CPU kernels.
#pragma once

#include <algorithm>
#include <vector>

#include "tensor.h"

namespace tk {

// Into how many runs the rows are cut; each has a sum of its own.
inline int64_t num_runs(int64_t num_rows, int64_t num_columns) {
  constexpr int64_t kElements = 32768, kMax = 64;
  return std::clamp<int64_t>(num_rows * num_columns / kElements, 1, std::min(kMax, std::max<int64_t>(num_rows, 1)));
}

// Calls run(first_row, last_row, sums) for each run of rows, sums being `num_sums` rows of `num_columns` zeros, and then
// adds the runs' sums in order into out[0], out[1], ...
template <class A, class F>
void sum_rows(int64_t num_rows, int64_t num_columns, const std::vector<A*>& out, const F& run) {
  const int64_t runs = num_runs(num_rows, num_columns), size = int64_t(out.size()) * num_columns;
  std::vector<A> sums(size_t(runs * size), A(0));
  parallel_for(runs, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      run(i * num_rows / runs, (i + 1) * num_rows / runs, sums.data() + i * size);
  });
  for (size_t which = 0; which < out.size(); ++which) {
    A* to = out[which];
    std::fill(to, to + num_columns, A(0));
    for (int64_t i = 0; i < runs; ++i) {
      const A* from = sums.data() + i * size + int64_t(which) * num_columns;
      for (int64_t c = 0; c < num_columns; ++c) to[c] += from[c];
    }
  }
}

}  // namespace tk
