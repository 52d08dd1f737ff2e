"""Verdicts of somebody else's service: a person's queue, a vision-language model, a rule. No gradient.

POST of JSON {"images": [PNG in base64, ...], "captions": [...], "prompts": [...]}, of a batch at most;
the answer is JSON {"scores": [number, ...]}, more is better. B pictures, H W pixels.
"""

from __future__ import annotations

import base64
import io
import json
import math
import time
import urllib.error
import urllib.request
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from rfft.errors import UserError, require
from rfft.types import Batch
from rfft.utils.contact_sheet import to_bytes

PAUSE = 0.5  # seconds before the first retry; each further one waits twice as long


class HttpReward:
    """A reward whose scores come from a service; its loss is minus the score."""

    differentiable = False

    def __init__(self, url: str, batch: int = 16, timeout: float = 60.0, retries: int = 3) -> None:
        """url: http(s)://...; batch: pictures in a request; timeout: seconds; retries: further tries.

        Raises UserError for a url that is none.
        """
        require(
            url.startswith(("http://", "https://")), f"reward http: url={url!r} must begin with http(s)://"
        )
        require(
            batch >= 1 and timeout > 0 and retries >= 0, "reward http: batch, timeout or retries is too small"
        )
        self.url, self.batch, self.timeout, self.retries = url, batch, timeout, retries

    def __call__(self, image: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return -score of each picture [B], on the pictures' device, and the mean score.

        Raises UserError where the service gives no answer, or one that is no score for each picture.
        """
        pictures = to_bytes(image.detach().float().cpu())
        scores: list[float] = []
        for start in range(0, len(pictures), self.batch):
            part = slice(start, start + self.batch)
            question = {
                "images": [_png(picture) for picture in pictures[part]],
                "captions": batch.captions[part],
                "prompts": batch.prompts[part],
            }
            scores += self._scores(json.dumps(question).encode(), len(question["images"]))
        found = torch.tensor(scores, device=image.device)
        finite = image.isfinite().flatten(1).all(1)  # a picture that is no picture was sent as a black one
        found = found.masked_fill(~finite, torch.nan)
        return -found, {"score": found.mean()}

    def _scores(self, question: bytes, count: int) -> list[float]:
        """Return the service's scores of `count` pictures."""
        answer = self._ask(question)
        scores = answer.get("scores") if isinstance(answer, dict) else None
        fine = isinstance(scores, list) and len(scores) == count and all(map(_is_number, scores))
        if not fine:
            raise UserError(
                f'{self.url} must answer {{"scores": [...]}} with {count} finite numbers, one a picture'
            )
        return [float(score) for score in scores or ()]

    def _ask(self, question: bytes) -> Any:
        """Return the answer, asked again where there is none."""
        request = urllib.request.Request(self.url, question, {"Content-Type": "application/json"})
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(PAUSE * 2 ** (attempt - 1))
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as response:
                    return json.loads(response.read())
            except urllib.error.HTTPError as error:
                problem = f"it answers {error.code} {error.reason}"
                if error.code < 500:  # asking again would not help
                    break
            except (OSError, ValueError) as error:  # not there, too slow, or no JSON
                problem = str(getattr(error, "reason", error)) or type(error).__name__
        raise UserError(
            f"reward http: no verdict from {self.url} ({problem}; asked {attempt + 1} times); the last "
            "checkpoint is intact: start the service and run the same command again"
        )


def _png(picture: Tensor) -> str:
    file = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def _is_number(score: Any) -> bool:
    return isinstance(score, (int, float)) and not isinstance(score, bool) and math.isfinite(score)
