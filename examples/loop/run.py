"""Paint, ask people, train RFNet, train the generator, and again: the whole loop with simulated raters.

    python examples/loop/run.py --out runs/loop            # see examples/loop.md
The same command goes on where it was cut off; what it found is in OUT/loop.json and OUT/loop.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from people import vote
from raters import Rater, train_rater

from rfft.utils.log import write_atomically

RATERS = (1, 2, 3)
OLD = "rf-tiny-rfnet"  # the RFNet that the first round goes on from


@dataclass(frozen=True)
class Loop:
    """Sizes of a loop, and the folder that everything is in."""

    out: Path
    rounds: int
    pictures: int
    held_out: int
    test: int
    scenes: int
    rater_steps: int
    overrides: list[str]

    def once(self, name: str, work: Callable[[], object]) -> None:
        """Do a piece of work, unless it was finished before."""
        mark = self.out / "done" / name
        if mark.exists():
            return
        print(f"== {name}", flush=True)
        work()
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()

    def rfft(self, name: str, *arguments: object) -> None:
        """Run an rfft command once."""
        command = [sys.executable, "-m", "rfft", *map(str, arguments)]
        self.once(name, lambda: subprocess.run(command, check=True))

    def round(self, number: int) -> Path:
        """Return the folder of a round; round 0 has only the generator tuned with the embedded RFNet."""
        return self.out / f"round-{number}"

    def rfnet(self, number: int) -> str:
        """Return the RFNet that a round ended with."""
        return str(self.round(number) / "rfnet" / "rfnet") if number else OLD

    def tuned(self, number: int) -> Path:
        """Return the weights that were tuned with this round's RFNet."""
        return self.round(number) / "rfft" / "export" / "diffusers"


def main() -> None:
    """Run all rounds, and write what each of them brought."""
    loop = _parse()
    loop.once("raters", lambda: _train_raters(loop))
    raters = [Rater(number, loop.out / f"raters/rater-{number}") for number in RATERS]
    _tune(loop, 0)
    found = []
    for number in range(1, loop.rounds + 1):
        _label(loop, number, raters)
        _train_rfnet(loop, number)
        _tune(loop, number)
        _compare(loop, number, raters)
        found.append(_figures(loop, number))
        write_atomically(loop.out / "loop.json", json.dumps(found, indent=1) + "\n")
        write_atomically(loop.out / "loop.md", _table(found))
    print(_table(found))


def _parse() -> Loop:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--pictures", type=int, default=600, help="labelled in a round, to train RFNet on")
    parser.add_argument("--held-out", type=int, default=200, help="labelled in a round, to measure RFNet by")
    parser.add_argument(
        "--test", type=int, default=96, help="painted by two generators, for people to compare"
    )
    parser.add_argument("--scenes", type=int, default=20_000, help="that a rater learns from")
    parser.add_argument("--rater-steps", type=int, default=3000)
    parser.add_argument("overrides", nargs="*", help="settings of the generator's training: trainer.steps=66")
    return Loop(**vars(parser.parse_args()))


def _train_raters(loop: Loop) -> None:
    for number in RATERS:
        train_rater(number, loop.out / "raters", loop.scenes, loop.rater_steps)


def _paint(loop: Loop, name: str, out: Path, tuned_in: int | None, split: str, count: int, seed: int) -> None:
    """Paint pictures of a split's products, by the generator of a round or the base (None)."""
    lora = () if tuned_in is None else ("--lora", loop.tuned(tuned_in))
    rest = "--out", out, "--max-attempts", 1, "--seed", seed, f"data.count={count}"
    loop.rfft(name, "generate", "--products", f"adworld:{split}", *lora, *rest)


def _label(loop: Loop, number: int, raters: list[Rater]) -> None:
    """Have the present generator's pictures labelled: of training products, and of others to measure by."""
    folder, tuned_in = loop.round(number), number - 1 if number > 1 else None
    for part, split, count in (("train", "train", loop.pictures), ("held", "val", loop.held_out)):
        pictures, seed = folder / f"pictures-{part}", 1000 * number
        _paint(loop, f"paint-{number}-{part}", pictures, tuned_in, split, count, seed)
        store = folder / f"{part}.db"
        loop.once(
            f"label-{number}-{part}",
            lambda pictures=pictures, store=store: vote([pictures], store, "labels", raters),
        )
        loop.rfft(f"report-{number}-{part}", "review", "report", store, "--out", folder / f"people-{part}")


