"""What ends a run from outside: SIGTERM, which clusters send before they take a machine away."""

import signal
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, TypeVar

import jax
from jax.experimental import multihost_utils

T = TypeVar("T")


class Terminated(Exception):
    """SIGTERM came, and the state is written."""


class Preemption:
    """A context in which SIGTERM is remembered, so that the loop can end where its state is whole.

    With several processes the coordination service of JAX takes the signal, and all of them end at one step.
    """

    def __init__(self) -> None:
        self._came = False
        self._alone = jax.process_count() == 1
        self._handler_before: Any = None

    def __enter__(self) -> "Preemption":
        if self._alone:
            self._handler_before = signal.signal(signal.SIGTERM, self._remember)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._alone:
            signal.signal(signal.SIGTERM, self._handler_before)

    def _remember(self, *_: object) -> None:
        self._came = True

    def ends_after(self, step: int) -> bool:
        """Returns True where the run is to end after this step; called once a step by every process."""
        if self._alone:
            return self._came
        return multihost_utils.reached_preemption_sync_point(step)

    def guard(self, batches: Iterable[T]) -> Iterator[T]:
        """Yields the batches; raises `Terminated` between two of them once SIGTERM has arrived.

        It is for evaluation, which changes no state: a run that goes on does it again.
        """
        for batch in batches:
            if self._came:
                raise Terminated
            yield batch
