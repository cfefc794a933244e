"""What ends a run from outside: SIGTERM, which clusters send before they take a machine away, and Ctrl-C."""

import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, TypeVar

import jax
from jax.experimental import multihost_utils

T = TypeVar("T")


class Terminated(Exception):
    """A signal came, and the state is written."""


class Preemption:
    """A context in which SIGTERM and Ctrl-C are remembered, so that the loop can end where its state is whole.

    A second Ctrl-C ends the process at once. With several processes the coordination service of JAX takes SIGTERM, and
    all of them end at one step; Ctrl-C is passed on to it.

    Attributes:
      status: the exit status of a process that a signal ended: 0 after SIGTERM, which is how a cluster stops a run that
        will go on, and 130 after Ctrl-C, as shells have it.
    """

    def __init__(self) -> None:
        self.status = 0
        self._came = False
        self._alone = jax.process_count() == 1
        self._handlers_before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is threading.main_thread():
            self._handlers_before[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)
            if self._alone:
                self._handlers_before[signal.SIGTERM] = signal.signal(
                    signal.SIGTERM, self._remember
                )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)

    def _remember(self, *_: object) -> None:
        self._came = True

    def _interrupt(self, *_: object) -> None:
        # The next one has its usual effect.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        self.status = 130
        print("stopping where the state can be saved; Ctrl-C again stops at once", file=sys.stderr)
        if self._alone:
            self._came = True
        else:
            os.kill(os.getpid(), signal.SIGTERM)

    def ends_after(self, step: int) -> bool:
        """Returns True where the run is to end after this step; called once a step by every process."""
        if self._alone:
            return self._came
        return multihost_utils.reached_preemption_sync_point(step)

    def guard(self, batches: Iterable[T]) -> Iterator[T]:
        """Yields the batches; raises `Terminated` between two of them once a signal has arrived.

        It is for evaluation, which changes no state: a run that goes on does it again.
        """
        for batch in batches:
            if self._came:
                raise Terminated
            yield batch
