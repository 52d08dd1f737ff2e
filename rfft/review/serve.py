"""`rfft review serve`: pictures in, the page on, until it is stopped."""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import typer
import uvicorn

from rfft.errors import UserError
from rfft.evaluation.store import STATES
from rfft.feedback.vote_store import VoteStore, sole_writer
from rfft.feedback.votes import Picture
from rfft.review.agreement import warm_up
from rfft.review.guide import read_guide
from rfft.review.queue import Settings
from rfft.review.server import create_app
from rfft.review.session import Review
from rfft.review.sources import read_pictures


@dataclass(frozen=True)
class Address:
    """Where the page is served."""

    host: str = "127.0.0.1"
    port: int = 8642
    names: Sequence[str] = ()  # by which browsers may ask for it, beside its address

    @property
    def is_loopback(self) -> bool:
        """Tell whether only this machine reaches it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def url(self) -> str:
        """Return how a browser finds the page, without the port."""
        host = self.names[0] if self.names else self.host
        return f"http://[{host}]" if ":" in host else f"http://{host}"

    @property
    def hosts(self) -> list[str]:
        """Return the host names that requests may name."""
        own = ["localhost", "127.0.0.1", "[::1]", "::1"] if self.is_loopback else [self.host]
        return ["*"] if self.host in ("0.0.0.0", "::") and not self.names else [*own, *self.names]


def serve(
    sources: Sequence[Path],
    store_path: Path,
    settings: Settings,
    address: Address,
    raters: Sequence[str] = (),
    guide: Path | None = None,
) -> None:
    """Serve the page until a signal stops it.

    With `raters` each of them gets a link with a token, and nobody else gets in; another address than this
    machine's needs them. Raises UserError where the store is served already, or the port is taken.
    """
    if not address.is_loopback and not raters:
        raise UserError(f"--host {address.host} lets others in: name the --raters, who get a link each")
    with sole_writer(store_path):
        store = VoteStore(store_path, create=True)
        pictures = gather(sources, store, settings.task)
        review = Review(store, settings, pictures, read_guide(settings.task, guide), bool(raters))
        if not review.queue.progress()["wanted"]:
            raise UserError(_nothing(settings))
        listening = _listen(address)
        threading.Thread(target=warm_up, daemon=True).start()
        where = f"{address.url}:{listening.getsockname()[1]}"
        typer.echo(
            f"{len(pictures)} pictures, task {settings.task}; votes go to {store_path}; Ctrl+C ends it"
        )
        for line in [f"{name}: {where}/?token={review.enter(name)}" for name in raters] or [where]:
            typer.echo(line)
        app = create_app(review, address.hosts)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listening])
        store.close()


def gather(sources: Sequence[Path], store: VoteStore, task: str = "labels") -> dict[str, Picture]:
    """Return the pictures of all sources, and take them into the store.

    For gsb of several runs these are the tuned ones. Raises UserError for two folders of one name, by which
    votes tell them apart.
    """
    folders: dict[str, Path] = {}
    for source in map(Path.resolve, sources):
        if folders.setdefault(source.name, source) != source:
            raise UserError(
                f"{folders[source.name]} and {source} have one name, by which votes tell them apart: "
                "rename one"
            )
    states = STATES[1:] if task == "gsb" and len(folders) > 1 else STATES
    kept = store.path.with_name(f"{store.path.name}.pictures")
    found = {p.id: p for source in folders.values() for p in read_pictures(source, kept, states)}
    store.add_pictures(found.values())
    return found


def _listen(address: Address) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        listening = socket.create_server((address.host, address.port), family=family)
    except OSError as error:
        raise UserError(
            f"--host {address.host} --port {address.port}: {error.strerror or error}; choose another"
        ) from None
    # Connections inherit it. Without, a reply's second part waits 40 ms for the first one's acknowledgement.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def _nothing(settings: Settings) -> str:
    if settings.task == "gsb":
        return "gsb compares two runs on the same product, prompt and seed: give two such folders, or one run"
    if settings.task == "pairs":
        return "no product and prompt has two pictures to compare: give folders with several of each"
    return f"nothing to ask in round {settings.round}: there is no picture that raters, or RFNet, disagree on"
