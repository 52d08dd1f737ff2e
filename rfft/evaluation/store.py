"""What evaluation leaves in a run's folder, and how it is read.

evaluation.json          grid and cells; metrics, probabilities and scores of each state
summary.json             metrics of both states, their paired differences, the run's counters
replicates/base.safetensors, tuned.safetensors     each metric on resampled products
samples/base.png, tuned.png (and base-2.png, ..., if they are many), before_after.png

Shapes: N products and prompts, S seeds, H W pixels, R resamples. A model state is called "base" or "tuned".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.numpy import load_file, save
from torch import Tensor

from rfft.errors import UserError
from rfft.evaluation.sheets import Sheets, save_sheets
from rfft.evaluation.summary import Estimates, as_json
from rfft.evaluation.verdicts import changes_by_network, recorded_verdicts, verdict_name
from rfft.metrics.estimate import Estimate, Method
from rfft.metrics.verdict import AVAILABLE
from rfft.utils import contact_sheet
from rfft.utils.atomic_io import new_file
from rfft.utils.log import write_atomically

EVALUATION, SUMMARY = "evaluation.json", "summary.json"
COMPARISON = "samples/before_after.png"
STATES = ("base", "tuned")
COUNTERS = ("seconds", "steps", "grad_samples", "denoiser_forwards")
BEST = "best"  # step, score and chosen_by of the best checkpoint on the validation grid, where there is one
COLUMNS, COMPARED = 12, 96  # pictures in a row and in all of the comparison
OF_PICTURES = ("probabilities", "scores")  # parts of a state that evaluation.json alone has

if TYPE_CHECKING:
    from rfft.evaluation.evaluator import Evaluation

State = dict[str, Any]  # facts, "metrics", and in evaluation.json what was said of each picture


def record(
    run: Path, state: str, grid: dict[str, Any], evaluation: Evaluation, checkpoint: int | None = None
) -> None:
    """Keep one state's evaluation; the other one stays if it was measured on the same grid.

    grid: as grid.describe_grid() has it; checkpoint: the step of the
    weights that were evaluated.
    """
    known = read_json(run / EVALUATION)
    if known.get("cells") != grid["cells"] or known.get("grid") != grid["grid"]:
        known = {}
    entry: State = evaluation.facts | {"checkpoint": checkpoint, "metrics": evaluation.metrics}
    entry["probabilities"] = {name: _rows(p) for name, p in evaluation.probabilities.items()}
    entry["scores"] = {name: found.flatten().tolist() for name, found in evaluation.scores.items()}
    # Metrics last: where they are, a run that was cut off takes the rest for granted.
    if evaluation.pictures is not None:
        save_sheets(run, state, evaluation.pictures, _seeds(grid["cells"]))
    save_estimates(run, state, evaluation.estimates)
    write_json(run / EVALUATION, known | grid | {state: entry})


def _rows(probabilities: Tensor) -> list[list[float] | None]:
    """Return probabilities [N,S,K] as a list of N*S rows; None for one that is not finite."""
    rows = probabilities.flatten(0, 1)
    return [row.tolist() if row.isfinite().all() else None for row in rows]


def recorded(run: Path, state: str) -> State | None:
    """Return a state's facts and metrics, if it has been evaluated."""
    found = read_json(run / EVALUATION).get(state)
    return found and {name: value for name, value in found.items() if name not in OF_PICTURES}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that this program wrote; without the file it is empty."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: broken JSON; remove the file and evaluate again") from None


