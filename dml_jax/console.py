"""What a command prints on the terminal: lines, and the progress of whatever takes more than seconds."""

import collections
import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TextIO, TypeVar

import jax
from tqdm import tqdm

Batch = TypeVar("Batch", bound=Mapping[str, Any])


def log(message: str) -> None:
    """Prints a line, above the progress bar where there is one; what the terminal cannot show is escaped."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    shown = message.encode(encoding, "backslashreplace").decode(encoding)
    tqdm.write(shown, file=sys.stdout)
    sys.stdout.flush()


def watched(
    batches: Iterable[Batch],
    images: int,
    what: str,
    *,
    show: bool = True,
    seconds: float = 15.0,
    stream: TextIO | None = None,
) -> Iterator[Batch]:
    """Yields batches, and shows how far a pass over images is: a bar on a terminal, elsewhere a line every few seconds.

    A pass that takes no longer than that prints nothing.

    Args:
      batches: of all processes together, `{"image": [b, ...]}` of this one.
      images: how many there are.
      what: what is done with them, as in "evaluating val".
      show: False to show nothing.
      seconds: between two lines.
      stream: where the bar is drawn; standard error by default.

    >>> list(watched([{"image": [0]}], 1, "embedding", show=False))
    [{'image': [0]}]
    """
    stream = sys.stderr if stream is None else stream
    terminal = stream.isatty()
    start = last = time.monotonic()
    done = 0
    with tqdm(
        total=images,
        desc=what,
        unit=" images",
        dynamic_ncols=True,
        leave=False,
        file=stream,
        disable=not (show and terminal),
    ) as bar:
        for batch in batches:
            yield batch
            before = done
            done = min(images, done + len(batch["image"]) * jax.process_count())
            bar.update(done - before)
            now = time.monotonic()
            if show and not terminal and now - last >= seconds and done < images:
                rate = done / (now - start)
                log(
                    f"{what}: {done} of {images} images  {rate:.0f} images/s  {_clock((images - done) / rate)} left"
                )
                last = now


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Returns a table as text, its columns under each other.

    Args:
      rows: of the same length, the first one is the header.

    >>> print(aligned([["group", "rate"], ["a", "0.1"]]))
    group  rate
    a      0.1
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)


def _clock(seconds: float) -> str:
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"


class Progress:
    """Shows loss, images per second and the time left: a bar on a terminal, elsewhere a line every few seconds.

    Args:
      total: images of the whole run.
      done: images that were trained before this start.
      show: False to show nothing.
      seconds: between two lines.
      stream: where the bar is drawn; standard error by default.
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
        self._bar = tqdm(
            total=total,
            initial=done,
            unit=" images",
            unit_scale=True,
            dynamic_ncols=True,
            file=stream,
            disable=not (show and stream.isatty()),
        )
        self._prints_lines = show and not stream.isatty()
        self._seconds = seconds
        self._total, self._done = total, done
        self._last_line = time.monotonic()
        self._recent: collections.deque[tuple[float, int]] = collections.deque(maxlen=20)

    def update(self, images: int, epoch: int, step: int, loss: float) -> None:
        """Takes note of a step.

        Args:
          images: how many it trained.
          epoch: counted from 1.
          step: of the run.
          loss: the newest that is known; NaN before the first one.
        """
        known = [] if math.isnan(loss) else [f"loss {loss:.4f}"]
        self._done += images
        now = time.monotonic()
        self._recent.append((now, self._done))
        self._bar.set_postfix_str(", ".join([f"epoch {epoch}", *known]), refresh=False)
        self._bar.update(images)
        rate = self.rate()
        if self._prints_lines and rate and now - self._last_line >= self._seconds:
            left = _clock((self._total - self._done) / rate)
            parts = [
                f"epoch {epoch}",
                f"step {step}",
                *known,
                f"{rate:.0f} images/s",
                f"{left} left",
            ]
            log("  ".join(parts))
            self._last_line = now

    def rate(self) -> float:
        """Returns images per second over the last twenty steps since a pause; 0 before the second of them."""
        if len(self._recent) < 2:
            return 0.0
        (start, before), (now, done) = self._recent[0], self._recent[-1]
        return (done - before) / (now - start)

    def pause(self) -> None:
        """Forgets the times of the last steps: something other than training comes in between."""
        self._recent.clear()

    def close(self) -> None:
        """Leaves the bar as it is."""
        self._bar.close()
