"""The command `rfft generate`: recurrent generation for a folder of products.

Shapes: B batch, K classes, S the side of the canvas.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from rfft import build
from rfft.config.load import flatten
from rfft.config.schema import Config
from rfft.data.conditions import noise_for
from rfft.data.dataset import Samples
from rfft.data.samples import Entry, Sample, Skipped
from rfft.errors import UserError
from rfft.generation.generated import keep_picture, manifest_row
from rfft.generation.generator import load_generator
from rfft.generation.progress import Generation
from rfft.generation.sample import Outcome, after, autocast, improves, paint, recur, reward_logits
from rfft.metrics.verdict import NOT_FINITE, verdicts_of
from rfft.metrics.wilson import shown_share
from rfft.models.bundle import Bundle
from rfft.utils.faults import painting
from rfft.utils.log import messages, write_skipped
from rfft.utils.processes import broadcast, count, joined, rank, spread

NAMED = 3  # pictures that are not finite, before the rest is only counted
TURN = 64  # batches of products that are brought to their end together
PAINTED = (
    "model",
    "data",
    "reward",
    "rollout",
    "run.seed",
    "trainer.mixed_precision",
    "evaluate.max_attempts",
)
ELSEWHERE = ("data.cache", "data.cache_gb", "data.workers", "data.on_error")  # and what changes no picture

# Numbers of samples, the attempts they have behind them, the numbers of the next batch
# -> pictures [B,3,S,S], class probabilities [B,K]
Paint = Callable[[list[int], int, list[int]], tuple[Tensor, Tensor]]


def generate(config: Config, lora: Path | None, out: Path) -> None:
    """Paint every product until RFNet accepts its picture, evaluate.max_attempts times at most.

    Writes, as they are done: out/images/ID.png at the product's own resolution and with its own pixels,
    out/products/ID.png, the product as it lies there (RGBA), a row of out/manifest.jsonl; at the end
    out/contact_sheet.png. The same command goes on where an earlier one was cut off. A picture or verdict
    that is not finite is never accepted; raises UserError if all are so.
    """
    settings = {name: value for name, value in flatten(asdict(config)).items() if _decides(name)}
    generation = Generation(out, settings | {"lora": lora and str(lora.resolve())})
    skipped: list[Skipped] = []
    with painting(config.evaluate.batch_size), joined() as device:
        console = messages(quiet=rank() > 0)
        samples = build.build_samples(config, "generate", skipped)
        draw = painter(config, load_generator(config, lora, device), samples, device)
        with _opened(generation):
            _Job(config, draw, samples, generation, skipped).run(console)
    if rank() == 0:
        _summarize(generation, console)


def _decides(name: str) -> bool:
    """Say whether a setting decides what is painted."""
    return any(name == part or name.startswith(f"{part}.") for part in PAINTED) and name not in ELSEWHERE


@contextmanager
def _opened(generation: Generation) -> Iterator[None]:
    """Open the folder in the first process, and tell the others what is done there."""
    if rank() > 0:
        generation.done, generation.refused = broadcast(None)
        yield
        return
    with generation:
        broadcast((generation.done, generation.refused))
        yield


def _summarize(generation: Generation, console: Console) -> None:
    """Tell how many of the manifest's pictures are accepted, and which are not finite."""
    total = len(generation.done)
    if broken := generation.broken:
        names = ", ".join(broken[:NAMED]) + ", ..." * (len(broken) > NAMED)
        told = f"warning: {len(broken)} of {total} pictures are not finite: {names}"
        console.print(told, style="red", highlight=False, soft_wrap=True)
    console.print(
        f"RFNet accepts {shown_share(generation.accepted, total)} after {generation.attempts / total:.2f} "
        f"attempts on average; written: {generation.out}",
        highlight=False,
        soft_wrap=True,
    )


def painter(config: Config, bundle: Bundle, samples: Samples, device: torch.device) -> Paint:
    """Return a function that paints samples with new noise at each attempt, and asks RFNet for verdicts."""
    rfnet = build.build_rfnet(config, device)
    if rfnet is None:
        raise UserError(
            "reward.rfnet is null, and recurrent generation asks RFNet: name one with reward.rfnet"
        )
    conditions = build.build_conditions(config, bundle, samples)
    schedule, scale = bundle.schedule(config.rollout.steps), config.rollout.guidance_scale

    @torch.no_grad()
    def draw(chosen: list[int], attempt: int, following: list[int]) -> tuple[Tensor, Tensor]:
        encoded = conditions.index(chosen)
        conditions.prefetch([following])
        indices = [noise_index(samples.entry(i)) for i in chosen]
        noise = noise_for(config.run.seed + attempt, indices, tuple(encoded.x_o.shape[1:]))
        batch = replace(encoded, noise=noise).to(device)
        with autocast(device, config.trainer.mixed_precision):
            images = paint(bundle, batch, schedule, scale)
        return images.cpu(), reward_logits(lambda x: rfnet(x, batch), images).softmax(-1).cpu()

    return draw


def noise_index(sample: Entry | Sample) -> int:
    """Return a number that is the same for a product of the same name, whatever other products come along."""
    return zlib.crc32(sample.id.encode())


class _Job:
    """Paints all products of a folder that are not done; the processes share an attempt's batches.

    What is painted does not depend on how many processes there are.
    """

    def __init__(
        self, config: Config, draw: Paint, samples: Samples, generation: Generation, skipped: list[Skipped]
    ) -> None:
        self.config, self.draw, self.samples = config, draw, samples
        self.generation, self.skipped = generation, skipped
        self.size, self.most = config.evaluate.batch_size, config.evaluate.max_attempts
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
                pending = [i for i in numbers if ids[i] not in self.generation.done]
                self._turn(self._usable(pending), ids, show)
        if not self.finite and not self.generation.finite:
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
            size = self.size
            batches = [waiting[first : first + size] for first in range(0, len(waiting), size)]

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
