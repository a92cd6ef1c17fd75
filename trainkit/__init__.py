"""Distributed training in PyTorch that is right, fast, and shows it.

Runtime      processes, device, seed, strategy, precision and tracker of a job: setup, batches, log, save, load
Engine       one module and the one optimizer that updates it, as Runtime.setup returns it: backward, step
StepResult   what Engine.step returns: loss, gradient norm, learning rate, whether it was skipped
Recipe       what a run computes: engines, batches, train_step, evaluate
Stage        a part of a run with a number of micro-batches of its own
Trainer      the loop around a Recipe: logs, evaluates, saves, resumes
load_recipe  the recipe of a run or a checkpoint, with its trained engines
launch       a function in several processes of this machine, from a notebook or a script

Strategy     how modules are spread over processes; the base class of:
Single       one process
DDP          every process holds all: DistributedDataParallel
FSDP, HSDP   parameters, gradients and optimizer state in shards (FSDP2); within a host, with replicas across hosts
Zero1, Zero2, Zero3  DeepSpeed's ZeRO: optimizer state in shards; gradients too; parameters too
Comm         how gradients are summed: by which plan over the links
Precision    fp32, tf32, bf16, fp16, fp64
Schedule     learning rates as a function of the position in the data
Last         a metric that is logged as it was last, and not as a mean
Tracker      where numbers, pictures and text of a run go

data         sources of samples: Text, Images, Datasets
evaluation   what a number on held-out samples is worth: intervals, baselines, verdict
encryption   checkpoints and files that only the owners of keys read
export       a trained model in the formats of other programs
errors       what is raised; TrainkitError is the base class
ops          layers in C++ and CUDA, each with its reference in plain PyTorch
optim        optimizers, schedules, averages of weights; MultiOptimizer makes one of several
prune        masks over weights during training
testing      functions on several ranks of this machine, for tests
"""

from typing import TYPE_CHECKING

from trainkit.lazy import exports
from trainkit.version import __version__ as __version__

if TYPE_CHECKING:
    from trainkit import data, encryption, errors, evaluation, export, ops, optim, prune, testing
    from trainkit.distributed.processes import launch
    from trainkit.engine.engine import Engine
    from trainkit.engine.step_result import StepResult
    from trainkit.job import load_recipe
    from trainkit.optim import Schedule
    from trainkit.precision import Precision
    from trainkit.recipe import Recipe, Stage
    from trainkit.reduction.comm import Comm
    from trainkit.runtime import Runtime
    from trainkit.strategy import DDP, FSDP, HSDP, Single, Strategy, Zero1, Zero2, Zero3
    from trainkit.tracking import Last, Tracker
    from trainkit.trainer import Trainer

__all__ = [
    "DDP",
    "FSDP",
    "HSDP",
    "Comm",
    "Engine",
    "Last",
    "Precision",
    "Recipe",
    "Runtime",
    "Schedule",
    "Single",
    "Stage",
    "StepResult",
    "Strategy",
    "Tracker",
    "Trainer",
    "Zero1",
    "Zero2",
    "Zero3",
    "data",
    "encryption",
    "errors",
    "evaluation",
    "export",
    "launch",
    "load_recipe",
    "ops",
    "optim",
    "prune",
    "testing",
]

if not TYPE_CHECKING:  # a type checker would take any name for one of these
    __getattr__, __dir__ = exports(
        __name__,
        {
            "Comm": "trainkit.reduction.comm",
            "DDP": "trainkit.strategy.ddp",
            "Engine": "trainkit.engine.engine",
            "FSDP": "trainkit.strategy.fsdp",
            "HSDP": "trainkit.strategy.fsdp",
            "Last": "trainkit.tracking.means",
            "Precision": "trainkit.precision",
            "Recipe": "trainkit.recipe",
            "Runtime": "trainkit.runtime",
            "Schedule": "trainkit.optim.schedule",
            "Single": "trainkit.strategy.single",
            "Stage": "trainkit.recipe",
            "StepResult": "trainkit.engine.step_result",
            "Strategy": "trainkit.strategy.base",
            "Tracker": "trainkit.tracking.tracker",
            "Trainer": "trainkit.trainer",
            "Zero1": "trainkit.strategy.zero",
            "Zero2": "trainkit.strategy.zero",
            "Zero3": "trainkit.strategy.zero",
            "data": "trainkit.data",
            "encryption": "trainkit.encryption",
            "errors": "trainkit.errors",
            "evaluation": "trainkit.evaluation",
            "export": "trainkit.export",
            "launch": "trainkit.distributed.processes",
            "load_recipe": "trainkit.job",
            "ops": "trainkit.ops",
            "optim": "trainkit.optim",
            "prune": "trainkit.prune",
            "testing": "trainkit.testing",
        },
    )
