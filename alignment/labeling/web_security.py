"""What stands between the rating page and the network: headers, where a form came from and how long it may be."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Mapping
from urllib.parse import parse_qsl

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY_BYTES = 1024 * 1024  # nine answers of 12,000 characters, each of which is at most 9 bytes on the wire in CJK
FORM_FIELDS = 256  # twelve questions about nine answers, and the rest
HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
    " form-action 'self'; connect-src 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
FOREIGN = "This form did not come from a page that this server gave to you. Please open your personal link again."


class SecurityHeaders:
    """Puts the headers on every response of the application below it that does not say otherwise."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self.app(scope, receive, send_with_headers)


async def read_form(request: Request, secure: bool) -> dict[str, str]:
    """The fields of a form that one of our own pages sent. Anything that is no text in them becomes U+FFFD.

    Only the plain encoding of forms is read: files, and the temporary ones that they need, never come into it.
    Raises HTTPException: 403 if it came from elsewhere, 413 if it is too long, 415 or 400 if it is no form of ours.
    """
    if not _is_own(request, secure):
        raise HTTPException(403, FOREIGN)
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
        raise HTTPException(415, "This is not a form of this page.")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_BYTES:
            raise HTTPException(413, "That is more than this page takes. Please shorten what you wrote.")
    try:
        text = body.decode("ascii", "replace")
        return dict(parse_qsl(text, keep_blank_values=True, errors="replace", max_num_fields=FORM_FIELDS))
    except ValueError:
        raise HTTPException(400, "This is not a form of this page.") from None


def _is_own(request: Request, secure: bool) -> bool:
    """Whether the browser says that a page of this very server sent the request.

    Under our own no-referrer policy browsers send `Origin: null`, even from our pages, so that Sec-Fetch-Site has to
    speak there. No page can forge either header. A request with neither is refused.
    """
    origin, site = request.headers.get("origin", "null"), request.headers.get("sec-fetch-site")
    if origin == "null" or site not in (None, "same-origin"):
        return site == "same-origin"
    scheme, _, host = origin.partition("://")
    return scheme == ("https" if secure else "http") and host == request.headers.get("host")


def seal(token: str, now: float | None = None) -> str:
    """The CSRF mark of a session: when it was made, and a code over it that takes the session's token to make."""
    made = str(round(1000 * (time.time() if now is None else now)))
    return f"{made}-{hmac.new(token.encode(), b'form ' + made.encode(), hashlib.sha256).hexdigest()}"


def unseal(token: str, mark: str) -> float | None:
    """When the mark was made, in seconds; None if it is not of this session. Takes as long for any wrong mark."""
    made = mark.partition("-")[0]
    if not (made.isascii() and made.isdecimal() and len(made) < 16):
        return None
    when = int(made) / 1000
    return when if hmac.compare_digest(seal(token, when).encode(), mark.encode("utf-8", "replace")) else None
