"""Where a run stands: what a checkpoint holds beside arrays."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Better = Literal["high", "low"]


@dataclass(frozen=True)
class Best:
    """The best value of the monitored metric so far.

    Attributes:
      value: the value.
      step: the step of the run at which it was measured.
    """

    value: float
    step: int

    def is_beaten_by(self, value: float, better: Better) -> bool:
        """Returns True where the value is better."""
        return value > self.value if better == "high" else value < self.value


@dataclass(frozen=True)
class Position:
    """Where a run stands.

    Attributes:
      epoch: epochs that are trained and evaluated.
      step: steps of the next epoch that are trained.
      total: steps of the whole run that are trained.
      best: the best value of the monitored metric; None before the first one.
      waited: epochs since then.
    """

    epoch: int = 0
    step: int = 0
    total: int = 0
    best: Best | None = None
    waited: int = 0

    def after_step(self) -> "Position":
        """Returns the position one step on."""
        return dataclasses.replace(self, step=self.step + 1, total=self.total + 1)

    def after_epoch(self) -> "Position":
        """Returns the position at the beginning of the next epoch."""
        return dataclasses.replace(self, epoch=self.epoch + 1, step=0)

    def judged(self, value: float, better: Better) -> "Position":
        """Returns the position after an evaluation that gave the monitored metric this value.

        Args:
          value: of the metric.
          better: which values of it are better, "high" or "low" ones.

        >>> position = Position(total=5).judged(0.25, "low")
        >>> position.judged(0.5, "low").waited, position.judged(0.125, "low").best
        (1, Best(value=0.125, step=5))
        """
        if self.best is None or self.best.is_beaten_by(value, better):
            return dataclasses.replace(self, best=Best(value, self.total), waited=0)
        return dataclasses.replace(self, waited=self.waited + 1)

    def to_json(self) -> dict[str, Any]:
        """Returns what a checkpoint stores of it; `total` is the state's number of steps."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "best": None if self.best is None else dataclasses.asdict(self.best),
            "waited": self.waited,
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any], total: int) -> "Position":
        """Returns the position that `to_json` stored, in a run of so many steps so far."""
        best = None if stored["best"] is None else Best(**stored["best"])
        return cls(**{**stored, "best": best}, total=total)
