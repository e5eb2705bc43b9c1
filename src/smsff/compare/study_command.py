"""The commands ``smsff study make`` and ``smsff study count``."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``study`` to the command line; imports nothing heavy."""
    study = commands.add_parser("study", help="ask people which results they prefer, and count their answers")
    parts = study.add_subparsers(dest="part", required=True, metavar="make|count")
    make = parts.add_parser(
        "make",
        help="write a page that asks",
        description="Write one HTML page that shows results of several methods, without their names, in random order, "
        "and asks for the best in style, in content and overall. It opens from a file or any host; answers stay in the "
        "browser until they are saved as a file. Beside it, NAME-key.json says which method is which.",
    )
    make.set_defaults(run=run_make)
    make.add_argument(
        "folders", metavar="DIR", nargs="+", type=Path, help="folder of smsff compare; or one of each method's results"
    )
    make.add_argument("--content", metavar="DIR", type=Path, help="the photos, for folders of results")
    make.add_argument("--style", metavar="DIR", type=Path, help="pictures that show the style")
    make.add_argument("--out", metavar="FILE", type=Path, default=Path("study.html"), help="default study.html")
    make.add_argument("--pairs", action="store_true", help="two methods at a time (default: all at once)")
    make.add_argument("--most", metavar="N", type=int, help="comparisons for each person (default: all)")
    count = parts.add_parser(
        "count",
        help="count the answers",
        description="Count the saved answers: shares with 95 % intervals, and a Bradley-Terry ranking.",
    )
    count.set_defaults(run=run_count)
    count.add_argument("files", metavar="FILE", nargs="+", type=Path, help="files of answers, and the key")
    count.add_argument("--json", action="store_true", help="print JSON")


def run_make(arguments: argparse.Namespace) -> int:
    """Write page and key; returns the exit status."""
    from smsff.compare import study
    from smsff.data.images import printable
    from smsff.errors import UserError

    first = arguments.folders[0]
    if (first / study.FILE).is_file() and len(arguments.folders) == 1:
        pictures, photos = study.of_comparison(first)
    elif arguments.content:
        pictures, photos = study.of_folders(arguments.folders, arguments.content)
    else:
        raise UserError(
            f"{printable(first)}: give the folder of smsff compare, or folders of results and --content DIR"
        )
    if arguments.most is not None and arguments.most < 1:
        raise UserError(f"--most {arguments.most} is less than 1")
    key = study.make(pictures, photos, arguments.out, style=arguments.style, pairs=arguments.pairs, most=arguments.most)
    size = arguments.out.stat().st_size / 1e6
    print(f"Written to {printable(arguments.out)}, {size:.1f} MB; keep {printable(key)} to yourself")
    return 0


def run_count(arguments: argparse.Namespace) -> int:
    """Print the count; returns the exit status."""
    import json

    from smsff.compare.study import count, to_markdown

    counted = count(arguments.files)
    print(json.dumps(counted, indent=1) if arguments.json else to_markdown(counted))
    return 0
