"""The command line: parse, load the config, call. Imports stay inside the commands, so that help is quick."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rfft.errors import Interrupted, UserError

if TYPE_CHECKING:
    from rfft.config import Config

app = typer.Typer(
    help="Fine-tune advertising-image generators on human feedback.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
adworld = typer.Typer(help="The embedded world: labelled scenes, and the models trained on them.")
app.add_typer(adworld, name="adworld", no_args_is_help=True)
data = typer.Typer(help="Labelled feedback: RF1M, AdWorld's scenes, or a model's own pictures.")
app.add_typer(data, name="data", no_args_is_help=True)


rfnet = typer.Typer(help="RFNet, the network that judges pictures: train it on labelled feedback.")
app.add_typer(rfnet, name="rfnet", no_args_is_help=True)


products = typer.Typer(help="Product photos.")
app.add_typer(products, name="products", no_args_is_help=True)

ConfigFile = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a shipped one: tiny.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="a.b=c", help="Settings to change: trainer.steps=50.")
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run: runs/tiny.")]


@app.command()
def train(config: ConfigFile, overrides: Overrides = None) -> None:
    """Fine-tune a generator (RFFT); the same command again resumes a run that was cut off."""
    settings = _load(config, overrides)
    from rfft import trainer

    trainer.train(settings)


@app.command()
def check(config: ConfigFile, overrides: Overrides = None) -> None:
    """Check a config and show what it would run, without training."""
    settings = _load(config, overrides)
    from rfft.check import describe

    for name, value in describe(settings).items():
        typer.echo(f"{name:36}{value}")


@app.command()
def evaluate(run: RunFolder, overrides: Overrides = None) -> None:
    """Compare the base model and a run's tuned one on the same products, prompts and seeds."""
    settings = _load(_config_of(run), overrides)
    from rfft import evaluate as evaluation

    evaluation.evaluate(settings, run)


@app.command()
def generate(
    products: Annotated[Path, typer.Option(help="Folder of RGBA pictures, or a JSON-lines manifest.")],
    out: Annotated[Path, typer.Option(help="New folder for the pictures and their manifest.")],
    prompts: Annotated[Path | None, typer.Option(help="Prompt file; else the manifest's prompts.")] = None,
    model: Annotated[str | None, typer.Option(help="Bundle: rf-tiny, a folder or a hub id.")] = None,
    lora: Annotated[Path | None, typer.Option(help="Folder of an exported LoRA.")] = None,
    max_attempts: Annotated[int | None, typer.Option(min=1, help="Seeds tried per product.")] = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    white_to_alpha: Annotated[bool, typer.Option(help="Pictures without alpha: white is cut away.")] = False,
    config: Annotated[Path, typer.Option(help="All other settings.")] = Path("tiny"),
    overrides: Overrides = None,
) -> None:
    """Recurrent generation: paint each product again with new seeds until RFNet accepts."""
    settings = _load(config, overrides)
    settings.data.products = str(products)
    settings.data.prompts = str(prompts) if prompts else settings.data.prompts
    settings.data.white_to_alpha |= white_to_alpha
    settings.model.bundle = model or settings.model.bundle
    settings.evaluate.max_attempts = max_attempts or settings.evaluate.max_attempts
    settings.run.seed = settings.run.seed if seed is None else seed
    from rfft import recurrent

    recurrent.generate(settings, lora, out)


@app.command()
def export(
    run: RunFolder,
    format: Annotated[Literal["diffusers", "kohya", "peft", "merged"], typer.Option()] = "diffusers",
    out: Annotated[Path | None, typer.Option(help="Default: RUN/export/FORMAT.")] = None,
    best: Annotated[bool, typer.Option("--best", help="Not the last checkpoint but the best one.")] = False,
) -> None:
    """Write a run's weights in the form other tools load."""
    _config_of(run)
    from rfft.export import export_run

    typer.echo(export_run(run, format, out or run / "export" / format, best))


