"""Where a run stands: what a checkpoint holds beside arrays."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Better = Literal["high", "low"]


@dataclass(frozen=True)
class Best:
    """The best value of a monitored metric so far.

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
      epoch: epochs that are trained and, where it was due, evaluated.
      step: steps of the next epoch that are trained.
      total: steps of the whole run that are trained.
      best: by monitored metric, the best value so far.
      waited: evaluations since the best value of the first one.
      evaluated: steps that were trained when the last evaluation was over.
    """

    epoch: int = 0
    step: int = 0
    total: int = 0
    best: Mapping[str, Best] = field(default_factory=dict)
    waited: int = 0
    evaluated: int = 0

    def after_step(self) -> "Position":
        """Returns the position one step on."""
        return dataclasses.replace(self, step=self.step + 1, total=self.total + 1)

    def after_epoch(self) -> "Position":
        """Returns the position at the beginning of the next epoch."""
        return dataclasses.replace(self, epoch=self.epoch + 1, step=0)

    def judged(self, values: Mapping[str, float], better: Mapping[str, Better]) -> "Position":
        """Returns the position after an evaluation.

        Args:
          values: of the monitored metrics, by name.
          better: which values are better, "high" or "low" ones; the first metric is the one that is waited for.

        >>> position = Position(total=5).judged({"val/eer": 0.25}, {"val/eer": "low"})
        >>> position.after_step().judged({"val/eer": 0.5}, {"val/eer": "low"}).waited
        1
        >>> position.after_step().judged({"val/eer": 0.125}, {"val/eer": "low"}).best
        {'val/eer': Best(value=0.125, step=6)}
        """
        best = dict(self.best)
        for name, direction in better.items():
            if name not in best or best[name].is_beaten_by(values[name], direction):
                best[name] = Best(values[name], self.total)
        first = next(iter(better), None)
        waited = 0 if first is None or best[first].step == self.total else self.waited + 1
        return dataclasses.replace(self, best=best, waited=waited, evaluated=self.total)

    def to_json(self) -> dict[str, Any]:
        """Returns what a checkpoint stores of it; `total` is the state's number of steps."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "best": {name: dataclasses.asdict(best) for name, best in self.best.items()},
            "waited": self.waited,
            "evaluated": self.evaluated,
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any], total: int, monitor: str = "") -> "Position":
        """Returns the position that `to_json` stored.

        Args:
          stored: what it returned; until there were several monitored metrics, the best value of the one alone.
          total: the steps of the run so far.
          monitor: that one.
        """
        best = stored["best"] or {}
        best = {monitor: best} if "value" in best else best
        return cls(**{**stored, "best": {k: Best(**v) for k, v in best.items()}}, total=total)
