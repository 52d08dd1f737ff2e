"""A benchmark's plan: methods at equal cost, with settings chosen on validation products; read from YAML.

config: configs/tiny.yaml        # of all methods
settings: [trainer.batch_size=8] # of all methods
seeds: [0, 1, 2]
budget: 60                       # TFLOP of the denoiser in a training: each makes the steps that it pays
search:                          # for every trained method, on the grid of validation products, with one seed
  seed: 0
  settings: {optimizer.lr: [5e-4, 1.3e-3]}
methods:
  - {name: base, train: false}
  - {name: cc, settings: [objective.beta=0.03], curve: CC}
  - {name: cc-0.1, settings: [objective.beta=0.1], curve: CC, chosen_from: cc, seeds: [0]}
pairs: [[cc, base]]              # differences that the tables show
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from rfft.config import read
from rfft.config.checks import FOLDER_NAME, check_limits
from rfft.config.load import find_config, load_config
from rfft.config.schema import Config, setting
from rfft.errors import UserError, require

BASE = "base"  # the method that every other one is compared with
GIVEN = (  # settings that a benchmark gives to each run
    *("run.name", "run.out", "run.seed", "trainer.steps", "trainer.max_minutes"),
    *("evaluate.enabled", "evaluate.products", "evaluate.count", "evaluate.prompts_per_product"),
    "evaluate.seeds",
)


@dataclass
class MethodConfig:
    name: str = ""
    settings: list[str] = setting([])  # of this method alone
    train: bool = True  # false: only evaluate the base model, by these settings
    seeds: list[int] = setting([])  # in place of the plan's
    search: dict[str, Any] = field(default_factory=dict)  # further settings to search, or other values
    chosen_from: str = ""  # take the settings that were chosen for this method; empty: by a search of its own
    curve: str = ""  # methods of one curve differ in strength: the figure joins them


@dataclass
class GridConfig:
    products: str = "adworld:test"  # as evaluate.products
    count: int = setting(48, least=1)
    prompts_per_product: int = setting(2, least=1)
    seeds: int = setting(4, least=1)


@dataclass
class SearchConfig(GridConfig):
    """Where settings are chosen: by the rule of evaluation/choice.py."""

    products: str = "adworld:val"
    count: int = setting(24, least=1)
    seeds: int = setting(2, least=1)
    seed: int = setting(0, least=0)  # of the trainings
    settings: dict[str, Any] = field(default_factory=dict)  # values to try, by setting: every combination


@dataclass
class BenchmarkConfig:
    config: str = ""  # a file, or the name of a shipped one
    settings: list[str] = setting([])  # of all methods
    seeds: list[int] = setting([0, 1, 2])  # of the trainings
    budget: float = setting(0.0, least=0)
    test: GridConfig = field(default_factory=GridConfig)  # what is reported
    search: SearchConfig = field(default_factory=SearchConfig)
    methods: list[MethodConfig] = field(default_factory=list)
    pairs: Any = setting([], nested=True)


@dataclass(frozen=True)
class Method:
    """A method with everything that it may be run with."""

    name: str
    train: bool
    settings: tuple[str, ...]  # of the plan, the method and the command line
    candidates: tuple[tuple[str, ...], ...]  # settings to choose from; one where there is no choice
    seeds: tuple[int, ...]
    chosen_from: str  # the method whose search decides: its own name, or another's
    curve: str


@dataclass(frozen=True)
class Benchmark:
    """A plan that has been checked."""

    name: str
    out: Path
    source: Path  # the base config
    budget: float  # FLOPs
    test: GridConfig
    search: SearchConfig
    methods: tuple[Method, ...]
    pairs: tuple[tuple[str, str], ...]

    def method(self, name: str) -> Method:
        return next(method for method in self.methods if method.name == name)


def plan_benchmark(file: Path, out: Path | None = None, overrides: Sequence[str] = ()) -> Benchmark:
    """Read a plan and check the config of every method; a UserError names the method that is wrong.

    `file` may be the name of a shipped one ("core"); `overrides` come after the settings of every method.
    """
    file = find_config(file, "benchmarks")
    plan = read.read_file(BenchmarkConfig, file)
    try:
        return _planned(plan, file, out, overrides)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def _planned(plan: BenchmarkConfig, file: Path, out: Path | None, overrides: Sequence[str]) -> Benchmark:
    check_limits(plan.test, "test.")
    check_limits(plan.search, "search.")
    require(plan.config, "a benchmark needs a base: config: configs/tiny.yaml")
    require(plan.budget > 0, "a benchmark needs a budget: budget: 60, in TFLOP of the denoiser in a training")
    require(plan.seeds, "seeds is empty: a method needs one training at least")
    require(
        plan.test.products != plan.search.products,
        f"test and search both have {plan.test.products}: what chooses settings must not be what is reported",
    )
    names = [method.name for method in plan.methods]
    twice = sorted({name for name in names if names.count(name) > 1})
    require(not twice, f"two methods are called {', '.join(twice)}: give each a name of its own")
    known = [m for m in plan.methods if m.name == BASE and not m.train and not m.settings]
    require(known, f"methods lacks what all are compared with: {{name: {BASE}, train: false}}")
    source = find_config(plan.config)
    methods, checked = list[Method](), set[tuple[str, ...]]()
    for method in plan.methods:
        try:
            methods.append(_method(plan, method, overrides))
            _check(methods[-1], source, checked)
        except UserError as error:
            raise UserError(f"method {method.name or 'without a name'}: {error}") from None
    return Benchmark(
        file.stem,
        out or Path("runs") / file.stem,
        source,
        plan.budget * 1e12,
        plan.test,
        plan.search,
        tuple(methods),
        tuple(_pair(pair, names) for pair in plan.pairs),
    )


def _method(plan: BenchmarkConfig, method: MethodConfig, overrides: Sequence[str]) -> Method:
    require(
        re.fullmatch(FOLDER_NAME, method.name),
        "the name must be fit for a folder: letters, digits, '-', '_' and '.'",
    )
    decides = method.chosen_from or method.name
    others = {other.name: other for other in plan.methods if other.train and not other.chosen_from}
    require(
        decides == method.name or (decides in others and method.train and not method.search),
        f"chosen_from={decides} must be a trained method with a search of its own, and leaves none here",
    )
    searched = plan.search.settings | others.get(decides, method).search
    return Method(
        method.name,
        method.train,
        (*plan.settings, *method.settings, *overrides),
        combinations(searched) if method.train else ((),),
        tuple(dict.fromkeys(method.seeds or plan.seeds)),
        decides,
        method.curve,
    )


def combinations(values: dict[str, Any]) -> tuple[tuple[str, ...], ...]:
    """Return every combination of the values as settings, the last one changing fastest; of none, one: ()."""
    for name, choices in values.items():
        require(
            isinstance(choices, list) and choices,
            f"search: {name} is {choices}; it must be a list of values to try: [5e-4, 1e-3]",
        )
    return tuple(
        tuple(f"{name}={choice}" for name, choice in zip(values, chosen, strict=True))
        for chosen in product(*values.values())
    )


def _check(method: Method, source: Path, known: set[tuple[str, ...]]) -> None:
    """Read the configs that the method may be run with; candidates that are `known` once for all methods."""
    for candidate in method.candidates:
        keys = [setting.partition("=")[0] for setting in (*method.settings, *candidate)]
        given = [key for key in keys if key in GIVEN]
        require(not given, f"{', '.join(given)}: the benchmark gives every run its cost, seed and grid")
        if candidate not in known or candidate == method.candidates[0]:
            load_method(source, method, candidate)
        known.add(candidate)


def load_method(source: Path, method: Method, candidate: Sequence[str], *more: str) -> Config:
    """Return the config of a method with some settings chosen, and `more` that come last."""
    return _load(source, (*method.settings, *candidate, *more))


@cache
def _load(source: Path, settings: tuple[str, ...]) -> Config:
    return load_config(source, settings)  # which takes a tenth of a second


def _pair(pair: Any, names: Sequence[str]) -> tuple[str, str]:
    require(
        isinstance(pair, list) and len(pair) == 2 and all(name in names for name in pair),
        f"pairs has {pair}; each must be two methods: [cc, kl] is cc less kl",
    )
    return pair[0], pair[1]
