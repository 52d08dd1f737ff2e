"""`rfft benchmark`: methods at equal cost. First the base model, then the search on val, then all on test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rfft.config.benchmark import BASE, Benchmark, Method
from rfft.config.benchmark import load_method as load
from rfft.errors import Interrupted, UserError
from rfft.evaluation.benchmark_report import Chosen, Entry, write_benchmark
from rfft.evaluation.choice import choose
from rfft.evaluation.store import SUMMARY, read_json, values
from rfft.training.jobs import Failure, Job, Jobs
from rfft.training.trials import StepCosts, Trial, trials_of
from rfft.utils.lock import waiting
from rfft.utils.log import messages
from rfft.utils.signals import StopSignals

Stage = Callable[[], list[Job]]


class Study:
    """The trials of a plan: which there are, which settings were chosen, what is finished."""

    def __init__(self, plan: Benchmark) -> None:
        """Count the cost of every method; a UserError where the budget does not pay a step of one."""
        self.plan, costs_of = plan, StepCosts()
        search_seed = [plan.search.seed]
        self.searched, self.tested = dict[str, list[Trial]](), dict[str, list[list[Trial]]]()
        for method in plan.methods:
            numbers = range(len(method.candidates))
            try:
                if len(numbers) > 1 and method.chosen_from == method.name:
                    each = [trials_of(plan, method, costs_of, number, search_seed) for number in numbers]
                    self.searched[method.name] = [trial for trials in each for trial in trials]
                # By the candidate that may be chosen.
                every = [trials_of(plan, method, costs_of, number, method.seeds) for number in numbers]
                self.tested[method.name] = every
                for trial in (trial for trials in every for trial in trials):
                    trial.check()
            except UserError as error:
                raise UserError(f"method {method.name}: {error}") from None

    def base(self) -> list[Trial]:
        return self.tested[BASE][0]

    def chosen(self, method: Method) -> Chosen | None:
        """Return what a method's search has come to; None before it is finished."""
        trials = self.searched.get(method.chosen_from, [])
        entries = [trial.entry("val") for trial in trials]
        if None in entries or not entries:
            return None
        metrics = [values(read_json(entry.folder / SUMMARY)["tuned"]) for entry in entries if entry]
        base = values(read_json(self.base()[0].evaluation("val") / SUMMARY)["base"])
        settings = load(self.plan.source, method, ()).evaluate
        candidates = [trial.candidate for trial in trials]
        return Chosen(method.name, candidates, metrics, choose(base, metrics, settings))

    def final(self, method: Method) -> list[Trial]:
        """Return the trials whose figures count; none before the method's settings are chosen."""
        if len(method.candidates) == 1:
            return self.tested[method.name][0]
        found = self.chosen(method)
        return [] if found is None else self.tested[method.name][found.number]

    def write(self) -> Path:
        """Write the files of what is finished; one program at a time."""
        plan = self.plan
        searched = [trial for trials in self.searched.values() for trial in trials]
        tested = [trial for method in plan.methods for trial in self.final(method)]
        by_grid = [("val", searched), ("test", tested)]
        found = [trial.entry(grid) for grid, trials in by_grid for trial in trials]
        entries: list[Entry] = [entry for entry in found if entry is not None]
        chosen = [self.chosen(plan.method(name)) for name in self.searched]
        with waiting(plan.out):
            known = [found for found in chosen if found is not None]
            return write_benchmark(plan.out, facts(plan), entries, known, plan.pairs)


def facts(plan: Benchmark) -> dict[str, str | float]:
    """Return what a plan asks for, for the head of its results."""
    grids = {"test": plan.test, "search": plan.search}
    told = {
        name: f"{g.count} products x {g.prompts_per_product} prompts x {g.seeds} seeds of {g.products}"
        for name, g in grids.items()
    }
    return {"plan": plan.name, "config": plan.source.name, "budget_tflop": plan.budget / 1e12, **told}


def benchmark(plan: Benchmark, jobs: int = 1, only: Sequence[str] = ()) -> list[Failure]:
    """Run what is not finished of a plan, `jobs` at a time, and write the results after every run.

    only: names of methods; the others are left as they are. Returns the jobs that failed. Raises Interrupted
    after a signal, once all has ended.
    """
    study, console = Study(plan), messages()
    methods = [plan.method(name) for name in only] or list(plan.methods)
    plan.out.mkdir(parents=True, exist_ok=True)
    failures: list[Failure] = []
    with StopSignals() as signals:
        signals.deferred = True
        for title, stage in stages(study, methods):
            work = Jobs(f"{plan.name}, {title}", stage(), plan.out, jobs, lambda job: study.write())
            done = work.total - len(work.pending)
            told = f"{plan.name}, {title}: {work.total} jobs, {done} of them finished already"
            console.print(told, highlight=False)
            failures += work.work(signals)
            if signals.received is not None or (title == BASE and failures):
                break
    if signals.received is not None:
        raise Interrupted("stopped; the same command goes on")
    console.print(f"written: {study.write()}", highlight=False, soft_wrap=True)
    for failure in failures:
        console.print(str(failure), style="red", highlight=False, soft_wrap=True)
    return failures


def stages(study: Study, methods: Sequence[Method]) -> list[tuple[str, Stage]]:
    """Return what is to be done one after the other: each needs what the one before has found."""
    searches = dict.fromkeys(method.chosen_from for method in methods)
    searched = [trial for name in searches for trial in study.searched.get(name, [])]

    def base() -> list[Job]:
        grids = ["val", "test"] if searched else ["test"]
        return [trial.job(grid) for trial in study.base() for grid in grids]

    def search() -> list[Job]:
        return [trial.job("val") for trial in searched]

    def test() -> list[Job]:
        return [trial.job("test") for m in methods if m.name != BASE for trial in study.final(m)]

    return [(BASE, base), ("search", search), ("test", test)]
