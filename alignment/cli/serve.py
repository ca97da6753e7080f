"""`alignment serve`: a published version behind an OpenAI-compatible server."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from alignment.distributed.ticker import ticking
from alignment.errors import UserError
from alignment.terminal import clean, one_line
from alignment.training.stage import quiet_libraries

ABOUT = """Serve a policy with `transformers serve`, or vLLM where it is installed: an OpenAI-compatible API.

  {0} help-desk-ppo@prod
  {0} help-desk-ppo --engine transformers --port 8001 -- --continuous-batching

An adapter is merged once, into ~/.cache/alignment/plain. Options after -- are the server's own. The server has no
password: leave --host at this machine, or put a proxy in front of it.
"""


def main(argv: Sequence[str] | None = None, called: str = "alignment serve") -> int:
    """Parse the command line and become the server. Exit code 2 for a mistake."""
    args = _parse(argv, called)
    quiet_libraries()
    try:
        with ticking("serve"):
            model, engine, command = _prepare(args)
    except UserError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return 2
    base = f"http://{'[' + args.host + ']' if ':' in args.host else args.host}:{args.port}/v1"
    if args.dry_run:
        print(json.dumps({"model": model.name, "folder": str(model.path), "engine": engine, "command": command}))
        return 0
    print(clean(f"{model.name} by {engine}: {base} (Ctrl-C ends it)"), file=sys.stderr)
    print(clean(f"  curl {base}/models; any OpenAI client: base_url={base} model={model.name}"), file=sys.stderr)
    return _become(command, model.folder)


def _become(command: Sequence[str], folder: Path) -> NoReturn:
    """Go on as the server: signals reach it, and nothing is left when it ends."""
    sys.stderr.flush()
    os.chdir(folder)  # so that the model's name is a folder there
    os.environ["HF_HUB_OFFLINE"] = "1"  # all files are here
    os.execv(command[0], list(command))


def _parse(argv: Sequence[str] | None, called: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=called,
        description=ABOUT.format(called),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"example: {called} help-desk-ppo@prod --port 8001",
    )
    parser.add_argument("model", help="a registry reference or a local folder")
    parser.add_argument("--engine", choices=["auto", "transformers", "vllm"], default="auto", help="what serves it")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="0: a free one (default 8000)")
    parser.add_argument("--registry", help="registry folder (default: $ALIGNMENT_REGISTRY or ./registry)")
    parser.add_argument("--dry-run", action="store_true", help="prepare the folder and print the server's command")
    arguments = list(sys.argv[1:] if argv is None else argv)
    at = arguments.index("--") if "--" in arguments else len(arguments)
    args = parser.parse_args(arguments[:at])
    args.more = arguments[at + 1 :]
    return args


def _prepare(args: argparse.Namespace) -> tuple[Any, str, list[str]]:
    from alignment.evaluation.serving import choose_engine, free_port, plain_model, server_command
    from alignment.registry import Registry

    engine = choose_engine(args.engine)
    args.port = free_port(args.host, args.port)
    model = plain_model(args.model, Registry(args.registry))
    return model, engine, server_command(model, engine, args.host, args.port, args.more)
