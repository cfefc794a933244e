"""What a study is: its cells, each a training run, and the tables and figures that are made of them.

A study is a Python file with a function `get_study`:

    from dml_jax import config_files, experiments

    def get_study(arg=None):
        def make(loss, batch_size):
            config = config_files.load("quickstart")
            config.loss = {"name": loss}
            config.train.batch_size = batch_size
            return config

        cells = experiments.grid(make, seeds=range(3), loss=("triplet_margin", "nt_xent"), batch_size=(32, 64))
        figure = experiments.Figure("batch_size", "lines", x="batch_size", y="val/map_at_r", lines="loss")
        return experiments.Study("Batch size", cells, figures=(figure,))
"""

import hashlib
import itertools
import json
import math
import pathlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ml_collections import ConfigDict

from dml_jax import config as configs
from dml_jax import config_files, names, trees
from dml_jax.errors import UserError

# Fields that may be others on another machine: a cell that is finished stays finished.
_OF_THE_MACHINE = r"data\.(path|threads|workers|prefetch)|train\.(log_steps|log_seconds|profile)"
# The studies that come with the library.
SHIPPED = config_files.SHIPPED / "studies"


@dataclass(frozen=True, eq=False)
class Cell:
    """A training run of a study.

    Attributes:
      factors: what is compared, with the values of this cell, as in `{"loss": "nt_xent", "batch_size": 64}`. Cells of
        equal factors are a group, over whose seeds tables have means.
      seed: of the run.
      config: its configuration.
    """

    factors: Mapping[str, Any]
    seed: int
    config: ConfigDict

    @property
    def group(self) -> str:
        """The factors as text, as in "loss=nt_xent,batch_size=64"."""
        return group_name(self.factors)

    @property
    def name(self) -> str:
        """The group and the seed, as in "loss=nt_xent,batch_size=64/seed=0": its folder below that of the study."""
        return f"{self.group}/seed={self.seed}"

    @property
    def hash(self) -> str:
        """A hash of the configuration: a cell that is finished with another one is not this cell."""
        flat = trees.flatten(configs.to_dict(self.config), ".")
        kept = {k: v for k, v in flat.items() if not re.fullmatch(_OF_THE_MACHINE, k)}
        text = json.dumps(kept, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def group_name(factors: Mapping[str, Any]) -> str:
    """Returns factors as a text that can be the name of a folder.

    Args:
      factors: by name.

    >>> group_name({"loss": "nt_xent", "rate": 1e-06})
    'loss=nt_xent,rate=1e-06'
    """
    text = ",".join(f"{name}={value}" for name, value in factors.items())
    return re.sub(r"[^\w.,=+-]+", "_", text)


@dataclass(frozen=True)
class Table:
    """A table of a report: means over seeds with their standard deviations.

    Attributes:
      name: of its files.
      rows: the factor that has a row for each value.
      metrics: the values in the columns, as `results.value` reads them.
      columns: a factor for each of whose values the columns come again, such as the data set; "" for none.
      where: only the cells whose factors have these values.
      title: above it; "" for the study's own.
    """

    name: str
    rows: str
    metrics: tuple[str, ...]
    columns: str = ""
    where: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""


@dataclass(frozen=True)
class Figure:
    """A figure of a report.

    The kinds:
    - lines: `y` (a value) by `x` (a factor), a line for each value of the factor `lines`, with the standard deviation.
    - bars: `y` by `x`, sorted by `y`.
    - scatter: the value `y` by the value `x`, a point for each group with its standard deviations, the least-squares
      line and Pearson's r.
    - matrix: Pearson's r among the values `y`, over the groups' means.
    - curves: `y` by epoch, a line for each group.
    - spectra: the singular values that `y` names, a line for each group.

    Attributes:
      name: of its files.
      kind: see above.
      y: a value as `results.value` reads it, or several for `matrix`.
      x: a factor, or a value for `scatter`.
      lines: the factor that has a line (or a colour) for each value.
      panels: the factor that has a panel for each value, such as the data set; "" for one panel.
      where: only the cells whose factors have these values.
      dashed: values of `lines` that are drawn dashed, such as the classification losses.
      log_x: True for a logarithmic axis.
      title: above it.
    """

    name: str
    kind: Literal["lines", "bars", "scatter", "matrix", "curves", "spectra"]
    y: str | tuple[str, ...]
    x: str = ""
    lines: str = ""
    panels: str = ""
    where: Mapping[str, Any] = field(default_factory=dict)
    dashed: tuple[Any, ...] = ()
    log_x: bool = False
    title: str = ""


@dataclass(frozen=True)
class Published:
    """A number that a paper reports for a group, which tables show beside ours.

    Attributes:
      factors: of the group.
      value: what it is a number of, as `results.value` reads it.
      mean: the number.
      deviation: its standard deviation over seeds; nan where none is reported.
    """

    factors: Mapping[str, Any]
    value: str
    mean: float
    deviation: float = math.nan


@dataclass(frozen=True, eq=False)
class Study:
    """A study.

    Attributes:
      title: what it is called.
      cells: the runs, with distinct names.
      tables: what its report tabulates.
      figures: what its report draws.
      reference: factors of the group with which the others are compared in pairs of seeds; None: no group.
      published: numbers of papers, which stand beside ours in the tables.
      text: what a reader of the report has to know, in Markdown.

    Raises:
      UserError: no cell, cells of one name, tables and figures of one name or of factors that no cell has, published
        numbers of a group that is not there.
    """

    title: str
    cells: Sequence[Cell]
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    reference: Mapping[str, Any] | None = None
    published: tuple[Published, ...] = ()
    text: str = ""

    def __post_init__(self) -> None:
        if not self.cells:
            raise UserError(f"study {self.title!r} has no cell; at least one is accepted")
        twice = [n for n, count in Counter(cell.name for cell in self.cells).items() if count > 1]
        if twice:
            raise UserError(
                f"study {self.title!r} has several cells {twice[0]!r}; each needs factors of its own"
            )
        shown: list[Table | Figure] = [*self.tables, *self.figures]
        counts = Counter((type(part), part.name) for part in shown)
        twice = [name for (_, name), count in counts.items() if count > 1]
        if twice:
            raise UserError(f"study {self.title!r} has two tables or two figures {twice[0]!r}")
        groups = {cell.group for cell in self.cells}
        for number in self.published:
            if group_name(number.factors) not in groups:
                raise names.unknown(
                    f"group of a published number in study {self.title!r}:",
                    group_name(number.factors),
                    sorted(groups),
                )
        known = dict.fromkeys(name for cell in self.cells for name in cell.factors)
        for part in shown:
            for name in _factors_of(part):
                if name not in known:
                    raise names.unknown(
                        f"factor of {part.name!r} in study {self.title!r}:", name, known
                    )


def _factors_of(part: Table | Figure) -> Iterable[str]:
    """Yields the factors that a table or a figure names."""
    if isinstance(part, Table):
        yield part.rows
        named = (part.columns, *part.where)
    else:
        named = (part.lines, part.panels, *part.where)
        if part.kind in ("lines", "bars"):
            yield part.x
    yield from filter(None, named)


def grid(
    make: Callable[..., ConfigDict], *, seeds: Iterable[int], **factors: Iterable[Any]
) -> tuple[Cell, ...]:
    """Returns a cell for every combination of values and every seed.

    Args:
      make: a function of one value of each factor that returns a configuration, whose `seed` is then set.
      seeds: of the runs.
      **factors: the values of each factor.

    Example:
      >>> cells = grid(lambda loss: configs.new(), seeds=(0, 1), loss=("nt_xent", "triplet_margin"))
      >>> [cell.name for cell in cells][:2]
      ['loss=nt_xent/seed=0', 'loss=nt_xent/seed=1']
    """
    seeds = tuple(seeds)
    cells = []
    for values in itertools.product(*map(tuple, factors.values())):
        chosen = dict(zip(factors, values, strict=True))
        for seed in seeds:
            config = make(**chosen)
            config.seed = seed
            cells.append(Cell(chosen, seed, config))
    return tuple(cells)


def available() -> list[str]:
    """Lists the names of the studies that come with the library."""
    return sorted(p.stem for p in SHIPPED.glob("*.py") if p.stem not in ("common", "__init__"))


def load_study(spec: str) -> Study:
    """Returns the study of `FILE.py[:arguments]` or `NAME[:arguments]`.

    Args:
      spec: the file or the name of one that comes with the library, and the arguments of its `get_study` after a colon.

    Raises:
      UserError: there is no such file, or it does not make a study.
    """
    name = spec.partition(":")[0]
    path = pathlib.Path(name).expanduser()
    if not path.is_file():
        path = SHIPPED / f"{name}.py"
    if not path.is_file():
        near = sorted(map(str, pathlib.Path(name).parent.glob("*.py")))
        raise names.unknown("study", name, [*available(), *near])

    def checked(made: Any) -> Study:
        if not isinstance(made, Study):
            raise UserError(f"get_study returned {made!r}; accepted: an experiments.Study")
        return made

    return config_files.from_file("study", spec, path, "get_study", checked)
