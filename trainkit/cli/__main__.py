"""`python -m trainkit.cli`: the `trainkit` command where torchrun wants a module."""

import sys

from trainkit.cli.main import main

sys.exit(main())
