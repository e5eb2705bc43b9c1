"""The memory of a training on each flow teacher, from shapes alone: the table of docs/reference/flow.md.

What `smsff doctor` forecasts for the presets with one picture a step, in GB (10^9 bytes).
"""

from __future__ import annotations

import sys

from smsff.weights.compose import composed, find_conf
from smsff.weights.forecast import forecast

FAMILIES = ("klein", "zimage", "flux1", "sd35", "qwen")


def row(family: str) -> str:
    """A row of the table in Markdown."""
    cells = []
    for side in (512, 1024):
        options = [f"resolution={side}", "data.batch_size=1", "teacher.dtype=bfloat16", "data.root=photos"]
        plain = composed(find_conf(None), ["style=ghibli", "style.base=null", f"teacher={family}", *options])
        memory, reason = forecast(plain, [], gpus=0)
        if memory is None:
            raise SystemExit(f"{family}: {reason}")
        cells += [f"{total / 1e9:.1f}" for total in memory["quantised"].values()]
    return f"| {family} | {memory['networks'][0]['parameters'] / 1e9:.2f} B | {' | '.join(cells)} |"


if __name__ == "__main__":
    print("| | parameters | 512: bf16 | int8 | nf4 | 1024: bf16 | int8 | nf4 |\n|---|---|---|---|---|---|---|---|")
    for family in sys.argv[1:] or FAMILIES:
        print(row(family), flush=True)
