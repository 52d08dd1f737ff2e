"""What RFFT does beside training: contact sheets of samples, and the export and report at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rfft.data.conditions import noise_for
from rfft.data.encoded import EncodedSamples
from rfft.data.samples import Entry
from rfft.data.sizes import of_one_size
from rfft.evaluation import store
from rfft.evaluation.guardrails import show_result
from rfft.evaluation.report import write_report
from rfft.evaluation.runs import export_run
from rfft.evaluation.tables import kind_of
from rfft.generation.sample import paint, reward_logits
from rfft.metrics.verdict import Verdict, is_accepted
from rfft.training.evaluations import run_counters
from rfft.training.learner import RFFTLearner
from rfft.training.loop import Callback
from rfft.training.recorder import CheckpointSaver, Recorder
from rfft.types import size_of
from rfft.utils import contact_sheet
from rfft.utils.checkpoint import step_of
from rfft.utils.processes import broadcast, spread

SAMPLES, SAMPLE_SEED, SAMPLE_COLUMNS = 16, 20240801, 8  # contact sheets, always with the same noise
EXPORT = "diffusers"


class SampleSheets(Callback):
    """Contact sheets of the first samples' pictures, framed by verdict: samples/step-000020.png.

    They come after their step's checkpoint, as they may take long; a resumed run makes up for a missing one.
    """

    def __init__(self, run: Path, learner: RFFTLearner, recorder: Recorder, samples: list[Entry]) -> None:
        """Paint `samples`, which are the first of the learner's conditions."""
        self.folder, self.learner, self.recorder, self.samples = run / "samples", learner, recorder, samples

    def on_start(self) -> None:
        there = self._sheet().exists() if self.learner.accelerator.is_main_process else None
        if not broadcast(there):
            self.after_step({})

    def after_step(self, scalars: Mapping[str, float]) -> None:
        if not self.learner.due(self.learner.config.trainer.sample_every):
            return
        with self.learner.averaged():
            cells, logits = paint_samples(self.learner)
        if cells is not None:
            self._write(cells, logits)

    def _sheet(self) -> Path:
        return self.folder / f"step-{self.learner.counters.step:06}.png"

    def _write(self, cells: Tensor, logits: Tensor | None) -> None:
        zoom, columns = max(1, 128 // cells.shape[-1]), min(SAMPLE_COLUMNS, len(cells))
        accepted = None if logits is None else is_accepted(logits)
        sheet = contact_sheet.sheet(cells, accepted, columns, zoom)
        self.folder.mkdir(exist_ok=True)
        contact_sheet.save_png(self._sheet(), sheet)
        captions: dict[str, list[Any]] = {
            "prompt": [sample.prompt for sample in self.samples],
            "noise": list(range(len(self.samples))),
        }
        if logits is not None:
            captions["verdict"] = [Verdict.of(row).label for row in logits.softmax(-1)]
        pictures = cells.permute(0, 2, 3, 1).numpy()
        self.recorder.tracker.pictures("samples", pictures, captions, self.learner.counters.step)


class ExportAndReport(Callback):
    """The end of a run: its weights exported, its report written, and what there is told on the terminal."""

    def __init__(self, run: Path, learner: RFFTLearner, recorder: Recorder, saver: CheckpointSaver) -> None:
        self.run, self.learner, self.recorder, self.saver = run, learner, recorder, saver

    def on_end(self) -> None:
        if not self.learner.accelerator.is_main_process:
            return
        counters, config, console = run_counters(self.learner), self.learner.config, self.recorder.console
        best = self.saver.checkpoints.best() if self.learner.stopped else None
        if not config.evaluate.enabled:
            checkpoint = counters["steps"] if best is None else step_of(best)
            store.write_json(self.run / store.SUMMARY, counters | {"checkpoint": checkpoint}, indent=2)
        exported = export_run(self.run, EXPORT)
        report = write_report(self.run)
        if config.evaluate.enabled:
            summary = store.read_json(self.run / store.SUMMARY)
            self.recorder.tracker.evaluation(summary, self.learner.counters.step)
            show_result(console, config, summary)
            if chosen := summary.get(store.BEST):
                rate = f"{kind_of(chosen['chosen_by']).title} {chosen['score']:.1%}"
                told = f"best     step {chosen['step']}, {rate}: rfft export {self.run} --best"
                console.print(told, highlight=False, soft_wrap=True)
        self.recorder.tracker.artifact(exported, counters)
        for name, path in (("weights", exported), ("samples", self.run / "samples"), ("report", report)):
            console.print(f"{name:8} {path}", highlight=False, soft_wrap=True)
        if self.learner.stopped:
            which = "of the last step, as none" if best is None else f"of step {step_of(best)}, the best that"
            end = f"stopped at a guardrail after step {counters['steps']}"
            told = f"{end}: the weights are those {which} was above"
            console.print(told, style="red", highlight=False, soft_wrap=True)


@torch.no_grad()
def paint_samples(learner: RFFTLearner) -> tuple[Tensor | None, Tensor | None]:
    """Return pictures uint8 [P,3,H,W] of the first P samples and RFNet's logits [P,K], if there is an RFNet.

    The processes share the work; the first one has the pictures.
    """
    picks, size = range(min(SAMPLES, len(learner.conditions))), learner.config.evaluate.batch_size
    samples = learner.conditions
    told = samples.size if isinstance(samples, EncodedSamples) else lambda _: None
    batches = of_one_size(picks, told, size)
    order = torch.tensor([pick for part in batches for pick in part]).argsort()
    rollout = learner.config.rollout
    painted: list[Tensor] = []  # in the first process

    def paint_part(number: int) -> tuple[Tensor | None, Tensor]:
        part = batches[number]
        chosen = learner.conditions.index(part)
        noise = noise_for(SAMPLE_SEED, part, tuple(chosen.x_o.shape[1:]))
        batch = replace(chosen, noise=noise).to(learner.accelerator.device)
        schedule = learner.bundle.schedule(rollout.steps, size_of(batch.product))
        with learner.autocast():
            images = paint(learner.bundle, batch, schedule, rollout.guidance_scale)
        rfnet = learner.rfnet
        logits = None if rfnet is None else reward_logits(lambda x: rfnet(x, batch), images).cpu()
        return logits, contact_sheet.to_bytes(images)

    judged = spread(
        paint_part,
        len(batches),
        lambda _: learner.raise_if_stopped(),
        lambda _, cells: painted.extend(cells),
    )
    found = [logits for logits in judged if logits is not None]
    logits = torch.cat(found)[order] if found else None
    return contact_sheet.in_cells([painted[i] for i in order]) if painted else None, logits
