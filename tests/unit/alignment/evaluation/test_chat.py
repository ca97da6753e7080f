"""A chat with tiny models: what is drawn is what the engine draws, and a blind choice is a rating."""

import asyncio

import pytest
from helpers.tiny import make_policy, make_tokenizer, write
from textual.widgets import Input, Static
from typer.testing import CliRunner

from alignment.cli.main import app
from alignment.evaluation.chat import ChatSettings, Dialogue, Speaker
from alignment.evaluation.chat_screen import ChatApp
from alignment.generation.engine import TransformersEngine
from alignment.generation.sampling import Sampling, response_text
from alignment.models.lengths import LengthError
from alignment.models.sources import ModelSource
from alignment.ratings import RatingsStore
from alignment.templates.ends import end_token_ids
from alignment.templates.rendering import encode_prompt


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root, tokenizer = tmp_path_factory.mktemp("chat"), make_tokenizer()
    return [write(root / f"model-{seed}", make_policy(tokenizer, seed), tokenizer) for seed in (0, 1)]


@pytest.fixture(scope="module")
def speakers(folders):
    return [Speaker(ModelSource(str(folder))) for folder in folders]


def dialogue(speakers, **settings):
    return Dialogue(speakers, ChatSettings(**{"temperature": 0.0, "max_new_tokens": 12} | settings))


def test_what_is_heard_is_the_engines_answer_as_it_grows(speakers, folders):
    talk, heard = dialogue(speakers[:1]), []
    talk.system = "Be short."
    talk.ask("When does the library open?")
    messages = talk.messages()
    talk.answer(lambda place, text: bool(heard.append(text)))
    tokenizer, policy = make_tokenizer(), speakers[0]._policy
    sampling = Sampling(12, 0.0, end_token_ids(tokenizer), tokenizer.pad_token_id, 1)
    tokens = TransformersEngine(policy, tokenizer).generate([encode_prompt(tokenizer, messages)], [0], sampling)
    assert talk.turns[-1] == {
        "role": "assistant",
        "content": response_text(tokens.responses[0], sampling, tokenizer).strip(),
    }
    assert [message["role"] for message in messages] == ["system", "user"]
    assert len(heard) == len(tokens.responses[0]) and all(
        len(a) <= len(b) for a, b in zip(heard, heard[1:], strict=False)
    )


def test_an_answer_is_stopped_drawn_again_and_taken_back(speakers):
    talk = dialogue(speakers[:1], temperature=1.5, max_new_tokens=40)
    talk.ask("one?")
    talk.answer(lambda place, text: len(text) > 3)
    short = talk.turns[-1]["content"]
    talk.ask(talk.take_back())
    talk.answer(lambda place, text: False)
    assert [turn["role"] for turn in talk.turns] == ["user", "assistant"] and talk.turns[-1]["content"] != short
    assert talk.take_back() == "one?" and talk.turns == [] and talk.take_back() == ""


def test_a_conversation_beyond_the_context_is_refused(speakers):
    talk = dialogue(speakers[:1])
    talk.ask("many words " * 200)
    with pytest.raises(LengthError, match="begin a new one"):
        talk.answer(lambda place, text: False)


def test_a_choice_between_two_is_a_rating_that_names_the_models_and_the_order_shown(speakers, tmp_path):
    with RatingsStore(tmp_path / "r.db", create=True) as store:
        orders = set()
        for number in range(6):
            talk = dialogue(speakers, seed=number, max_new_tokens=6)
            talk.ask(f"question {number}?")
            orders.add(tuple(talk.order))
            talk.answer(lambda place, text: False)
            left, right = talk.waiting
            who = talk.choose("right", store, "ada")
            assert who == f"left: {left.model}, right: {right.model}"
            assert talk.turns[-1]["content"] == right.text
            item, rating = store.items()[-1], store.ratings()[-1]
            preferred = item.completions[0 if rating.choice == "first" else 1]
            assert (preferred.text, preferred.model) == (right.text, right.model)
            assert item.completions[rating.order_shown[0]].text == left.text and rating.labeler == "ada"
        assert len(orders) == 2  # neither model always stands on the left
        talk.ask("skipped?")
        talk.answer(lambda place, text: False)
        talk.choose("skip", store, "ada")
        assert len(store.ratings()) == 6


