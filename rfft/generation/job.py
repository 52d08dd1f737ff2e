"""Recurrent generation of a whole folder, turn by turn, by all processes of a job.

Shapes: B batch, N pictures, K classes, S the side of the canvas.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from rfft.config.schema import Config
from rfft.data.dataset import Samples
from rfft.data.samples import Skipped
from rfft.data.sizes import of_one_size
from rfft.errors import UserError
from rfft.generation.generated import keep_picture, manifest_row
from rfft.generation.progress import Generation
from rfft.generation.sample import Outcome, after, improves, recur
from rfft.metrics.verdict import NOT_FINITE, verdicts_of
from rfft.utils.log import write_skipped
from rfft.utils.processes import count, rank, spread

TURN = 64  # batches of products that are brought to their end together

# Numbers of samples, the attempts they have behind them, the numbers of the next batch
# -> pictures [B,3,S,S], class probabilities [B,K]
Paint = Callable[[list[int], int, list[int]], tuple[Tensor, Tensor]]


class Job:
    """Paints all products of a folder that are not done; the processes share an attempt's batches.

    What is painted does not depend on how many processes there are.
    """

    def __init__(
        self, config: Config, draw: Paint, samples: Samples, generation: Generation, skipped: list[Skipped]
    ) -> None:
        self.config, self.draw, self.samples = config, draw, samples
        self.generation, self.skipped = generation, skipped
        self.size, self.most = config.evaluate.batch_size, config.evaluate.max_attempts
        self.before = frozenset(generation.done)  # in all processes, as `done` grows in the first one alone
        self.finite = False  # has any verdict been so?

    def run(self, console: Console) -> None:
        """Paint them turn by turn, and finish the folder."""
        columns = (
            "{task.description}",
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[share]}"),
        )
        with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
            task = progress.add_task("painting", total=len(self.samples), share="")

            def show() -> None:
                done, accepted = len(self.generation.done), self.generation.accepted
                share = f"accepted {accepted / done:.0%}" if done else ""
                progress.update(task, completed=done, share=share)

            for first in range(0, len(self.samples), TURN * self.size):
                numbers = range(len(self.samples))[first : first + TURN * self.size]
                ids = {i: self.samples.entry(i).id for i in numbers}
                pending = [i for i in numbers if ids[i] not in self.before]
                self._turn(self._usable(pending), ids, show)
        if not self.finite and not self.generation.has_finite:
            self._require_finite(torch.full((len(self.samples), 1), torch.nan))
        if rank() == 0:
            write_skipped(self.generation.out, [asdict(product) for product in self.skipped])
            self.generation.finish(self.samples.entry(i).id for i in range(len(self.samples)))

    def _usable(self, numbers: list[int]) -> list[int]:
        """Return those whose products can be used, where others are skipped."""
        if not self.samples.skips:
            return numbers

        def look(piece: int) -> tuple[list[Skipped | None], None]:
            part = numbers[piece * self.size : (piece + 1) * self.size]
            return [self.samples.problem(i) for i in part], None

        problems = [found for part in spread(look, -(-len(numbers) // self.size)) for found in part]
        known = {product.id for product in self.skipped}
        new = {found.id: found for found in problems if found is not None and found.id not in known}
        self.skipped += new.values()
        return [i for i, found in zip(numbers, problems, strict=True) if found is None]

    def _turn(self, numbers: list[int], ids: dict[int, str], show: Callable[[], None]) -> None:
        """Bring some products to their end."""
        refused = self.generation.refused
        begun = {place: refused[ids[i]] for place, i in enumerate(numbers) if ids[i] in refused}

        def attempt_all(waiting: list[int], attempt: int, best: dict[int, Outcome]) -> Tensor:
            batches = of_one_size(waiting, lambda place: self.samples.size(numbers[place]), self.size)

            def paint_one(piece: int) -> tuple[Tensor, Tensor]:
                chosen, later = batches[piece], batches[piece + count() : piece + count() + 1]
                following = [numbers[place] for part in later for place in part]
                images, probabilities = self.draw([numbers[place] for place in chosen], attempt, following)
                for place, image, p in zip(chosen, images, probabilities, strict=True):
                    if improves(p, best.get(place)):
                        self._keep(numbers[place], image, attempt)
                return probabilities, probabilities

            def record(piece: int, probabilities: Tensor) -> None:
                outcomes = {
                    numbers[place]: after(p, attempt, best.get(place))
                    for place, p in zip(batches[piece], probabilities, strict=True)
                }
                self._record(outcomes)

            found = torch.cat(spread(paint_one, len(batches), lambda _: show(), record))
            self.finite |= bool((verdicts_of(found) != NOT_FINITE).any())
            if (
                not self.finite and len(self.samples) > 1
            ):  # other seeds would help a single one, not all of them
                self._require_finite(found)
            return found

        recur(attempt_all, len(numbers), self.most, begun)

    def _keep(self, number: int, image: Tensor, attempt: int) -> None:
        sample, limit = self.samples[number], self.config.data.max_pixels
        keep_picture(self.generation.out, sample, image, attempt == 0, limit)

    def _record(self, outcomes: dict[int, Outcome]) -> None:
        """Write down what came of an attempt, in the first process."""
        rows: list[dict[str, Any]] = []
        refused: dict[str, Outcome] = {}
        for number, outcome in outcomes.items():
            entry = self.samples.entry(number)
            if entry.id in self.generation.done:
                raise UserError(
                    f"{self.samples.source}: two samples are called {entry.id!r}; ids must be unique"
                )
            if outcome.accepted or outcome.attempts == self.most:
                rows.append(manifest_row(entry, outcome, self.config.run.seed))
            else:
                refused[entry.id] = outcome
        self.generation.add(rows)
        self.generation.refuse(refused)

    def _require_finite(self, probabilities: Tensor) -> None:
        """Raise UserError if none of the verdicts [N,K] is finite."""
        if (verdicts_of(probabilities) == NOT_FINITE).all():
            precision = self.config.trainer.mixed_precision
            fix = (
                "set trainer.mixed_precision=bf16" if precision == "fp16" else "check the generator's weights"
            )
            scale = self.config.rollout.guidance_scale
            raise UserError(
                f"none of {len(probabilities)} pictures is finite (NaN or infinite), nothing is written: "
                f"{fix}, or lower rollout.guidance_scale={scale:g}"
            )
