"""Runs the model of this bundle: a line of JSON for each line of a file, or of the standard input.

It needs Python 3.8 or newer, onnxruntime and numpy; an encrypted bundle needs cryptography, too. See README.md.
"""

import argparse
import json
import sys
from pathlib import Path

from bundle import Bundle, BundleError

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("file", nargs="?", default=0, help="of lines in UTF-8; default: the standard input")
parser.add_argument("--threads", type=int, default=0, help="default: as many as there are cores")
parser.add_argument("--identity", metavar="FILE", help="with the secret key for an encrypted bundle")
parser.add_argument("--provider", default="CPUExecutionProvider", help="of onnxruntime; default: %(default)s")
given = parser.parse_args()
try:
    bundle = Bundle(Path(__file__).parent, given.identity)
    from task import Task  # whose file is verified now

    task, session = Task(bundle), bundle.session(given.threads, given.provider)
    with open(given.file, encoding="utf-8", errors="replace", newline="\n") as lines:  # noqa: PTH123
        for line in lines:
            print(json.dumps(task.answer(line.rstrip("\r\n"), session.run), ensure_ascii=False), flush=True)
except (BundleError, OSError) as error:
    sys.exit(f"error: {error}")
