"""In which order samples are trained on: a pure function of seed and position, so that a resumed run goes on
in it.

Shapes: N samples, B of a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from rfft.data.conditions import product_for
from rfft.data.encoded import EncodedSamples
from rfft.types import Batch

Order = Callable[[int], list[int]]  # the samples of the batch that begins at a position of an endless order


def order_of(samples: EncodedSamples | Batch, seed: int, batch_size: int) -> Order:
    """Return the order of samples in batches of `batch_size`, each of pictures of one size."""
    buckets = samples.buckets() if isinstance(samples, EncodedSamples) else None
    if buckets is not None:
        return BucketOrder(seed, buckets, batch_size)
    count = len(samples)
    return lambda first: [product_for(seed, i, count) for i in range(first, first + batch_size)]


class BucketOrder:
    """An endless order of N samples, shuffled anew in each epoch, in batches that hold one bucket each.

    A bucket's last batch of an epoch is filled up with its first samples.
    """

    def __init__(self, seed: int, buckets: NDArray[np.uint8], batch_size: int) -> None:
        """buckets: the number of each sample's bucket, [N]."""
        self.seed, self.batch_size = seed, batch_size
        self.members = [np.flatnonzero(buckets == bucket) for bucket in np.unique(buckets)]
        self.per_epoch = sum(-(-len(found) // batch_size) for found in self.members)
        self._batches = lru_cache(maxsize=2)(self._shuffled)

    def __call__(self, first: int) -> list[int]:
        """Return the numbers of the samples, [B], of the batch at a position."""
        epoch, number = divmod(first // self.batch_size, self.per_epoch)
        return [int(i) for i in self._batches(epoch)[number]]

    def _shuffled(self, epoch: int) -> NDArray[np.int64]:
        rng = np.random.default_rng([self.seed, epoch, 2])  # 1 is that of the order without buckets
        batches = []
        for members in self.members:
            whole = -(-len(members) // self.batch_size) * self.batch_size
            batches.append(np.resize(rng.permutation(members), whole).reshape(-1, self.batch_size))
        return rng.permutation(np.concatenate(batches))
