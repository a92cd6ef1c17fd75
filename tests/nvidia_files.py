"""HDF5 files as NVIDIA's create_pretraining_data.py writes them, with random tokens."""

from pathlib import Path

import h5py
import numpy as np

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PAD, _, CLS, SEP, MASK = range(5)
VOCAB_SIZE = 40
DTYPES = {
    "input_ids": "i4",
    "input_mask": "i1",
    "segment_ids": "i1",
    "masked_lm_positions": "i4",
    "masked_lm_ids": "i4",
    "next_sentence_labels": "i1",
}


def write_vocabulary(path: Path) -> Path:
    path.write_text("".join(f"{token}\n" for token in [*SPECIAL, *(f"w{n}" for n in range(5, VOCAB_SIZE))]))
    return path


def arrays(num: int, length: int = 16, slots: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    """Pairs of sentences, padded and masked, whose words follow one another so that a model can learn them."""
    draw = np.random.default_rng(seed)
    made = {name: np.zeros((num, length), "i4") for name in ("input_ids", "input_mask", "segment_ids")}
    made |= {name: np.zeros((num, slots), "i4") for name in ("masked_lm_positions", "masked_lm_ids")}
    made["next_sentence_labels"] = draw.integers(0, 2, num)
    for row in range(num):
        total = int(draw.integers(length - 6, length + 1))
        second = int(draw.integers(4, total - 3))
        words = (draw.integers(VOCAB_SIZE - 5) + np.arange(length)) % (VOCAB_SIZE - 5) + 5
        words[[0, second - 1, total - 1]] = CLS, SEP, SEP
        made["input_mask"][row, :total] = 1
        made["segment_ids"][row, second:total] = 1
        ordinary = [place for place in range(1, total - 1) if place != second - 1]
        chosen = np.sort(draw.choice(ordinary, int(draw.integers(1, slots + 1)), replace=False))
        made["masked_lm_positions"][row, : len(chosen)] = chosen
        made["masked_lm_ids"][row, : len(chosen)] = words[chosen]
        seen = np.where(draw.random(len(chosen)) < 0.8, MASK, draw.integers(5, VOCAB_SIZE, len(chosen)))
        words[chosen], words[total:] = seen, PAD
        made["input_ids"][row] = words
    return made


def write(path: Path, made: dict[str, np.ndarray], compression: str | None = "gzip") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in made.items():
            file.create_dataset(name, data=values, dtype=DTYPES.get(name, "i4"), compression=compression)
    return path


def write_folder(path: Path, num: int = 3, samples: int = 50, length: int = 16, slots: int = 3) -> Path:
    """A folder as of the example, with `num` training files and a test file."""
    name = f"hdf5_lower_case_1_seq_len_{length}_max_pred_{slots}_masked_lm_prob_0.15_random_seed_12345_dupe_factor_5"
    folder = path / name / "books_wiki_en_corpus"
    for number in range(num):
        write(folder / f"books_wiki_en_corpus_training_{number}.hdf5", arrays(samples + number, length, slots, number))
    write(folder / "books_wiki_en_corpus_test_0.hdf5", arrays(samples, length, slots, seed=99))
    return folder
