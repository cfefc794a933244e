"""What runs the cells of a study: submitit for this machine and for SLURM, Ray for a cluster.

An engine is a function of jobs that calls each in a process of its own and yields its number when it is over, whatever
came of it.
"""

import contextlib
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dml_jax.errors import UserError
from dml_jax.experiments.cell import CellJob


@dataclass(frozen=True)
class Resources:
    """What cells may use.

    Attributes:
      jobs: how many run at a time.
      gpus: the numbers of the GPUs of this machine that they are dealt out to; none: as JAX finds them.
      memory_share: the share of a GPU's memory that a cell takes; None: 1 over the cells that share a GPU.
      slurm: parameters of SLURM, as submitit calls them: `{"partition": "gpu", "gpus_per_node": 1}`.
      folder: where an engine leaves its own files.
    """

    jobs: int
    folder: pathlib.Path
    gpus: tuple[int, ...] = ()
    memory_share: float | None = None
    slurm: Mapping[str, Any] = field(default_factory=dict)

    def environment(self, slot: int) -> dict[str, str]:
        """Returns the variables of the cell in one of the `jobs` slots."""
        if not self.gpus:
            share = self.memory_share
            return {} if share is None else {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{share:.3f}"}
        together = -(-self.jobs // len(self.gpus))
        # What JAX leaves of a GPU by default is left here, too.
        share = self.memory_share or 0.75 / together
        return {
            "CUDA_VISIBLE_DEVICES": str(self.gpus[slot % len(self.gpus)]),
            "XLA_PYTHON_CLIENT_MEM_FRACTION": f"{share:.3f}",
        }


Engine = Callable[[Sequence[CellJob], Resources], Iterator[int]]

# Seconds between two looks at the processes.
POLL = 0.5
# Minutes after which submitit ends a process of its own accord: a year. SLURM's own limit is a parameter.
_YEAR = 365 * 24 * 60


def local(jobs: Sequence[CellJob], resources: Resources) -> Iterator[int]:
    """Runs the jobs on this machine; where the caller ends early, those that run are ended, too."""
    executor = _submitit().LocalExecutor(resources.folder)
    executor.update_parameters(timeout_min=_YEAR)
    waiting = list(enumerate(jobs))[::-1]
    running: dict[int, tuple[int, Any]] = {}
    try:
        while waiting or running:
            for slot in range(resources.jobs):
                if slot not in running and waiting:
                    number, job = waiting.pop()
                    job = replace(job, environment=resources.environment(slot))
                    running[slot] = number, executor.submit(job)
            for slot, (number, submitted) in list(running.items()):
                if submitted.done():
                    del running[slot]
                    yield number
            time.sleep(POLL)
    finally:
        for _, submitted in running.values():
            submitted.cancel()


def slurm(jobs: Sequence[CellJob], resources: Resources) -> Iterator[int]:
    """Submits the jobs to SLURM as one array, of which `resources.jobs` run at a time.

    They stay in its queue where the caller ends early.
    """
    submitit = _submitit()
    try:
        executor = submitit.SlurmExecutor(resources.folder)
    except RuntimeError as error:
        raise UserError(f"--executor=slurm: {error}; --executor=local needs no SLURM") from None
    parameters = {"array_parallelism": resources.jobs, "time": _YEAR, **resources.slurm}
    try:
        executor.update_parameters(**parameters)
    except (NameError, ValueError) as error:
        raise UserError(f"--slurm: {error}") from None
    environment = resources.environment(0)
    submitted = executor.map_array(_call, [replace(job, environment=environment) for job in jobs])
    numbers = {job.job_id: number for number, job in enumerate(submitted)}
    for job in submitit.helpers.as_completed(submitted):
        yield numbers[job.job_id]


def _call(job: CellJob) -> None:
    job()


def ray(jobs: Sequence[CellJob], resources: Resources) -> Iterator[int]:
    """Gives the jobs to Ray: to the cluster that RAY_ADDRESS names, or to processes of this machine."""
    try:
        import ray as library
    except ImportError:
        raise UserError(
            "--executor=ray needs the package ray: pip install 'dml_jax[ray]'; --executor=local needs it not"
        ) from None
    with contextlib.ExitStack() as stack:
        if not library.is_initialized():
            library.init(include_dashboard=False, log_to_driver=False)
            stack.callback(library.shutdown)
        share = resources.memory_share
        gpus = 0.0 if share is None else share
        environment = resources.environment(0)
        # A process runs one cell: JAX takes its memory once and for all.
        run = library.remote(num_cpus=1, num_gpus=gpus, max_calls=1, max_retries=0)(_call)
        waiting = list(enumerate(jobs))[::-1]
        running: dict[Any, int] = {}
        while waiting or running:
            while waiting and len(running) < resources.jobs:
                number, job = waiting.pop()
                running[run.remote(replace(job, environment=environment))] = number
            done, _ = library.wait(list(running), timeout=POLL)
            for reference in done:
                yield running.pop(reference)


def _submitit() -> Any:
    try:
        import submitit
    except ImportError:
        raise UserError(
            "studies need the package submitit: pip install 'dml_jax[experiments]'"
        ) from None
    return submitit


ENGINES: dict[str, Engine] = {"local": local, "slurm": slurm, "ray": ray}
