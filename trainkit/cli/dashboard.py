"""`trainkit dashboard`: the reports of runs in a browser, which follow those that are going on."""

import argparse
import errno
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainkit.cli.output import say
from trainkit.errors import ConfigError

if TYPE_CHECKING:
    from trainkit.dashboard.server import Dashboard

PORT = 6010
EXAMPLES = """\
examples:
  trainkit dashboard                              the runs in ./runs, on this machine only
  trainkit dashboard ~/experiments --port 8080
  ssh -L 6010:localhost:6010 machine              then open http://localhost:6010 here for a dashboard there
  trainkit dashboard runs --host 0.0.0.0          for other machines, too, by an address with a token
"""


def add_parser(commands: Any) -> None:
    """Adds `dashboard` to `commands`, of argparse."""
    parser = commands.add_parser(
        "dashboard",
        help="show runs in a browser, and follow those that are going on",
        description="Serve a list of the runs below a directory, and for each, or several to compare, the page of "
        "`trainkit report`, which follows a run that is going on. It reads only, and answers this machine only "
        "unless --host says otherwise. Ctrl-C ends it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", metavar="RUNS", nargs="?", default="runs", help="a directory of runs; default: runs")
    parser.add_argument(
        "--port", type=int, metavar="N", help=f"to listen on; 0: any free one; default: {PORT}, or a free one"
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="HOST",
        help="to listen on; an address that other machines can reach needs the token that is printed; "
        "default: 127.0.0.1",
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    root = Path(arguments.path).expanduser()
    if not root.is_dir():
        raise ConfigError(f"{root} is no directory: give one in which runs are, such as runs")
    with _started(root, arguments.host, arguments.port) as dashboard:
        try:
            say(f"the dashboard of {root} is at {dashboard.url}; Ctrl-C ends it")
            dashboard.serve_forever()
        except KeyboardInterrupt:
            say("the dashboard has ended")


def _started(root: Path, host: str, port: int | None) -> "Dashboard":
    from trainkit.dashboard.server import Dashboard

    if port is not None and not 0 <= port < 1 << 16:
        raise ConfigError(f"--port={port}: must be from 0 (any free one) to 65535")
    try:
        return Dashboard(root, host=host, port=PORT if port is None else port)
    except OSError as error:
        if port is None and error.errno == errno.EADDRINUSE:
            say(f"port {PORT} is in use, so another is taken")
            return Dashboard(root, host=host, port=0)
        used = port if port is not None else PORT
        raise ConfigError(f"--host={host} --port={used}: {error.strerror or error}; give another --port") from error
