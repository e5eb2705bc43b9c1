import json

import pytest

from smsff.metrics.table import COLUMNS, ROWS, bar_report, build_table, check_bar, mean_tables, to_markdown


def figures(psnr: float, ssim: float, style: float) -> dict[str, float]:
    tone_free = {"psnr_tone_free": psnr, "ssim_tone_free": ssim, "style_tone_free": style, "content_tone_free": 1.0}
    return {"psnr": psnr - 3, "ssim": ssim - 0.1, "style": style + 5, "content": 1.0, **tone_free}


GOOD = {
    "do nothing": figures(20, 0.5, 10),
    "fitted tone curve": figures(20, 0.5, 10),
    "img2img with the style LoRA": figures(21, 0.55, 8),
    "one step of the teacher": figures(21, 0.55, 7),
    "ours": figures(22, 0.61, 5),
    "paired ceiling": figures(25, 0.7, 3),
}


def table_of(rows, photos=("cat", "cup")):
    return build_table({row: dict.fromkeys(photos, f) for row, f in rows.items()})


def test_rows_photos_and_mean():
    measured = {row: {"cat": f, "cup": {k: v + 1 for k, v in f.items()}} for row, f in reversed(GOOD.items())}
    table = build_table(measured)
    assert tuple(table) == ROWS
    assert list(table["ours"]) == ["cat", "cup", "mean"]
    assert table["ours"]["mean"]["psnr_tone_free"] == 22.5


def test_a_missing_row_or_photo_is_named():
    with pytest.raises(ValueError, match="paired ceiling"):
        table_of({row: f for row, f in GOOD.items() if row != "paired ceiling"})
    measured = {row: {"cat": f, "cup": f} for row, f in GOOD.items()} | {"ours": {"cat": GOOD["ours"]}}
    with pytest.raises(ValueError, match="'ours'"):
        build_table(measured)


def test_mean_of_runs():
    second = {row: {k: v + 2 for k, v in f.items()} for row, f in GOOD.items()}
    assert mean_tables([table_of(GOOD), table_of(second)])["ours"]["cup"]["psnr"] == GOOD["ours"]["psnr"] + 1


def test_markdown():
    blocks = to_markdown(table_of(GOOD)).split("\n\n")
    assert [block.split("|")[1].strip() for block in blocks] == ["**cat**", "**cup**", "**mean**"]
    lines = blocks[0].splitlines()
    assert len(lines) == 2 + len(ROWS)
    assert {line.count("|") for line in lines} == {len(COLUMNS) + 2}
    assert "| ours | 19.00 | 0.510 | 10.00 | 22.00 | 0.610 | 5.00 | 1.00 | 1.00 |" in lines


def test_bar_passes_and_each_part_can_fail():
    assert bar_report(table_of(GOOD))["passed"]
    assert str(check_bar(table_of(GOOD))[0]) == "[x] PSNR over do nothing, dB: 2.000 >= 2.000"
    failures = {
        (21.9, 0.61, 5): [0],
        (22, 0.59, 5): [1],
        (22, 0.61, 6.1): [2],
        (22, 0.61, 7): [2, 4],
        (22, 0.61, 8): [2, 3, 4],
    }
    for ours, expected in failures.items():
        checks = check_bar(table_of(GOOD | {"ours": figures(*ours)}))
        assert [i for i, check in enumerate(checks) if not check.passed] == expected


def test_bar_uses_tone_free_figures_only():
    toned = GOOD["ours"] | {"psnr": 90.0, "ssim": 1.0, "style": 0.0} | {"psnr_tone_free": 20.0}
    assert not bar_report(table_of(GOOD | {"ours": toned}))["passed"]


def test_bar_without_room_below_the_ceiling_fails_and_is_json():
    report = bar_report(table_of(GOOD | {"paired ceiling": figures(19, 0.5, 12)}))
    assert not report["passed"]
    assert json.loads(json.dumps(report, allow_nan=False))["checks"][1]["value"] is None
