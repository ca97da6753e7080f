"""A program that tries a model's tokenizer and chat template: `python trial_program.py FOLDER SECONDS BYTES`.

`alignment.models.importing.trial` runs it. A template is a program of its author's, and a tokenizer's patterns can take
time without end or fail in the tokenizers library: here either ends only this process. Standard output has a line of
JSON for each part that is begun, and one for its result.
"""

from __future__ import annotations

import json
import re
import resource
import sys
from pathlib import Path
from typing import Any

LONGEST = 1_000_000
"""Characters that the template may make of a few short messages."""
_RUN = 500
_TEXTS = (
    "Hello, how can I help you today?\n\n  It's 12:30, isn't it? caf\u00e9 \u4f60\u597d \U0001f600 <|im_end|>",
    *(
        run * _RUN + last
        for run in ("a", "x", " ", "\n", "1", ".", "-", "ab ", "\u00e9", "\u4f60")
        for last in ("", "!")
    ),
)
_QUESTION, _ANSWER = {"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}
_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}},
}


def say(**fields: Any) -> None:
    """One line for the parent."""
    print(json.dumps(fields), flush=True)


def limit(seconds: float, memory: int) -> None:
    """Limit what comes from here on: processor time, and memory beyond what is in use."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    allowed = int(used.ru_utime + used.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (allowed, allowed + 5))
    now = int(re.search(r"VmData:\s*(\d+)", Path("/proc/self/status").read_text())[1]) * 1024  # type: ignore[index]
    resource.setrlimit(resource.RLIMIT_DATA, (now + memory, now + memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def try_tokenizer(path: Path) -> None:
    """Tokenize texts, among them long runs of each character that a pattern names, which make bad patterns slow."""
    from tokenizers import Tokenizer

    say(part=path.name)
    content = path.read_text(encoding="utf-8")
    patterns = "".join(re.findall(r'"Regex"\s*:\s*"((?:[^"\\]|\\.)*)"', content))
    named = sorted(set(re.sub(r"\\\\.|\\.|\W", "", patterns)))[:60]
    tokenizer = Tokenizer.from_str(content)
    for text in (*_TEXTS, *(each * _RUN + "!" for each in named)):
        tokenizer.encode(text)


def templates(folder: Path) -> dict[str, str]:
    """The chat templates of a folder, each by the file that holds it."""
    found = {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.jinja"))}
    try:
        kept = json.loads((folder / "tokenizer_config.json").read_bytes()).get("chat_template")
    except (OSError, ValueError, AttributeError, RecursionError):
        return found
    several = kept if isinstance(kept, list) else [{"name": "", "template": kept}]
    for each in several:
        if isinstance(each, dict) and isinstance(each.get("template"), str):
            name = f"chat_template {each['name']}" if each.get("name") else "chat_template"
            found[f"{name} of tokenizer_config.json"] = each["template"]
    return found


def try_template(name: str, text: str) -> None:
    """Render short conversations. One that the template refuses is no fault: it may want other turns, or a system's."""
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    say(part=name)
    system = {"role": "system", "content": "Be kind."}
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    failures: list[Exception | None] = []
    for messages in ([_QUESTION], [_QUESTION, _ANSWER], [system, _QUESTION, _ANSWER], [_QUESTION, _ANSWER] * 8):
        for tools in (None, [_TOOL]):
            for generation in (False, True):
                try:
                    rendered, _ = render_jinja_template(
                        [messages], tools=tools, chat_template=text, add_generation_prompt=generation, **tokens
                    )
                except MemoryError:
                    raise
                except Exception as error:  # noqa: BLE001 - a template can make Python raise anything
                    failures.append(error)
                    continue
                failures.append(None)
                if len(rendered[0]) > LONGEST:
                    raise MemoryError(f"{len(rendered[0]):,} characters of {len(messages)} short messages")
    if all(error is not None and not isinstance(error, TemplateError) for error in failures):
        raise next(filter(None, failures))


def main(folder: Path, seconds: float, memory: int, with_template: bool) -> None:
    """Try each part."""
    import tokenizers  # noqa: F401 - before the limits, which are for the model's own work
    import transformers.utils.chat_template_utils  # noqa: F401

    say(part="a limit of its own")
    limit(seconds, memory)
    for name, text in (templates(folder) if with_template else {}).items():
        try_template(name, text)
    if (folder / "tokenizer.json").is_file():
        try_tokenizer(folder / "tokenizer.json")
    say(result="fine")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "template")
    except MemoryError as error:
        say(result="memory", reason=str(error))
    except BaseException as error:  # noqa: BLE001 - tokenizers' PanicException is no Exception
        say(result=type(error).__name__, reason=(str(error).strip().splitlines() or [""])[0][:300])
