"""Finds hyper-parameters and reports them honestly: `dml tune --search=FILE.py[:ARGUMENTS] --workdir=DIR`.

The protocol of "A Metric Learning Reality Check" (Musgrave et al., ECCV 2020): the training classes are divided into
folds in their own order; each trial of the search, whose hyper-parameters Optuna proposes, trains a model without each
of the folds, and counts the mean of the best validations on them. With the best hyper-parameters models are trained
with further seeds, and the test split, which nothing was chosen on, is evaluated with each fold's model alone
("separated") and with the concatenated embeddings of a seed's models ("concatenated").

The same command goes on with a search that was stopped.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dml_jax import command_line, names, run_folder
from dml_jax.console import log
from dml_jax.errors import UserError
from dml_jax.experiments import engines
from dml_jax.experiments.results import Result, load_results, value
from dml_jax.experiments.run import add_engine_options, resources_of, run_study
from dml_jax.experiments.search import Search, load_search
from dml_jax.experiments.study import Cell
from dml_jax.training.experiment import monitor_better

TRIALS, FOUND = "trials.log", "tuned.json"


def add_options(parser: command_line.Parser) -> None:
    """Adds the options of this command.

    Args:
      parser: of the command.
    """
    parser.add_workdir("the folder of the search; each run has its own below it")
    parser.add_argument(
        "--search", required=True, metavar="FILE.py[:ARGUMENTS]", help="what is searched for"
    )
    add_engine_options(parser)


def main(options: argparse.Namespace) -> None:
    """Runs the command.

    Args:
      options: those of the command line.
    """
    engine = names.resolve("executor", engines.ENGINES, options.executor)
    search = load_search(options.search)
    workdir = run_folder.create(options.workdir)
    resources = resources_of(options, workdir)
    run = lambda cells: run_study(workdir, cells, engine, resources)
    best = tune(search, workdir, run)
    log(f"best of {search.trials} trials: {search.metric} {best.value:.4f} with {best.params}")
    cells = [
        search.cell(_fixed(best.params), {"tuned": "best"}, fold, seed)
        for seed in range(search.seeds)
        for fold in range(search.folds)
    ]
    run(cells)
    found = evaluate_folds(_results(workdir, cells), search.split)
    rows = {name: summary(values) for name, values in found.items()}
    content = {
        "title": search.title,
        "params": best.params,
        "validation": best.value,
        "seeds": search.seeds,
    }
    (workdir / FOUND).write_text(json.dumps({**content, search.split: rows}, indent=2) + "\n")
    print(table(rows))
    log(f"written to {workdir / FOUND}")


def tune(search: Search, workdir: pathlib.Path, run: Callable[[Sequence[Cell]], None]) -> Any:
    """Tries hyper-parameters until there are so many trials, and returns the best one (Optuna's).

    Args:
      search: what is searched for.
      workdir: its folder.
      run: runs cells.

    Raises:
      UserError: every trial failed.
    """
    optuna = _optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    backend = optuna.storages.journal.JournalFileBackend(str(workdir / TRIALS))
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(backend),
        study_name=search.title,
        direction="maximize" if monitor_better(search.metric) == "high" else "minimize",
        load_if_exists=True,
    )
    states = optuna.trial.TrialState
    while True:
        # A trial of a search that was stopped is ended first.
        begun = study.get_trials(states=(states.RUNNING,))
        if begun:
            number, trial = begun[0].number, _fixed(begun[0].params)
        elif len(study.trials) < search.trials:
            # What is proposed depends on the trials before it, and not on where the search was stopped.
            study.sampler = optuna.samplers.TPESampler(seed=len(study.trials))
            trial = study.ask()
            number = trial.number
        else:
            break
        cells = [search.cell(trial, {"trial": number}, fold, 0) for fold in range(search.folds)]
        run(cells)
        results = _results(workdir, cells)
        if len(results) < len(cells):
            study.tell(number, state=states.FAIL)
            log(f"trial {number}: {len(cells) - len(results)} of its {len(cells)} runs failed")
            continue
        score = float(np.mean([value(result, f"best {search.metric}") for result in results]))
        study.tell(number, score)
        log(
            f"trial {number} of {search.trials}: {search.metric} {score:.4f}, best {study.best_value:.4f}"
        )
    if not study.get_trials(states=(states.COMPLETE,)):
        raise UserError(f"all {search.trials} trials of {workdir} failed; their log.txt say why")
    return study.best_trial


def _fixed(params: dict[str, Any]) -> Any:
    """Returns a trial that proposes hyper-parameters that were proposed before."""
    return _optuna().trial.FixedTrial(params)


def _results(workdir: pathlib.Path, cells: Sequence[Cell]) -> list[Result]:
    wanted = {(cell.group, cell.seed) for cell in cells}
    return [found for found in load_results(workdir) if (found.group, found.seed) in wanted]


def evaluate_folds(results: Sequence[Result], split: str) -> dict[str, list[dict[str, float]]]:
    """Evaluates the models of the folds, by themselves and together.

    Args:
      results: of runs of some seeds, a run for each fold.
      split: what is evaluated.

    Returns:
      For each seed the metrics, of "separated" the mean over its models, of "concatenated" those of their embeddings,
      each normalised, beside each other.
    """
    found: dict[str, list[dict[str, float]]] = {"separated": [], "concatenated": []}
    for seed in sorted({result.seed for result in results}):
        alone, together = _evaluate([r for r in results if r.seed == seed], split)
        means = {name: float(np.mean([row[name] for row in alone])) for name in alone[0]}
        found["separated"].append(means)
        found["concatenated"].append(together)
    return found


def _evaluate(
    results: Sequence[Result], split: str
) -> tuple[list[dict[str, float]], dict[str, float]]:
    """Returns the metrics of each model, and those of all of them together."""
    # Imported here, because what they import looks for devices, and the runs are other processes.
    import jax

    from dml_jax import evaluation
    from dml_jax.evaluate import restored
    from dml_jax.evaluation.vectors import normalize_rows
    from dml_jax.mesh import make_mesh
    from dml_jax.training import build, score, tasks

    alone, embedded = [], []
    for result in results:
        config = run_folder.read_config(result.folder)
        model = build.model(config.model)
        spec = tasks.eval_spec(config, split, model)
        with jax.set_mesh(make_mesh(config.train.devices)):
            variables = restored(str(result.folder), "best", model)[2]
            apply = score.outputs(model, spec.embeddings)
            what = f"embedding {split} with {result.group}/seed={result.seed}"
            found = score.embedded(
                spec,
                lambda s: score.embed_source(apply, variables, config, s, what),  # noqa: B023
            )
            alone.append(score.metrics(spec, found)[spec.embeddings[0]])
        embedded.append(found)
    name = spec.embeddings[0]
    joined = {}
    for part, (_, labels, ids) in embedded[0].items():
        vectors = [normalize_rows(evaluation.combined(of[part][0], name)) for of in embedded]
        joined[part] = ({name: np.concatenate(vectors, 1)}, labels, ids)
    return alone, score.metrics(spec, joined)[name]


def summary(rows: Sequence[dict[str, float]]) -> dict[str, tuple[float, float]]:
    """Returns the mean of each metric over the seeds, and half of its 95 % confidence interval by Student's t.

    Args:
      rows: of each seed, the metrics. Of a single one the interval is nan.

    >>> mean, half = summary([{"map_at_r": 0.4}, {"map_at_r": 0.6}])["map_at_r"]
    >>> round(mean, 3), round(half, 3)
    (0.5, 1.271)
    """
    from scipy import stats

    n = len(rows)
    found = {}
    for name in rows[0]:
        values = np.array([row[name] for row in rows])
        error = values.std(ddof=1) / n**0.5 if n > 1 else np.nan
        half = float(stats.t.ppf(0.975, n - 1) * error) if n > 1 else np.nan
        found[name] = (float(values.mean()), half)
    return found


def table(rows: dict[str, dict[str, tuple[float, float]]]) -> str:
    """Returns the means with their intervals as a Markdown table.

    Args:
      rows: what `summary` returned, by name.

    >>> print(table({"separated": {"map_at_r": (0.5, 0.01)}}))
    |  | map_at_r |
    |---|---:|
    | separated | 0.5000 +- 0.0100 |
    """
    metrics = list(next(iter(rows.values())))
    head = f"|  | {' | '.join(metrics)} |\n|---|{'---:|' * len(metrics)}"
    lines = [
        f"| {name} | {' | '.join('{:.4f} +- {:.4f}'.format(*row[m]) for m in metrics)} |"
        for name, row in rows.items()
    ]
    return "\n".join([head, *lines])


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise UserError(
            "a search needs the package optuna: pip install 'dml_jax[experiments]'"
        ) from None
    return optuna


if __name__ == "__main__":
    command_line.run(sys.modules[__name__])
