from __future__ import annotations

import csv
import errno
import os
from pathlib import Path
from typing import Any

import pytest

from smsff.training.callbacks.loggers import tolerant
from smsff.training.callbacks.table_log import TableLogger


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "csv" / "version_0" / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def log(logger: TableLogger, step: int, **figures: float) -> None:
    logger.log_metrics(figures, step=step)
    logger.save()


def test_rows_are_appended_and_new_columns_join_the_table(tmp_path: Path) -> None:
    logger = TableLogger(save_dir=str(tmp_path))
    log(logger, 0, loss=1.0)
    log(logger, 1, loss=2.0)
    log(logger, 2, loss=3.0, val=4.0)
    log(logger, 3, loss=5.0)
    assert [(row["step"], row["loss"], row["val"]) for row in rows(tmp_path)] == [
        ("0", "1.0", ""),
        ("1", "2.0", ""),
        ("2", "3.0", "4.0"),
        ("3", "5.0", ""),
    ]
    log(TableLogger(save_dir=str(tmp_path)), 4, loss=6.0)
    assert len(list(tmp_path.glob("csv/version_*"))) == 2


class Full:
    """A file that takes half of what is written."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def __enter__(self) -> Full:
        return self

    def __exit__(self, *_: Any) -> None:
        self.file.close()

    def write(self, text: str) -> int:
        self.file.write(text[: len(text) // 2])
        self.file.flush()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("widen", [False, True])
def test_on_a_full_disk_no_row_is_cut_and_none_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, widen: bool
) -> None:
    logger = TableLogger(save_dir=str(tmp_path))
    tolerant(logger)
    log(logger, 0, loss=1.0)
    opened = Path.open
    monkeypatch.setattr(
        Path, "open", lambda path, *a, **k: Full(opened(path, *a, **k)) if {"a", "w"} & {*a} else opened(path, *a, **k)
    )
    log(logger, 1, loss=2.0, **({"val": 9.0} if widen else {}))
    monkeypatch.undo()
    assert "the log of TableLogger could not be written: No space left on device" in caplog.text
    assert [row["loss"] for row in rows(tmp_path)] == ["1.0"]
    assert not list(tmp_path.rglob("*.part"))
    log(logger, 2, loss=3.0)
    assert [row["loss"] for row in rows(tmp_path)] == ["1.0", "2.0", "3.0"]
    if widen:
        assert [row["val"] for row in rows(tmp_path)] == ["", "9.0", ""]