def screen(app, script, size=(80, 30)):
    async def run():
        async with app.run_test(size=size) as pilot:
            await pilot.pause()
            await asyncio.wait_for(script(pilot), 60)

    asyncio.run(run())


async def answered(pilot):
    while pilot.app.answering or not (pilot.app.dialogue.waiting or pilot.app.dialogue.turns):
        await asyncio.sleep(0.01)
    await pilot.app.workers.wait_for_complete()
    await pilot.pause()


def note(pilot):
    return str(pilot.app.query_one("#note", Static).content)


@pytest.mark.parametrize("width", [60, 120])
def test_the_screen_asks_shows_both_answers_blind_and_keeps_the_choice(speakers, tmp_path, width):
    with RatingsStore(tmp_path / "r.db", create=True) as store:
        chat = ChatApp(dialogue(speakers, max_new_tokens=6), store, "ada")

        async def script(pilot):
            await pilot.press(*"hi there", "enter")
            await answered(pilot)
            assert "Which is better?" in note(pilot) and pilot.app.query_one(Input).disabled
            assert "model-" not in str(pilot.app.export_screenshot())
            await pilot.press("2")
            await pilot.pause()
            assert "model-" in note(pilot) and "(kept)" in note(pilot)
            await pilot.press("ctrl+e")
            assert pilot.app.query_one(Input).value == "hi there"
            await pilot.press(*["backspace"] * 8, *"/temperature x", "enter")
            await pilot.pause()
            assert "expected a number" in note(pilot)
            await pilot.press("ctrl+d")

        screen(chat, script, (width, 30))
        assert [rating.choice in ("first", "second") for rating in store.ratings()] == [True]


def test_the_screen_draws_again_and_changes_the_system_prompt(speakers):
    chat = ChatApp(dialogue(speakers[:1], temperature=1.0, max_new_tokens=6))

    async def script(pilot):
        await pilot.press(*"/system Be kind.", "enter")
        await pilot.press(*"q", "enter")
        await answered(pilot)
        first = pilot.app.dialogue.turns[-1]["content"]
        for _ in range(8):  # a short answer may be drawn twice
            await pilot.press("ctrl+r")
            await answered(pilot)
            if pilot.app.dialogue.turns[-1]["content"] != first:
                break
        assert pilot.app.dialogue.turns[-1]["content"] != first
        assert [m["role"] for m in pilot.app.dialogue.messages()] == ["system", "user", "assistant"]
        await pilot.press("ctrl+d")

    screen(chat, script)


def test_by_lines_a_model_answers_and_two_wait_for_a_choice(folders, tmp_path):
    one = ["chat", str(folders[0]), "--max-new-tokens", "4", "--temperature", "0"]
    done = CliRunner().invoke(app, one, input="hello\n\n")
    assert done.exit_code == 0 and len(done.stdout.strip()) > 0
    db = tmp_path / "r.db"
    two = [*one[:2], str(folders[1]), *one[2:], "--db", str(db), "--labeler", "ada"]
    done = CliRunner().invoke(app, two, input="hello\nx\n1\n")
    assert done.exit_code == 0 and "left: " in done.stdout.splitlines()[-1]
    with RatingsStore(db) as store:
        assert [rating.labeler for rating in store.ratings()] == ["ada"]
    mistyped = CliRunner().invoke(app, [*two[:-1], "adda"], input="")
    assert mistyped.exit_code == 2
    assert "'adda' is new in" in mistyped.output and "add --new-labeler" in mistyped.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a", "b", "c"], "expected one, or two"),
        (["a", "--db", "r.db"], "name a second one"),
        (["a", "b", "--labeler", "x"], "nothing is kept without --db"),
        (["./no/such"], "no such folder"),
    ],
)
def test_a_wrong_command_is_one_line(arguments, said):
    done = CliRunner().invoke(app, ["chat", *arguments], input="")
    assert done.exit_code == 2 and said in done.output and len(done.output.strip().splitlines()) == 1
