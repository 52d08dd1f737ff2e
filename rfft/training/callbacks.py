"""What the main process does beside training: metrics, display, samples, checkpoints, evaluation, report."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor

from rfft.data.conditions import noise_for
from rfft.data.samples import Sample
from rfft.evaluation import store
from rfft.evaluation.evaluator import Evaluation, Evaluator, show
from rfft.evaluation.grid import describe_grid
from rfft.evaluation.guardrails import show_result
from rfft.evaluation.report import write_report
from rfft.evaluation.runs import export_run
from rfft.evaluation.validation import CHOOSES, Validation
from rfft.generation.sample import paint
from rfft.training.learner import Learner
from rfft.training.tracking import Tracker
from rfft.types import label_names
from rfft.utils import contact_sheet
from rfft.utils.checkpoint import Checkpoints, step_of
from rfft.utils.log import MetricsFile, TrainingDisplay, messages
from rfft.utils.processes import broadcast, spread

SAMPLES, SAMPLE_SEED, SAMPLE_COLUMNS = 16, 20240801, 8  # grids of pictures, always with the same noise
EXPORT = "diffusers"


class TrainingCallbacks:
    """What the main process does beside training: metrics, display, samples, checkpoints, evaluation."""

    def __init__(
        self,
        run: Path,
        learner: Learner,
        checkpoints: Checkpoints,
        evaluator: Evaluator | None,
        validation: Validation | None,
        samples: list[Sample],
    ) -> None:
        self.run, self.learner, self.checkpoints, self.evaluator = run, learner, checkpoints, evaluator
        self.config, self.samples, self.validation = learner.config, samples, validation
        self.console = messages()
        (run / "samples").mkdir(exist_ok=True)
        done, trainer = learner.counters, self.config.trainer
        self.sampled = done.step if self.sheet(done.step).exists() else None  # by the run that is resumed
        self.metrics_file = MetricsFile(run / "metrics.jsonl", done.step)
        self.tracker = Tracker(self.config.tracker.kind, run, asdict(self.config))
        left = None if trainer.max_minutes is None else 60 * trainer.max_minutes - done.seconds
        self.display = TrainingDisplay(trainer.steps, done.step, self.console, seconds=left)

    def before(self) -> None:
        if self.evaluator is not None:
            self.evaluate_base(self.evaluator)
        if self.validation is not None:
            self.validate_base(self.validation)

    def after_step(self, scalars: dict[str, float]) -> None:
        trainer, step = self.config.trainer, self.learner.counters.step
        self.metrics_file.write(step, scalars)
        self.tracker.log(scalars, step)
        if self.learner.counters.skipped_in_a_row:
            self.console.print(f"step {step} is skipped: its loss or gradient is not finite", style="red")
        self.display.show(step, shown(scalars))
        if self.learner.due(trainer.checkpoint_every) or self.learner.finished():
            self.save()

    def sample_and_evaluate(self) -> None:
        """Samples and evaluation, where this step is one for them.

        They come after its checkpoint, as they may take long; a resumed run makes up for what is missing.
        """
        step = self.learner.counters.step
        if self.learner.due(self.config.trainer.sample_every) and step != self.sampled:
            self.sample()
        if step and self.validation is not None and self.learner.due(self.config.evaluate.every):
            self.validate(self.validation)

    def stop(self) -> None:
        """Interrupted."""
        self.keep()
        self.close()

    def close(self) -> None:
        self.metrics_file.close()
        self.tracker.close()

    def keep(self) -> None:
        """Save what has been done, if it is not."""
        step = self.learner.counters.step
        if step and not self.checkpoints.has(step):
            self.save()

    def save(self) -> None:
        self.metrics_file.sync()
        self.checkpoints.save(self.learner.counters.step, self.learner.weights, self.learner.objects())

    def after(self) -> None:
        """Evaluate the tuned model, export, report; tell what there is."""
        counters = self.learner.counters
        found = {
            "seconds": round(counters.seconds, 1),
            "steps": counters.step,
            "grad_samples": counters.grad_samples,
            "denoiser_forwards": counters.forwards,
        }
        best = self.checkpoints.best() if self.learner.stopped else None
        checkpoint = counters.step if best is None else step_of(best)
        summary = store.read_json(self.run / store.SUMMARY)
        if self.evaluator is not None and not (summary.get("steps") == counters.step and "tuned" in summary):
            self.evaluate_tuned(self.evaluator, checkpoint)
            summary = store.finish(self.run, found, checkpoint)
        elif self.evaluator is None:
            store.write_json(self.run / store.SUMMARY, found | {"checkpoint": checkpoint}, indent=2)
        exported = export_run(self.run, EXPORT)
        report = write_report(self.run)
        if self.evaluator is not None:
            self.tracker.evaluation(summary, counters.step)
        self.tracker.artifact(exported, found)
        self.close()
        if self.evaluator is not None:
            show_result(self.console, self.config, summary)
        for name, path in (("weights", exported), ("samples", self.run / "samples"), ("report", report)):
            self.console.print(f"{name:8} {path}", highlight=False, soft_wrap=True)
        if self.learner.stopped:
            which = "of the last step, as none" if best is None else f"of step {step_of(best)}, the best that"
            told = (
                f"stopped at a guardrail after step {counters.step}: the weights are those {which} was above"
            )
            self.console.print(told, style="red", highlight=False, soft_wrap=True)

    def sheet(self, step: int) -> Path:
        return self.run / "samples" / f"step-{step:06}.png"

    def sample(self) -> None:
        """A grid of the first samples' pictures, framed by verdict: samples/step-000020.png."""
        step = self.learner.counters.step
        broadcast("samples")  # the other processes take part, see trainer.meet
        with self.learner.averaged():
            images, logits = paint_samples(self.learner)
        verdicts, names = logits.argmax(-1), label_names(logits.shape[-1])
        cells = contact_sheet.to_bytes(images)
        zoom = max(1, 128 // cells.shape[-1])
        sheet = contact_sheet.sheet(cells, verdicts == 0, min(SAMPLE_COLUMNS, len(cells)), zoom)
        contact_sheet.save_png(self.sheet(step), sheet)
        columns: dict[str, list[Any]] = {
            "prompt": [sample.prompt for sample in self.samples],
            "noise": list(range(len(self.samples))),
            "verdict": [names[i] for i in verdicts],
        }
        self.tracker.pictures("samples", cells.permute(0, 2, 3, 1).numpy(), columns, step)

    # ---- evaluation ----

    def evaluate_base(self, evaluator: Evaluator) -> None:
        """Evaluate the base model on the grid of the report, if that has not been done."""
        if store.recorded(self.run, "base") is None:
            store.record(
                self.run, "base", describe_grid(evaluator), self._evaluate(evaluator, "test", "base")
            )
        self._write_metrics("eval", 0, store.recorded(self.run, "base"))

    def evaluate_tuned(self, evaluator: Evaluator, checkpoint: int) -> None:
        """Evaluate the model as it is, the weights of a checkpoint's step, on the grid of the report."""
        found = self._evaluate(evaluator, "test", "tuned")
        store.record(self.run, "tuned", describe_grid(evaluator), found, checkpoint)
        self.evaluate_base(evaluator)  # again, if the grid is another one than when the run was begun
        self._write_metrics("eval", self.learner.counters.step, store.recorded(self.run, "tuned"))

    def validate_base(self, validation: Validation) -> None:
        """Measure the base model on the validation grid, once in a run."""
        if validation.base(self.run) is None:
            validation.record_base(self.run, self._evaluate(validation.evaluator, "validation", "base"))
        self._write_metrics("val", 0, validation.base(self.run))

    def validate(self, validation: Validation) -> None:
        """In the middle of training: keep the best above the guardrails; below one warn, or stop the run."""
        step = self.learner.counters.step
        if step not in self.metrics_file.evaluated["val"]:
            found = self._evaluate(validation.evaluator, "validation", "tuned")
            self._write_metrics("val", step, {"metrics": found.metrics})
        row = self.metrics_file.evaluated["val"][step]
        metrics = {name.removeprefix("val/"): value for name, value in row.items() if value is not None}
        warnings = validation.warnings(self.run, metrics)
        for warning in warnings:
            self.console.print(f"step {step}: {warning}", style="red")
        self.learner.stopped = bool(warnings) and self.config.evaluate.stop_at_guardrail
        if not warnings and CHOOSES in metrics:
            self.checkpoints.save_best(metrics[CHOOSES], step, self.learner.weights, self.learner.objects())

    def _evaluate(self, evaluator: Evaluator, grid: str, state: str) -> Evaluation:
        broadcast((grid, state))  # the other processes take part, see trainer.meet
        with Progress(console=self.console) as progress, self.learner.averaged():
            task = progress.add_task(f"evaluating the {state} model ({grid})", total=None)

            def report(done: int, total: int) -> None:
                show(progress, task, done, total)
                self.learner.heed()

            return evaluator(reference=state == "base", report=report)

    def _write_metrics(self, group: str, step: int, state: store.State | None) -> None:
        if state is not None and step not in self.metrics_file.evaluated[group]:
            scalars = store.scalars(state, group)
            self.metrics_file.write(step, scalars)
            self.tracker.log(scalars, step)


def shown(scalars: dict[str, float]) -> str:
    """Return what the progress line says of a step: the terms of its loss, and RFNet's rate."""
    terms = {"F_AC": "f_ac", "L_CC": "l_cc", "L_KL": "l_kl"}
    parts = [
        f"{title} {scalars[f'train/{name}']:.3f}"
        for title, name in terms.items()
        if f"train/{name}" in scalars
    ]
    if "train/f_ac" not in scalars:
        parts.insert(0, f"loss {scalars['train/loss']:.3f}")
    if "train/available" in scalars:
        parts.append(f"available {scalars['train/available']:4.0%}")
    return "  ".join(parts)


@torch.no_grad()
def paint_samples(learner: Learner) -> tuple[Tensor, Tensor]:
    """Pictures [P,3,H,W] of the first P samples, and RFNet's logits [P,K]; the processes share the work."""
    picks, size = range(min(SAMPLES, len(learner.conditions))), learner.config.evaluate.batch_size

    def paint_part(number: int) -> tuple[Tensor, Tensor]:
        part = list(picks[number * size : (number + 1) * size])
        chosen = learner.conditions.index(part)
        noise = noise_for(SAMPLE_SEED, part, tuple(chosen.x_o.shape[1:]))
        batch = replace(chosen, noise=noise).to(learner.accelerator.device)
        with learner.autocast():
            images = paint(learner.bundle, batch, learner.schedule, learner.config.rollout.guidance_scale)
            assert learner.rfnet is not None
            return images.cpu(), learner.rfnet(images, batch).cpu()

    parts = spread(paint_part, -(-len(picks) // size), lambda _: learner.heed())
    images, logits = (torch.cat(found) for found in zip(*parts, strict=True))
    return images, logits
