"""Files of weights: one or several, as safetensors or as PyTorch's .bin, of which no code is run."""

import pickle
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from trainkit.data import read_json
from trainkit.errors import DataError

_WHOLE, _PICKLED = "model.safetensors", "pytorch_model.bin"


def read_weights(directory: Path) -> dict[str, Tensor]:
    """Reads the weights of a Hugging Face directory.

    Of several files, one of safetensors is preferred, and an index names the parts of a model in several.

    Args:
        directory: with model.safetensors, pytorch_model.bin, or the index of either.

    Returns:
        Weights by name, on the CPU.

    Raises:
        DataError: where there are none, or a file cannot be read without running code from it.
    """
    for name, read in ((_WHOLE, _safetensors), (_PICKLED, _pickled)):
        if (directory / name).is_file():
            return read(directory / name)
        index = directory / f"{name}.index.json"
        if index.is_file():
            return _sharded(index, read)
    raise DataError(
        f"recipe.weights={directory} has no {_WHOLE} and no {_PICKLED}; save the model with save_pretrained"
    )


def _sharded(index: Path, read: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    try:
        names = read_json(index)["weight_map"]
        files = sorted(set(names.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{index} is no index of weights ({error}); save the model with save_pretrained") from error
    state: dict[str, Tensor] = {}
    for file in files:
        path = index.parent / file
        if Path(file).name != file or not path.is_file():
            raise DataError(f"{index} names {file}, which is not beside it; give the complete directory")
        state.update(read(path))
    if missing := [name for name in names if name not in state]:
        raise DataError(f"{index} names the weight {missing[0]!r}, which {names[missing[0]]} does not have")
    return state


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} cannot be read ({error}); save the model with save_pretrained") from error


def _pickled(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()
        raise DataError(
            f"{path} cannot be read without running code from it ({reason[0] if reason else 'it is empty'}): save the "
            f"model with save_pretrained, as {_WHOLE}"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DataError(f"{path} holds no weights by name; save the model with save_pretrained")
    return state
