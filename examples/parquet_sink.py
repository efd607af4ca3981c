"""A sink of one's own: a run's numbers as Parquet files, to be read with pandas, Polars or DuckDB.

rltrack train config.yaml --set 'tracking.sinks=[tensorboard, mlflow, "parquet_sink:ParquetSink"]'
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from rltrack.tracking.report import RunReport
from rltrack.tracking.sinks.base import Point, Refused, Sink


class ParquetSink(Sink):
    """Writes ``parquet/part-000000.parquet``, … in the run's folder, one for each portion.

    Its state is the number of parts that are delivered. A process that is killed may leave parts that the state does not know of;
    their points come again, so that `open` deletes them.
    """

    dies_with_the_run = True

    def open(self, report: RunReport) -> None:
        """Delete what is not known to be delivered."""
        self.folder = report.run.path / "parquet"
        self.folder.mkdir(exist_ok=True)
        known = {self.part(number) for number in range(self.state.setdefault("parts", 0))}
        for path in self.folder.iterdir():
            if path.name not in known:
                path.unlink()

    def is_lost(self, report: RunReport) -> bool:
        """Whether a part was deleted by somebody."""
        folder = report.run.path / "parquet"
        return not all((folder / self.part(number)).exists() for number in range(self.state.get("parts", 0)))

    def write(self, points: Sequence[Point]) -> list[Refused]:
        """Write one part: a row for each value, under its final name once it is whole."""
        rows = [(k, p.step, v, p.time) for p in points for k, v in p.values_for("parquet").items()]
        columns = dict(zip(("key", "step", "value", "time"), map(list, zip(*rows, strict=True)), strict=True))
        path = self.folder / self.part(self.state["parts"])
        temporary = path.with_suffix(".tmp")
        pq.write_table(pa.table(columns), temporary)
        os.replace(temporary, path)
        self.state["parts"] += 1
        return []

    @staticmethod
    def part(number: int) -> str:
        """Return a part's file name."""
        return f"part-{number:06d}.parquet"