@app.command()
def report(run: RunFolder) -> None:
    """Write a run's report.html anew."""
    _config_of(run)
    from rfft.report import write_report

    typer.echo(write_report(run))


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of finished runs.")],
    out: Annotated[Path, typer.Option(help="Folder for comparison.md and comparison.png.")],
) -> None:
    """Put finished runs side by side: a table, and a figure of what each gained and paid."""
    from rfft import compare as comparison

    typer.echo(comparison.compare(runs, out))


@rfnet.command("train")
def train_rfnet(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="A YAML file, or a shipped one: rfnet_tiny, rfnet_paper.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="a.b=c", help="Settings to change: data.train=[scenes].")
    ] = None,
) -> None:
    """Train RFNet on folders in RF1M's form; the same command again resumes a run that was cut off."""
    from rfft.rfnet_config import load_config

    settings = load_config(config, overrides or [])
    from rfft import rfnet_trainer

    rfnet_trainer.train(settings)


@rfnet.command("evaluate")
def evaluate_rfnet(
    network: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run's folder, an RFNet folder, or rf-tiny-rfnet.")
    ],
    data: Annotated[Path, typer.Option(help="Labelled pictures, a folder in RF1M's form.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the figures. Default: RUN.")] = None,
    depth: Annotated[str | None, typer.Option(help="Network for missing depth. Default: the run's.")] = None,
    saliency: Annotated[str | None, typer.Option(help="Network for missing saliency.")] = None,
    known_maps: Annotated[
        bool | None, typer.Option(help="Use the maps that come with the data, or make all.")
    ] = None,
    maps_cache: Annotated[
        str | None, typer.Option(help="Folder for made maps. Default: beside the data.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
) -> None:
    """Precision, recall, F1 and AP of every class, and the confusion matrix, on labelled pictures."""
    changes = {"depth": depth, "saliency": saliency, "known": known_maps, "cache": maps_cache}
    from rfft import rfnet_evaluate

    given = {name: value for name, value in changes.items() if value is not None}
    rfnet_evaluate.evaluate(network, data, out, given, batch_size)


@products.command()
def cutout(
    photos: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of photos: JPEG, PNG, WebP, TIFF.")],
    out: Annotated[Path, typer.Option(help="New folder; `rfft generate --products` takes it.")],
    threshold: Annotated[
        float, typer.Option(min=0.05, max=0.95, help="Saliency of the cut; more cuts closer to the product.")
    ] = 0.5,
    softness: Annotated[float, typer.Option(min=0, max=1, help="Width of the edge's ramp; 0: hard.")] = 0.25,
    max_pixels: Annotated[int, typer.Option(min=1, help="Larger photos are refused.")] = 50_000_000,
) -> None:
    """Cut products out of plain photos (U2-Net); exit code 1 if nothing was found in some of them."""
    from rfft.data.matting import Edge
    from rfft.photos import cut_out_folder

    if cut_out_folder(photos, out, Edge(threshold, softness), max_pixels):
        raise typer.Exit(1)


@adworld.command()
def draw(
    out: Annotated[Path, typer.Argument(help="New folder; with --sheet the PNG file.")],
    count: Annotated[int, typer.Option(min=1)] = 1000,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    split: Annotated[Literal["train", "val", "test"], typer.Option()] = "train",
    sheet: Annotated[bool, typer.Option(help="Draw one contact sheet instead, two rows per class.")] = False,
) -> None:
    """Draw labelled advertising scenes in RF1M's form."""
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise UserError(f"{out}: exists already; name a new one")
    from rfft.adworld import draw as drawing

    if sheet:
        drawing.write_sheet(out, seed, split)
    else:
        drawing.draw_dataset(out, count, seed, split)


@adworld.command()
def pretrain(
    part: Annotated[Literal["vae", "base", "depth", "saliency", "rfnet", "judge", "probe"], typer.Argument()],
    out: Annotated[Path, typer.Option(help="Holds rf-tiny and the other models' folders.")] = Path(
        "pretrained"
    ),
    state: Annotated[Path, typer.Option(help="Where training is saved, to be resumed from.")] = Path(
        "pretrained/state"
    ),
    steps: Annotated[int | None, typer.Option(min=1, help="Default: STEPS of the part's module.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of the data.")] = 0,
    drop: Annotated[
        list[str] | None, typer.Option(help="RFNet only: leave out o, g, d, s or c; writes just a report.")
    ] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Use torch.compile (needs g++).")] = False,
) -> None:
    """Train an embedded model on AdWorld, in the order listed; the same command resumes a run.

    With a new --state and --seed it goes on from the weights in --out.
    """
    from rfft.adworld.pretrain.fit import Run

    module = importlib.import_module(f"rfft.adworld.pretrain.{part}")
    module.train(Run(out, state, steps or module.STEPS, seed, tuple(drop or ()), compiled))


@adworld.command()
def assess(
    out: Annotated[Path, typer.Option(help="Holds rf-tiny and the other models' folders.")] = Path(
        "pretrained"
    ),
) -> None:
    """Measure RFNet and judge on the test split, and how far they agree; writes their report.json."""
    from rfft.adworld.pretrain import assess as assessment

    assessment.assess(out)


@data.command("prepare-rf1m")
def prepare_rf1m(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder of packages or files, or a zip.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the shards.")],
    size: Annotated[
        int | None, typer.Option(min=16, help="Make squares of this side of all pictures.")
    ] = None,
    raw: Annotated[bool, typer.Option(help="Store uint8 arrays: quickest to read; needs --size.")] = False,
    shard_size: Annotated[int, typer.Option(min=1, help="Samples in a shard.")] = 1000,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: all cores.")] = None,
    depth: Annotated[str, typer.Option(help="Network for depth maps that are not there.")] = "rf-tiny-depth",
    saliency: Annotated[str, typer.Option(help="The same for saliency.")] = "rf-tiny-saliency",
) -> None:
    """Make WebDataset shards of a labelled data set; the same command goes on with what was cut off."""
    from rfft import rf1m

    settings = rf1m.Settings(size, raw, shard_size, depth, saliency)
    rf1m.prepare(source, out, settings, workers or os.cpu_count() or 1)


@data.command()
def label(
    generated: Annotated[Path, typer.Argument(metavar="GENERATED", help="What `rfft generate` wrote.")],
    labels: Annotated[Path, typer.Argument(metavar="LABELS", help="CSV with name,label; or label.txt.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New folder in RF1M's form.")],
) -> None:
    """Turn generated pictures and their labels into new feedback."""
    from rfft.data.label import label_generated

    for name, count in label_generated(generated, labels, out).items():
        typer.echo(f"{name:24}{count}")


@data.command()
def bench(
    shards: Annotated[Path, typer.Argument(metavar="SHARDS", help="What prepare-rf1m wrote.")],
    size: Annotated[int | None, typer.Option(min=16, help="Read as squares of this side.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read; 0: this one.")] = 0,
    seconds: Annotated[float, typer.Option(min=0)] = 10.0,
) -> None:
    """Measure how many samples per second are read, decoded and put into batches."""
    from rfft.data.bench import bench as measure

    for line in measure(shards, size, workers, seconds).lines(workers):
        typer.echo(line)


def _load(path: Path, overrides: list[str] | None) -> Config:
    from rfft.config import load_config

    return load_config(path, overrides or [])


def _config_of(run: Path) -> Path:
    file = run / "config.yaml"
    if not file.is_file():
        raise UserError(f"{run}: no config.yaml here, so no run; run folders are made by `rfft train`")
    return file


def _hush_libraries() -> None:
    """Their notes on optional packages and coming releases would drown our own messages; errors show."""
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    warnings.simplefilter("ignore", FutureWarning)


def main() -> None:
    """Run a command; a mistake of the user's ends it with one line and exit code 2."""
    _hush_libraries()
    try:
        app()
    except UserError as error:
        typer.echo("rfft: " + str(error).replace("\n", " "), err=True)
        sys.exit(2)
    except Interrupted as stop:
        typer.echo(f"rfft: {stop}", err=True)
        sys.exit(75)
