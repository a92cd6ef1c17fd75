"""Configuration: everything in conf/ composes and checks, and what is wrong is named with its key."""

from itertools import product

import pytest
import yaml

from trainkit.config import CONF_DIR, build, build_partial, check, compose, compose_onto, groups, to_yaml
from trainkit.errors import ConfigError

USER = CONF_DIR.parent / "tests" / "user" / "conf"


@pytest.mark.parametrize(("group", "option"), [(g, o) for g, options in groups().items() for o in options])
def test_every_option_of_every_group_composes_and_checks(group, option):
    config = compose([f"{group}={option}"])
    check(config)
    assert yaml.safe_load(to_yaml(config)) == config


@pytest.mark.parametrize(("recipe", "precision"), list(product(groups()["recipe"], groups()["precision"])))
def test_what_a_recipe_is_given_can_be_built(recipe, precision):
    checked = check(compose([f"recipe={recipe}", f"precision={precision}"]))
    assert build(checked.precision).name == precision
    assert callable(build_partial(checked.recipe))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("precison=bf16", r"no key 'precison'.* Did you mean 'precision'"),
        ("recipe=brt", r"allowed are .*bert.* Did you mean 'bert'"),
        ("recipe.batchsize=8", r"no key 'recipe.batchsize'.* Did you mean 'recipe.batch_size'"),
        ("data.pth=x", r"Did you mean 'data.path'"),
        ("seed=abc", r"seed='abc': .*integer"),
        ("recipe.batch_size=many", r"recipe.batch_size='many': .*integer"),
        ("device=tpu", r"device='tpu': .*'auto', 'cpu' or 'cuda'"),
        ("+recipe.colour=red", r"recipe.colour: there is no such key"),
        ("+colour=red", r"colour: there is no such key"),
        ("optimizer.lr=[1,2]", r"optimizer.lr="),
        ("recipe._target_=recipes.bert.pretrain.Missing", r"recipe._target_=.*cannot be imported"),
        ("bert", r"not of the form key=value"),
        ("recipe.batch_size=${nothing}", r"nothing"),
    ],
)
def test_a_mistake_names_its_key_and_the_nearest(override, says):
    with pytest.raises(ConfigError, match=says) as caught:
        check(compose([override]))
    assert "\n" not in str(caught.value)


def test_a_missing_directory_of_ones_own():
    with pytest.raises(ConfigError, match="no such directory"):
        compose([], config_dir="nowhere")


def test_ones_own_directory_adds_recipes_data_and_experiments():
    config = compose(["experiment=toy_short"], config_dir=USER)
    assert config["recipe"]["_target_"] == "tests.user.toy.Toy"
    assert config["data"]["train"]["num_samples"] == 200
    assert config["schedule"]["total"] == config["recipe"]["num_steps"] == 24
    check(config)
    assert "toy" in groups(USER)["recipe"] and "bert" in groups(USER)["recipe"]
    with pytest.raises(ConfigError, match="Did you mean 'toy'"):
        compose(["recipe=toi"], config_dir=USER)
    with pytest.raises(
        ConfigError, match=r"recipe.fault='three'.*'none', 'two_backwards', 'not_finite', .*'out_of_memory' or"
    ):
        check(compose(["recipe=toy", "recipe.fault=three"], config_dir=USER))
    with pytest.raises(ConfigError, match=r"data.train.nois: there is no such key.*Did you mean 'noise'"):
        check(compose(["recipe=toy", "+data.train.nois=1"], config_dir=USER))


def test_values_take_the_type_of_the_argument():
    checked = check(compose(["optimizer=adam", "optimizer.betas=[0, 0.99]"]))
    import torch

    p = torch.nn.Parameter(torch.zeros(1))
    optimizer = build(checked.optimizer)([{"params": [p]}])
    assert optimizer.param_groups[0]["betas"] == (0.0, 0.99)


def test_a_stored_configuration_can_be_changed():
    config = compose(["experiment=toy_short"], config_dir=USER)
    assert compose_onto(config, ["recipe.batch_size=16"])["recipe"]["batch_size"] == 16
    with pytest.raises(ConfigError, match=r"Did you mean 'recipe.batch_size'"):
        compose_onto(config, ["recipe.batchsize=16"])
