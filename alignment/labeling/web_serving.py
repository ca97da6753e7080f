"""The rating page as a server that runs until Ctrl-C."""

from __future__ import annotations

import os
import re
import shlex
import sys

from alignment.errors import UserError
from alignment.labeling.desk import show_warnings
from alignment.labeling.web import LOCAL_HOSTS, make_app
from alignment.labeling.web_connections import listen, page_server, quiet_logs
from alignment.ratings import Order, RatingsStore
from alignment.ratings.setup_warnings import setup_warnings
from alignment.terminal import one_line, screen

OPENS = (
    "--public opens port {0} on every address of this machine, in plain HTTP. Put a proxy with TLS in front of it that"
    " passes the Host header on (without one, browsers get no session), and let nobody but the proxy through the"
    " firewall to port {0}."
)


def serve(
    db: str | os.PathLike[str], host: str, port: int, public: str | None, order: Order, called: str = "alignment rate"
) -> None:
    """Serve the rating page until Ctrl-C.

    `host` is the address to listen on, `public` the name under which labelers reach it through a proxy with TLS, and
    `called` how the program was called.
    Raises UserError if the file, the name or the port is not usable.
    """
    if public is not None and not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?", public):
        raise UserError(f"--public {public!a}: expected a host's name or address alone, such as rate.example.org")
    app = make_app(db, allowed_hosts=(public,) if public else LOCAL_HOSTS, order=order, secure=public is not None)
    server = page_server(app)
    # Whenever the last connection to a file closes, SQLite moves its log into it. This one, held and not used, spares
    # every request that: 4 ms instead of 30 for a page, and what is acknowledged is on disk either way.
    with RatingsStore(db) as store, listen(host, port, server) as listener, quiet_logs():
        address = f"http://{host}:{listener.getsockname()[1]}"
        base = f"https://{public}" if public else address
        where = f"--db {shlex.quote(one_line(str(db)))} --url {base}"
        show_warnings(setup_warnings(store), screen(stderr=True))
        print(f"Rating page: {base}/ (Ctrl-C ends it; every answer is saved at once)", file=sys.stderr)
        print(f"Your link to their progress: {called} progress --link {where}", file=sys.stderr)
        print(f"Links for labelers: {called} invite NAME {where}", file=sys.stderr)
        if public:
            print(OPENS.format(listener.getsockname()[1]), file=sys.stderr)
        try:
            server.run(sockets=[listener])
        except KeyboardInterrupt:  # uvicorn's way to say that Ctrl-C has ended it in order
            print("Stopped. Every answer is saved.", file=sys.stderr)
