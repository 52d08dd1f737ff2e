"""The live line of a training."""

from __future__ import annotations

import math
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from rfft.utils.log import messages


class TrainingDisplay:
    """A live line in a terminal: step, what is said of it, time left. In a log file: a line now and then.

    with TrainingDisplay(steps) as display:
        display.show(step, "loss 0.5", seconds)
    """

    def __init__(
        self,
        steps: int,
        start: tuple[int, float] = (0, 0.0),
        max_seconds: float | None = None,
        console: Console | None = None,
        every_s: float = 30,
    ) -> None:
        """Show training of so many steps on a console, which may be a log file.

        `start` is the number of steps and seconds of training that an earlier process has done; training ends
        after `max_seconds`, whatever the steps. A log file gets a line every `every_s` seconds.
        """
        self.console = console or messages()
        self._steps, self._every_s = steps, every_s
        self._limit = math.inf if max_seconds is None else max_seconds
        self._start = self._done = start
        self._shown = self._printed = time.monotonic()
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            _TimeLeft(self),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._progress.add_task("training", total=steps, completed=start[0], text="")

    def __enter__(self) -> TrainingDisplay:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, step: int, text: str, seconds: float) -> None:
        """Show that `step` steps are done, after so many seconds of training in all."""
        self._done, self._shown = (step, seconds), time.monotonic()
        self._progress.update(self._task, completed=step, text=text)
        due = self._shown - self._printed > self._every_s or step in (self._start[0] + 1, self._steps)
        if not self.console.is_terminal and due:
            self._printed = self._shown
            self.console.print(f"step {step}/{self._steps}  {text}  {self.time_left()} left", highlight=False)

    def time_left(self) -> str:
        """Return minutes and seconds until the end, by the mean pace of the training so far.

        Steps differ too little for more.
        """
        done, spent = self._done[0] - self._start[0], self._done[1] - self._start[1]
        if not done:
            return "-:--"
        left = min(spent / done * (self._steps - self._done[0]), self._limit - self._done[1])
        seconds = round(max(0, left - (time.monotonic() - self._shown)))
        return f"{seconds // 60}:{seconds % 60:02}"


class _TimeLeft(ProgressColumn):
    def __init__(self, display: TrainingDisplay) -> None:
        super().__init__()
        self._display = display

    def render(self, task: Task) -> Text:
        return Text(f"{self._display.time_left()} left")
