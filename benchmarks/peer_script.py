"""Pre-training with Hugging Face's libraries as their users write it; bert_peers.py times its start and tokenization.

python benchmarks/peer_script.py WEIGHTS TEXTS.jsonl CACHE
"""

import sys
from pathlib import Path
from typing import Any

LENGTH, BATCH_SIZE = 128, 32


def tokenized(weights: Path, texts: Path, cache: Path, num_processes: int | None) -> Any:
    """One sequence of token numbers for each text."""
    from datasets import load_dataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(weights)

    def tokenize(rows: dict[str, list[Any]]) -> dict[str, Any]:
        return {"input_ids": tokenizer(rows["text"], return_attention_mask=False)["input_ids"]}

    raw = load_dataset("json", data_files=str(texts), split="train", cache_dir=str(cache))
    return raw.map(tokenize, batched=True, num_proc=num_processes, remove_columns=["text"])


def windows(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    joined = [token for tokens in rows["input_ids"] for token in tokens]
    last = len(joined) // LENGTH * LENGTH
    return {"input_ids": [joined[first : first + LENGTH] for first in range(0, last, LENGTH)]}


def main() -> None:
    from transformers import (
        AutoModelForMaskedLM,
        AutoTokenizer,
        DataCollatorForLanguageModeling,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    weights, texts, cache = map(Path, sys.argv[1:])
    data = tokenized(weights, texts, cache, None).map(windows, batched=True)

    class Marking(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            mark()

    arguments = TrainingArguments(
        output_dir=str(cache / "trainer"),
        per_device_train_batch_size=BATCH_SIZE,
        max_steps=1,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    Trainer(
        model=AutoModelForMaskedLM.from_pretrained(weights),
        args=arguments,
        data_collator=DataCollatorForLanguageModeling(AutoTokenizer.from_pretrained(weights), mlm_probability=0.15),
        train_dataset=data,
        callbacks=[Marking()],
    ).train()


def mark() -> None:
    """Notes the time as `start_and_end.MARK` does."""
    import json
    import os
    import time

    if "TRAINKIT_BENCHMARK_MARKS" in os.environ:
        used = os.times()
        with Path(os.environ["TRAINKIT_BENCHMARK_MARKS"]).open("a") as file:
            file.write(json.dumps([time.time(), used.user + used.system]) + "\n")


if __name__ == "__main__":
    main()
