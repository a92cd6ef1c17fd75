#include "bias_activation_cpu.h"

namespace tk {
namespace {

void run_cpu(const BiasActivationArgs& args, int activation, Pass pass, const Tensor&) {
  using Run = void (*)(const BiasActivationArgs&, Pass);
  static constexpr Run kRuns[] = {run_activation<Gelu>,      run_activation<GeluTanh>, run_activation<Relu>,
                                  run_activation<Silu>,      run_activation<LeakyRelu>};
  STD_TORCH_CHECK(activation >= 0 && activation < 5, "trainkit: there is no such activation");
  kRuns[activation](args, pass);
}

#if defined(TRAINKIT_CUDA)
void run_cuda(const BiasActivationArgs& args, int activation, Pass pass, const Tensor& x) {
  run_activation_cuda(args, pass, x, [&](const BiasActivationArgs* ready, Pass which, void* stream) {
    return tk_bias_activation_cuda(ready, activation, which, stream);
  });
}
#endif

}  // namespace
}  // namespace tk

STABLE_TORCH_LIBRARY_FRAGMENT(trainkit, m) {
  m.def(
      "bias_activation(Tensor x, Tensor? bias, int activation, float p, int key, Tensor? positions, int call)"
      " -> Tensor");
  m.def(
      "bias_activation_backward(Tensor grad, Tensor x, Tensor? bias, int activation, float p, int key,"
      " Tensor? positions, int call) -> (Tensor, Tensor)");
  m.def(
      "bias_activation_second(Tensor grad_dx, Tensor? grad_dbias, Tensor grad, Tensor x, Tensor? bias, int activation,"
      " float p, int key, Tensor? positions, int call) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(trainkit, CPU, m) {
  m.impl("bias_activation", TORCH_BOX(&tk::bias_activation<tk::run_cpu>));
  m.impl("bias_activation_backward", TORCH_BOX(&tk::bias_activation_backward<tk::run_cpu>));
  m.impl("bias_activation_second", TORCH_BOX(&tk::bias_activation_second<tk::run_cpu>));
}

#if defined(TRAINKIT_CUDA)
STABLE_TORCH_LIBRARY_IMPL(trainkit, CUDA, m) {
  m.impl("bias_activation", TORCH_BOX(&tk::bias_activation<tk::run_cuda>));
  m.impl("bias_activation_backward", TORCH_BOX(&tk::bias_activation_backward<tk::run_cuda>));
  m.impl("bias_activation_second", TORCH_BOX(&tk::bias_activation_second<tk::run_cuda>));
}
#endif