def _train_rfnet(loop: Loop, number: int) -> None:
    """Train the last round's RFNet on with all labels so far; measure both on what people say of the rest."""
    folder, before = loop.round(number), loop.rfnet(number - 1)
    stores = ",".join(f"votes:{loop.round(n) / 'train.db'}" for n in range(1, number + 1))
    settings = f"data.train=[{stores}]", f"run.out={folder}", "run.name=rfnet"
    loop.rfft(f"rfnet-{number}", "rfnet", "train", "rfnet_votes", "--from", before, *settings)
    for when, network in (("before", before), ("after", loop.rfnet(number))):
        rest = "--data", f"votes:{folder / 'held.db'}", "--out", folder / when, "--no-known-maps"
        loop.rfft(f"agreement-{number}-{when}", "rfnet", "evaluate", network, *rest)


def _tune(loop: Loop, number: int) -> None:
    """Train the generator by RFFT with a round's RFNet, from the base."""
    folder = loop.round(number)
    settings = f"reward.rfnet={loop.rfnet(number)}", f"run.out={folder}", "run.name=rfft", *loop.overrides
    loop.rfft(f"rfft-{number}", "train", "tiny", *settings)


def _compare(loop: Loop, number: int, raters: list[Rater]) -> None:
    """Have people compare what the new and the last round's generator paint of test products."""
    folder = loop.round(number)
    sides = {"new": number, "old": number - 1}
    for side, tuned_in in sides.items():
        _paint(loop, f"test-{number}-{side}", folder / side, tuned_in, "test", loop.test, 7)
    pair = [folder / side for side in sides]
    loop.once(f"gsb-{number}", lambda: vote(pair, folder / "gsb.db", "gsb", raters))
    loop.rfft(f"report-{number}-gsb", "review", "report", folder / "gsb.db", "--out", folder / "people-gsb")


def _figures(loop: Loop, number: int) -> dict[str, Any]:
    """Return what a round brought."""
    folder = loop.round(number)
    network = {when: _read(folder / when / "evaluation.json") for when in ("before", "after")}
    names = "agreement", "agreement_available", "ap_available", "macro_f1"
    runs = {"base": ("base", number), "old": ("tuned", number - 1), "new": ("tuned", number)}
    return {
        "round": number,
        "people": _read(folder / "people-held" / "report.json")["labels"],
        "rfnet": {when: {name: found[name] for name in names} for when, found in network.items()},
        "generator": {
            side: _read(loop.round(n) / "rfft" / "summary.json")[state]["metrics"]
            for side, (state, n) in runs.items()
        },
        "gsb": _read(folder / "people-gsb" / "report.json")["gsb"],
    }


def _table(found: list[dict[str, Any]]) -> str:
    """Return the rounds as a table in Markdown; intervals are of 95 %."""
    lines = [
        "| round | people among themselves (kappa) | RFNet says what people say | available or not | "
        "AP(available) | available by the judge: base, old, new | people on new against old (GSB) |",
        "| --- " * 7 + "|",
    ]
    for row in found:
        changes = [
            f"{row['rfnet']['before'][name]:.1%} to {row['rfnet']['after'][name]:.1%}"
            for name in ("agreement", "agreement_available", "ap_available")
        ]
        judge = [_interval(row["generator"][side]["available_rate_judge"]) for side in ("base", "old", "new")]
        kappa = row["people"]["fleiss_kappa"]
        cells = [row["round"], "none" if kappa is None else f"{kappa:.2f}", *changes, ", ".join(judge)]
        lines.append(f"| {' | '.join(map(str, cells))} | {_gsb(row['gsb']['gsb']['overall'])} |")
    return "\n".join(lines) + "\n"


def _interval(metric: dict[str, float]) -> str:
    return f"{metric['value']:.1%} ({metric['low']:.1%} to {metric['high']:.1%})"


def _gsb(found: dict[str, Any]) -> str:
    low, high = found["interval"]
    counts = f"{found['good']} good, {found['same']} same, {found['bad']} bad"
    return (
        f"{counts}: {found['score']:+.2f} ({low:+.2f} to {high:+.2f}), sign test p {found['sign_test_p']:.2g}"
    )


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
