"""HeldOut: what a model predicts on held-out samples, how well, and what the baselines reach.

Shape suffixes: B samples, K masked tokens per sample, V vocabulary.
"""

from collections.abc import Iterator, Mapping
from itertools import islice

import torch
from torch import Tensor

from trainkit import Engine, Runtime
from trainkit.data import Datasets
from trainkit_recipes.bert.data import Masked, Masking
from trainkit_recipes.bert.losses import masked_loss
from trainkit_recipes.bert.next_sentence import ACCURACY, LABEL, majority
from trainkit_recipes.bert.report import baseline_accuracies
from trainkit_recipes.bert.samples import Samples, Windows, masked_by, samples_of

_MASK_SHARE = 0.15


class HeldOut:
    """The held-out samples of one length, of which the same tokens are masked each time.

    Args:
        runtime: of the run.
        datasets: whose held-out samples are meant, with a tokenizer.
        batch_size: samples in a global batch.
        next_sentence: whether the model predicts it.
    """

    def __init__(self, runtime: Runtime, datasets: Datasets, *, batch_size: int, next_sentence: bool) -> None:
        self.runtime, self.datasets, self.batch_size, self.next_sentence = runtime, datasets, batch_size, next_sentence
        self.masking = Masking(datasets.tokenizer, _MASK_SHARE, runtime.device)
        self._baselines: dict[str, dict[str, float]] = {}

    def samples(self, every: int = 1) -> Iterator[tuple[Samples, Masked]]:
        """Yields this rank's samples, and how they are masked.

        Args:
            every: yields each so many-th global batch, from the first one on.
        """
        held_out, collate = self.datasets.held_out, self.datasets.collate
        batches = self.runtime.evaluation_batches(held_out, batch_size=self.batch_size, collate=collate)
        for batch in islice(batches, 0, None, every):
            samples = samples_of(batch, held_out, self.datasets.tokenizer.pad)
            yield samples, masked_by(self.masking, samples.batch, self.runtime, "held-out mask")

    @torch.no_grad()
    def outputs(self, model: Engine, every: int = 1) -> Iterator[tuple[Samples, Masked, Tensor, Tensor | None]]:
        """Yields samples, masking, logits_BKV, and logits [B, 2] of the next sentence where it is predicted.

        Collective: every rank must call.

        Args:
            model: of the run.
            every: as for `samples`.
        """
        model.module.eval()
        try:
            for samples, masked in self.samples(every):
                if self.next_sentence:
                    assert isinstance(samples, Windows)
                    yield samples, masked, *samples.predict_pairs(model, masked)
                else:
                    yield samples, *samples.predict_slots(model, masked), None
        finally:
            model.module.train()

    def measure(self, model: Engine) -> dict[str, float]:
        """Returns `loss` and `accuracy` of the masked tokens, their number, `masked`, and the accuracy of pairs.

        Collective: every rank must call.

        Args:
            model: of the run.
        """
        names = ("loss", "correct", "masked", "next_sentence_correct", "samples")
        sums: dict[str, Tensor | float] = dict.fromkeys(names, 0.0)
        for samples, masked, logits_BKV, next_B2 in self.outputs(model):
            if next_B2 is not None:
                sums["next_sentence_correct"] += (next_B2.argmax(dim=-1) == samples.batch.data[LABEL]).sum()
                sums["samples"] += next_B2.new_tensor(len(next_B2))
            loss, num_masked = masked_loss(logits_BKV, masked.labels_BK)
            sums["loss"] += loss.double() * num_masked
            sums["correct"] += (logits_BKV.argmax(dim=-1) == masked.labels_BK).sum()
            sums["masked"] += num_masked
        totals = self.runtime.ranks.all_reduce_sum(sums)
        num = totals["masked"]
        pairs = {ACCURACY: totals["next_sentence_correct"] / totals["samples"]} if self.next_sentence else {}
        return {"loss": totals["loss"] / num, "accuracy": totals["correct"] / num, "masked": num, **pairs}

    def baselines(self) -> Mapping[str, dict[str, float]]:
        """Returns by metric the accuracy of each baseline, measured once. Collective: every rank must call."""
        if not self._baselines:
            masked = ((samples.batch, masked) for samples, masked in self.samples())
            of_tokens = baseline_accuracies(
                self.datasets, masked, tokenizer=self.datasets.tokenizer, runtime=self.runtime
            )
            self._baselines = {"held_out_accuracy": of_tokens}
            if self.next_sentence:
                self._baselines[ACCURACY] = majority((samples.batch for samples, _ in self.samples()), self.runtime)
        return self._baselines
