"""Where a run reports its metrics to: a CSV file, TensorBoard, and Weights & Biases where a project is named."""

import pathlib
import secrets
from collections.abc import Mapping
from typing import Any

import tensorboardX

from dml_jax.errors import UserError
from dml_jax.training.metrics_table import MetricsTable, Row


class Trackers:
    """The reports of a run in its folder: `metrics.csv`, `tensorboard/`, and those of Weights & Biases.

    Only the primary process makes one.

    Args:
      workdir: the folder of the run.
      step: the step that the run goes on from; what was reported of later steps will come again.
      config: the configuration, for Weights & Biases.
      wandb_project: its project; "": none.

    Raises:
      UserError: a project is named and the package `wandb` is not installed.
    """

    def __init__(
        self, workdir: pathlib.Path, step: int, config: Mapping[str, Any], wandb_project: str = ""
    ) -> None:
        self._wandb = _wandb_run(workdir, config, wandb_project) if wandb_project else None
        self.table = MetricsTable(workdir / "metrics.csv", step)
        self._board = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def write(self, row: Row) -> None:
        """Reports a row of `step`, `epoch` and further numbers."""
        self.table.write(row)
        scalars = {k: v for k, v in row.items() if k != "step"}
        for name, value in scalars.items():
            self._board.add_scalar(name, value, row["step"])
        if self._wandb is not None:
            self._wandb.log(scalars, step=row["step"])

    def close(self) -> None:
        """Writes what is not written yet."""
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def _wandb_run(workdir: pathlib.Path, config: Mapping[str, Any], project: str) -> Any:
    try:
        import wandb
    except ImportError:
        raise UserError(
            f"train.wandb={project!r} needs the package wandb: pip install 'dml_jax[wandb]', or leave it empty"
        ) from None
    # A run that goes on is the same run there, too.
    file = workdir / "wandb_id"
    if not file.exists():
        file.write_text(secrets.token_hex(4))
    options = config.get("train", {})
    return wandb.init(
        project=project,
        group=options.get("wandb_group") or None,
        name=options.get("wandb_name") or None,
        id=file.read_text().strip(),
        resume="allow",
        dir=str(workdir),
        config=dict(config),
    )
