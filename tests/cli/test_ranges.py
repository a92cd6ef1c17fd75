"""Every number of the configuration has a range, and one outside it is one line that names its key."""

import math
from typing import Any

import pytest
import torch

import trainkit
from trainkit.config import build, build_partial, check, compose
from trainkit.errors import ConfigError, TrainkitError
from trainkit_recipes.bert.pretrain import MaskedLanguageModelling
from trainkit_recipes.progressive_gan.train import ProgressiveGAN
from trainkit_recipes.translation_gan.train import TranslationGAN

BERT = [
    "num_steps",
    "num_epochs",
    "batch_size",
    "grad_accumulation_steps",
    "evaluation_batch_size",
    "mask_share",
    "max_grad_norm",
]
MODEL = ["hidden_size", "num_layers", "num_heads", "feed_forward_size", "max_length", "num_segments"]
MODEL += ["dropout", "attention_dropout", "init_std"]
GAN = ["resolution", "channels", "latent_dim", "fmap_base", "fmap_max", "batch_size", "stable_images", "fade_images"]
GAN += [
    "num_epochs",
    "grad_accumulation_steps",
    "ema_decay",
    "stddev_group",
    "low_precision_resolutions",
    "clamp",
]
TRANSLATION = ["batch_size", "num_steps", "num_epochs", "grad_accumulation_steps", "ema_decay", "pool_size"]
NETWORKS = ("resolution", "channels", "generator_channels", "discriminator_channels", "num_blocks")
EVALUATION = ("batch_size", "num_images", "num_patches", "num_directions", "num_shown")
LOSS = ("penalty", "drift", "penalty_every")
TEXT = ("vocab_size", "sequence_length", "held_out", "num_workers")
IMAGES = ("resolution", "channels", "held_out", "num_workers")
OF_RUN = ["num_workers", "log_every", "evaluate_every", "save_every", "keep_last", "keep_every", "hang_timeout_s"]
OF_RUN += ["minutes", "patience"]
CASES = [
    *[("recipe=bert", f"recipe.{name}") for name in BERT],
    *[("recipe=bert", f"recipe.model.{name}") for name in MODEL],
    *[("recipe=bert", f"data.{name}") for name in TEXT],
    *[("recipe=progressive_gan", f"recipe.{name}") for name in GAN],
    *[("recipe=progressive_gan", f"recipe.evaluation.{name}") for name in EVALUATION],
    *[("recipe=progressive_gan", f"recipe.evaluation.{name}") for name in ("num_pairs", "features.input_size")],
    *[("recipe=progressive_gan", f"recipe.loss.{name}") for name in LOSS],
    *[("recipe=progressive_gan", f"data.{name}") for name in IMAGES],
    *[("recipe=translation_gan", f"recipe.{name}") for name in TRANSLATION],
    *[("recipe=translation_gan", f"recipe.networks.{name}") for name in (*NETWORKS, "discriminator_layers")],
    *[("recipe=translation_gan", f"recipe.evaluation.{name}") for name in EVALUATION],
    *[("recipe=translation_gan", f"recipe.losses.{name}") for name in ("cycle", "identity")],
    *[("recipe=translation_gan", f"data.images.{name}") for name in IMAGES],
    *[("recipe=bert", key) for key in OF_RUN],
    *[("schedule=polynomial", f"schedule.{name}") for name in ("warmup", "final", "power", "total")],
    ("schedule=trapezoidal", "schedule.decay"),
    *[(f"strategy={name}", "strategy.bucket_cap_mb") for name in ("ddp", "zero1", "zero2", "zero3")],
    ("strategy=zero3", "strategy.keep_below"),
    ("strategy=hsdp", "strategy.shard_size"),
    ("precision=fp16", "precision.initial_scale"),
    ("precision=fp16", "precision.growth_interval"),
    ("comm=auto", "comm.chunk_mb"),
    ("comm=powersgd", "comm.matrix_rank"),
    ("comm=powersgd", "comm.start_after"),
]


