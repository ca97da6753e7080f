"""The rating page: what the terminal screen does, in a browser, trusting nothing that a browser or an item says.

A labeler's link holds their token, the only thing that says who they are; the database holds its hash alone.
Every text is cleaned and escaped on its way into a page (`_environment`), so no template can forget it.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from alignment.errors import UserError
from alignment.labeling.answers import FLAGGED, SKIP, as_shown, expected_in_words, keys_of
from alignment.labeling.asking import new_draft, taken_back
from alignment.labeling.desk_page import progress_page
from alignment.labeling.feedback import graded_words
from alignment.labeling.refereeing import decided
from alignment.labeling.rendering.page import item_html
from alignment.labeling.session import NOTHING_BACK, PRACTICE_STAYS, RESUMED, position
from alignment.labeling.web_connections import OncePerMinute
from alignment.labeling.web_forms import (
    COMMENT_CHARACTERS,
    INCOMPLETE,
    NO_PASSAGE,
    answer_in,
    as_sent,
    buttons,
    by_letter,
    draft_in,
    kept_in,
    marked_lines,
    names_of,
    overall_heading,
    saved,
    seconds_of,
    shown_steps,
)
from alignment.labeling.web_security import FOREIGN, HEADERS, SecurityHeaders, read_form, seal, unseal
from alignment.ratings import Assignment, Order, RatingsStore
from alignment.terminal import clean

HERE = Path(__file__).resolve().parent
LOCAL_HOSTS = ("127.0.0.1", "localhost")
SESSION_SECONDS = 30 * 24 * 3600
ASSETS = {"rate.css": "text/css", "rate.js": "text/javascript", "icon.svg": "image/svg+xml"}

NO_SESSION = "Please open your personal link and press Start. If the link does not work any more, ask for a new one."
DEAD_LINK = "This link does not work, or not any more. Please ask for a new one."
NOT_OPEN = (
    "This item is not open for you: it was answered already, perhaps by a second press or in another window."
    " The answer that was saved first stands; Undo takes it back."
)
NOT_SAVED = "The server could not write just now, so nothing was saved. Please try again in a minute."
BROKEN = "Something went wrong on the server. What was saved before is safe."
TITLES = {401: "Your personal link, please", 404: "Not found", 413: "Too long", 422: "Not saved yet", 503: "Not saved"}


@dataclass(frozen=True)
class Visit:
    """One request of a labeler whose session holds. `shown_at`: when the form that they sent was made, if they did."""

    store: RatingsStore
    labeler: str
    token: str
    form: Mapping[str, str]
    shown_at: float
    order: Order


Work = Callable[[Visit, Request], Response]


class RatingPage:
    """The pages. Each request opens a store of its own in a worker thread, as SQLite's objects belong to one."""

    def __init__(self, db: str | os.PathLike[str], order: Order, secure: bool) -> None:
        self.db, self.order, self.secure = db, order, secure
        # A __Host- cookie is kept to this very host, whatever else sets cookies in its domain.
        self.cookie = "__Host-rating" if secure else "rating"
        self.assets = {name: (HERE / "static" / name).read_bytes() for name in ASSETS}
        self.once = OncePerMinute()
        self.templates = _environment(hashlib.sha256(b"".join(self.assets.values())).hexdigest()[:16])

    def routes(self) -> list[Route]:
        """Every address there is."""
        return [
            Route("/", self._visit(self.item)),
            Route("/rate", self._visit(self.rate), methods=["POST"]),
            Route("/draft", self._visit(self.keep), methods=["POST"]),
            Route("/undo", self._visit(self.undo), methods=["POST"]),
            Route("/practice/{rating}", self._visit(self.practice)),
            Route("/votes/{rating}", self._visit(self.votes)),
            Route("/progress/{token}", self.progress),
            Route("/l/{token}", self.link),
            Route("/l/{token}/", self.link),
            Route("/start", self.start, methods=["POST"]),
            Route("/static/{name}", self.static),
        ]

    async def static(self, request: Request) -> Response:
        """The stylesheet, the script and the icon; their address changes with their content, so they may be kept."""
        name = request.path_params["name"]
        if name not in self.assets:
            raise HTTPException(404)
        kept = {"Cache-Control": "max-age=31536000, immutable"} if "v" in request.query_params else None
        return Response(self.assets[name], media_type=ASSETS[name], headers=kept)

    async def link(self, request: Request) -> Response:
        """What a labeler's link opens: a greeting with a form. A SameSite=Strict cookie that was set here, on the way
        in from a mail, would not come back with a redirect.
        """
        token = request.path_params["token"]
        labeler, guideline, referee = await run_in_threadpool(self._greeting, token)
        return self._page("start.html", labeler=labeler, guideline=guideline, referee=referee, token=token)

    async def progress(self, request: Request) -> Response:
        """How far the rating is, for the organiser, whose link opens this page alone."""
        found = await run_in_threadpool(progress_page, self.db, request.path_params["token"])
        if found is None:
            raise HTTPException(404, DEAD_LINK)
        return self._page("progress.html", **found)

    async def start(self, request: Request) -> Response:
        """Turn the link's token into the session's cookie."""
        token = (await read_form(request, self.secure)).get("token", "")
        await run_in_threadpool(self._greeting, token)
        response = RedirectResponse("/", 303)
        response.set_cookie(
            self.cookie, token, SESSION_SECONDS, path="/", secure=self.secure, httponly=True, samesite="strict"
        )
        return response

    def item(self, visit: Visit, request: Request) -> Response:
        """The next item, or that there is none."""
        said = saved(request.query_params.get("saved", ""))
        return self._item(visit, visit.store.claim(visit.labeler, order=visit.order), said)

    def rate(self, visit: Visit, _: Request) -> Response:
        """Save an answer and go on. One that comes twice, or for what is not theirs to answer, is explained."""
        item = _found(visit, visit.form.get("rating", ""), unanswered=True)
        if item is None:
            return self._not_open(visit)
        item = as_sent(item, visit.form)
        draft = draft_in(item, visit.store.settings.questionnaire(item.questions), visit.form)
        answer = answer_in(item, visit.form)
        if answer is None or (answer != SKIP and draft.step is not None):
            return self._incomplete(visit, item, INCOMPLETE)
        if answer != SKIP and (unfound := [line for lines in draft.unfound.values() for line in lines]):
            return self._incomplete(visit, item, NO_PASSAGE.format("; ".join(unfound)[:300]))
        try:
            visit.store.submit(
                item,
                answer.choice,
                seconds_of(visit.form, visit.shown_at),
                strength=answer.strength,
                comment=draft.comment,
                flags=answer.flags + (FLAGGED,) * draft.flagged,
                ranks_shown=answer.ranks,
                score=answer.score,
                view="rendered" if visit.form.get("view") == "rendered" else "raw",
                answers=draft.answers,
            )
        except UserError:
            if _found(visit, visit.form.get("rating", ""), unanswered=True) is None:  # a second press was faster
                return self._not_open(visit)
            raise
        if visit.store.feedback(item) is not None:
            return RedirectResponse(f"/practice/{item.rating}", 303)
        if decided(visit.store, item) is not None:
            return RedirectResponse(f"/votes/{item.rating}", 303)
        code = "".join(map(str, answer.ranks)) if answer.ranks else visit.form["answer"]
        return RedirectResponse("/?saved=skip" if answer == SKIP else f"/?saved={item.kind}-{code}", 303)

    def keep(self, visit: Visit, _: Request) -> Response:
        """Keep what was given to an open item so far; with JavaScript, the page sends it with each answer."""
        if item := _found(visit, visit.form.get("rating", ""), unanswered=True):
            _keep(visit, as_sent(item, visit.form))
        return Response(status_code=204)

    def _incomplete(self, visit: Visit, item: Assignment, said: str) -> Response:
        """The form again, with all that it had."""
        _keep(visit, item)
        return self._item(visit, item, said, 422)

    def undo(self, visit: Visit, _: Request) -> Response:
        """Reopen the last answer, with what came with it."""
        former = visit.store.last_rating(visit.labeler, visit.order)
        undone = visit.store.undo(visit.labeler, visit.order)
        if undone is None or former is None:
            claimed = visit.store.claim(visit.labeler, order=visit.order)
            return self._item(visit, claimed, NOTHING_BACK if former is None else PRACTICE_STAYS)
        said = f"Taken back, please answer again. Your answer was: {by_letter(str(as_shown(former, undone)))}."
        visit.store.drafts.keep(undone, taken_back(former, undone))
        return self._item(visit, undone, said)

    def practice(self, visit: Visit, request: Request) -> Response:
        """What the right answer to a calibration item was."""
        item = _found(visit, request.path_params["rating"])
        feedback = None if item is None else visit.store.feedback(item)
        if item is None or feedback is None:
            return RedirectResponse("/", 303)
        said, expected = str(as_shown(feedback.rating, item)), feedback.expected_shown
        words: dict[str, Any] = {
            "said": by_letter(said),
            "expected": by_letter(expected_in_words(expected)) if expected.chooses else "",
            "reason": expected.reason,
            "questions": [each.shown(by_letter) for each in graded_words(feedback)],
            "rendered": item_html(item),
        }
        return self._page("practice.html", item=item, names=names_of(item), right=feedback.right, **words)

    def votes(self, visit: Visit, request: Request) -> Response:
        """What the labelers said of an item that the referee has decided."""
        item = _found(visit, request.path_params["rating"])
        shown = None if item is None else decided(visit.store, item)
        if item is None or shown is None:
            return RedirectResponse("/", 303)
        said = [*map(by_letter, shown.votes), *shown.comments]
        words: dict[str, Any] = {
            "verdict": by_letter(shown.verdict),
            "csrf": seal(visit.token),
            "rendered": item_html(item),
        }
        return self._page("votes.html", item=item, names=names_of(item), votes=said, **words)

    def error(self, _: Request, error: Exception) -> Response:
        """Any failure as one plain page. What it was in detail is for the operator's terminal alone."""
        if isinstance(error, HTTPException):
            status, text = error.status_code, error.detail
        elif isinstance(error, UserError):
            if self.once.admit(str(error)):
                print(clean(str(error)), file=sys.stderr, flush=True)
            status, text = 503, NOT_SAVED
        else:
            status, text = 500, BROKEN
        return self._message(TITLES.get(status, "Not possible"), text, status, onward=status not in (401, 403, 404))

    def _visit(self, work: Work) -> Callable[[Request], Any]:
        """An endpoint that does `work` in a thread, for one whose session and form were checked."""

        async def endpoint(request: Request) -> Response:
            form = await read_form(request, self.secure) if request.method == "POST" else None
            return await run_in_threadpool(self._check, work, request, form)

        return endpoint

    def _check(self, work: Work, request: Request, form: Mapping[str, str] | None) -> Response:
        token = request.cookies.get(self.cookie, "")
        with RatingsStore(self.db) as store:
            labeler = store.people.labeler_of(token)
            if labeler is None:
                raise HTTPException(401, NO_SESSION)
            shown_at = time.time() if form is None else unseal(token, form.get("csrf", ""))
            if shown_at is None:
                raise HTTPException(403, FOREIGN)
            order: Order = "disputed" if labeler in store.people.referees() else self.order
            return work(Visit(store, labeler, token, form or {}, shown_at, order), request)

    def _greeting(self, token: str) -> tuple[str, str, bool]:
        """Whose link it is, the guideline, and whether they are a referee."""
        with RatingsStore(self.db) as store:
            labeler = store.people.labeler_of(token)
            if labeler is None:
                raise HTTPException(404, DEAD_LINK)
            return labeler, store.settings.guideline, labeler in store.people.referees()

    def _not_open(self, visit: Visit) -> Response:
        return self._message("Not saved", NOT_OPEN, 409, visit.form.get("comment", "").strip())

    def _item(self, visit: Visit, item: Assignment | None, said: str, status: int = 200) -> Response:
        progress = visit.store.progress(visit.labeler, visit.order)
        kept = {} if item is None else visit.store.drafts.of(item)
        shown: dict[str, Any] = {"progress": progress, "said": said or RESUMED * bool(kept), "csrf": seal(visit.token)}
        if item is None:
            return self._page("end.html", **shown)
        asked = visit.store.settings.questionnaire(item.questions)
        draft = new_draft(asked, item, kept)
        return self._page(
            "item.html",
            status,
            **shown,
            item=item,
            rendered=item_html(item),
            raw=visit.form.get("view") == "raw",
            names=names_of(item),
            buttons=buttons(item.kind),
            ends=("A is better", "B is better") if item.kind == "pair" else ("worst", "best"),
            keys=[(key, by_letter(words)) for key, words in keys_of(item.kind) if key.isascii()],
            place=position(progress),
            guideline=visit.store.settings.guideline,
            draft=draft,
            ranks=kept.get("ranks", [None] * len(item.completions)),
            steps=shown_steps(draft, item.kind),
            overall=overall_heading(asked, draft, item.kind),
            asked=asked,
            marked=marked_lines(item, asked, draft),
            comment_characters=COMMENT_CHARACTERS,
        )

    def _message(self, title: str, text: str, status: int, comment: str = "", onward: bool = True) -> Response:
        return self._page("message.html", status, title=title, text=text, comment=comment, onward=onward)

    def _page(self, template: str, status: int = 200, **context: Any) -> Response:
        # The headers here too: Starlette answers a crash from outside every middleware.
        return HTMLResponse(self.templates.get_template(template).render(context), status, dict(HEADERS))


