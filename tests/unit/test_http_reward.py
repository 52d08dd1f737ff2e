"""The HTTP reward against a real server in this process: batches, retries, a server that dies."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from rfft.errors import UserError
from rfft.models.bundle import Bundle
from rfft.rewards import http
from rfft.rewards.http import HttpReward
from rfft.types import Batch


class Service(ThreadingHTTPServer):
    """Scores a picture by its mean brightness; `faults` are answered first, one each."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.faults: list[int | bytes | float] = []  # a status, a body, or seconds of silence
        self.asked: list[dict[str, list[str]]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}/score"


class Answer(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(question)
        fault = self.server.faults.pop(0) if self.server.faults else None
        if isinstance(fault, float):
            time.sleep(fault)
        pictures = [Image.open(io.BytesIO(base64.b64decode(data))) for data in question["images"]]
        scores = [sum(picture.resize((1, 1)).getpixel((0, 0))) / 3 / 255 for picture in pictures]
        body = fault if isinstance(fault, bytes) else json.dumps({"scores": scores}).encode()
        self.send_response(fault if isinstance(fault, int) else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setattr(http, "PAUSE", 0.01)
    server = Service()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def batch(bundle: Bundle, make_batch: Callable[..., Batch]) -> Batch:
    return make_batch(bundle)


IMAGES = torch.stack([torch.full((3, 8, 8), 0.2), torch.full((3, 8, 8), 0.8)])


def test_pictures_and_texts_are_sent_in_batches(service: Service, batch: Batch) -> None:
    losses, scalars = HttpReward(service.url, batch=1)(IMAGES, batch)
    assert_close(losses, -torch.tensor([0.2, 0.8]), atol=0.01, rtol=0)
    assert_close(scalars["score"], torch.tensor(0.5), atol=0.01, rtol=0)
    assert [question["prompts"] for question in service.asked] == [[prompt] for prompt in batch.prompts]
    HttpReward(service.url)(IMAGES, batch)
    assert service.asked[2]["captions"] == batch.captions


@pytest.mark.parametrize("fault", [503, b"<html>", 1.0], ids=["busy", "no JSON", "slow"])
def test_it_asks_again(service: Service, batch: Batch, fault: int | bytes | float) -> None:
    service.faults = [fault, fault]
    losses, _ = HttpReward(service.url, timeout=0.3, retries=2)(IMAGES, batch)
    assert_close(losses, -torch.tensor([0.2, 0.8]), atol=0.01, rtol=0)
    assert len(service.asked) == 3


@pytest.mark.parametrize(
    ("fault", "told", "times"),
    [
        (404, r"it answers 404 Not Found; asked 1 times", 1),
        (500, r"it answers 500 Internal Server Error; asked 2 times", 2),
        (b'{"scores": [1]}', "with 2 finite numbers", 1),
        (b'{"scores": [1, NaN]}', "with 2 finite numbers", 1),
        (b"[]", "with 2 finite numbers", 1),
    ],
)
def test_what_is_no_verdict(
    service: Service, batch: Batch, fault: int | bytes, told: str, times: int
) -> None:
    service.faults = [fault] * 3
    with pytest.raises(UserError, match=told):
        HttpReward(service.url, retries=1)(IMAGES, batch)
    assert len(service.asked) == times


def test_a_server_that_is_dead(service: Service, batch: Batch) -> None:
    reward = HttpReward(service.url, retries=1)
    reward(IMAGES, batch)
    service.shutdown()
    service.server_close()
    with pytest.raises(
        UserError, match=r"^reward http: no verdict from http://127[^\n]*refused[^\n]*asked 2 times"
    ):
        reward(IMAGES, batch)


def test_what_is_no_picture_has_no_score(service: Service, batch: Batch) -> None:
    broken = IMAGES.clone()
    broken[1, 0, 0, 0] = torch.nan
    losses, _ = HttpReward(service.url)(broken, batch)
    assert losses.isnan().tolist() == [False, True]


def test_urls() -> None:
    with pytest.raises(UserError, match="must begin with http"):
        HttpReward("file:///etc/passwd")
