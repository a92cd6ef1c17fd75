"""NvidiaBert: the samples that NVIDIA's BERT example is trained on, in HDF5 files."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainkit.cache import cache_root
from trainkit.data.datasets import Datasets
from trainkit.data.files import counted, walk
from trainkit.data.mapped_files import MappedFiles
from trainkit.data.packing import dtype_for
from trainkit.data.pretraining_shards import RECORDS, SUFFIXES, PretrainingShard, Records, Shape, record_dtype
from trainkit.data.progress import remark, track
from trainkit.data.split import lowest_fraction
from trainkit.data.tokenizer import WordPiece
from trainkit.data.windows import Windows
from trainkit.errors import DataError

_HELD_OUT_WORDS = {"test", "validation", "valid", "dev", "eval"}
_UNUSED = -100  # label of an unused slot; cross_entropy's own default
_MIN_HELD_OUT = 64  # samples: with fewer, the random error of an accuracy is above 2 %


@dataclass(frozen=True, kw_only=True)
class NvidiaBert:
    """A specification of HDF5 files of NVIDIA's BERT example (DeepLearningExamples); `load()` makes data sets of it.

    Each file is converted once to records in the cache, from which a sample is read at once.

    Args:
        path: a .hdf5 or .h5 file, or a folder of them at any depth. Those with the word `test`, `validation`,
            `valid`, `dev` or `eval` in the name, or in that of a folder below `path`, are not trained on.
        held_out_path: a file or a folder to evaluate on; None: those of `path` with such a name, or else the fraction
            `held_out` of the files.
        vocab_file: the vocab.txt that the files were made with, or a tokenizer.json.
        lowercase: whether text is normalized to lower case; None: as the tokenizer_config.json beside `vocab_file`
            says, else True. It is used on text that is given to the trained model.
        sequence_length: tokens in a sample, which chooses files of that length; None: all must have one length.
        static_masking: whether samples have the masking of the files, which a recipe is to use, in training and
            evaluation; false: the original tokens are restored, to be masked again in each epoch.
        held_out: the fraction of the files to hold out, chosen by a hash of their names, at least one. Files are not
            divided, because the copies of a document (`dupe_factor`) are in one.
        held_out_samples: the maximum number of samples to evaluate on, an even choice by a hash; None: all.
        cache_dir: where records are stored; None: $TRAINKIT_CACHE, else ~/.cache/trainkit.
        tokenizer: an existing one, such as a checkpoint's, in place of `vocab_file`.

    Raises:
        DataError: for a value out of range, and where a listing of the paths shows no such file.
    """

    path: Path | None = None
    held_out_path: Path | None = None
    vocab_file: Path | None = None
    lowercase: bool | None = None
    sequence_length: int | None = None
    static_masking: bool = False
    held_out: float = 0.02
    held_out_samples: int | None = 4096
    cache_dir: Path | None = None
    tokenizer: WordPiece | None = None

    def __post_init__(self) -> None:
        _check(0 < self.held_out <= 0.5, "held_out", self.held_out, "above 0 and at most 0.5")
        most = self.held_out_samples
        _check(most is None or most > 0, "held_out_samples", most, "at least 1, or null for all")
        length = self.sequence_length
        _check(length is None or length >= 8, "sequence_length", length, "at least 8, or null for that of the files")
        if self.vocab_file is not None:
            exists = Path(self.vocab_file).expanduser().is_file()
            _check(exists, "vocab_file", self.vocab_file, "a vocab.txt that exists")
        if self.path is not None:
            self._files()

    def load(self, progress: bool = True) -> Datasets:
        """Loads training and held-out samples and their tokenizer, and converts what is not in the cache.

        Items are {"tokens": int64 [T], "segments": int64 [T], 1 in the second sentence, "next_sentence_label": int64, 1
        where the second sentence is a random one}; with `static_masking` also, each int64 [K], "masked_positions",
        "masked_inputs", the tokens that the model sees there, and "masked_labels", the original ones, or -100 for an
        unused slot.

        Args:
            progress: whether to show progress bars.

        Returns:
            The data sets.

        Raises:
            DataError: for a file that is not of this form, and a vocabulary that does not fit.
        """
        return self.load_lengths([self.sequence_length], progress)[0]

    def load_lengths(self, lengths: Sequence[int | None], progress: bool = True) -> list[Datasets]:
        """Loads the files of several lengths; see `load`.

        Args:
            lengths: in place of `sequence_length`.
            progress: whether to show progress bars.

        Returns:
            The data sets of each length.
        """
        tokenizer = self._tokenizer()
        root, token = cache_root(self.cache_dir), dtype_for(tokenizer.vocab_size)
        train, held_out = ([PretrainingShard(file, root, token) for file in files] for files in self._files())
        shapes = {shard: shard.shape() for shard in [*train, *held_out]}
        chosen = [_length(train, shapes, length) for length in lengths]
        sides = [
            self._divided(_of_length(train, shapes, length), _of_length(held_out, shapes, length)) for length in chosen
        ]
        return [self._datasets(*both, tokenizer=tokenizer, progress=progress) for both in sides]

    def _datasets(
        self,
        train: list[PretrainingShard],
        held_out: list[PretrainingShard],
        *,
        tokenizer: WordPiece,
        progress: bool,
    ) -> Datasets:
        facts: dict[str, int | str] = {"files": len(train), "held-out files": len(held_out)}
        both = train + held_out
        records = [shard.records() for shard in track(both, "converting HDF5 files", len(both), progress)]
        for shard, one in zip(both, records, strict=True):
            self._require_vocabulary(shard.path, one, tokenizer)
        sets = [
            PretrainingSamples(part, tokenizer, self.static_masking, most)
            for part, most in ((records[: len(train)], None), (records[len(train) :], self.held_out_samples))
        ]
        for name, samples in zip(("to train on", "to evaluate on"), sets, strict=True):
            if not len(samples):
                raise DataError(f"data.path={self.path}: the files {name} have no sample; give more of them")
        if len(sets[1]) < _MIN_HELD_OUT:
            facts["note"] = f"{len(sets[1])} held-out samples are too few to measure well: set data.held_out_path"
        if progress:
            remark(facts, "note")
        cache = cache_root(self.cache_dir)
        return Datasets(train=sets[0], held_out=sets[1], tokenizer=tokenizer, facts=facts, cache=cache)

    def _files(self) -> tuple[list[Path], list[Path]]:
        """The files to train on, and those that are held out by their names or by `held_out_path`."""
        if self.path is None:
            raise DataError("data.path is not set: give a folder with the .hdf5 files of NVIDIA's BERT example")
        path = Path(self.path).expanduser()
        found = _found(path, "path")
        held_out = [file for file in found if _is_held_out(file.relative_to(path))] if path.is_dir() else []
        out = set(held_out)
        train = [file for file in found if file not in out]
        if not train:
            raise DataError(
                f"data.path={path}: all {len(found)} files are held out by their names; none is to train on"
            )
        if self.held_out_path is not None:
            held_out = _found(Path(self.held_out_path).expanduser(), "held_out_path")
            if shared := {file.resolve() for file in train} & {file.resolve() for file in held_out}:
                raise DataError(f"data.held_out_path={self.held_out_path} has {min(shared)}, which is also trained on")
        return train, held_out

    def _divided(
        self, train: list[PretrainingShard], held_out: list[PretrainingShard]
    ) -> tuple[list[PretrainingShard], list[PretrainingShard]]:
        if held_out:
            return train, held_out
        if self.held_out_path is not None:
            raise DataError(
                f"data.held_out_path={self.held_out_path} has no file of samples as long as those of "
                f"data.path={self.path}; give one"
            )
        # By the name alone: of every length, the same documents are held out.
        keys = np.array([_hash(shard.path.name) for shard in train], np.uint64)
        if len(np.unique(keys)) < 2:
            raise DataError(
                f"data.path={self.path} has one file, which is not divided because copies of a document are in it: "
                f"give a file to evaluate on as data.held_out_path"
            )
        is_held_out = lowest_fraction(keys, self.held_out)
        sides = [[shard for shard, side in zip(train, is_held_out, strict=True) if side == is_out] for is_out in (0, 1)]
        return sides[0], sides[1]

    def _tokenizer(self) -> WordPiece:
        if self.vocab_file is None and self.tokenizer is None:
            raise DataError(
                "data.vocab_file is not set: HDF5 files contain numbers only; give the vocab.txt that they were made "
                "with"
            )
        if self.vocab_file is None:
            assert self.tokenizer is not None
            return self.tokenizer
        given = WordPiece.read(Path(self.vocab_file).expanduser(), lowercase=self.lowercase)
        if self.tokenizer is not None and self.tokenizer.meaning != given.meaning:
            raise DataError(
                f"data.vocab_file={self.vocab_file} is not the vocabulary of the checkpoint "
                f"({self.tokenizer.vocab_size} tokens): leave data.vocab_file and data.lowercase as they were"
            )
        return self.tokenizer or given

    def _require_vocabulary(self, path: Path, records: Records, tokenizer: WordPiece) -> None:
        wrong = None
        if records.largest >= tokenizer.vocab_size:
            wrong = f"has token {records.largest}"
        elif records.shape.num_samples and records.first != tokenizer.start:
            wrong = f"begins with token {records.first}"
        if wrong is not None:
            raise DataError(
                f"{path} {wrong}, and data.vocab_file={self.vocab_file} has {tokenizer.vocab_size} tokens with [CLS] = "
                f"{tokenizer.start}: give the vocab.txt that the files were made with"
            )


class PretrainingSamples(Windows):
    """Samples of several converted files, in their order; see `NvidiaBert.load` for what an item is.

    Args:
        records: of each file, all of one shape but for the number of samples.
        tokenizer: with `pad`, `vocab_size` and `meaning`.
        static_masking: whether items have the masking of the files.
        most: the maximum number of samples, an even choice by a hash; None: all.
    """

    def __init__(
        self, records: Sequence[Records], tokenizer: WordPiece, static_masking: bool, most: int | None
    ) -> None:
        self.static_masking, self.pad = static_masking, tokenizer.pad
        self.paths = [one.directory / RECORDS for one in records]
        self.ends = np.cumsum([one.shape.num_samples for one in records], dtype=np.int64)
        shape = records[0].shape if records else Shape(0, 0, 0)
        self.sequence_length = shape.sequence_length
        self.dtype = record_dtype(shape, dtype_for(tokenizer.vocab_size))
        self.is_padded = any(one.is_padded for one in records)
        self.content = _digest([tokenizer.meaning, *(one.content for one in records)])
        self._files = MappedFiles()
        super().__init__(int(self.ends[-1]) if records else 0, most)

    @property
    def fingerprint(self) -> str:
        """Hash of the samples, independent of where the files are."""
        masking = "static" if self.static_masking else "dynamic"
        return f"{self.content} {masking} {self.sequence_length} {len(self)}"

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        numbers = self.numbers(indices)
        records = np.empty(len(numbers), self.dtype)
        files = np.searchsorted(self.ends, numbers, side="right")
        for file in np.unique(files).tolist():
            is_here = files == file
            start = int(self.ends[file - 1]) if file else 0
            records[is_here] = self._files.array(self.paths[file], self.dtype)[numbers[is_here] - start]
        columns = np.arange(self.sequence_length)
        is_padding = columns >= records["length"][:, None]
        tokens = records["tokens"].astype(np.int64)
        tokens[is_padding] = self.pad
        arrays = {
            "tokens": tokens,
            "segments": (columns >= records["second"][:, None]) & ~is_padding,
            "next_sentence_label": records["next"],
        }
        if self.static_masking:
            positions = records["positions"].astype(np.int64)
            is_used = np.arange(positions.shape[1]) < records["num_masked"][:, None]
            arrays["masked_positions"], arrays["masked_inputs"] = positions, records["seen"]
            arrays["masked_labels"] = np.where(is_used, np.take_along_axis(tokens, positions, 1), _UNUSED)
        return {name: torch.from_numpy(values.astype(np.int64)) for name, values in arrays.items()}


def _length(shards: list[PretrainingShard], shapes: dict[PretrainingShard, Shape], wanted: int | None) -> int:
    """The length of samples to use."""
    counts = Counter(shapes[shard].sequence_length for shard in shards)
    found = ", ".join(f"{count} of {length} tokens" for length, count in sorted(counts.items()))
    if wanted is None and len(counts) > 1:
        raise DataError(f"data.path has files with samples of several lengths ({found}): set data.sequence_length")
    if wanted is not None and wanted not in counts:
        raise DataError(
            f"data.path has no file with samples of {wanted} tokens, but {found}: set data.sequence_length, or that of "
            f"recipe.phases, to one of these"
        )
    return next(iter(counts)) if wanted is None else wanted


def _of_length(
    shards: list[PretrainingShard], shapes: dict[PretrainingShard, Shape], length: int
) -> list[PretrainingShard]:
    found = [shard for shard in shards if shapes[shard].sequence_length == length]
    for shard in found:
        if shapes[shard].num_slots != shapes[found[0]].num_slots:
            raise DataError(
                f"{found[0].path} has {shapes[found[0]].num_slots} masked_lm_positions in a sample, and {shard.path} "
                f"{shapes[shard].num_slots}: set data.path to a folder with one of the two"
            )
    return found


def _found(path: Path, key: str) -> list[Path]:
    if not path.exists():
        raise DataError(f"data.{key}={path} does not exist; set it to a folder with .hdf5 files, or to one file")
    if path.is_file():
        return [path]
    files = [directory / name for directory, _, names in walk(path) for name in names]
    found = sorted(file for file in files if file.suffix.lower() in SUFFIXES)
    if not found:
        raise DataError(
            f"data.{key}={path} has no .hdf5 or .h5 file, but {counted(files) or 'nothing'}; set it to a folder of them"
        )
    return found


def _is_held_out(file: Path) -> bool:
    return any(_HELD_OUT_WORDS.intersection(re.split(r"[\W_]+", part.lower())) for part in file.parts)


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest(), "little")


def _digest(parts: Iterable[str]) -> str:
    return hashlib.blake2b(" ".join(parts).encode(), digest_size=16).hexdigest()


def _check(holds: bool, name: str, value: object, allowed: str) -> None:
    if not holds:
        raise DataError(f"data.{name}={value}: must be {allowed}; set data.{name}")