def write_json(path: Path, content: Mapping[str, Any], indent: int = 1) -> None:
    """Write a JSON object whole or not at all; JSON knows no NaN, so null stands for what is not finite."""
    text = json.dumps(_finite(content), indent=indent, allow_nan=False)
    write_atomically(path, text + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def pictures(run: Path, state: str) -> Sheets:
    """Return the pictures [N*S] of a state, by their numbers; raises FileNotFoundError if there are none."""
    cells = read_json(run / EVALUATION)["cells"]
    return Sheets(run, state, _seeds(cells), len(cells))


def _seeds(cells: Sequence[Mapping[str, Any]]) -> int:
    return 1 + max(cell["seed"] for cell in cells)


def save_estimates(run: Path, state: str, estimates: Estimates) -> None:
    """Write every metric's values on resampled products, [R] each, as METHOD/METRIC."""
    (run / "replicates").mkdir(exist_ok=True)
    named = {f"{found.method}/{name}": found.replicates for name, found in estimates.items()}
    with new_file(_replicates(run, state)) as file:
        file.write(save(named))


def load_estimates(run: Path, state: str) -> Estimates:
    """Read a state's metrics with their resamples; empty where these are not there."""
    entry, path = recorded(run, state), _replicates(run, state)
    if entry is None or not path.is_file():
        return {}
    found: Estimates = {}
    for key, replicates in load_file(path).items():
        method, _, name = key.partition("/")
        if name in entry["metrics"]:
            metric = entry["metrics"][name]
            # A share that is 0 or 1 for every product has an interval that resampling does not see.
            exact = (metric["low"], metric["high"]) if metric["value"] in (0, 1) and "low" in metric else None
            kind: Method = "jackknife" if method == "jackknife" else "bootstrap"
            found[name] = Estimate(metric["value"], replicates, kind, exact)
    return {name: found[name] for name in entry["metrics"] if name in found}


def _replicates(run: Path, state: str) -> Path:
    return run / "replicates" / f"{state}.safetensors"


def differences(tuned: Estimates, base: Estimates) -> dict[str, dict[str, float]]:
    """Return the paired differences of the metrics that both have, with their intervals."""
    return as_json({name: tuned[name] - base[name] for name in tuned if name in base})


def verdicts(run: Path, state: str) -> dict[str, Tensor]:
    """Return each network's verdicts on the pictures [N*S] of a state."""
    probabilities = read_json(run / EVALUATION)[state]["probabilities"]
    return {network: recorded_verdicts(rows) for network, rows in probabilities.items()}


def outputs(run: Path, state: str, network: str) -> int:
    """Return how many outputs a network has that judged a state."""
    rows = read_json(run / EVALUATION)[state]["probabilities"][network]
    return max((len(row) for row in rows if row is not None), default=0)


def finish(run: Path, counters: Mapping[str, Any], checkpoint: int | None = None) -> dict[str, Any]:
    """Write the comparison, and summary.json with the run's counters, once both states are recorded.

    counters: COUNTERS, and BEST; what is not there stays as it was. checkpoint: the step of the weights that
    were evaluated as "tuned", and that the run exported.
    """
    old = read_json(run / SUMMARY)
    evaluation = read_json(run / EVALUATION)
    by_state = {state: verdicts(run, state) for state in STATES}
    summary = {"checkpoint": checkpoint} | {name: counters.get(name, old.get(name)) for name in COUNTERS}
    summary |= {BEST: best} if (best := counters.get(BEST, old.get(BEST))) else {}
    summary |= {name: evaluation[name] for name in ("grid", "intervals")}
    summary |= {state: recorded(run, state) for state in STATES}
    summary["change"] = differences(load_estimates(run, "tuned"), load_estimates(run, "base"))
    summary["verdicts"] = changes_by_network([by_state[state] for state in STATES])
    save_comparison(run, by_state)
    write_json(run / SUMMARY, summary, indent=2)  # last: says that all is there
    return summary


def save_comparison(run: Path, said: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write both states' pictures one above the other, with RFNet's verdicts or, without it, the judge's."""
    network = next(iter(said["base"]), None)
    rows = {}
    for state in STATES:
        cells = pictures(run, state).first(COMPARED)
        found = None if network is None else said[state][network][: len(cells)]
        names = [""] * len(cells)
        if found is not None and network is not None:
            count = outputs(run, state, network)
            names = [verdict_name(int(verdict), count) for verdict in found]
        rows[state] = contact_sheet.Row(cells, None if found is None else found == AVAILABLE, names)
    contact_sheet.save_png(run / COMPARISON, contact_sheet.before_after(rows, COLUMNS))


def finish_base(run: Path) -> dict[str, Any]:
    """Write summary.json of a folder in which only the base model was evaluated."""
    evaluation = read_json(run / EVALUATION)
    summary = {name: evaluation[name] for name in ("grid", "intervals")} | {"base": recorded(run, "base")}
    write_json(run / SUMMARY, summary, indent=2)
    return summary


def values(state: Mapping[str, Any]) -> dict[str, float]:
    """Return the values of a recorded state's metrics, by name."""
    return {name: metric["value"] for name, metric in state["metrics"].items()}


def scalars(state: Mapping[str, Any], group: str = "eval") -> dict[str, float]:
    """Return a state's values under the names that trackers and metrics.jsonl have them by."""
    return {f"{group}/{name}": value for name, value in values(state).items()}
