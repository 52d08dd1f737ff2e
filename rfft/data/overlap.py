"""Whether an evaluation can tell what a model makes of products that it was not trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from rfft.data.dataset import KNOWN, Samples
from rfft.data.members import Source
from rfft.data.product_files import ProductFiles
from rfft.data.splits import parse_source

LOOKED = 500  # samples whose canvases are compared, where there are no files


def shared_products(trained: Samples, evaluated: Samples) -> int:
    """Return how many products that are evaluated on are trained on, under whatever name.

    Files are compared byte by byte; where there are none, the canvases of the first LOOKED samples.
    """
    if isinstance(trained.dataset, ProductFiles) and isinstance(evaluated.dataset, ProductFiles):
        return _shared_files(trained.dataset, evaluated.dataset)
    known = set(_canvases(trained).values())
    return sum(canvas in known for canvas in _canvases(evaluated).values())


def _shared_files(trained: ProductFiles, evaluated: ProductFiles) -> int:
    """Compare by size first: most files need not be read."""
    asked = [product.image for product in evaluated.products]
    sizes = set(map(_size, asked)) - {None}
    known = {_digest(file) for file in trained.products.images() if _size(file) in sizes}
    return sum(_digest(file) in known for file in asked if _size(file) is not None)


def _size(file: Source) -> int | None:
    """Return a picture's size in bytes; None where there is none that could be read."""
    try:
        return file.stat().st_size if isinstance(file, Path) else file.size
    except OSError:
        return None


def _digest(file: Source) -> bytes:
    return hashlib.sha256(file.read_bytes()).digest()


def _canvases(samples: Samples) -> dict[str, bytes]:
    """Return a hash of the canvas of each product."""
    found = (samples[i] for i in range(min(LOOKED, len(samples))))
    return {sample.product: hashlib.sha256(sample.canvas.numpy().tobytes()).digest() for sample in found}


def overlap_warnings(
    trained_on: str, trained: Samples, evaluated_on: str, evaluated: Samples
) -> Iterator[str]:
    """Yield one line, with the fix, for each reason why the metrics do not say what they seem to say.

    trained_on, evaluated_on: the sources of the samples.
    """
    if shared := shared_products(trained, evaluated):
        count = evaluated.products() or len(evaluated)
        yield (
            f"{shared} of the {count} products evaluated on are trained on: metrics do not tell of new ones; "
            "set data.holdout=0.2, or name others with evaluate.products"
        )
    if _is_known(evaluated_on) and not _is_known(trained_on):
        yield (
            f"trained on {trained_on} but evaluated on {evaluated_on}: metrics do not tell of products like "
            "those; set evaluate.products=null data.holdout=0.2"
        )


def describe_samples(samples: Samples, source: str) -> str:
    """Return how many products and prompts there are, and where they come from, as people read it."""
    products, prompts = samples.products(), len(samples)
    told = f"{prompts} prompt{'s' * (prompts > 1)} from {source}"
    return told if products is None else f"{products} product{'s' * (products > 1)} with {told}"


def _is_known(source: str) -> bool:
    return parse_source(source)[0] in KNOWN
