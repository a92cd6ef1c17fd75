// Conveniences over torch's stable ABI for the .cpp of an op. Not for .cu files, which see no torch header.
#pragma once

#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <vector>

#include "types.h"

namespace tk {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline DType dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return DType::float32;
    case ScalarType::BFloat16:
      return DType::bfloat16;
    case ScalarType::Half:
      return DType::float16;
    case ScalarType::Double:
      return DType::float64;
    default:
      STD_TORCH_CHECK(false, "trainkit: dtypes must be float32, bfloat16, float16 or float64");
  }
  return DType::float32;
}

inline DType cuda_dtype_of(const Tensor& x) {
  const DType dtype = dtype_of(x);
  STD_TORCH_CHECK(dtype != DType::float64, "trainkit: CUDA kernels take float32, bfloat16 and float16, not float64");
  return dtype;
}

// float64 for float64, else float32: the dtype of statistics and sums.
inline ScalarType accum_dtype(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline void check_contiguous(const Tensor& x, const char* name) {
  STD_TORCH_CHECK(x.is_contiguous(), "trainkit: ", name, " must be contiguous");
}

inline void check_same_dtype(const Tensor& x, const Tensor& y, const char* name) {
  STD_TORCH_CHECK(x.scalar_type() == y.scalar_type(), "trainkit: ", name, " has another dtype than the input");
}

template <class T>
const T* data(const Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}

template <class T>
T* mutable_data(const Tensor& x) {
  return static_cast<T*>(x.mutable_data_ptr());
}

inline std::vector<int64_t> shape_of(const Tensor& x) {
  const auto sizes = x.sizes();
  return std::vector<int64_t>(sizes.begin(), sizes.end());
}

// Contiguous and unset, on x's device; dtype: x's unless given.
inline Tensor unset(const Tensor& x, const std::vector<int64_t>& shape, std::optional<ScalarType> dtype = std::nullopt) {
  return torch::stable::new_empty(x, {shape.data(), shape.size()}, dtype);
}

inline Tensor unset_like(const Tensor& x) { return unset(x, shape_of(x)); }

// f(begin, end) over [0, n) on torch's threads; one thread takes at least `grain` items.
template <class F>
void parallel_for(int64_t n, int64_t grain, const F& f) {
  if (n > 0) torch::stable::parallel_for(0, n, std::max<int64_t>(grain, 1), f);
}

#if defined(TRAINKIT_CUDA)

extern "C" const char* cudaGetErrorString(int code);

// The device of a tensor, made current while this lives, and its current stream.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& x) : guard_(x.get_device_index()), stream_(current(x.get_device_index())) {}
  void* stream() const { return stream_; }

 private:
  // libtorch_cuda is not there under a CPU-only torch, where this library must still load; whoever holds a CUDA tensor
  // has it in memory.
  static void* current(int32_t device) {
    using Function = int32_t (*)(int32_t, void**);
    static const Function function = [] {
      void* cuda = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
      return cuda ? reinterpret_cast<Function>(dlsym(cuda, "aoti_torch_get_current_cuda_stream")) : nullptr;
    }();
    STD_TORCH_CHECK(function != nullptr, "trainkit: libtorch_cuda.so has no aoti_torch_get_current_cuda_stream");
    void* stream = nullptr;
    STD_TORCH_CHECK(function(device, &stream) == 0, "trainkit: the current CUDA stream cannot be read");
    return stream;
  }

  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_;
};

// `code` is what a launcher returned: int(cudaGetLastError()).
inline void check_launch(int code, const char* name) {
  STD_TORCH_CHECK(code == 0, "trainkit: ", name, ": ", cudaGetErrorString(code));
}

#endif

}  // namespace tk
