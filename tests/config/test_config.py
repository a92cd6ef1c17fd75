"""Configuration: everything in conf/ composes and checks, and what is wrong is named with its key."""

from itertools import product
from pathlib import Path

import pytest
import yaml

from trainkit.config import (
    CONF_DIR,
    build,
    build_partial,
    check,
    compose,
    compose_onto,
    compose_unresolved,
    groups,
    resolve,
    to_yaml,
)
from trainkit.config.overrides import read
from trainkit.errors import ConfigError, DataError
from trainkit.training.accumulation import checkable

USER = CONF_DIR.parent / "tests" / "user" / "conf"


@pytest.mark.parametrize(("group", "option"), [(g, o) for g, options in groups().items() for o in options])
def test_every_option_of_every_group_composes_and_checks(group, option):
    config = compose([f"{group}={option}"])
    check(checkable(config))
    assert yaml.safe_load(to_yaml(config)) == config


@pytest.mark.parametrize(("recipe", "precision"), list(product(groups()["recipe"], groups()["precision"])))
def test_what_a_recipe_is_given_can_be_built(recipe, precision):
    checked = check(compose([f"recipe={recipe}", f"precision={precision}"]))
    assert build(checked["precision"]).name == precision
    assert callable(build_partial(checked["recipe"]))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("precison=bf16", r"no key 'precison'.* Did you mean 'precision'"),
        ("recipe=brt", r"must be one of .*bert.* Did you mean 'bert'"),
        ("recipe.batchsize=8", r"no key 'recipe.batchsize'.* Did you mean 'recipe.batch_size'"),
        ("data.pth=x", r"Did you mean 'data.path'"),
        ("seed=abc", r"seed='abc': .*integer"),
        ("recipe.batch_size=many", r"recipe.batch_size='many': .*integer"),
        ("device=tpu", r"device='tpu': .*'auto', 'cpu' or 'cuda'"),
        ("+recipe.colour=red", r"recipe.colour: there is no such key"),
        ("+colour=red", r"colour: there is no such key"),
        ("optimizer.lr=[1,2]", r"optimizer.lr="),
        ("recipe._target_=trainkit_recipes.bert.pretrain.Missing", r"recipe._target_=.*cannot be imported"),
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
        ConfigError, match=r"recipe.fault='three'.*'none', 'two_backwards', 'not_finite', .*'out_of_memory'.* or"
    ):
        check(compose(["recipe=toy", "recipe.fault=three"], config_dir=USER))
    with pytest.raises(ConfigError, match=r"data.train.nois: there is no such key.*Did you mean 'noise'"):
        check(compose(["recipe=toy", "+data.train.nois=1"], config_dir=USER))


def test_values_take_the_type_of_the_argument():
    checked = check(compose(["optimizer=adam", "optimizer.betas=[0, 0.99]"]))
    import torch

    p = torch.nn.Parameter(torch.zeros(1))
    optimizer = build(checked["optimizer"])([{"params": [p]}])
    assert optimizer.param_groups[0]["betas"] == (0.0, 0.99)


def test_a_stored_configuration_can_be_changed():
    config = compose(["experiment=toy_short"], config_dir=USER)
    assert compose_onto(config, ["recipe.batch_size=16"])["recipe"]["batch_size"] == 16
    with pytest.raises(ConfigError, match=r"Did you mean 'recipe.batch_size'"):
        compose_onto(config, ["recipe.batchsize=16"])


def test_a_mapping_may_add_keys_to_one_of_conf():
    recipe = compose(["experiment=glyphs", "recipe.resolution=32", "recipe.stable_images={32: 64000}"])["recipe"]
    assert recipe["stable_images"] == {4: 4000, 8: 12000, 16: 40000, 32: 64000}
    phase = {"sequence_length": 16, "num_steps": 3, "batch_size": 8, "warmup": 1}
    typed = "recipe.phases.phase1={sequence_length: 16, num_steps: 3, batch_size: 8, warmup: 1}"
    assert compose(["experiment=bert_base", typed])["recipe"]["phases"]["phase1"] == phase
    with pytest.raises(ConfigError, match=r"evaluation\.numshown: there is no such key.*Did you mean 'num_shown'"):
        check(compose(["recipe=progressive_gan", "recipe.evaluation={numshown: 3}"]))


