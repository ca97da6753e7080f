"""What counts as a secret, what does not, and that a config with one is refused."""

from __future__ import annotations

import json

import pytest

from alignment.config.loading import load_config
from alignment.config.sections import RunConfig
from alignment.errors import ConfigError
from alignment.redaction import REDACTED, find_secrets, redact, without_secrets

# Put together here, so that no scanner takes this file for one that holds keys.
KEYS = {
    "hugging face": "hf_" + "aB3" * 8,
    "w&b": "0123456789abcdef" * 2 + "01234567",
    "openai": "sk-" + "proj-Ab12" * 3,
    "github": "ghp_" + "Zz9" * 12,
    "aws": "AKIA" + "ABCDEFGH12345678",
    "slack": "xoxb-" + "1234567890-abc",
    "jwt": "eyJhbGciOiJI" + ".eyJzdWIiOiIx" + ".c2lnbmF0dXJl",
}


@pytest.mark.parametrize("kind", KEYS)
def test_keys_are_told_by_their_form(kind):
    assert KEYS[kind] not in without_secrets(KEYS[kind])
    if kind != "w&b":
        assert without_secrets(f"with {KEYS[kind]} in it") == f"with {REDACTED} in it"
    assert list(find_secrets({"tracking": {"project": KEYS[kind]}})) == ["tracking.project"]


@pytest.mark.parametrize(
    "text",
    [
        "sft-demo@sha256:" + "0123456789abcdef" * 4, "runs/demo/data/demonstrations.jsonl", "<|im_end|>", "owner/name",
        "/models/snapshots/" + "0123456789abcdef" * 2 + "01234567", "https://host:8000/score", "help-desk-sft@v3",
        "skeleton-task-hf_small", "me@example.org",
        "/data/sk-finetuned-assistant-model", "http://host:8000?reply=me@example.org",
    ],
)  # fmt: skip
def test_what_configs_hold_otherwise_is_left_alone(text):
    assert without_secrets(text) == text
    assert redact({"model": {"name": text, "eos_token": text, "pad_token": None}})["model"]["eos_token"] == text


def test_keys_of_mappings_and_the_environment_tell_of_secrets_too(monkeypatch):
    monkeypatch.setenv("DATABASE_PASSWORD", "open sesame 9")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false_false")
    monkeypatch.setenv("API_KEY_ENABLED", "true")
    given = {"a": [{"API-KEY": "x", "password": None}], "note": "say open sesame 9", "flag": "false_false is true"}
    assert redact(given) == {
        "a": [{"API-KEY": REDACTED, "password": None}], "note": f"say {REDACTED}", "flag": "false_false is true",
    }  # fmt: skip
    assert list(find_secrets(given)) == ["a.0.API-KEY", "note"]
    assert without_secrets("ftp://me:open@host/x") == f"ftp://{REDACTED}@host/x"


def test_a_config_with_a_secret_is_refused_and_the_secret_not_repeated(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "swordfish and more")
    values = {"name": "t", "data": {"train": "x"}, "registry": {"name": "t"}}
    path = tmp_path / "t.yaml"
    path.write_text(json.dumps(values))
    load_config(RunConfig, path)
    for override in ("tracking.project=swordfish and more", f"tracking.project={KEYS['github']}"):
        with pytest.raises(ConfigError, match=r"tracking\.project holds a secret") as refused:
            load_config(RunConfig, path, [override])
        assert override.partition("=")[2] not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("http://:hunter2hunter2@host/score", "http://(redacted)@host/score"),
        ("http://me:p@ss@host/score", "http://(redacted)@host/score"),
        ("https://host/score?api_key=abc123&n=2", "https://host/score?(redacted)&n=2"),
        ("https://host/score?n=2&token=abc123", "https://host/score?n=2&(redacted)"),
        ("x -----BEGIN " + "PRIVATE KEY-----\nMIIB\n-----END " + "PRIVATE KEY----- y", "x (redacted) y"),
    ],
)
def test_secrets_in_addresses_and_files_of_keys(text, left):
    assert without_secrets(text) == left
    assert list(find_secrets({"rewards": {"url": text}})) == ["rewards.url"]


@pytest.mark.parametrize("key", ["token", "hf_token", "session_token", "Authorization"])
def test_keys_that_hold_tokens(key):
    assert redact({key: "x"}) == {key: REDACTED}
