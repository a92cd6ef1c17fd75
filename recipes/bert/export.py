"""Exporters of a pre-trained BERT: a directory for transformers, an ONNX file, and a bundle for small devices."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from torch import nn

from trainkit import Engine
from trainkit.errors import ConfigError
from trainkit.export import Export, write_bundle, write_onnx
from trainkit_recipes.bert.edge import text_bundle
from trainkit_recipes.bert.hugging_face import head_weights, write_directory
from trainkit_recipes.bert.model import MaskedLanguageModel
from trainkit_recipes.bert.next_sentence import PreTrainingModel
from trainkit_recipes.bert.onnx_model import onnx_model

if TYPE_CHECKING:
    from trainkit_recipes.bert.pretrain import MaskedLanguageModelling

_USE = """\
A BERT that predicts masked words, trained with trainkit from scratch or from other weights (see Configuration).

```python
from transformers import AutoModelForMaskedLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{directory}")
model = AutoModelForMaskedLM.from_pretrained("{directory}")
```

It computes in transformers what it computes in trainkit. {pooler}"""
_NO_POOLER = "It has no pooler: `AutoModel` makes a new one."
_PAIRS = "`BertForPreTraining` reads its head for the next sentence, too."


def to_hugging_face(recipe: "MaskedLanguageModelling", export: Export) -> Iterator[str]:
    """Writes a directory with which `AutoModelForMaskedLM` and `AutoTokenizer` compute what the recipe's model does.

    Args:
        recipe: with the trained model.
        export: where to, and of which run.

    Yields:
        Lines for the user.

    Raises:
        ConfigError: for a model that Hugging Face's BERT cannot express.
    """
    with weights_of(recipe.model, export.averaged) as module:
        assert isinstance(module, MaskedLanguageModel)
        head = head_weights(module.head.state_dict(), recipe.tokenizer.vocab_size)
        has_pairs = isinstance(module, PreTrainingModel)
        if isinstance(module, PreTrainingModel):
            own = module.next_sentence.state_dict()
            head |= {f"cls.seq_relationship.{kind}": value for kind, value in own.items()}
        write_directory(
            export,
            module.encoder,
            recipe.tokenizer,
            model_class="BertForPreTraining" if has_pairs else "BertForMaskedLM",
            head=head,
            text=_USE.format(directory=export.destination.name, pooler=_PAIRS if has_pairs else _NO_POOLER),
            pipeline_tag="fill-mask",
        )
    num = sum(parameter.numel() for parameter in module.parameters())
    yield f"step {export.run.step:,}, {num:,} parameters, {recipe.tokenizer.vocab_size:,} tokens: {export.destination}"
    yield f'in Python: transformers.AutoModelForMaskedLM.from_pretrained("{export.destination}")'


def to_onnx(recipe: "MaskedLanguageModelling", export: Export) -> Iterator[str]:
    """Writes an ONNX file with the logits of all tokens, compared with PyTorch; see `write_onnx`.

    Args:
        recipe: with the trained model, and with data where int8 is wanted.
        export: where to, of which run, and whether as int8.

    Yields:
        Lines for the user.
    """
    with weights_of(recipe.model, export.averaged) as module:
        assert isinstance(module, MaskedLanguageModel)
        yield from write_onnx(onnx_model(recipe, module), export)
    if recipe.next_sentence:
        yield "The file has no head for the next sentence: --to huggingface writes both."


def to_edge(recipe: "MaskedLanguageModelling", export: Export) -> Iterator[str]:
    """Writes a bundle that predicts masked words without PyTorch; see `write_bundle`.

    Args:
        recipe: with the trained model, and with data where int8 is wanted.
        export: where to, of which run, whether as int8, and for whom it is encrypted.

    Yields:
        Lines for the user.
    """
    with weights_of(recipe.model, export.averaged) as module:
        assert isinstance(module, MaskedLanguageModel)
        bundle = text_bundle(
            onnx_model(recipe, module),
            recipe.tokenizer,
            task="masked_words",
            max_length=module.encoder.architecture.max_length,
            usage="A line is a sentence with [MASK] in the place of a word; the three most likely words are printed.",
            example="Close the [MASK] and release its resources.",
        )
        yield from write_bundle(bundle, export)


def weights_of(engine: Engine, averaged: bool | None, usual: bool = False) -> AbstractContextManager[nn.Module]:
    """Context manager for the module of an engine with its averaged or its trained weights.

    Args:
        engine: of the model.
        averaged: which are asked for; None: as `usual`.
        usual: whether the recipe evaluates with averaged ones.

    Raises:
        ConfigError: for averaged weights of an engine that keeps none.
    """
    if not (usual if averaged is None else averaged):
        return nullcontext(engine.module)
    if engine.average is None:
        raise ConfigError("--averaged: this run keeps no averaged weights; leave it out")
    return engine.averaged()
