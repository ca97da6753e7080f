"""YAML that is small and stands for much, or nests deeply, is refused at once, with its line and the limit."""

import json
import resource
import subprocess
import sys

import pytest

from alignment.config.yaml_text import MAX_DEPTH, MAX_VALUES, parse_yaml
from alignment.errors import ConfigError

BOMB = "\n".join(["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 11))])
MERGES = "\n".join(["a0: &a0 {x: 1}", *(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, 40))])
CHAIN = "\n".join(["a0: &a0 x", *(f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 200))])
REFUSED = {
    "aliases": (BOMB, rf"^c\.yaml:5: more than {MAX_VALUES:,} values"),
    "merges": (MERGES, rf"^c\.yaml:1[0-9]: more than {MAX_VALUES:,} values"),
    "chain": (CHAIN, rf"^c\.yaml:{MAX_DEPTH}: .* more than {MAX_DEPTH} deep"),
    "brackets": ("x: 1\ny: " + "[" * 50_000, rf"^c\.yaml:2: .* more than {MAX_DEPTH} deep"),
    "braces": ("{a: " * 50_000, rf"^c\.yaml:1: .* more than {MAX_DEPTH} deep"),
    "dashes": ("- " * 50_000, rf"^c\.yaml:1: .* more than {MAX_DEPTH} deep"),
    "itself": ("x: 1\na: &a [*a]", r"^c\.yaml:2: \*a stands within &a"),
    "itself as a key": ("a: &a {*a : 1}", r"^c\.yaml:1: \*a stands within &a"),
    "many": ("x: [" + "1," * 400_000 + "]", rf"^c\.yaml:1: more than {MAX_VALUES:,} values"),
    "long": ("x: " + "a" * 1_000_001, r"^c\.yaml: 1,000,004 characters, at most 1,000,000"),
    "long integer": ("x: !!int " + "7" * 5000, r"^c\.yaml: not valid YAML"),
    "empty integer": ("x: !!int ''", r"^c\.yaml: not valid YAML"),
    "infinite base 60": ("x: !!float " + "59:" * 400 + "1.5", r"^c\.yaml: not valid YAML"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_grow_is_refused_in_one_line(name: str) -> None:
    text, expected = REFUSED[name]
    with pytest.raises(ConfigError, match=expected) as caught:
        parse_yaml(text, "c.yaml")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_refusing_takes_little_memory_and_time() -> None:
    program = (
        "import json, resource, sys\n"
        "from alignment.config.yaml_text import parse_yaml\n"
        "from alignment.errors import ConfigError\n"
        "def used(): return resource.getrusage(resource.RUSAGE_SELF)\n"
        "said, start = 0, used()\n"
        "for text in json.load(sys.stdin):\n"
        "    try:\n        parse_yaml(text, 'c.yaml')\n"
        "    except ConfigError:\n        said += 1\n"
        "end = used()\n"
        "print(json.dumps([said, end.ru_maxrss - start.ru_maxrss, end.ru_utime - start.ru_utime]))\n"
    )
    texts = [*(text for text, _ in REFUSED.values()), "x: " + "1" * 900_000 + "x", "x: " + "1:" * 400_000 + "1"]
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30)),
    )
    said, kilobytes, _ = json.loads(done.stdout)
    assert said == len(REFUSED)  # the last two are texts, and were read in linear time
    assert kilobytes < 200_000


def test_an_honest_config_with_aliases_is_read() -> None:
    text = "base: &base {lr: 1e-5, seed: 3}\nmore: {<<: *base, seed: 4}\nagain: [*base, *base]"
    base = {"lr": 1e-5, "seed": 3}
    assert parse_yaml(text, "c.yaml") == {"base": base, "more": {"lr": 1e-5, "seed": 4}, "again": [base, base]}
    deep = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert json.dumps(parse_yaml(deep, "c.yaml")) == deep
    assert len(parse_yaml("[" + "1," * (MAX_VALUES - 1) + "]", "c.yaml")) == MAX_VALUES - 1


def test_the_halves_in_which_json_writes_an_emoji_are_put_together():
    assert parse_yaml(json.dumps({"\U0001f600": "a\U0001f600"}), "c.yaml") == {"\U0001f600": "a\U0001f600"}
