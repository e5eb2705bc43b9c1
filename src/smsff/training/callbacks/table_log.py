"""Lightning's CSV log, of which a crash or a full disk takes nothing that was written before."""

from __future__ import annotations

import csv
import os
from pathlib import Path

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from smsff.atomic import write_aside


class TableWriter(ExperimentWriter):
    """Rows are appended whole or not at all, and a new column never leaves half a table behind."""

    def save(self) -> None:
        """Append the figures that were recorded since the last time; if that fails they are kept for the next."""
        if not self.metrics:
            return
        path, keys = Path(self.metrics_file_path), sorted({*self.metrics_keys, *(k for m in self.metrics for k in m)})
        if keys != self.metrics_keys:
            self._widen(path, keys)
            self.metrics_keys = keys
        before = path.stat().st_size
        try:
            with path.open("a", newline="") as file:
                csv.DictWriter(file, keys).writerows(self.metrics)
        except OSError:
            os.truncate(path, before)
            raise
        self.metrics = []

    def _widen(self, path: Path, keys: list[str]) -> None:
        """Write the table again with more columns."""
        rows = []
        if path.exists():
            with path.open(newline="") as file:
                rows = list(csv.DictReader(file))

        def write(aside: Path) -> None:
            with aside.open("w", newline="") as file:
                writer = csv.DictWriter(file, keys)
                writer.writeheader()
                writer.writerows(rows)

        write_aside(path, write)


class TableLogger(CSVLogger):
    """``<save_dir>/<name>/version_N/metrics.csv``, a new N for each start of a run."""

    def __init__(self, *, save_dir: str, name: str = "csv") -> None:
        super().__init__(save_dir, name=name)
        self._table: TableWriter | None = None

    @property
    @rank_zero_experiment
    def experiment(self) -> TableWriter:
        """The writer; a dummy on every process but the first."""
        if self._table is None:
            self._table = TableWriter(log_dir=self.log_dir)
        return self._table

    def finalize(self, status: str) -> None:
        """Write what is left."""
        if self._table is not None:
            self._table.save()
