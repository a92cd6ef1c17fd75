"""Backend: one module and its optimizer, as a strategy runs them."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from trainkit.distributed.shard import Shard
from trainkit.errors import UsageError
from trainkit.memory.memory import Memory
from trainkit.optim.pieces import Piece, PiecewiseOptimizer, mask_after_steps, mask_range, require_whole
from trainkit.reduction.error_feedback import ErrorFeedback
from trainkit.reduction.reducer import Reducer


class Backend:
    """One module and its optimizer, as a strategy runs them. An Engine drives it; users never see it.

    The order of a turn: for each micro-batch `begin`, forwards, `backward`; then `update`. After the last `backward`
    the gradients are the sum over ranks divided by `gradient_divisor`, whole or sharded.
    """

    gradient_divisor: float = 1.0
    adds_to_sums = False
    """Whether the small sum of a turn over ranks waits for the backward pass, which `own_sums` is known after."""
    needs_samples = False
    """Whether every micro-batch must have a sample on every rank."""
    gathers_parameters = False
    """Whether a forward pass waits for other ranks, which hold parts of the parameters."""
    reads_every_step = False
    """Whether `update` waits for the device in any case."""
    norms: tuple[list[str], Tensor] | None = None
    """Names and norms [len(names)] of the gradients of the last turn that this rank holds, where it can tell them."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.module, self.optimizer = module, optimizer
        self.parameters = dict(module.named_parameters())
        self.gradient_bytes = 0
        self._masking: RemovableHandle | None = None
        self._require_grad = [p.requires_grad for p in self.parameters.values()]
        self.trainable = {name: p for name, p in self.parameters.items() if p.requires_grad}

    # -- a turn ------------------------------------------------------------------------------------------------------

    def begin(self, last: bool) -> None:
        """A micro-batch begins; `last`: its backward ends the turn's gradients."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's output; gradients of it are reduced by `backward`."""
        return self.module(*args, **kwargs)

    def input_gradient(self, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The module's output for `x`, which requires a gradient, and that of the output's sum; both differentiable."""
        output = self.module(x, *args, **kwargs)
        (gradient,) = torch.autograd.grad(output.sum(), x, create_graph=True)
        return output, gradient

    def backward(self, loss: Tensor, last: bool) -> None:
        """Adds the gradients of `loss`; the last of a turn also reduces them over ranks."""
        loss.backward()

    def backward_of_nothing(self, loss: Tensor, last: bool) -> None:
        """As `backward`, of a loss in which nothing counts: takes part, and adds zeros whatever its gradients are."""
        hooks = [leaf.register_hook(_zero) for leaf in self._leaves_in_use()]
        try:
            self.backward(loss, last)
        finally:
            for hook in hooks:
                hook.remove()

    def follow_requires_grad(self) -> None:
        """Takes over which parameters require a gradient now.

        Raises UsageError where that is another set than at setup, and the strategy or the optimizer cannot follow.
        """
        now = [p.requires_grad for p in self.parameters.values()]
        if now != self._require_grad:
            before = dict(zip(self.parameters, self._require_grad, strict=True))
            self._follow([name for name, p in self.parameters.items() if p.requires_grad != before[name]])
            self._require_grad = now
            self.trainable = {name: p for name, p in self.parameters.items() if p.requires_grad}

    def leaves(self) -> dict[str, Tensor]:
        """By name, the tensors that this rank's own gradients come to before any reduction. Collective."""
        return dict(self.trainable)

    def own_sums(self) -> Tensor | None:
        """[n]: what this rank adds to the small sum of a turn, where the backend `adds_to_sums`."""
        return None

    def update(
        self, factor: Tensor | float, max_grad_norm: float | None, *, sums: Tensor | None, gate: Tensor | None
    ) -> tuple[Tensor, bool]:
        """Multiplies the gradients by `factor`, clips them to `max_grad_norm`, and makes an optimizer step.

        sums: the sum of `own_sums()` over ranks.  gate: the step is left out if this scalar or the norm is not finite,
        which waits for the device; without it nothing is read.
        Returns the norm before clipping, and whether the step was skipped. The gradients are gone afterwards.
        """
        named = self._local_gradients()
        gradients = list(named.values())
        if not self.gradient_bytes:
            self.gradient_bytes = sum(num_bytes(gradient) for gradient in gradients)
        norm = self._norm(named, sums)
        is_one = isinstance(factor, float) and factor == 1.0
        if not is_one:
            norm = norm * factor
        skipped = gate is not None and not (math.isfinite(norm.item()) and math.isfinite(gate.item()))
        if not skipped:
            if max_grad_norm is not None:
                factor = factor * (max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
            if gradients and (max_grad_norm is not None or not is_one):
                torch._foreach_mul_(gradients, _as_factor(factor, gradients[0]))
            self.optimizer.step()
        self.discard()
        return norm, skipped

    def discard(self) -> None:
        """Forgets the gradients."""
        # What optimizer.zero_grad() comes to; that costs a small step a twentieth more.
        for group in self.optimizer.param_groups:
            for p in group["params"]:
                p.grad = None

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Parameters take no gradient meanwhile."""
        # The objects are held, not their names: a parameter that its user froze must stay so afterwards.
        held = [p for p in self.module.parameters() if p.requires_grad]
        for p in held:
            p.requires_grad_(False)
        try:
            yield
        finally:
            for p in held:
                p.requires_grad_(True)

    # -- how gradients are summed ------------------------------------------------------------------------------------

    reducer: Reducer | None = None
    """Who chooses how gradients are summed, where a backend leaves that open."""

    def reduce_as(self, known: Mapping[str, Any] | None) -> None:
        """Has the reducer choose, if nobody has yet; the first backward does it too. Collective.

        known: what `choice` was when a checkpoint was written.
        """

    def choice(self) -> dict[str, Any] | None:
        """How gradients are summed, JSON-able; None where there was nothing to choose, or nobody has yet."""
        return None

    def feedback(self) -> ErrorFeedback | None:
        """What a lossy way to sum gradients has left out so far; None where nothing is left out."""
        return None

    def feedback_places(self, saved: Mapping[str, tuple[torch.Size, torch.dtype]]) -> dict[str, Shard]:
        """See `ErrorFeedback.empty_shards`."""
        return feedback.empty_shards(saved) if (feedback := self.feedback()) is not None else {}

    def inherit_feedback(self, old: "Backend") -> None:
        """Takes over what `old` has left out of the gradients of parameters that are here too. Collective."""
        if (left := old.feedback()) is not None:
            self.reduce_as(None)
            if (feedback := self.feedback()) is not None:
                feedback.inherit(left, {name: p.numel() for name, p in self.trainable.items()})

    def retire(self) -> None:
        """Lets go of the module: hooks and buffers of the strategy are removed."""

    # -- tensors by the module's own names ---------------------------------------------------------------------------

    def weights(self) -> dict[str, Shard]:
        """What this rank holds of each parameter, in full precision: what the optimizer writes to."""
        return {name: Shard.whole(p) for name, p in self.parameters.items()}

    def refresh(self) -> None:
        """Makes the module compute with `weights` that were written to. Collective."""

    def pieces(self) -> dict[Tensor, list[Piece]]:
        """What the optimizer's tensors consist of; see `PiecewiseOptimizer.set_pieces`."""
        weights = self.weights()
        return {
            p: [Piece(name, weights[name].start, weights[name].local.numel(), weights[name].shape.numel())]
            for name, p in self.parameters.items()
        }

    def take_over(self, max_grad_norm: float | None, device: torch.device) -> float | None:
        """Gives the optimizer what its tensors are; the largest gradient norm, its own taken into account. Collective.

        Raises ConfigError where it cannot work with parts of parameters, and is given some.
        """
        pieces = self.pieces()
        require_whole(self.optimizer, pieces)
        if isinstance(self.optimizer, PiecewiseOptimizer):
            weights = self.weights()
            # What is frozen may be whole on every rank.
            group = next((weights[name].group for name in self.trainable), None)
            self.optimizer.set_pieces(pieces, group=group, device=device)
        own = getattr(self.optimizer, "max_grad_norm", None)
        return own if max_grad_norm is None else max_grad_norm if own is None else min(max_grad_norm, own)

    def set_masks(self, masks: Mapping[str, Tensor], averages: Mapping[str, Shard]) -> None:
        """See `Engine.set_masks`. Collective."""
        if self._masking is not None:
            self._masking.remove()
        if isinstance(self.optimizer, PiecewiseOptimizer):
            self.optimizer.set_masks(masks)
        else:
            self._masking = mask_after_steps(self.optimizer, self.weights(), masks)
        for name in averages.keys() & masks.keys():
            mask_range(averages[name].local, masks[name], averages[name].start, averages[name].shape.numel())
        self.refresh()

    def optimizer_state(self) -> dict[str, dict[str, Shard]]:
        """name -> key -> what this rank holds of the optimizer's state."""
        weights = self.weights()
        return {
            name: {key: self._state_shard(value, weights[name]) for key, value in self.optimizer.state[p].items()}
            for name, p in self.parameters.items()
            if p in self.optimizer.state
        }

    def state_place(self, name: str, shape: torch.Size, dtype: torch.dtype) -> Shard:
        """Where this rank's part of a state of parameter `name` can be read to: its range, if the shapes are equal."""
        weight = self.weights()[name]
        if shape == weight.shape:
            return weight.like(torch.zeros_like(weight.local, dtype=dtype))
        return Shard.whole(torch.zeros(shape, dtype=dtype))

    def load_optimizer_state(self, state: Mapping[str, Mapping[str, Shard]]) -> None:
        """The inverse of `optimizer_state`, of shards as `state_place` makes them; other parameters begin anew."""
        names = {p: name for name, p in self.parameters.items()}
        loaded = self.optimizer.state_dict()
        ordered = [p for group in self.optimizer.param_groups for p in group["params"]]
        loaded["state"] = {
            i: {key: self._state_value(shard, p) for key, shard in state[names[p]].items()}
            for i, p in enumerate(ordered)
            if names[p] in state
        }
        self.optimizer.load_state_dict(loaded)
        for i, p in enumerate(ordered):
            for key, value in loaded["state"].get(i, {}).items():
                held = self.optimizer.state[p][key]
                if isinstance(held, Tensor) and held.dtype != value.dtype and held.shape != p.shape:
                    # Such as NAdam's product, float32 beside float64 parameters: load_state_dict casts it too.
                    self.optimizer.state[p][key] = value.to(held.device)

    def inherit_optimizer_state(self, old: "Backend") -> None:
        """Takes over the optimizer's state of parameters that `old` has under the same names and shapes. Collective."""
        mine = {name: shard.shape for name, shard in self.weights().items()}
        kept: dict[str, dict[str, Shard]] = {}
        for name, entry in old.optimizer_state().items():
            whole = {key: shard.full() for key, shard in entry.items()}
            if all(value.ndim == 0 or value.shape == mine.get(name) for value in whole.values()) and name in mine:
                kept[name] = {k: self.state_place(name, v.shape, v.dtype) for k, v in whole.items()}
                for key, value in whole.items():
                    kept[name][key].take(value)
        self.load_optimizer_state(kept)

    def held(self) -> Memory:
        """Counted from the tensors that this rank holds; the gradients those of the last turn."""
        state = [shard.local for entry in self.optimizer_state().values() for shard in entry.values()]
        return Memory(self._parameter_bytes(), self.gradient_bytes, sum(num_bytes(tensor) for tensor in state))

    # -- inside ------------------------------------------------------------------------------------------------------

    def _parameter_bytes(self) -> int:
        return sum(num_bytes(shard.local) for shard in self.weights().values())

    def _follow(self, changed: list[str]) -> None:
        """The parameters `changed` were thawed or frozen. Raises UsageError where that cannot be followed."""
        held = {p for group in self.optimizer.param_groups for p in group["params"]}
        for name in changed:
            if self.parameters[name].requires_grad and self.parameters[name] not in held:
                raise UsageError(
                    f"{name!r} requires a gradient since setup, and the optimizer does not hold it: give setup an "
                    f"optimizer of all parameters, or call optimizer.add_param_group"
                )

    def _leaves_in_use(self) -> list[Tensor]:
        """The tensors that the gradients of a forward pass, which was made, come to."""
        return list(self.trainable.values())

    def _norm(self, gradients: Mapping[str, Tensor], sums: Tensor | None) -> Tensor:
        norms = torch.stack(torch._foreach_norm(list(gradients.values())))
        self.norms = list(gradients), norms
        return torch.linalg.vector_norm(norms) if len(norms) > 1 else norms[0]

    def _local_gradients(self) -> dict[str, Tensor]:
        gradients = {name: p.grad for name, p in self.trainable.items() if p.grad is not None}
        if not gradients:
            raise UsageError("the loss depends on no trainable parameter of the module: nothing to update")
        return gradients

    def _state_shard(self, value: Any, weight: Shard) -> Shard:
        return Shard.whole(value if isinstance(value, Tensor) else torch.tensor(value))

    def _state_value(self, shard: Shard, p: nn.Parameter) -> Any:
        return shard.local


def _zero(gradient: Tensor | None) -> Tensor | None:
    return None if gradient is None else torch.zeros_like(gradient)


def _as_factor(factor: Tensor | float, gradient: Tensor) -> Tensor | float:
    return factor.to(gradient.device) if isinstance(factor, Tensor) else factor


def num_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
