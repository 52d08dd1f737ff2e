"""Samples with all that the training step needs of them, encoded when they are first asked for.

What was encoded once comes from the store on disk, in later epochs, runs and other processes; workers read
the next batches while the step runs.

Shapes: B samples of one size, H W pixels of their canvases.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rfft.data.conditions import outlines
from rfft.data.dataset import Samples
from rfft.data.encoder import Encoder, conditioning
from rfft.data.samples import Entry
from rfft.data.store import Item, Store
from rfft.diffusion.compositing import latent_mask
from rfft.types import Batch, Conditioning, Size, size_of

RECENT = 64  # prompts whose features are kept in memory: the negative one, and those of the last batches
AHEAD = 2  # batches that are read while one is trained on
CANVAS, LATENT = "canvas", "x_o"  # names of a picture's tensors in the store
CONTROL = "control"  # the same, of what the ControlNet takes


@dataclass
class Picture:
    """A sample as a worker reads it."""

    entry: Entry
    address: bytes  # in the store
    canvas: Tensor  # uint8 [4,H,W]
    x_o: Tensor | None  # None: has to be encoded
    keeps_canvas: bool  # in the store, as it takes time to read


@dataclass(frozen=True)
class Loaded:
    """A batch as a worker reads it: all of it but what has to be encoded."""

    pictures: list[Picture]
    items: dict[bytes, Item]  # prompts, and what the ControlNet takes: those that the store had
    product: Tensor  # [B,4,H,W]
    edges: Tensor  # [B,3,H,W]


class EncodedSamples:
    """Samples by their numbers, as batches; the same batch whenever it is asked for."""

    def __init__(
        self,
        samples: Samples,
        encoder: Encoder,
        store: Store | None,
        canny: tuple[int, int] = (100, 200),
        workers: int = 0,
        change: Callable[[Entry], Entry] = lambda entry: entry,
    ) -> None:
        """store: None keeps nothing; canny: the edge detector's thresholds; change: of what is painted.

        workers: threads that read ahead. Decoding, hashing and resizing leave Python's lock to others, and no
        data set has to be copied into another process.
        """
        self.samples, self.encoder, self.store = samples, encoder, store
        self.canny, self.change = canny, change
        self.waited = self.encoded = 0.0  # seconds that index() has waited for pictures, and has encoded
        self._pool = ThreadPoolExecutor(workers, "data") if workers else None
        self._coming: dict[tuple[int, ...], Future[Loaded]] = {}
        self._prompts: OrderedDict[bytes, Item] = OrderedDict()

    def __len__(self) -> int:
        return len(self.samples)

    def size(self, number: int) -> Size | None:
        """Return the size of a sample's canvas; None where the data set does not tell, and all have one."""
        return self.samples.size(number)

    def buckets(self) -> NDArray[np.uint8] | None:
        """Return the number of each sample's bucket, [N]; None where all samples have one size."""
        told = getattr(self.samples.dataset, "sample_buckets", None)
        found = None if told is None else told()
        return None if found is None else found[[self.samples.item(i) for i in range(len(self))]]

    def index(self, numbers: Sequence[int]) -> Batch:
        """Return these samples, all of one size, on the CPU, with zeros for the noise, drawn at each use.

        Raises UserError for one that cannot be used.
        """
        began = time.monotonic()
        coming = self._coming.pop(tuple(numbers), None)
        loaded = self._load(tuple(numbers)) if coming is None else coming.result()
        read = time.monotonic()
        batch = self._batch(numbers, loaded)
        self.waited += read - began
        self.encoded += time.monotonic() - read
        return batch

    def prefetch(self, batches: Iterable[Sequence[int]]) -> None:
        """Have workers read these batches, and forget others that were to come."""
        if self._pool is None:
            return
        wanted = list(dict.fromkeys(tuple(batch) for batch in batches if batch))
        for key in self._coming.keys() - set(wanted):
            self._coming.pop(key).cancel()
        for key in wanted:
            if key not in self._coming:
                self._coming[key] = self._pool.submit(self._load, key)

    # ---- in workers ----

    def _load(self, numbers: tuple[int, ...]) -> Loaded:
        pictures = [self.samples.read(number, self._read) for number in numbers]
        texts = [text for picture in pictures for text in (picture.entry.prompt, picture.entry.negative)]
        size = size_of(pictures[0].canvas)
        missing = {self.encoder.address(size, "prompt", text) for text in texts} - self._prompts.keys()
        product = torch.stack([picture.canvas for picture in pictures]).float().div(255)
        edges = outlines(product, self.canny)
        if torch.cuda.is_available():
            product, edges = product.pin_memory(), edges.pin_memory()
        if self.encoder.encodes_control:
            missing |= {self._control_address(picture) for picture in pictures}
        return Loaded(pictures, self._stored(missing), product, edges)

    def _read(self, index: int) -> Picture:
        """Read item `index` of the data set; not even its picture is decoded if the store has it."""
        dataset = self.samples.dataset
        own_address: Callable[[int], bytes] | None = getattr(dataset, "address", None)
        if own_address is not None:
            size = self.samples.size_of(index) or self.encoder.size
            address = self.encoder.address(size, "file", own_address(index))
            if item := self._stored([address]).get(address):
                entry = self.change(self.samples.entry_of(index))
                return Picture(entry, address, item[CANVAS], item[LATENT], True)
        sample = dataset[index]
        canvas = sample.canvas.mul(255).round().byte()
        entry = self.change(sample.entry)
        if own_address is not None:
            return Picture(entry, address, canvas, None, True)
        address = self.encoder.address(size_of(canvas), "canvas", canvas.numpy().tobytes())
        return Picture(entry, address, canvas, self._stored([address]).get(address, {}).get(LATENT), False)

    def _control_address(self, picture: Picture) -> bytes:
        return self.encoder.control_address(picture.address, self.canny)

    def _stored(self, addresses: Iterable[bytes]) -> dict[bytes, Item]:
        return {} if self.store is None else dict(self.store.get(addresses))

    # ---- in the process that has the networks ----

    def _batch(self, numbers: Sequence[int], loaded: Loaded) -> Batch:
        new: dict[bytes, Item] = {}
        for picture in loaded.pictures:
            if picture.x_o is None:
                self._encode(picture, new)
        entries = [picture.entry for picture in loaded.pictures]
        prompts = [entry.prompt for entry in entries]
        z = self._conditioning(prompts, "prompts", loaded, new)
        null = self._conditioning([entry.negative for entry in entries], "negative prompts", loaded, new)
        edges = self._control(loaded, new) if self.encoder.encodes_control else loaded.edges
        if self.store is not None:
            self.store.put(new)
        x_o = torch.stack([picture.x_o for picture in loaded.pictures if picture.x_o is not None])
        return Batch(
            z=z,
            null=null,
            edges=edges,
            product=loaded.product,
            x_o=x_o,
            mask=latent_mask(loaded.product, (x_o.shape[-2], x_o.shape[-1])),
            noise=torch.zeros_like(x_o),
            sample=torch.tensor(numbers),
            captions=[entry.caption for entry in entries],
            prompts=prompts,
        )

    def _encode(self, picture: Picture, new: dict[bytes, Item]) -> None:
        if picture.address in new:  # twice in one batch
            picture.x_o = new[picture.address][LATENT]
            return
        picture.x_o = self.encoder.picture(picture.canvas)
        new[picture.address] = {LATENT: picture.x_o}
        if picture.keeps_canvas:
            new[picture.address] = {LATENT: picture.x_o, CANVAS: picture.canvas}

    def _control(self, loaded: Loaded, new: dict[bytes, Item]) -> Tensor:
        """Return what the ControlNet takes for B samples, encoded where nobody has done so."""
        found = []
        for picture, edges, product in zip(loaded.pictures, loaded.edges, loaded.product, strict=True):
            address = self._control_address(picture)
            item = loaded.items.get(address) or new.get(address)
            if item is None:
                item = new[address] = {CONTROL: self.encoder.control(edges, product)}
            found.append(item[CONTROL])
        return torch.stack(found)

    def _conditioning(
        self, texts: Sequence[str], kind: str, loaded: Loaded, new: dict[bytes, Item]
    ) -> Conditioning:
        """Return the features of B prompts, each distinct one encoded once."""
        items: dict[str, Item] = {}
        size = size_of(loaded.product)
        for text in dict.fromkeys(texts):
            address = self.encoder.address(size, "prompt", text)
            item = self._prompts.pop(address, None) or loaded.items.get(address)
            if item is None:
                item = new[address] = self.encoder.prompt(text, size)
            items[text] = self._prompts[address] = item
        while len(self._prompts) > RECENT:
            self._prompts.popitem(last=False)
        self.encoder.tell_unread(list(items), list(items.values()), kind)
        return conditioning([items[text] for text in texts])
