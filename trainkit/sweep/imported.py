"""What trials import: the server of worker processes imports it once for all slots of a machine."""

import gc

import scipy.special  # noqa: F401
import tokenizers  # noqa: F401

import trainkit.checkpoint.saver
import trainkit.checkpoint.sharded
import trainkit.config.compose
import trainkit.job
import trainkit.sweep.worker  # noqa: F401
from trainkit.data.corpus import documentation
from trainkit.manifest import code, environment

documentation()  # the files of the built-in text, listed once for all trials
environment.needed(["trainkit", *environment.imported()])  # read once, and not by each trial
code.modules()
gc.collect()
gc.freeze()  # a collection in a trial would copy every page of the server
