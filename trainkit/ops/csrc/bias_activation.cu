#include "bias_activation.cuh"

extern "C" int tk_bias_activation_cuda(const tk::BiasActivationArgs* args, int activation, tk::Pass pass,
                                       void* stream) {
  using namespace tk;
  using Launch = int (*)(const BiasActivationArgs&, Pass, void*);
  static constexpr Launch kLaunches[] = {launch_activation<Gelu>,      launch_activation<GeluTanh>,
                                         launch_activation<Relu>,      launch_activation<Silu>,
                                         launch_activation<LeakyRelu>};
  if (activation < 0 || activation >= int(sizeof(kLaunches) / sizeof(Launch))) return int(cudaErrorInvalidValue);
  return kLaunches[activation](*args, pass, stream);
}
