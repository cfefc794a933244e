"""What a run reports: metrics as CSV and TensorBoard (and wandb), and its progress on the terminal."""

import collections
import csv
import io
import os
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

import tensorboardX
from tqdm import tqdm

Row = dict[str, Any]


def say(message: str) -> None:
    """A line for the user, above the progress bar where there is one."""
    tqdm.write(message, file=sys.stdout)
    sys.stdout.flush()


class CsvTable:
    """Rows of named values in a CSV file that grows, new columns included.

    Args:
      path: of the file; rows that it holds stay.
      step: where the run goes on. Rows of later steps are dropped, as they will come again, and so are those of this
        very step without a `loss`: evaluation follows the checkpoint that a run goes on from.
    """

    def __init__(self, path: str | os.PathLike[str], step: int = 0) -> None:
        self.path = pathlib.Path(path)
        rows = self._read()
        kept = [
            r for r in rows if int(r["step"]) < step or (int(r["step"]) == step and "loss" in r)
        ]
        self.columns = list(dict.fromkeys(k for r in kept for k in r))
        self._rewrite(kept)

    def write(self, row: Mapping[str, Any]) -> None:
        """Adds a row; what is written is in the file when this returns."""
        new = [k for k in row if k not in self.columns]
        if new:
            rows = self._read()
            self.columns += new
            self._rewrite([*rows, dict(row)])
            return
        with self.path.open("a", newline="", encoding="utf-8") as file:
            file.write(self._text([row]))

    def _read(self) -> list[Row]:
        if not self.path.is_file():
            return []
        text = self.path.read_text(encoding="utf-8")
        # A run that was killed may have left half a line.
        rows = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
        return [{k: v for k, v in row.items() if v} for row in rows]

    def _text(self, rows: list[Mapping[str, Any]], *, header: bool = False) -> str:
        out = io.StringIO()
        writer = csv.DictWriter(out, self.columns, restval="", lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return out.getvalue()

    def _rewrite(self, rows: list[Any]) -> None:
        beside = self.path.with_suffix(".new")
        beside.write_text(self._text(rows, header=bool(self.columns)), encoding="utf-8")
        os.replace(beside, self.path)


class Reports:
    """The reports of a run in its work folder: `metrics.csv`, `tensorboard/`, and wandb where a project is named.

    Only process 0 makes one.
    """

    def __init__(
        self, workdir: str, step: int, config: Mapping[str, Any], wandb_project: str = ""
    ) -> None:
        self.table = CsvTable(pathlib.Path(workdir) / "metrics.csv", step)
        self.board = tensorboardX.SummaryWriter(
            str(pathlib.Path(workdir) / "tensorboard"), purge_step=step + 1
        )
        self.wandb = _wandb(workdir, config, wandb_project) if wandb_project else None

    def write(self, row: Mapping[str, Any]) -> None:
        """Reports a row of `step`, `epoch` and scalars."""
        self.table.write(row)
        scalars = {k: v for k, v in row.items() if k != "step"}
        for name, value in scalars.items():
            self.board.add_scalar(name, value, row["step"])
        if self.wandb is not None:
            self.wandb.log(scalars, step=row["step"])

    def close(self) -> None:
        self.board.close()
        if self.wandb is not None:
            self.wandb.finish()


def _wandb(workdir: str, config: Mapping[str, Any], project: str) -> Any:
    try:
        import wandb
    except ImportError:
        raise ValueError(
            f"train.wandb={project!r} needs the package wandb: pip install 'dml_jax[wandb]', or leave it empty"
        ) from None
    kept = pathlib.Path(workdir) / "wandb_id"
    if not kept.exists():
        kept.write_text(wandb.util.generate_id())
    return wandb.init(
        project=project, id=kept.read_text(), resume="allow", dir=workdir, config=dict(config)
    )


class Progress:
    """A bar with loss, images/s and the time left on a terminal, elsewhere a line every so many seconds.

    Args:
      total: images of the whole run; `done` of them before this start.
      show: False for the processes that keep quiet.
    """

    def __init__(
        self,
        total: int,
        done: int,
        *,
        show: bool = True,
        seconds: float = 15.0,
        stream: TextIO | None = None,
    ) -> None:
        stream = sys.stderr if stream is None else stream
        self.bar = tqdm(
            total=total,
            initial=done,
            unit=" images",
            unit_scale=True,
            dynamic_ncols=True,
            file=stream,
            disable=not (show and stream.isatty()),
        )
        self.lines = show and not stream.isatty()
        self.seconds = seconds
        self.total, self.done = total, done
        self.said = time.monotonic()
        self.recent: collections.deque[tuple[float, int]] = collections.deque(maxlen=20)

    def update(self, images: int, epoch: int, step: int, loss: float) -> None:
        """So many more images are done, and the loss at the last of them was this."""
        self.done += images
        now = time.monotonic()
        self.recent.append((now, self.done))
        self.bar.set_postfix_str(f"epoch {epoch}, loss {loss:.4f}", refresh=False)
        self.bar.update(images)
        rate = self.rate()
        if self.lines and rate and now - self.said >= self.seconds:
            left = (self.total - self.done) / rate
            say(
                f"epoch {epoch}  step {step}  loss {loss:.4f}  {rate:.0f} images/s  "
                f"{int(left // 60)}:{int(left % 60):02d} left"
            )
            self.said = now

    def rate(self) -> float:
        """Images a second over the last twenty steps since a pause; 0 before the second one."""
        if len(self.recent) < 2:
            return 0.0
        (start, before), (now, done) = self.recent[0], self.recent[-1]
        return (done - before) / (now - start)

    def pause(self) -> None:
        """Something else took time that says nothing about the speed of training."""
        self.recent.clear()

    def close(self) -> None:
        self.bar.close()
