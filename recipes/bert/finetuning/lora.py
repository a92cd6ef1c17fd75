"""LoRA (Hu et al., arXiv 2106.09685): low-rank updates of frozen matrices, by the peft library."""

import torch
from torch import nn

from trainkit.errors import ConfigError
from trainkit_recipes.bert.finetuning.model import FineTuned
from trainkit_recipes.bert.model import Bert

_MATRICES = ["qkv", "attention.output", "feed_forward.down"]  # of a layer; `up` computes its activation, too


def add_lora(module: FineTuned, rank: int) -> None:
    """Freezes the encoder, and adds a low-rank update to matrices of every layer; the pooler and the head are trained.

    Args:
        module: changed in place.
        rank: of the updates, which are scaled by 2.

    Raises:
        ConfigError: where peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ConfigError(f"recipe.lora_rank={rank} needs peft ({error}): pip install 'trainkit[lora]'") from error
    trained: list[nn.Module] = [part for part in (module.encoder.pooler, module.head) if part is not None]
    config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=_MATRICES)
    inject_adapter_in_model(config, module)
    for part in trained:
        part.requires_grad_(True)


@torch.no_grad()
def merged(encoder: Bert, vocab_size: int) -> Bert:
    """Returns an encoder with the updates added to its matrices; one without updates is returned as it is.

    Args:
        encoder: of a model that may have updates.
        vocab_size: number of tokens.
    """
    updated = {name: part for name, part in encoder.named_modules() if hasattr(part, "get_delta_weight")}
    if not updated:
        return encoder
    state = {name.replace(".base_layer", ""): value for name, value in encoder.state_dict().items()}
    for name, part in updated.items():
        state[f"{name}.weight"] = state[f"{name}.weight"] + part.get_delta_weight("default")
    plain = Bert(encoder.architecture, vocab_size).to(state["embeddings.token.weight"].dtype)
    plain.load_state_dict({name: value for name, value in state.items() if ".lora_" not in name})
    return plain