def test_free_keys_below_a_group_that_is_changed_too():
    given = ["strategy=zero3", "strategy.config.zero_optimization.overlap_comm=true"]
    for overrides in (given, given[::-1]):
        assert changed(compose(), *overrides)["strategy"] == compose(overrides)["strategy"]
    with pytest.raises(ConfigError, match=r"there is no key 'strategy\.confg'.*Did you mean 'strategy\.config'"):
        compose_onto(compose(), ["strategy=zero3", "strategy.confg.zero_optimization.overlap_comm=true"])


def changed(config, *overrides):
    return resolve(compose_onto(config, overrides))


@pytest.mark.parametrize("compose_it", [compose, compose_unresolved], ids=["an older checkpoint", "links kept"])
def test_a_change_acts_wherever_a_node_was_interpolated(compose_it):
    config = compose_it(["recipe=bert"])
    assert changed(config, "data.vocab_size=777")["recipe"]["data"]["vocab_size"] == 777
    assert changed(config, "recipe.data.vocab_size=777")["data"]["vocab_size"] == 777
    assert changed(config, "optimizer=lamb")["recipe"]["optimizer"]["_target_"] == "trainkit.optim.Lamb"
    assert changed(config, "schedule.warmup=3")["recipe"]["schedule"]["warmup"] == 3
    checked = check(changed(config, "data.path=/not/there"))
    with pytest.raises(DataError, match="/not/there"):
        build(checked["recipe"]["data"])


def test_a_change_acts_on_a_number_that_was_interpolated():
    config = compose_unresolved(["recipe=progressive_gan", "schedule=cosine", "+recipe.num_steps=1"])
    assert changed(config, "recipe.resolution=8")["data"]["resolution"] == 8
    assert changed(compose_unresolved(["recipe=bert"]), "recipe.num_steps=9")["recipe"]["schedule"]["total"] == 9


def test_a_run_and_its_evaluation_read_values_alike():
    for override in ("data.field=no", "seed=1e3", "data.path=07", "recipe.sentences=['a [MASK]',on]"):
        key = override.partition("=")[0]
        composed, onto = compose([override]), changed(compose_unresolved(), override)
        assert composed == onto, key
    with pytest.raises(ConfigError, match=r"there is no key 'seeed'.*Did you mean 'seed'"):
        compose_onto(compose(), ["seeed=1"])


NAMES = ["Photos (2024)", "a&b", "it's", "c#d", "[x]", "{y}", "Zoë", "k=v", "a,b", "a, b", "{x: 1}", "2024", "1e3"]
NAMES += ["0x10", "true", "choice(1,2)", "a;b", "!x", "x\\", "a\\'b", "'", '"', "%d", "a'b'c", "my folder"]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("data.path=https://me:hunter2@host/x", r"data\.path=https://\*\*\*@host/x: a URL must not carry credentials"),
        ("run_dir=s3://key:hunter2@bucket/x", r"run_dir=s3://\*\*\*@bucket/x: .* set AWS_ACCESS_KEY_ID"),
        ("data.vocab_file=https://host/vocab.txt", r"data\.vocab_file=https://host/vocab\.txt: must be a path of this"),
    ],
)
def test_a_url_that_may_not_be_kept_is_refused(override, says):
    with pytest.raises(ConfigError, match=says) as caught:
        check(compose([override]))
    assert "hunter2" not in str(caught.value)


def test_a_url_is_not_made_into_a_path():
    assert check(compose(["data.path=s3://bucket//a"]))["data"]["path"] == "s3://bucket//a"


