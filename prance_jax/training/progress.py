"""Progress of a stage for people: a bar on a terminal, plain lines in a log."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import IO, Any

# Fewer steps measure a rate badly: the first ones wait for memory and for the input.
_STEPS_BEFORE_RATE = 30


class Progress:
    """Shows how far the current stage is: a bar on a terminal, a plain line now and then in a log.

    The first step of a stage compiles its program, which can take longer than all others. It counts
    neither in the rate nor in the time left, and both appear only after 30 steps more.

    Args:
      quiet: print nothing.
      stream: where to print; standard error by default.
      every_seconds: seconds between plain lines where the stream is not a terminal.
      clock: returns the time in seconds; tests pass their own.
    """

    def __init__(
        self,
        quiet: bool = False,
        stream: IO[str] | None = None,
        every_seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._stream = stream if stream is not None else sys.stderr
        self._quiet = quiet
        self._every = every_seconds
        self._clock = clock
        self._terminal = bool(getattr(self._stream, "isatty", lambda: False)())
        self._bar: Any = None

    def start(self, name: str, steps: int, done: int = 0) -> None:
        """Opens a stage and reports that its first step is being compiled.

        Args:
          name: name of the stage, for example ``seed0/meta``.
          steps: number of steps of the stage.
          done: steps that were finished before, by a run that was stopped.
        """
        self._name, self._steps, self._done = name, steps, done
        self._began = self._printed = self._clock()
        self._compiled: tuple[int, float] | None = None  # step and time of the first update
        self._headline = ""
        if self._quiet or done >= steps:
            return
        if self._terminal:
            from tqdm import tqdm

            # Its own rate and time left would count the compilation.
            self._bar = tqdm(
                desc=name,
                total=steps,
                initial=done,
                file=self._stream,
                dynamic_ncols=True,
                leave=True,
                bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]",
            )
            self._bar.set_postfix_str("compiling")
        else:
            self._print(f"{name}  compiling")

    def update(self, step: int, values: Mapping[str, float] | None = None) -> None:
        """Reports finished steps.

        Args:
          step: number of finished steps, those before the start included.
          values: metrics to show; without them the last ones stay.
        """
        if self._quiet:
            return
        if self._compiled is None:
            self._compiled = step, self._clock()
        if values:
            self._headline = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        new_steps, self._done = step - self._done, step
        if self._bar is not None:
            self._bar.set_postfix_str(self._status(), refresh=False)
            self._bar.update(new_steps)
        elif step < self._steps and self._clock() - self._printed >= self._every:
            self._print(self._line())  # `stop` prints the last one

    def stop(self) -> None:
        """Closes the stage."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        elif not self._quiet and self._compiled is not None:
            self._print(self._line())

    def note(self, text: str) -> None:
        """Prints one line that stays, between or above the bars."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def _print(self, line: str) -> None:
        self._printed = self._clock()
        print(line, file=self._stream, flush=True)

    def _line(self) -> str:
        return "  ".join(part for part in (self._name, f"{self._done}/{self._steps}", self._status()) if part)

    def _status(self) -> str:
        """Rate, time left and metrics, as far as they are known."""
        finished, parts = self._done >= self._steps, []
        rate, num_steps = self._rate()
        if rate and (finished or num_steps >= _STEPS_BEFORE_RATE):
            parts.append(f"{rate:.3g} steps/s")
            if not finished:
                parts.append(f"{_duration((self._steps - self._done) / rate)} left")
        if finished:
            parts.append(f"done in {_duration(self._clock() - self._began)}")
        return "  ".join([*parts, self._headline] if self._headline else parts)

    def _rate(self) -> tuple[float, int]:
        """Steps per second after the first step (0 while unknown), and the number of those steps."""
        if self._compiled is None:
            return 0.0, 0
        first_step, since = self._compiled
        num_steps = self._done - first_step
        return num_steps / max(self._clock() - since, 1e-9), num_steps


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
