"""The command ``smsff compare PLAN.yaml``."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``compare`` to the command line; imports nothing heavy."""
    command = commands.add_parser(
        "compare",
        help="methods beside each other on the same photos, in one table",
        description="Make the pictures of every method of a plan, measure them, and write one table. What is there is "
        "not made again, so a comparison that was ended goes on where it stopped.",
        epilog="Exit status: 0 every row is whole, 1 a row lacks something (it says what), 2 bad usage.",
    )
    command.set_defaults(run=run)
    command.add_argument("plan", metavar="PLAN", type=Path, help="such as benchmarks/paper_main.yaml")
    command.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="keys of the plan, such as content=photos")
    command.add_argument("--out", metavar="DIR", type=Path, help="default: outputs/ and the name of the plan")
    command.add_argument("--rows", metavar="ROW", nargs="+", help="some rows of the plan")
    command.add_argument("--report-only", action="store_true", help="measure and report what is there; make nothing")
    command.add_argument("--figures", metavar="LIST", help="such as lpips,ssim (default: all that can be measured)")
    command.add_argument(
        "--weights", metavar="KEY=PATH", action="append", default=[], help="place of a pretrained network (repeatable)"
    )
    command.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to compute (default cpu)")
    command.add_argument("--conf", metavar="DIR", help="folder of the configuration (default: conf in this folder)")


def run(arguments: argparse.Namespace) -> int:
    """Make, measure, print, write; returns the exit status."""
    from smsff.compare.methods import Setting
    from smsff.compare.plan import read_plan
    from smsff.compare.run import Measuring, compare
    from smsff.data.images import printable
    from smsff.device import chosen_device
    from smsff.errors import UserError
    from smsff.metrics.networks import parse_paths
    from smsff.report.comparison import write_comparison
    from smsff.report.evaluate import choose_groups, load_networks
    from smsff.weights.compose import find_conf

    device = chosen_device(arguments.device)
    plan = read_plan(arguments.plan, arguments.overrides)
    out = (arguments.out or Path("outputs") / arguments.plan.stem).resolve()
    rows = arguments.rows or list(plan.rows)
    if unknown := [row for row in rows if row not in plan.rows]:
        raise UserError(f"--rows: there is no row {unknown[0]}; there are {', '.join(plan.rows)}")
    given = {"style": plan.style_pictures, "prompt": plan.prompt, "truth": plan.truth}
    groups, needs = choose_groups(arguments.figures, given)
    keys = {"style": "style_pictures"}
    missing = {group: f"needs {keys.get(name, name)} in the plan" for group, name in needs.items()}
    networks, found, absent = load_networks(
        groups, parse_paths(arguments.weights), required=arguments.figures is not None
    )
    networks.to(device)
    measuring = Measuring(
        groups=[group for group in groups if group not in absent],
        networks=networks,
        found=found,
        missing=missing | absent,
    )
    setting = Setting(plan=plan, out=out, conf=find_conf(arguments.conf), device=arguments.device)
    results = compare(setting, measuring, rows=rows, making=not arguments.report_only)
    print(write_comparison(results, out))
    print(f"Written to {printable(out)}: results.json, table.md, report.html")
    return 1 if any(row["missing"] for row in results["rows"].values()) else 0
