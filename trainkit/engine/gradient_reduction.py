"""GradientReduction: how one engine's gradients are summed over ranks."""

from collections.abc import Mapping
from typing import Any

import torch

from trainkit.distributed.shard import Shard
from trainkit.reduction.error_feedback import Feedback
from trainkit.reduction.reducer import Reducer


class GradientReduction:
    """A reduction that leaves nothing to choose, such as that of one process or of FSDP's own.

    Strategies whose gradients a `Reducer` can reduce derive from it.
    """

    reducer: Reducer | None = None
    """Chooses the plan, where a strategy leaves that open."""

    def choose(self, known: Mapping[str, Any] | None) -> None:
        """Has the reducer choose a plan, unless it has; the first backward does so too. Collective.

        Args:
            known: the `choice` of the run that wrote the checkpoint which is being loaded.
        """

    def choice(self) -> dict[str, Any] | None:
        """The chosen plan, JSON-able; None where there is nothing to choose, or nothing was chosen yet."""
        return None

    def error_feedback(self) -> Feedback | None:
        """The errors of a lossy plan, which are carried into the next step; None where the plan is exact."""
        return None

    def empty_errors(self, saved: Mapping[str, tuple[torch.Size, torch.dtype]]) -> dict[str, Shard]:
        """Shards that saved errors can be read into; see `Feedback.places`."""
        feedback = self.error_feedback()
        return feedback.places(saved) if feedback is not None else {}

    def inherit(self, old: "GradientReduction", sizes: Mapping[str, int]) -> None:
        """Takes over the errors of parameters that are here too. Collective: every rank must call.

        Args:
            old: the reduction of the engine that this one replaces.
            sizes: elements of each trained parameter, by name.
        """
        if (left := old.error_feedback()) is not None:
            self.choose(None)
            if (feedback := self.error_feedback()) is not None:
                feedback.inherit(left, sizes)