class _NoData:
    def load(self):
        raise AssertionError("numbers are checked before any data are read")


class _Measured(trainkit.Recipe):
    best_metric = "held_out_loss"

    def __init__(self, runtime):
        self.runtime = runtime

    def engines(self):
        return {}

    def batches(self, start=0):
        raise NotImplementedError

    def train_step(self, batch):
        raise NotImplementedError

    def evaluate(self):
        return {}


def _begin(config) -> None:
    """What a job does with its numbers, up to its first work."""
    checked = check(config)
    for node in (checked["data"], checked["strategy"], checked["comm"], checked["precision"], checked["schedule"]):
        build(node)
    make_recipe = build_partial({**checked["recipe"], "data": None})
    runtime = trainkit.Runtime(
        strategy="single"
        if checked["strategy"]["_target_"] != "trainkit.strategy.HSDP"
        else build(checked["strategy"]),
        device="cpu",
        num_workers=checked["num_workers"],
        log_every=checked["log_every"],
        hang_timeout_s=checked["hang_timeout_s"],
        tracker=trainkit.Tracker(),
    )
    try:
        names = ("evaluate_every", "save_every", "keep_last", "keep_every", "minutes", "patience")
        trainkit.Trainer(_Measured(runtime), **{name: checked[name] for name in names})
        make_recipe(runtime, data=_NoData())
    finally:
        runtime.close()


@pytest.mark.parametrize(("option", "key"), CASES)
def test_a_number_out_of_its_range_is_one_line_before_any_work(option, key):
    with pytest.raises(TrainkitError) as caught:
        _begin(compose([option, f"++{key}=-3"]))
    message = str(caught.value)
    assert key.rpartition(".")[2] in message and "-3" in message and "\n" not in message


def test_every_number_of_the_recipes_is_among_the_cases():
    for kind, names in ((MaskedLanguageModelling, BERT), (ProgressiveGAN, GAN), (TranslationGAN, TRANSLATION)):
        for name, annotation in kind.__init__.__annotations__.items():
            is_number = {int, float} & {annotation, *getattr(annotation, "__args__", ())}
            assert not is_number or name in names or name == "learning_rates", name


@pytest.mark.parametrize("name", ["batch_size", "num_steps", "grad_accumulation_steps", "evaluation_batch_size"])
def test_nothing_to_do_is_refused(name):
    with pytest.raises(ConfigError, match=rf"recipe\.{name}=0: .*(1 or more|greater than 0)"):
        _begin(compose(["recipe=bert", f"recipe.{name}=0"]))


@pytest.mark.parametrize("name", ["grad_accumulation_steps", "stddev_group", "batch_size", "latent_dim"])
def test_a_gan_of_nothing_is_refused(name):
    with pytest.raises(ConfigError, match=rf"recipe\.{name}=0.*: must be 1 or more"):
        _begin(compose(["recipe=progressive_gan", f"recipe.{name}=0"]))


def test_ones_own_loop_has_ranges_too():
    runtime = trainkit.Runtime(device="cpu", tracker=trainkit.Tracker(), ops="reference")
    data = torch.zeros(4, 1)
    refused: list[dict[str, Any]] = [
        {"batch_size": 0}, {"batch_size": 2, "num_steps": -1}, {"batch_size": 2, "start": -1}
    ]  # fmt: skip
    for arguments in refused:
        with pytest.raises(ConfigError, match=r"must be [01] or more"):
            runtime.batches(data, **arguments)
    with pytest.raises(ConfigError, match="batch_size=0: must be 1 or more"):
        runtime.evaluation_batches(data, batch_size=0)
    with pytest.raises(ConfigError, match="num_workers=-1: must be 0 or more"):
        runtime.batches(data, batch_size=2, num_workers=-1)
    with pytest.raises(ConfigError, match="hang_timeout_s=inf"):
        trainkit.Runtime(device="cpu", hang_timeout_s=math.inf)
