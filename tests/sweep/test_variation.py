"""Values of a key that a sweep tries: how they are read, and what Optuna draws of them."""

import math

import pytest

from trainkit.config import CONF_DIR, groups
from trainkit.config.variation import variation_of
from trainkit.errors import ConfigError
from trainkit.sweep import samplers
from trainkit.sweep.settings import Settings, of_words, require_usable


@pytest.mark.parametrize(
    ("text", "extremes"),
    [
        ("0.15,0.3", ["k=0.15", "k=0.3"]),
        ("choice(adam, adamw)", ["k=adam", "k=adamw"]),
        ("[0.9,0.98],[0.9,0.99]", ["k=[0.9,0.98]", "k=[0.9,0.99]"]),
        ("range(1,9)", ["k=1", "k=8"]),
        ("range(1,9,3)", ["k=1", "k=7"]),
        ("range(0,1,0.25)", ["k=0", "k=0.75"]),
        ("interval(1,8)", ["k=1", "k=8"]),
        ("interval(0,0.5)", ["k=0.0", "k=0.5"]),
        ("log(1e-4,1e-2)", ["k=0.0001", "k=0.01"]),
        ("tag(log,interval(1,64))", ["k=1", "k=64"]),
        ([1, None, [1, 2]], ["k=1", "k=null", "k=[1,2]"]),
    ],
)
def test_values_to_try(text, extremes):
    found = variation_of("k", text)
    assert found is not None and found.extremes() == extremes


@pytest.mark.parametrize("text", ["0.1", "adamw", "[0.9,0.98]", "{a: 1}", "'a,b'", "", [3]])
def test_one_value_is_no_variation(text):
    assert variation_of("k", text) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("log(1e-2,1e-4)", "must end above where it begins; type log(0.0001,0.01)"),
        ("interval(1,1)", "must end above where it begins"),
        ("range(5,5)", "must end above where it begins"),
        ("log(0,1)", "must begin above 0"),
        ("log(a,b)", "cannot be read"),
        ("range(1,9,-2)", "with a step above 0"),
        ("1,2,1", "1 is there twice"),
    ],
)
def test_ranges_that_hold_nothing(text, reason):
    with pytest.raises(ConfigError, match=r"optimizer\.lr=") as caught:
        variation_of("optimizer.lr", text)
    assert reason in str(caught.value)


def test_what_is_drawn_is_within_and_by_the_logarithm():
    settings = Settings(space={"lr": "log(1e-4,1e-1)", "n": "range(1,9)", "share": "0.1,0.2"})
    varied = settings.variations()
    study = _study(settings)
    drawn = [study.ask(samplers.distributions(varied)).params for _ in range(300)]
    lr = sorted(math.log10(each["lr"]) for each in drawn)
    assert lr[0] >= -4 and lr[-1] <= -1 and abs(lr[150] + 2.5) < 0.3  # evenly in the logarithm
    assert {each["n"] for each in drawn} == set(range(1, 9))
    assert {each["share"] for each in drawn} == {"0.1", "0.2"}


def test_a_grid_has_each_point_once():
    settings = Settings(space={"a": "range(1,4)", "b": "x,y", "c": "range(0,1,0.5)"}, sampler="grid")
    varied = settings.variations()
    assert samplers.num_trials(settings, varied) == 12
    study, points = _study(settings), []
    for number in range(12):
        trial = study.ask(samplers.distributions(varied))
        points.append(tuple(trial.params.values()))
        study.tell(trial.number, float(number))  # Optuna's own GridSampler raises at the last one
    assert sorted(points) == sorted((a, b, c) for a in (1, 2, 3) for b in "xy" for c in (0, 0.5))


def _study(settings):
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = samplers.sampler(settings, settings.variations(), number=0)
    if settings.sampler == "tpe":
        sampler = optuna.samplers.RandomSampler(seed=0)
    return optuna.create_study(sampler=sampler)


@pytest.mark.parametrize("path", sorted((CONF_DIR / "sweep").glob("*.yaml")), ids=lambda path: path.stem)
def test_searches_that_come_along_can_be_used(path):
    name, settings = of_words([str(path)], {})
    require_usable(settings)
    assert name == path.stem and path.stem not in groups().get("sweep", ())


def test_the_command_line_adds_to_a_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("overrides: [recipe=bert, seed=3]\nspace: {optimizer.lr: 'log(1e-4,1e-2)', seed2: 1}\ntrials: 7\n")
    name, settings = of_words([str(path), "seed=1,2", "optimizer.lr=0.1"], {"trials": 9, "sampler": None})
    assert (name, settings.trials, settings.sampler) == ("mine", 9, "tpe")
    assert settings.overrides == ("recipe=bert", "optimizer.lr=0.1") and settings.space == {"seed": "1,2", "seed2": 1}
    assert [*settings.variations()] == ["seed"] and "seed2=1" in settings.fixed()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("spaces: {}", "spaces: there is no such key; it has overrides, space"),
        ("space: [1]", "space: must be values by key"),
        ("overrides: x=1", "overrides: must be a list"),
        ("[1", "is no YAML"),
        ("3", "must have keys such as"),
    ],
)
def test_errors_of_files(tmp_path, text, reason):
    (tmp_path / "wrong.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"wrong\.yaml: ") as caught:
        of_words([str(tmp_path / "wrong.yaml")], {})
    assert reason in str(caught.value)
