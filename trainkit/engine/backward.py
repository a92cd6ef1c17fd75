"""Backward: the gradients of a loss, without the layers of Python around PyTorch's engine where they do nothing."""

import time

import torch
from torch import Tensor, _tensor
from torch.autograd import Variable
from torch.overrides import has_torch_function_unary


def run_backward(loss: Tensor) -> None:
    """Calls `loss.backward()`; on the CPU, the C++ engine behind it directly.

    For a small model those layers take as long as the optimizer's update. A GPU's backward pass runs in other threads,
    which they prepare.
    """
    is_patched = Tensor.backward.__globals__ is not vars(_tensor)
    if is_patched or not loss.is_cpu or not loss.is_floating_point() or has_torch_function_unary(loss):
        loss.backward()
        return
    Variable._execution_engine.run_backward(
        (loss,),
        (torch.ones_like(loss),),
        False,  # retain_graph
        False,  # create_graph
        (),  # inputs: all leaves
        allow_unreachable=True,
        accumulate_grad=True,
    )


def timed_backward(loss: Tensor) -> float:
    """Calls `run_backward`, and measures how long it waited at its end, such as for gradients that DDP reduces.

    Returns:
        Seconds between the end of the computation and that of the call, without anything that is on a GPU.
    """
    computed: list[float] = []

    def note(gradient: Tensor) -> None:
        # Called after all gradients, in the order of the calls here: DDP queues its wait later, when it has them.
        Variable._execution_engine.queue_callback(lambda: computed.append(time.perf_counter()))

    handle = loss.register_hook(note)
    try:
        run_backward(loss)
    finally:
        handle.remove()
    return time.perf_counter() - computed[0] if computed else 0.0
