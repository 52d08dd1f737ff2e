"""RFNet's verdicts on the validation pictures while it is trained; the best network is kept."""

from __future__ import annotations

import json
from itertools import takewhile
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast
from torch import Tensor

from rfft.evaluation.store import SUMMARY, read_json
from rfft.feedback.dataset import FeedbackSource, Reading
from rfft.models.pretrained import halved
from rfft.rfnet.data import batches
from rfft.rfnet.evaluate import CONFUSION, EVALUATION, EXPORT, predict, report, scalars, table, write
from rfft.rfnet.learner import RFNetLearner
from rfft.training.loop import Callback
from rfft.training.recorder import Recorder
from rfft.training.supervised import Validation
from rfft.utils.atomic_io import new_folder
from rfft.utils.contact_sheet import read_png
from rfft.utils.log import write_atomically

NOBODY = -1  # the target of a row that only fills up a process's part


class RFNetValidation(Validation):
    """Judges the validation pictures every so many steps, and exports the network of the best AP yet."""

    learner: RFNetLearner

    def __init__(
        self,
        run: Path,
        learner: RFNetLearner,
        source: FeedbackSource,
        own: Reading,
        recorder: Recorder,
        tokenizer: Any,
    ) -> None:
        """`own`: how this process reads its part of `source`; `tokenizer`: goes along with the network."""
        super().__init__(learner)
        self.run, self.source, self.own = run, source, own
        self.recorder, self.tokenizer = recorder, tokenizer

    def validate(self) -> None:
        """Judge all validation pictures; keep the network if its AP(available) is the best yet."""
        step, metrics = self.learner.counters.step, report(*self.verdicts())
        best = self.learner.note_validation(metrics["ap_available"])
        self.recorder.write(step, scalars(metrics))
        self.recorder.console.print(
            f"step {step}: AP(available) {metrics['ap_available']:.1%}, macro F1 {metrics['macro_f1']:.1%}"
            + ("" if best else f" (best AP {self.learner.counters.best_score:.1%})"),
            highlight=False,
        )
        if best and self.learner.accelerator.is_main_process:
            self.export()
            write(self.run, {"data": "validation", "step": step, **metrics})
            picture = read_png(self.run / CONFUSION)
            self.recorder.tracker.pictures("confusion", picture[None], {"step": [step]}, step)

    def verdicts(self) -> tuple[Tensor, Tensor]:
        """Return probabilities and targets [N,K] of all validation pictures, in every process."""
        learner, accelerator = self.learner, self.learner.accelerator
        learner.rfnet.eval()
        loader = batches(self.source.once(self.own))
        own = takewhile(lambda _: learner.signals.received is None, loader)
        with learner.averaged(), accelerator.autocast():
            # Each process has its own since the last step; the first one's are exported.
            broadcast(list(learner.rfnet.buffers()))
            judged = predict(learner.rfnet, own, learner.inputs)
        learner.rfnet.train()
        learner.raise_if_stopped()
        everywhere = [
            accelerator.gather(
                accelerator.pad_across_processes(t.to(accelerator.device), pad_index=NOBODY)
            ).cpu()
            for t in judged
        ]
        real = everywhere[1][:, 0] != NOBODY
        return everywhere[0][real], everywhere[1][real]

    def export(self) -> None:
        """Write RUN/rfnet: what RFNet.from_pretrained, `rfft rfnet evaluate` and reward.rfnet take."""
        with new_folder(self.run / EXPORT, replace=True) as draft, self.learner.averaged():
            network = self.learner.rfnet
            (halved(network) if self.learner.config.trainer.half else network).save_pretrained(draft)
            self.tokenizer.save_pretrained(draft)


class RFNetSummary(Callback):
    """The end of a run: summary.json, the network handed to the tracker, and a table on the terminal."""

    def __init__(self, run: Path, learner: RFNetLearner, recorder: Recorder) -> None:
        self.run, self.learner, self.recorder = run, learner, recorder

    def on_end(self) -> None:
        if not self.learner.accelerator.is_main_process:
            return
        counters = self.learner.counters
        summary = {
            "seconds": round(counters.seconds, 1),
            "steps": counters.step,
            "pictures": counters.pictures,
            "best_step": counters.best_step,
            "ap_available": counters.best_score,
        }
        write_atomically(self.run / SUMMARY, json.dumps(summary, indent=2) + "\n")
        self.recorder.tracker.artifact(self.run / EXPORT, summary, kind=EXPORT)
        self.recorder.console.print(table(read_json(self.run / EVALUATION)))
        for name in (EXPORT, EVALUATION, CONFUSION):
            self.recorder.console.print(f"{name:16} {self.run / name}", highlight=False, soft_wrap=True)