def make_app(
    db: str | os.PathLike[str],
    *,
    allowed_hosts: Sequence[str] = LOCAL_HOSTS,
    order: Order = "random",
    secure: bool = False,
) -> Starlette:
    """The rating page as an ASGI application.

    Args:
        db: ratings file; it has to be there when a request comes.
        allowed_hosts: names in the address that it answers to. Another name is DNS rebinding, or a wrong set-up.
        order: of the items, as `RatingsStore.claim` has it.
        secure: whether browsers come by https, through a proxy. Sessions are then refused to anything less.
    """
    page = RatingPage(db, order, secure)
    app = Starlette(
        routes=page.routes(),
        middleware=[
            Middleware(SecurityHeaders),
            Middleware(TrustedHostMiddleware, allowed_hosts=list(allowed_hosts), www_redirect=False),
        ],
        exception_handlers={
            HTTPException: page.error,
            UserError: page.error,
            Exception: page.error,
            ClientDisconnect: lambda *_: Response(status_code=400),  # nobody reads it; a traceback would fill the log
        },
    )
    app.router.redirect_slashes = False  # behind a proxy, its redirects would send the link's token in clear, by http
    return app


def _environment(version: str) -> Environment:
    """Templates in which every text is cleaned of controls, then escaped; a missing name is an error."""
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=lambda value: clean(value) if type(value) is str else value,  # not what a macro made: that is markup
    )
    environment.globals["version"] = version
    return environment


def _found(visit: Visit, rating: str, unanswered: bool = False) -> Assignment | None:
    """The item behind a rating's id that came from outside, if it is this labeler's (and not answered yet)."""
    if not re.fullmatch("[0-9]{1,18}", rating):  # SQLite takes no larger number
        return None
    return visit.store.assignment(int(rating), visit.labeler, unanswered)


def _keep(visit: Visit, item: Assignment) -> None:
    """Keep what the form has given to the item."""
    draft = draft_in(item, visit.store.settings.questionnaire(item.questions), visit.form)
    visit.store.drafts.keep(item, kept_in(item, draft, visit.form))
