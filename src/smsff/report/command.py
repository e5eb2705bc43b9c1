"""The command ``smsff report RUN... --out FILE``."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``report`` to the command line; imports nothing heavy."""
    command = commands.add_parser(
        "report",
        help="show runs and evaluations as one HTML page",
        description="Show training runs, evaluations and sweeps of them as one HTML file that opens offline: before "
        "and after, pictures, curves, tables. Several of them are compared.",
        epilog="Exit status: 0 written, 2 bad usage.",
    )
    command.set_defaults(run=run)
    command.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="folder of a run, an evaluation or a sweep")
    command.add_argument("--out", metavar="FILE", type=Path, default=Path("report.html"), help="default report.html")
    command.add_argument("--title", metavar="TEXT", help="heading of the page")


def run(arguments: argparse.Namespace) -> int:
    """Write the report; returns the exit status."""
    from smsff.data.images import printable
    from smsff.errors import UserError
    from smsff.report.html import write_report

    if arguments.out.is_dir():
        raise UserError(f"--out {printable(arguments.out)} is a folder; name a file such as report.html")
    path = write_report(arguments.out, arguments.runs, title=arguments.title)
    print(f"Written to {printable(path)}, {path.stat().st_size / 1e6:.1f} MB")
    return 0
