"""A checkpoint of another recipe is refused in one line, whatever the recipe's own words for it would be."""

import pytest

import trainkit
from tests.counting import Counting
from trainkit.errors import CheckpointError


class Fitted(Counting):
    def __init__(self, runtime, engine="network", remembers=()):
        super().__init__(runtime, [0.0], num_steps=1, engine=engine)
        self.remembers = remembers

    def state_dict(self):
        return dict.fromkeys(self.remembers, 1)

    def load_state_dict(self, state):
        for name in self.remembers:
            state[name]


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"engine": "G"}, r"another recipe than Fitted: its engines are network, not G; give the run_dir"),
        ({"remembers": ("vocabulary",)}, r"another recipe than Fitted: its state has phase, not 'vocabulary'; give"),
    ],
)
def test_a_checkpoint_of_another_recipe_is_one_line(tmp_path, other, says):
    for chosen in ({"remembers": ("phase",)}, other):
        runtime = trainkit.Runtime(device="cpu", run_dir=tmp_path / "run", tracker=trainkit.Tracker(), ops="reference")
        trainer = trainkit.Trainer(Fitted(runtime, **chosen))
        if chosen is not other:
            trainer.fit()
    with pytest.raises(CheckpointError, match=says):
        trainer.fit()