@pytest.mark.parametrize("name", NAMES)
def test_a_path_is_taken_as_it_stands(name, tmp_path):
    if name != "'":  # in quotes of the grammar, a value is what is between them
        checked = check(compose([f"data.path={name}", f"run_dir={name}", f"tracking.wandb.name={name}"]))
        data, of_recipe = checked["data"]["path"], checked["recipe"]["data"]["path"]
        assert data == of_recipe == checked["run_dir"] == name
        assert checked["tracking"]["wandb"]["name"] == name
    assert changed(compose_unresolved(), f"data.path={tmp_path}/{name}")["data"]["path"] == f"{tmp_path}/{name}"
    own = tmp_path / name / "conf"
    (own / "experiment").mkdir(parents=True)
    (own / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 5\n")
    assert compose(["experiment=mine"], config_dir=own)["seed"] == 5


def test_a_tilde_is_the_home_directory():
    checked = check(compose(["data.path=~/texts", "run_dir=~/run", "comm.topology=~/links.json"]))
    home = Path.home()
    assert checked["data"]["path"] == str(home / "texts") and checked["run_dir"] == str(home / "run")
    assert read(["data.path=~/texts"])[0].value == "~/texts"
    with pytest.raises(ConfigError, match=r"data\.path=~nobody-of-that-name/x"):
        check(compose(["data.path=~nobody-of-that-name/x"]))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("recipe.batch_size=1,2", r"recipe.batch_size='1,2': .*integer"),
        ("recipe.batch_size=(4)", r"recipe.batch_size='\(4\)': .*integer"),
        ("recipe.sentences=[It's a [MASK].]", r"""quotes, as in 'recipe.sentences=\["one text", "another"\]'"""),
        ("strategy=a,b", r"strategy=a,b: must be one of .*ddp"),
        ("recipe=[1]", r"recipe=\[1\]: must be one of bert"),
        ("recipe=null", r"recipe=null: must be one of bert"),
        ("recipe.data.path=x", r"recipe.data.path=x: type data.path=x, of which it is a copy"),
        ("experiment=(a)", r"experiment=\(a\): must be one of .*bert_base"),
        ("da ta.path=x", r"is no key, such as data.path"),
        ("data.path=", r"data.path is empty: give it a value, or data.path=null"),
        ("hang_timeout_s=1e400", r"hang_timeout_s=inf: .*finite number"),
        ("recipe.max_grad_norm=nan", r"recipe.max_grad_norm=nan: .*finite number"),
    ],
)
def test_a_value_that_cannot_be_read_is_one_line(override, says):
    with pytest.raises(ConfigError, match=says) as caught:
        check(compose([override]))
    assert "\n" not in str(caught.value)


def test_a_schedule_may_be_left_out():
    checked = check(compose(["schedule=null", "experiment=null"]))
    assert checked["schedule"] is None and checked["recipe"]["schedule"] is None
    assert changed(compose_unresolved(), "schedule=null")["recipe"]["schedule"] is None


@pytest.mark.parametrize("keys", ["seed: 5", "defaults:\n  - override /recipe: bert\nrecipe:\n  num_steps: 3"])
def test_a_package_line_below_a_comment_is_refused(tmp_path, keys):
    """Hydra ignores it there, and the keys would lie below `experiment`."""
    file = tmp_path / "experiment" / "mine.yaml"
    file.parent.mkdir()
    file.write_text(f"# My experiment.\n# @package _global_\n{keys}\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml, line 2: '# @package _global_' must be the first line"):
        compose(["experiment=mine"], tmp_path)
    file.write_text(f"\n# @package _global_\n# My experiment.\n{keys}\n")
    assert compose(["experiment=mine"], tmp_path)["recipe"]["_target_"].startswith("trainkit_recipes.bert")


def test_a_choice_that_cannot_be_composed_is_one_error(tmp_path):
    file = tmp_path / "experiment" / "mine.yaml"
    file.parent.mkdir()
    file.write_text("# @package _global_\ndefaults:\n  - override /recipee: bert\n")
    with pytest.raises(ConfigError, match="recipee"):
        compose(["experiment=mine"], tmp_path)
