"""Losses of pre-training: of masked tokens, and of both tasks where the next sentence is predicted, too.

Shape suffixes: B samples, V vocabulary.
"""

import torch.nn.functional as F
from torch import Tensor

from trainkit.ops import cross_entropy
from trainkit_recipes.bert.data import IGNORED


def masked_loss(logits: Tensor, labels: Tensor, in_place: bool = False) -> tuple[Tensor, Tensor]:
    """Computes the mean cross-entropy over the slots in use.

    Args:
        logits: predictions [..., V].
        labels: int64 [...], IGNORED for unused slots.
        in_place: whether the backward pass may overwrite the logits.

    Returns:
        The mean, 0 without slots in use, and the number of slots in use.
    """
    num_masked = (labels != IGNORED).sum()
    total = cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORED, in_place=in_place)
    return total / num_masked.clamp(min=1), num_masked


def pair_loss(
    masked_mean: Tensor, num_masked: Tensor, next_B2: Tensor, labels_B: Tensor, per_sample: int
) -> tuple[Tensor, Tensor]:
    """Adds the losses of both tasks, so that the mean over the global batch does not depend on how that is divided.

    Two means over different numbers cannot be added in a micro-batch: it does not know the numbers of the global batch.
    So a sample's next sentence counts as much as `per_sample` masked tokens. Where each sample has so many, the mean is
    half the sum of both tasks' means, and twice that is returned; where samples have fewer, as padded ones, the next
    sentence counts for more.

    Args:
        masked_mean: the mean loss of the masked tokens.
        num_masked: those tokens.
        next_B2: logits of the next sentence.
        labels_B: int64.
        per_sample: masked tokens of a sample without padding.

    Returns:
        The loss, and its weight in the mean.
    """
    total = F.cross_entropy(next_B2.to(masked_mean.dtype), labels_B, reduction="sum")
    weight = num_masked + per_sample * len(labels_B)
    return 2 * (masked_mean * num_masked + per_sample * total) / weight.clamp(min=1), weight
