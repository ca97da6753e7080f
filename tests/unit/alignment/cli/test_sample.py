"""`alignment sample`: what it stores, and mistakes found before anything is sampled."""

import json

import pytest
from helpers import tiny
from helpers.two_policies import publish_two_policies

from alignment.cli.sample import main
from alignment.labeling.sampling import groups
from alignment.ratings import Completion, RatingsStore
from alignment.registry import Registry


@pytest.fixture
def house(tmp_path, tokenizer, monkeypatch):
    """A working folder with a registry that holds two policies, and three prompts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ALIGNMENT_REGISTRY", raising=False)
    publish_two_policies(tmp_path, tokenizer)
    rows = [{"prompt": f"Question {number}?", "fact": number} for number in range(3)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def run(*arguments):
    return main([*arguments, "--prompts", "prompts.jsonl", "--db", "r.db", "--max-new-tokens", "4"])


def test_each_pair_holds_one_answer_of_each_model_and_the_prompts_columns(house, capsys):
    assert run("one", "two", "--need", "2", "--json") == 0
    counts = json.loads(capsys.readouterr().out)
    with RatingsStore("r.db") as store:
        items = store.items()
    assert len(items) == counts["items"] == 3 - counts["same"]
    assert counts["models"] == ["one@v1", "two@v1"]
    assert all([answer.model for answer in item.completions] == ["one@v1", "two@v1"] for item in items)
    assert all(item.prompt[0]["content"] == f"Question {item.metadata['fact']}?" for item in items)
    assert {item.need for item in items} == {2}


def test_completions_do_not_depend_on_the_batch_but_on_the_seed(house, capsys):
    """Of more prompts than are sampled at a time (eight batches)."""
    rows = [{"prompt": f"Question {number % 3}?"} for number in range(11)]
    (house / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    drawn = []
    for number, arguments in enumerate((["--batch-size", "1"], ["--batch-size", "5"], ["--seed", "1"])):
        options = ["--prompts", "prompts.jsonl", "--db", f"{number}.db", "--max-new-tokens", "4", "--kind", "rank"]
        assert main(["one", "--k", "3", *options, *arguments]) == 0
        with RatingsStore(f"{number}.db") as store:
            drawn.append([sorted(answer.text for answer in item.completions) for item in store.items()])
    assert drawn[0] == drawn[1] != drawn[2]
    assert len({text for item in drawn[0] for text in item}) > 20  # neither the numbers nor the rounds share a stream


def test_completions_become_pairs_rankings_or_single_items_and_none_twice():
    a, b, again, c = (Completion(text, model=model) for text, model in (("a", "1"), ("b", "2"), ("a", "3"), ("c", "4")))
    made, same = groups([a, b, again, c], "pair")
    assert (made, same) == ([[a, b], [a, c], [b, again], [b, c], [again, c]], 1)
    assert groups([a, b, again, c], "rank") == ([[a, b, c]], 1)
    assert groups([a, b, again, c], "single") == ([[a], [b], [c]], 1)
    assert groups([a, again], "rank") == ([], 1)


def test_rankings_hold_all_answers_of_a_prompt(house, capsys):
    assert run("one", "two", "--k", "4", "--kind", "rank", "--json") == 0
    counts = json.loads(capsys.readouterr().out)
    with RatingsStore("r.db") as store:
        items = store.items()
    assert len(items) == counts["items"] == 3
    assert {item.kind for item in items} == {"rank"}
    assert sum(len(item.completions) for item in items) == 12 - counts["same"]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--k", "1"], "--k 1: expected 2 or more"),
        (["--k", "10", "--kind", "rank"], "--k 10: expected 9 or fewer completions to rank"),
        (["--need", "0"], "--need 0: expected 1 or more"),
        (["--limit", "-1"], "--limit -1: expected 1 or more"),
        (["--batch-size", "0"], "--batch-size 0: expected 1 or more"),
        (["--max-new-tokens", "0"], "--max-new-tokens 0: expected 1 or more"),
        (["--temperature", "-1"], "--temperature -1.0: expected 0 or more"),
        (["--temperature", "nan"], "--temperature nan: expected 0 or more"),
        (["--seed", "-1"], "--seed -1: expected 0 or more"),
        (["--db", "prompts.jsonl"], "prompts.jsonl: not a ratings file"),
        (["--db", "no/where.db"], "no/where.db: cannot open the ratings file"),
    ],
)
def test_a_mistake_is_one_line_before_any_sampling(house, capsys, arguments, part):
    assert main(["one", "--prompts", "prompts.jsonl", "--db", "r.db", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {part}")
    assert len(error.splitlines()) == 1  # no progress line: nothing was sampled


def test_prompts_longer_than_learned_positions_are_found_before_the_first_model_samples(house, tokenizer, capsys):
    folder = tiny.write(house / "gpt2", tiny.make_gpt2(tokenizer), tokenizer)
    Registry("registry").publish("short", folder, stage="sft", role="policy")
    (house / "prompts.jsonl").write_text(json.dumps({"prompt": "word " * 300}) + "\n")
    assert run("one", "short") == 2
    assert "prompt 1 has" in capsys.readouterr().err
    assert not (house / "r.db").exists()


def test_an_adapter_version_and_its_base_answer(house, tokenizer, capsys):
    """A registry's version that was trained by an adapter method was a traceback here."""
    import peft

    from alignment.registry.manifest import Parent

    base = Registry("registry").resolve("one")
    config = peft.LoraConfig(r=2, task_type="CAUSAL_LM", init_lora_weights=False)
    adapted = peft.get_peft_model(tiny.make_policy(tokenizer, seed=0), config)
    adapted.save_pretrained("adapter")
    tokenizer.save_pretrained("adapter")
    made = Registry("registry").publish(
        "talk", house / "adapter", stage="sft", role="policy", base=Parent("base", base.ref, base.digest),
        config={"model": {"name": "one", "method": "lora"}},
    )  # fmt: skip
    assert run("talk", "one", "--json") == 0
    assert json.loads(capsys.readouterr().out)["models"] == [made.ref, base.ref]


def test_a_model_without_a_template_is_given_one(house, capsys):
    tokenizer = tiny.make_tokenizer()
    tokenizer.chat_template = None
    tiny.write(house / "bare", tiny.make_policy(tokenizer), tokenizer)
    assert run("./bare") == 2
    assert "set model.template" in capsys.readouterr().err
    assert run("./bare", "--template", "plain") == 0
