"""The review page's server. A picture is named by its id alone, so that no path leads anywhere else."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import FileResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rfft.feedback.votes import ANSWERS, DEFECTS, DIMENSIONS
from rfft.review.agreement import figures
from rfft.review.session import Answer, Entering, Review

STATIC = Path(__file__).parent / "static"
HEADERS = {  # nothing is loaded from elsewhere, nobody frames the page, and only this page posts
    "Content-Security-Policy": (
        "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
FOREVER = {"Cache-Control": "private, max-age=31536000, immutable"}


class Secured:
    """Adds HEADERS to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self.app(scope, receive, send_secured)


def create_app(review: Review, hosts: Sequence[str]) -> FastAPI:
    """Return the application; it answers requests for the given host names alone."""
    app = FastAPI(title="rfft review", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    app.add_middleware(Secured)

    def known_rater(request: Request) -> str:
        rater = review.raters.get(request.cookies.get(_cookie(review), ""))
        if rater is None:
            raise HTTPException(401, "open the link that you were given")
        return rater

    Rater = Annotated[str, Depends(known_rater)]  # noqa: N806  a type
    _add_page(app, review)
    _add_pictures(app, review, known_rater)

    @app.get("/api/question")
    def question(rater: Rater) -> dict[str, Any]:
        return review.ask(rater)

    @app.post("/api/vote")
    def vote(given: Answer, rater: Rater) -> dict[str, Any]:
        return review.vote(rater, given)

    @app.post("/api/undo")
    def undo(rater: Rater) -> dict[str, Any]:
        return review.undo(rater)

    @app.post("/api/move-on")
    def move_on(rater: Rater) -> dict[str, Any]:
        return review.move_on(rater)

    @app.get("/api/figures")
    def live_figures(rater: Rater) -> dict[str, Any]:
        return figures(review.settings.task, review.store.votes(review.settings.task), review.pictures)

    return app


def _add_page(app: FastAPI, review: Review) -> None:
    """Add the page itself, what it needs to know at first, and the ways in."""

    @app.get("/", response_model=None)
    def page(token: str = "") -> Response:
        if not token:
            return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})
        if token not in review.raters:
            raise HTTPException(401, "this link is not known: ask for another one")
        return _remember(RedirectResponse("/", 303), review, token)

    @app.get("/api/setup")
    def setup(request: Request) -> dict[str, Any]:
        rater = review.raters.get(request.cookies.get(_cookie(review), ""))
        guide = [{"name": e.name, "text": e.text, "picture": e.picture is not None} for e in review.guide]
        return {
            "task": review.settings.task,
            "round": review.settings.round,
            "rater": rater,
            "needs_token": review.with_tokens,
            "labels": ANSWERS,
            "dimensions": DIMENSIONS,
            "defects": DEFECTS,
            "guide": guide,
        }

    @app.post("/api/enter")
    def enter(given: Entering) -> Response:
        if review.with_tokens:
            raise HTTPException(403, "open the link that you were given")
        return _remember(Response(status_code=204), review, review.enter(given.name))

    app.mount("/static", StaticFiles(directory=STATIC), name="static")


def _cookie(review: Review) -> str:
    """Return a cookie's name for this store: browsers send those of all ports of a host."""
    return f"rfft_{hashlib.sha256(str(review.store.path.absolute()).encode()).hexdigest()[:12]}"


def _remember(response: Response, review: Review, token: str) -> Response:
    response.set_cookie(_cookie(review), token, max_age=31536000, httponly=True, samesite="strict")
    return response


def _add_pictures(app: FastAPI, review: Review, known_rater: Any) -> None:
    """Add pictures, products and the guide's examples, for raters alone."""

    def file(path: Path | None) -> FileResponse:
        if path is None or not path.is_file():
            raise HTTPException(404, "no such picture")
        return FileResponse(path, headers=FOREVER)

    @app.get("/picture/{name}", dependencies=[Depends(known_rater)])
    def picture(name: str) -> FileResponse:
        found = review.pictures.get(name)
        return file(found.path if found else None)

    @app.get("/product/{name}", dependencies=[Depends(known_rater)])
    def product(name: str) -> FileResponse:
        found = review.pictures.get(name)
        return file(found.product if found else None)

    @app.get("/guide/{number}", dependencies=[Depends(known_rater)])
    def example(number: int) -> Response:
        if not 0 <= number < len(review.guide) or (found := review.guide[number].picture) is None:
            raise HTTPException(404, "no such example")
        return Response(found, media_type="image/png", headers=FOREVER)
