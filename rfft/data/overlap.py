"""Whether an evaluation can tell what a model makes of products that it was not trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from rfft.data.dataset import KNOWN
from rfft.data.samples import Sample
from rfft.data.splits import parse_source


def shared_products(trained: Sequence[Sample], evaluated: Sequence[Sample]) -> int:
    """Return how many products that are evaluated on are trained on, under whatever name: pixels decide."""
    known = set(_pixels(trained).values())
    return sum(pixels in known for pixels in _pixels(evaluated).values())


def overlap_warnings(
    trained_on: str, trained: Sequence[Sample], evaluated_on: str, evaluated: Sequence[Sample]
) -> Iterator[str]:
    """Yield one line, with the fix, for each reason why the metrics do not say what they seem to say.

    trained_on, evaluated_on: the sources of the samples.
    """
    if shared := shared_products(trained, evaluated):
        count = len(_products(evaluated))
        yield (
            f"{shared} of the {count} products evaluated on are trained on: metrics do not tell of new ones; "
            "set data.holdout=0.2, or name others with evaluate.products"
        )
    if _is_known(evaluated_on) and not _is_known(trained_on):
        yield (
            f"trained on {trained_on} but evaluated on {evaluated_on}: metrics do not tell of products like "
            "those; set evaluate.products=null data.holdout=0.2"
        )


def describe_samples(samples: Sequence[Sample], source: str) -> str:
    """Return how many products and prompts there are, and where they come from, as people read it."""
    products, prompts = len(_products(samples)), len(samples)
    return (
        f"{products} product{'s' * (products > 1)} with {prompts} prompt{'s' * (prompts > 1)} from {source}"
    )


def _is_known(source: str) -> bool:
    return parse_source(source)[0] in KNOWN


def _products(samples: Sequence[Sample]) -> dict[str, Sample]:
    """Return one sample for each product."""
    return {sample.product: sample for sample in samples}


def _pixels(samples: Sequence[Sample]) -> dict[str, bytes]:
    """Return a hash of each product's pixels, as they are in its file if there is one."""
    found = _products(samples).items()
    pixels = {name: s.canvas.numpy() if s.source is None else s.source for name, s in found}
    return {name: hashlib.sha256(array.tobytes()).digest() for name, array in pixels.items()}
