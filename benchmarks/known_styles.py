"""Every objective on every known style with every seed: smsff compare on the embedded teacher.

    python benchmarks/known_styles.py --out outputs/bench_styles          or: make bench-styles

Writes what the plan (known_styles.yaml) needs beside the photos: the true stylizations, and the controls. The rest is
`smsff compare`: it trains, chooses on the validation photo, measures on the test photos, and reports.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from smsff import cli
from smsff.compare.plan import Plan, read_plan, slug
from smsff.compare.run import save
from smsff.data.images import to_image
from smsff.embedded import demo
from smsff.embedded.known_styles import operator_of
from smsff.errors import UserError
from smsff.metrics.known_style import apply_tone_curve, fit_tone_curve
from smsff.metrics.table import CEILING, ONE_STEP, TONE_CURVE
from smsff.weights.compose import composed, find_conf

PLAN = Path(__file__).with_suffix(".yaml")
TRUTH = "true style"


def photos(part: str, multiple: int) -> dict[str, Tensor]:
    """The bundled photos of a part, (1, 3, H, W) in [0, 1], both sides cropped to a multiple."""
    found = demo.load_photos(part)
    return {
        name: x[..., : x.shape[-2] // multiple * multiple, : x.shape[-1] // multiple * multiple]
        for name, x in found.items()
    }


def write(folder: Path, make: Callable[[], Mapping[str, Tensor]]) -> None:
    """Pictures (1, 3, H, W) by name, once."""
    if not folder.is_dir():
        made = make()
        for name, x in made.items():
            save(to_image(x[0]), folder.with_suffix(".part") / f"{name}.png")
        folder.with_suffix(".part").replace(folder)


def write_controls(plan: Plan, out: Path, style: str, ceiling_steps: int) -> None:
    """The true stylizations of a style, and the controls that the plan has a row for, in OUT/controls/STYLE."""
    operator, place = operator_of(style), out / "controls" / style
    test, val = photos("test", plan.multiple), photos("val", plan.multiple)
    config = composed(find_conf(None), [*plan.overrides, f"style={style}", f"seed={plan.seeds[0]}"])
    run = demo.Run(Path(), config, operator)

    def tone_curve() -> dict[str, Tensor]:
        curve = fit_tone_curve((x, operator(x)) for x in demo.load_photos("train").values())
        return {name: apply_tone_curve(x, curve) for name, x in test.items()}

    def ceiling() -> dict[str, Tensor]:
        network, _ = demo.paired_network(run, ceiling_steps)
        return {name: network(x) for name, x in test.items()}

    makers: dict[str, Callable[[], Mapping[str, Tensor]]] = {
        TONE_CURVE: tone_curve,
        ONE_STEP: lambda: demo.stylized_by_teacher(run, test, ONE_STEP)[0],
        CEILING: ceiling,
        TRUTH: lambda: {name: operator(x) for name, x in {**test, **val}.items()},
    }
    for name, make in makers.items():
        if name in plan.rows or name == TRUTH:
            write(place / slug(name), make)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status as that of ``smsff compare``."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], epilog="Other arguments are those of smsff compare."
    )
    parser.add_argument("--out", type=Path, default=Path("outputs/bench_styles"), help="runs, figures and report")
    parser.add_argument("--plan", type=Path, default=PLAN, help="rows, styles and seeds")
    parser.add_argument("--ceiling-steps", type=int, default=300, help="training of the paired ceiling (default 300)")
    args, rest = parser.parse_known_args(arguments)
    out = args.out.resolve()
    try:
        changes = [word for word in rest if "=" in word and not word.startswith("-")]
        plan = read_plan(args.plan, changes)
        for part in ("test", "val"):
            write(out / "bundled" / part, lambda part=part: photos(part, plan.multiple))  # type: ignore[misc]
        for style in dict.fromkeys(
            [*plan.styles, *(style for row in plan.rows.values() for style in row.styles or [])]
        ):
            write_controls(plan, out, style, args.ceiling_steps)
    except UserError as error:
        parser.error(str(error))
    return cli.main(["compare", str(args.plan), *rest, "--out", str(out)])


if __name__ == "__main__":
    raise SystemExit(main())
