"""HeldOut: what a model predicts on held-out samples, how well, and what the baselines reach.

Shape suffixes: B samples, K masked tokens per sample, V vocabulary.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from trainkit import Engine, Runtime
from trainkit.data import Datasets
from trainkit.evaluation import SampleSums
from trainkit_recipes.bert.data import IGNORED, Masked, Masking
from trainkit_recipes.bert.losses import masked_loss
from trainkit_recipes.bert.next_sentence import ACCURACY, LABEL, majority
from trainkit_recipes.bert.report import Example, baseline_sums
from trainkit_recipes.bert.samples import Samples, Windows, masked_by, samples_of
from trainkit_recipes.bert.unit_sums import UnitSums, knows_documents, units_of

LOSS, TOKENS = "held_out_loss", "held_out_accuracy"
"""Metrics of masked tokens."""
_MASK_SHARE = 0.15
_NUM_EXAMPLES = 4


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
        self._beside: dict[str, NDArray[np.float64]] = {}
        self._rows, self._pairs = np.empty((0, 3)), np.empty((0, 1))
        self.examples: list[Example] = []
        """Some windows of this rank from all over the split, as `measure` has predicted them."""

    def samples(self) -> Iterator[tuple[Samples, Masked]]:
        """Yields this rank's samples, and how they are masked."""
        held_out, collate = self.datasets.held_out, self.datasets.collate
        batches = self.runtime.evaluation_batches(held_out, batch_size=self.batch_size, collate=collate)
        for batch in batches:
            samples = samples_of(batch, held_out, self.datasets.tokenizer.pad)
            yield samples, masked_by(self.masking, samples.batch, self.runtime, "held-out mask")

    @torch.no_grad()
    def outputs(self, model: Engine) -> Iterator[tuple[Samples, Masked, Tensor, Tensor | None]]:
        """Yields samples, masking, logits_BKV, and logits [B, 2] of the next sentence where it is predicted.

        Collective: every rank must call.

        Args:
            model: of the run.
        """
        model.module.eval()
        try:
            for samples, masked in self.samples():
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
        of_units, of_pairs = UnitSums(3), UnitSums(1)
        every = max(1, -(-len(self.datasets.held_out) // self.batch_size) // _NUM_EXAMPLES)
        self.examples = []
        for number, (samples, masked, logits_BKV, next_B2) in enumerate(self.outputs(model)):
            if number % every == 0 and number < every * _NUM_EXAMPLES:
                self.examples += Example.first_of(samples.batch, masked, logits_BKV)
            if next_B2 is not None:
                is_right_B = next_B2.argmax(dim=-1) == samples.batch.data[LABEL]
                sums["next_sentence_correct"] += is_right_B.sum()
                sums["samples"] += next_B2.new_tensor(len(next_B2))
                of_pairs.add(samples.batch.indices.numpy(), is_right_B.cpu().numpy())
            loss, num_masked = masked_loss(logits_BKV, masked.labels_BK)
            is_right_BK = logits_BKV.argmax(dim=-1) == masked.labels_BK
            sums["loss"] += loss.double() * num_masked
            sums["correct"] += is_right_BK.sum()
            sums["masked"] += num_masked
            self._count(of_units, samples, masked, logits_BKV, is_right_BK)
        totals = self.runtime.ranks.all_reduce_sum(sums)
        self._rows, self._pairs = of_units.over_ranks(self.runtime)[1], of_pairs.over_ranks(self.runtime)[1]
        num = totals["masked"]
        pairs = {ACCURACY: totals["next_sentence_correct"] / totals["samples"]} if self.next_sentence else {}
        return {"loss": totals["loss"] / num, "accuracy": totals["correct"] / num, "masked": num, **pairs}

    def _count(self, sums: UnitSums, samples: Samples, masked: Masked, logits_BKV: Tensor, is_right_BK: Tensor) -> None:
        is_used_BK = masked.labels_BK != IGNORED
        losses_N = F.cross_entropy(
            _at_least_fp32(logits_BKV[is_used_BK]), masked.labels_BK[is_used_BK], reduction="none"
        )
        is_right_N = is_right_BK[is_used_BK].cpu().numpy()
        units_N = units_of(samples.batch, masked, self.datasets.held_out)
        sums.add(units_N, losses_N.double().cpu().numpy(), is_right_N, np.ones(len(units_N)))

    def baselines(self) -> Mapping[str, dict[str, float]]:
        """Returns by metric the value of each baseline, measured once. Collective: every rank must call."""
        if not self._baselines:
            masked = ((samples.batch, masked) for samples, masked in self.samples())
            self._beside = baseline_sums(self.datasets, masked, tokenizer=self.datasets.tokenizer, runtime=self.runtime)
            values = {name: _of_sums(rows.sum(axis=0)) for name, rows in self._beside.items()}
            self._baselines = {
                metric: {name: float(of[metric]) for name, of in values.items() if not np.isnan(of[metric])}
                for metric in (LOSS, TOKENS)
            }
            if self.next_sentence:
                self._baselines[ACCURACY] = majority((samples.batch for samples, _ in self.samples()), self.runtime)
        return self._baselines

    def held_out_samples(self) -> list[SampleSums]:
        """Returns what `measure` has counted, by document where the data know it. Collective: every rank must call."""
        self.baselines()
        unit = "documents" if knows_documents(self.datasets.held_out) else "windows"
        found = [SampleSums(rows=self._rows, of_sums=_of_sums, beside=self._beside, unit=unit)]
        if self.next_sentence:
            found.append(SampleSums.means({ACCURACY: self._pairs[:, 0]}, unit="pairs"))
        return found


def _at_least_fp32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _of_sums(sums: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    return {LOSS: sums[..., 0] / sums[..., 2], TOKENS: sums[..., 1] / sums[..., 2]}
