"""BERT-large on a GPU: the share of its peak, and the precisions as ratios beside NVIDIA's published ones.

Not yet run on a GPU.
"""

import statistics
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import torch

import trainkit
from benchmarks.steps import MASK_SHARE, bert, flops_per_token, peak_tflop_per_s
from trainkit_recipes.bert.documents import Documents
from trainkit_recipes.bert.losses import masked_loss
from trainkit_recipes.bert.model import LARGE, Layer, MaskedLanguageModel, padded_vocab_size
from trainkit_recipes.bert.pretrain import parameter_groups

VOCAB_SIZE, LONGEST = 30522, 512
GOALS = {128: 0.55, LONGEST: 0.45}  # of the peak in bf16
BATCH_SIZES = {"fp32": 64, "tf32": 64, "fp16": 128, "bf16": 128}
# Samples/s of one A100-80 on 128 tokens, from NVIDIA's DeepLearningExamples, which have none in FP32.
PUBLISHED = {"tf32": 317, "fp16": 580}


def results() -> Iterator[dict[str, Any]]:
    """Raises RuntimeError without a GPU."""
    if not torch.cuda.is_available():
        raise RuntimeError("--sections gpu needs a GPU")
    ladder = {
        precision: bert("bert-large", 128, size, precision, "cuda", 20) for precision, size in BATCH_SIZES.items()
    }
    base = ladder["tf32"]["samples_per_s"]
    yield {
        "title": "BERT-large, windows of 128 tokens, dropout 0.1",
        "goals": {"bf16": GOALS[128]},
        "precisions": {
            name: {
                **found,
                "over_tf32": found["samples_per_s"] / base,
                "published_a100_over_tf32": PUBLISHED[name] / PUBLISHED["tf32"] if name in PUBLISHED else None,
            }
            for name, found in ladder.items()
        },
    }
    yield {
        "title": f"BERT-large, unpadded documents of at most {LONGEST} tokens, attention without dropout",
        "goals": {"bf16": GOALS[LONGEST]},
        "precisions": {"bf16": unpadded("bf16", num_documents=64, num_steps=20)},
    }


def unpadded(precision: Any, num_documents: int, num_steps: int) -> dict[str, Any]:
    """Median time of a step on documents of 16 to 512 tokens; only their own tokens and pairs of tokens count."""
    architecture = replace(LARGE, attention_dropout=0.0)
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(16, LONGEST + 1, (num_documents,), generator=generator).sort().values
    num_tokens = int(lengths.sum())
    num_chosen = round(MASK_SHARE * num_tokens)
    chosen = torch.randperm(num_tokens, generator=generator)[:num_chosen].cuda()
    tokens = torch.randint(VOCAB_SIZE, (num_tokens,), generator=generator).cuda()
    documents = Documents.of(lengths.tolist(), torch.arange(num_documents).cuda())
    runtime = trainkit.Runtime(strategy="single", precision=precision, device="cuda", tracker=trainkit.Tracker())
    with closing(runtime), torch.device("cuda"):
        module = MaskedLanguageModel(architecture, VOCAB_SIZE)
        optimizer = torch.optim.AdamW(parameter_groups(module), lr=1e-4, fused=True)
        engine = runtime.setup(module, optimizer, blocks=(Layer,), max_grad_norm=1.0)
        times = []
        for _ in range(num_steps + 3):
            torch.cuda.synchronize()
            begun = time.perf_counter()
            loss, num_masked = masked_loss(engine(tokens, chosen, documents=documents), tokens[chosen], in_place=True)
            engine.backward(loss, weight=num_masked)
            engine.step()
            torch.cuda.synchronize()
            times.append(time.perf_counter() - begun)
    took_s = statistics.median(times[3:])
    share = num_chosen / num_tokens
    length = float((lengths.double() ** 2).sum() / num_tokens)  # tokens that a token attends to, on average
    flops = num_tokens * flops_per_token(architecture, padded_vocab_size(VOCAB_SIZE), length, share)
    peak = peak_tflop_per_s(torch.cuda.get_device_name(), precision)
    return {
        "step_ms": round(took_s * 1e3, 3),
        "tokens_per_s": round(num_tokens / took_s),
        "tflop_per_s": round(flops / took_s / 1e12, 2),
        "mfu": peak and round(flops / took_s / 1e12 / peak, 4),
    }
