"""Prints the tables of MODEL_CARD.md from the JSON files beside the embedded weights."""

import json
from pathlib import Path

from stress_tables import stress_tables

from rfft.evaluation.comparison_tables import markdown_table

ASSETS = Path(__file__).parent.parent / "rfft" / "assets"
INPUTS = {"o": "product", "g": "picture", "d": "depth", "s": "saliency", "c": "caption"}
CONTROL = "none"  # the ablation's arm that lacks no input


def verdicts(report: dict) -> str:
    """Macro F1, accuracy and precision / recall / F1 / AP of each class, for each variant."""
    classes = list(next(iter(report.values()))["classes"])
    header = ["scenes", "macro F1", "accuracy", *(f"{c.replace('_', ' ')} P / R / F1 / AP" for c in classes)]
    rows = []
    for scenes, values in report.items():
        cells = [
            " / ".join(f"{100 * values['classes'][c][m]:.0f}" for m in ("precision", "recall", "f1", "ap"))
            for c in classes
        ]
        name = scenes.replace("/", ", ")
        rows.append([name, f"{values['macro_f1']:.3f}", f"{values['accuracy']:.3f}", *cells])
    return markdown_table([header, *rows])


def confusion(values: dict) -> str:
    classes = [name.replace("_", " ") for name in values["classes"]]
    rows = [[name, *map(str, counts)] for name, counts in zip(classes, values["confusion"], strict=True)]
    return markdown_table([[r"label \ verdict", *classes], *rows])


def shares(report: dict) -> str:
    """Rows of plain shares, in percent."""
    names = list(next(iter(report.values())))
    rows = [[key, *(f"{100 * values[n]:.1f} %" for n in names)] for key, values in report.items()]
    return markdown_table([["split, variant", *names], *rows])


def dependence(report: dict) -> str:
    """What is lost without an input, beside what RFNet reaches with all of them."""
    mixed = json.loads((ASSETS / "rf-tiny-rfnet" / "dependence.json").read_text())
    rows = [["all its own", *(f"{values['macro_f1']:.3f}" for values in report.values())]]
    rows += [[f"another {INPUTS[m]}", *(f"{found[v]:.3f}" for v in report)] for m, found in mixed.items()]
    return markdown_table([["inputs", *report], *rows])


def ablation(report: dict) -> str:
    """Macro F1 / AP(available) of networks that learned to go without an input, and of one that did not."""
    found = json.loads((ASSETS / "rf-tiny-rfnet" / "ablation.json").read_text())
    rows = []
    for dropped, figures in found.items():
        cells = [f"{figures[v]['macro_f1']:.3f} / {figures[v]['ap']:.3f}" for v in report]
        name = "all" if dropped == CONTROL else "no " + ", ".join(INPUTS[m] for m in dropped)
        rows.append([name, str(figures["steps"]), *cells])
    return markdown_table([["inputs", "further steps", *report], *rows])


def agreement(report: dict) -> str:
    names = ("agrees_with_labels", "kappa_with_labels", "agrees_with_rfnet", "kappa_with_rfnet")
    both = "macro_f1_with_rfnet"  # of the mean of their probabilities
    rows = [
        [scenes.replace("/", ", "), *(f"{values[n]:.2f}" for n in names), f"{values[both]:.3f}"]
        for scenes, values in report.items()
    ]
    return markdown_table([["scenes", *(n.replace("_", " ") for n in (*names, both))], *rows])


def of_split(report: dict, split: str) -> dict:
    """Return one split's reports by variant."""
    return {name.partition("/")[2]: values for name, values in report.items() if name.startswith(f"{split}/")}


def main() -> None:
    reports = {
        part: json.loads((ASSETS / f"rf-tiny-{part}" / "report.json").read_text())
        for part in ("rfnet", "judge", "probe")
    }
    tested = of_split(reports["rfnet"], "test")
    print("RFNet\n", verdicts(reports["rfnet"]), sep="\n")
    print("RFNet on x0_hat\n", confusion(tested["x0_hat"]), sep="\n")
    print("RFNet's macro F1 when an input is another scene's\n", dependence(tested), sep="\n")
    if (ASSETS / "rf-tiny-rfnet" / "ablation.json").exists():
        print("RFNet without an input, macro F1 / AP(available)\n", ablation(tested), sep="\n")
    print("Judge\n", verdicts(reports["judge"]), sep="\n")
    if "agrees_with_rfnet" in reports["judge"]["test/render"]:
        print("Judge's agreement\n", agreement(reports["judge"]), sep="\n")
    for part in ("rfnet", "judge"):
        found = ASSETS / f"rf-tiny-{part}" / "stress.json"
        if found.exists():
            print(f"{part} under stress\n", *stress_tables(json.loads(found.read_text())), sep="\n")
    print("Probe\n", shares(reports["probe"]), sep="\n")


if __name__ == "__main__":
    main()
