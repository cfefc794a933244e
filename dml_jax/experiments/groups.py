"""The cells of a study by group, with their results: what tables and figures are made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dml_jax.errors import UserError
from dml_jax.experiments.results import Result
from dml_jax.experiments.statistics import Summary, summarise
from dml_jax.experiments.study import Study, group_name


@dataclass(frozen=True)
class Group:
    """Cells of equal factors.

    Attributes:
      factors: what they have in common.
      results: of those that are finished.
      asked: how many there are.
    """

    factors: Mapping[str, Any]
    results: Sequence[Result]
    asked: int

    @property
    def name(self) -> str:
        """The factors as text."""
        return group_name(self.factors)

    def summary(self, name: str) -> Summary:
        """Returns a value over the seeds.

        Args:
          name: as `results.value` reads it.
        """
        return summarise(self.results, name, self.asked)

    def matches(self, where: Mapping[str, Any]) -> bool:
        """Returns True where the factors have these values.

        Args:
          where: values by factor.
        """
        return all(self.factors.get(key) == value for key, value in where.items())


def groups_of(study: Study, results: Sequence[Result]) -> list[Group]:
    """Returns the groups of a study in the order of its cells.

    Args:
      study: whose cells are looked for; results of others are left out.
      results: what is there.
    """
    asked: dict[str, list[Any]] = {}
    for cell in study.cells:
        asked.setdefault(cell.group, []).append(cell)
    return [
        Group(
            factors=cells[0].factors,
            results=[r for r in results if r.group == name and r.seed in {c.seed for c in cells}],
            asked=len(cells),
        )
        for name, cells in asked.items()
    ]


def by_values(groups: Sequence[Group], what: str, *factors: str) -> dict[tuple[Any, ...], Group]:
    """Returns the groups by the values of some factors.

    Args:
      groups: of a table or a figure.
      what: the table or figure, for errors.
      factors: which tell the groups apart; "" is passed over.

    Raises:
      UserError: two groups have the same values, so that others of their factors differ.
    """
    found: dict[tuple[Any, ...], Group] = {}
    for group in groups:
        key = tuple(group.factors.get(factor) for factor in factors if factor)
        if key in found:
            raise UserError(
                f"{what}: groups {found[key].name!r} and {group.name!r} have the same place in it; `where` picks one "
                "value of the factors that are not shown"
            )
        found[key] = group
    return found
