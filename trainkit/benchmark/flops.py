"""FLOPs: those of a model's matrix products, convolutions and attention, counted in a step."""

from collections.abc import Mapping
from typing import Any

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from trainkit.benchmark.batches import dearest, stage_of
from trainkit.job import new_recipe


class FlopCounter(TorchDispatchMode):
    """Counts the FLOPs of the operations within it, by PyTorch's own formulas, into `total`.

    torch.utils.flop_counter.FlopCounterMode also counts by module, which gradients of gradients do not allow.

    Example:
        >>> import torch
        >>> with FlopCounter() as counter:
        ...     _ = torch.ones(2, 3) @ torch.ones(3, 5)
        >>> counter.total
        60
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += int(formula(*args, **(kwargs or {}), out_val=found))
        return found


def count_flops(config: Mapping[str, Any]) -> dict[str, Any]:
    """Counts the floating-point operations of a training step, forward and backward, in one process.

    A multiplication and an addition are two operations; element-wise ones do not count, as usual for an MFU. Over a
    recipe's stages the steps are those of the last stage, one gradient penalty among as many steps as it is due in.

    Args:
        config: with `ops=reference`, whose ops are all PyTorch's own, and without what computes activations twice.

    Returns:
        `flops_per_sample`, and the `batch_size` and `stage` with which it was counted.
    """
    recipe = new_recipe(config)
    try:
        batches = dearest(recipe)
        # A fused kernel is no matrix product to the counter on every device; the mathematics is.
        with sdpa_kernel(SDPBackend.MATH), FlopCounter() as counter:
            for batch in batches:
                recipe.runtime.stream.visit(batch)
                recipe.train_step(batch)
        num_samples = sum(batch.size for batch in batches)
        return {
            "flops_per_sample": counter.total / num_samples,
            "batch_size": batches[0].size,
            "stage": stage_of(recipe),
        }
    finally:
        recipe.runtime.close()
