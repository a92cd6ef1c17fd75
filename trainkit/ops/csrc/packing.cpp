// Rows gathered and scattered, of any dtype: CPU kernels, and the ops for both devices. Each is the other's adjoint.
#include "packing.h"

#include <algorithm>
#include <cstring>

#include "common/tensor.h"

namespace tk {
namespace {

int64_t row_bytes(const Tensor& x) {
  int64_t bytes = int64_t(x.element_size());
  for (int64_t d = 1; d < x.dim(); ++d) bytes *= x.size(d);
  return bytes;
}

int64_t rows_a_thread(int64_t bytes) { return 1 + (1 << 17) / std::max<int64_t>(bytes, 1); }

// A new tensor of `num` rows like x's.
Tensor rows_like(const Tensor& x, const Tensor& indices, int64_t num) {
  check_contiguous(x, "x");
  check_contiguous(indices, "indices");
  std::vector<int64_t> shape = shape_of(x);
  shape[0] = num;
  return unset(x, shape);
}

void check_index(int64_t place, int64_t index, int64_t num_rows) {
  STD_TORCH_CHECK(index >= 0 && index < num_rows, "trainkit.ops: indices[", place, "] is ", index,
                  "; it must be 0 to ", num_rows - 1);
}

// to[i] = from[source[i]]; zeros where that is negative.
void copy_rows(const char* from, const int64_t* source, char* to, int64_t num_to, int64_t bytes) {
  parallel_for(num_to, rows_a_thread(bytes), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (source[i] < 0) {
        std::memset(to + i * bytes, 0, bytes);
      } else {
        std::memcpy(to + i * bytes, from + source[i] * bytes, bytes);
      }
    }
  });
}

Tensor gather_rows_cpu(const Tensor& x, const Tensor& indices) {
  const Tensor out = rows_like(x, indices, indices.size(0));
  const int64_t* source = data<int64_t>(indices);
  for (int64_t i = 0; i < indices.size(0); ++i) check_index(i, source[i], x.size(0));
  copy_rows(data<char>(x), source, mutable_data<char>(out), indices.size(0), row_bytes(x));
  return out;
}

Tensor scatter_rows_cpu(const Tensor& x, const Tensor& indices, int64_t num_rows) {
  const Tensor out = rows_like(x, indices, num_rows);
  const int64_t* index = data<int64_t>(indices);
  std::vector<int64_t> inverse(num_rows, -1);
  for (int64_t i = 0; i < indices.size(0); ++i) {
    check_index(i, index[i], num_rows);
    STD_TORCH_CHECK(inverse[index[i]] < 0, "trainkit.ops: indices has ", index[i], " twice");
    inverse[index[i]] = i;
  }
  copy_rows(data<char>(x), inverse.data(), mutable_data<char>(out), num_rows, row_bytes(x));
  return out;
}

#if defined(TRAINKIT_CUDA)

Tensor gather_rows_cuda(const Tensor& x, const Tensor& indices) {
  const OnDevice device(x);
  const Tensor out = rows_like(x, indices, indices.size(0));
  check_launch(tk_gather_rows(x.const_data_ptr(), data<int64_t>(indices), out.mutable_data_ptr(), x.size(0),
                              indices.size(0), row_bytes(x), device.stream()),
               "gather_rows");
  return out;
}

Tensor scatter_rows_cuda(const Tensor& x, const Tensor& indices, int64_t num_rows) {
  const OnDevice device(x);
  const Tensor out = rows_like(x, indices, num_rows);
  const Tensor inverse = unset(indices, {num_rows});
  check_launch(tk_scatter_rows(x.const_data_ptr(), data<int64_t>(indices), out.mutable_data_ptr(),
                               mutable_data<int64_t>(inverse), x.size(0), num_rows, row_bytes(x), device.stream()),
               "scatter_rows");
  return out;
}

#endif

}  // namespace
}  // namespace tk

STABLE_TORCH_LIBRARY_FRAGMENT(trainkit, m) {
  m.def("gather_rows(Tensor x, Tensor indices) -> Tensor");
  m.def("scatter_rows(Tensor x, Tensor indices, SymInt num_rows) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(trainkit, CPU, m) {
  m.impl("gather_rows", TORCH_BOX(&tk::gather_rows_cpu));
  m.impl("scatter_rows", TORCH_BOX(&tk::scatter_rows_cpu));
}

#if defined(TRAINKIT_CUDA)
STABLE_TORCH_LIBRARY_IMPL(trainkit, CUDA, m) {
  m.impl("gather_rows", TORCH_BOX(&tk::gather_rows_cuda));
  m.impl("scatter_rows", TORCH_BOX(&tk::scatter_rows_cuda));
}
#endif
