#!/usr/bin/env bash
# optuna 5.0.0, ask and tell, with the sampler of a grid.
#
# A good guess: the last point of a grid is told like the others, and a trial whose `tell` raised was not stored.
# Seen: GridSampler stops the study after the last point, and Study.stop is allowed within `optimize` alone: the last
# `tell` raises RuntimeError, on any storage. The trial is stored as complete all the same, so a driver that tells it again, or
# counts it as failed, is wrong about it; and a grid of one point raises at its first trial.
# trainkit draws the points of a grid by the trial's number, with no sampler of Optuna's: trainkit/sweep/samplers.py.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check optuna==5.0.0
cat >grid.py <<'P'
import warnings

import optuna

warnings.filterwarnings("ignore")
optuna.logging.set_verbosity(optuna.logging.ERROR)
for values in ([1, 2, 3], [1]):
    study = optuna.create_study(sampler=optuna.samplers.GridSampler({"x": values}))
    said = []
    for _ in values:
        trial = study.ask()
        x = trial.suggest_categorical("x", values)
        try:
            study.tell(trial, float(x))
            said.append("told")
        except RuntimeError as error:
            said.append(f"RuntimeError: {error}")
    print(said, [trial.state.name for trial in study.trials])
    assert said[:-1] == ["told"] * (len(values) - 1) and said[-1].startswith("RuntimeError")
    assert all(trial.state.name == "COMPLETE" for trial in study.trials)
P
venv/bin/python grid.py
# Output seen:
#   ['told', 'told', 'RuntimeError: `Study.stop` is supposed to be invoked inside an objective function or a callback.'] ['COMPLETE', 'COMPLETE', 'COMPLETE']
#   ['RuntimeError: `Study.stop` is supposed to be invoked inside an objective function or a callback.'] ['COMPLETE']
