"""Exporters of fine-tuned models: a directory for transformers, an ONNX file, and a bundle for small devices."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor

from trainkit.errors import ConfigError
from trainkit.export import Export, write_bundle, write_onnx
from trainkit_recipes.bert.edge import text_bundle
from trainkit_recipes.bert.export import weights_of
from trainkit_recipes.bert.finetuning.lora import merged
from trainkit_recipes.bert.finetuning.model import FineTuned
from trainkit_recipes.bert.finetuning.onnx_model import onnx_model
from trainkit_recipes.bert.hugging_face import write_directory

if TYPE_CHECKING:
    from trainkit_recipes.bert.finetuning.recipe import FineTuning

# By task: the class of transformers, that for any model, and the name of its head.
_CLASSES = {
    "classification": ("BertForSequenceClassification", "AutoModelForSequenceClassification", "classifier"),
    "regression": ("BertForSequenceClassification", "AutoModelForSequenceClassification", "classifier"),
    "token_classification": ("BertForTokenClassification", "AutoModelForTokenClassification", "classifier"),
    "question_answering": ("BertForQuestionAnswering", "AutoModelForQuestionAnswering", "qa_outputs"),
    "sentence_embeddings": ("BertModel", "AutoModel", ""),
}
_USE = """\
A BERT fine-tuned with trainkit for {task} (see Configuration).

```python
from transformers import {auto}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{directory}")
model = {auto}.from_pretrained("{directory}")
```

{note}"""


# By task that a bundle's runner knows: what a line of the input is.
_PAIRS = "A line is a text; of pairs, a tab divides it from its pair."
_LINES = {
    "classification": f"{_PAIRS} Its class and the probability of each are printed.",
    "regression": f"{_PAIRS} A number is printed.",
    "token_classification": "A line is a sentence, whose words are divided by spaces. A tag of each word is printed.",
    "sentence_embeddings": "A line is a text, whose embedding is printed, or two and a tab between them: the cosine.",
}


def to_hugging_face(recipe: "FineTuning", export: Export) -> Iterator[str]:
    """Writes a directory with which transformers computes what the recipe's model does.

    Args:
        recipe: with the trained model.
        export: where to, and of which run.

    Yields:
        Lines for the user.

    Raises:
        ConfigError: for a model that transformers cannot express.
    """
    with weights_of(recipe.model, export.averaged) as module:
        assert isinstance(module, FineTuned)
        yield from _write(recipe, module, export)


def _write(recipe: "FineTuning", module: FineTuned, export: Export) -> Iterator[str]:
    task = recipe.task
    if task.pooling == "mean" and module.head is not None:
        raise ConfigError(
            "recipe.pooling=mean cannot be expressed by BertForSequenceClassification, which pools the first token: "
            "train with recipe.pooling=first"
        )
    model_class, auto, head = _CLASSES[task.name]
    note = "It computes in transformers what it computes in trainkit."
    if module.head is None:
        pooled = "the mean of the tokens of" if task.pooling == "mean" else "the first token of"
        note = f"The embedding of a text is {pooled} `last_hidden_state`."
    write_directory(
        export,
        merged(module.encoder, recipe.tokenizer.vocab_size),
        recipe.tokenizer,
        model_class=model_class,
        head=_head(module, head),
        text=_USE.format(task=task.name.replace("_", " "), auto=auto, directory=export.destination.name, note=note),
        pipeline_tag=task.hub_name,
        settings=_settings(recipe),
    )
    yield f"step {export.run.step:,}, {recipe.tokenizer.vocab_size:,} tokens: {export.destination}"
    yield f'in Python: transformers.{auto}.from_pretrained("{export.destination}")'


def to_onnx(recipe: "FineTuning", export: Export) -> Iterator[str]:
    """Writes an ONNX file, compared with PyTorch; see `write_onnx`.

    Args:
        recipe: with the trained model, and with data where int8 is wanted.
        export: where to, of which run, and whether as int8.

    Yields:
        Lines for the user.

    Raises:
        ConfigError: for averaged weights, which the recipe does not keep.
    """
    with weights_of(recipe.model, export.averaged) as module:
        assert isinstance(module, FineTuned)
        yield from write_onnx(onnx_model(recipe, module), export)


def to_edge(recipe: "FineTuning", export: Export) -> Iterator[str]:
    """Writes a bundle that predicts what the recipe does without PyTorch; see `write_bundle`.

    Args:
        recipe: with the trained model, and with data where int8 is wanted.
        export: where to, of which run, whether as int8, and for whom it is encrypted.

    Yields:
        Lines for the user.

    Raises:
        ConfigError: for averaged weights, which the recipe does not keep, and for a task that the runner cannot do.
    """
    if recipe.task.name not in _LINES:
        raise ConfigError(
            f"--to edge: the runner does {', '.join(_LINES)}, and not {recipe.task.name}: use --to onnx, whose outputs "
            f"are the starts and ends of answers"
        )
    with weights_of(recipe.model, export.averaged) as module:
        assert isinstance(module, FineTuned)
        bundle = text_bundle(
            onnx_model(recipe, module),
            recipe.tokenizer,
            task=recipe.task.name,
            max_length=recipe.encoder.max_length,
            labels=recipe.task.state_dict().get("classes", ()),
            usage=_LINES[recipe.task.name],
            example="a text of yours",
        )
        yield from write_bundle(bundle, export)


def _head(module: FineTuned, name: str) -> dict[str, Tensor]:
    if module.head is None:
        return {}
    weight, bias = module.head.weight * module.scale, module.head.bias * module.scale + module.centre
    return {f"{name}.weight": weight, f"{name}.bias": bias}


def _settings(recipe: "FineTuning") -> dict[str, Any]:
    if recipe.task.name == "regression":
        return {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "problem_type": "regression"}
    classes = recipe.task.state_dict().get("classes")
    if classes is None:
        return {}
    return {
        "id2label": {str(number): name for number, name in enumerate(classes)},
        "label2id": {name: number for number, name in enumerate(classes)},
    }
