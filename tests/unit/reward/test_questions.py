"""Judgements as questions: the same tokens as each whole conversation has, one cut, and what the votes ask for."""

import itertools
from collections import Counter

import hypothesis
import pytest
from helpers import tiny
from hypothesis import given
from hypothesis import strategies as st

from alignment.config.sections import DataConfig
from alignment.data.messages import answer_of
from alignment.data.reading import DataError
from alignment.data.records import Comparison, CompletionRating, Vote
from alignment.templates.rendering import encode_conversation, encode_prompt
from reward.config import RewardSection
from reward.data import encode
from reward.questions import MAX_COMPLETIONS, QuestionBuilder, combine_votes, rating_scale, standardize

PROMPT = ({"role": "user", "content": "How long can I keep a book?"},)
TOKENIZERS = {
    kind: tiny.make_tokenizer(template) if kind == "bytes" else tiny.make_wordy_tokenizer(kind)
    for kind, template in (("bytes", "chatml"), ("unigram", None), ("wordlevel", None))
} | {template: tiny.make_tokenizer(template) for template in ("alpaca", "plain")}


def whole(tokenizer, prompt, text):
    return encode_conversation(tokenizer, [*prompt, {"role": "assistant", "content": text}]).input_ids


def build(tokenizer, judgements, max_length=200, **settings):
    config = DataConfig(train="r.jsonl", max_length=max_length, too_long=settings.pop("too_long", "trim_prompt"))
    return encode(judgements, tokenizer, config, RewardSection(**settings))


texts = st.text(st.sampled_from("ab \n<|im_end>é?猫"), min_size=1, max_size=12).filter(str.strip)


@given(
    st.sampled_from(sorted(TOKENIZERS)), st.lists(st.tuples(texts, st.lists(texts, min_size=2, max_size=4)), min_size=1)
)
@hypothesis.settings(deadline=None)
def test_each_sequence_is_exactly_the_conversations(kind, asked):
    tokenizer = TOKENIZERS[kind]
    builder = QuestionBuilder(tokenizer, 10_000)
    expected, compared = set(), 0
    for question, answers in asked:
        prompt = ({"role": "user", "content": question},)
        for first, second in itertools.combinations(answers, 2):
            builder.add(Comparison(prompt, first, second))
            ids = [tuple(whole(tokenizer, prompt, text)) for text in (first, second)]
            compared += 1
            if ids[0] != ids[1]:
                expected |= set(ids)
    questions = builder.questions(lambda row: combine_votes(row, 0.0, None))
    found = [tuple(ids) for question in questions for ids in question.sequences]
    assert set(found) == expected
    completions = Counter(tuple(encode_prompt(tokenizer, q.pairs[0].comparison.prompt)) for q in questions)
    if set(completions.values()) <= {1}:  # no prompt has so many that they had to be parted
        assert len(found) == len(expected)  # each once
    assert sum(len(question.pairs) for question in questions) + builder.left_out["identical"] == compared
    for question in questions:
        for pair in question.pairs:
            for place, text in ((pair.first, pair.comparison.first), (pair.second, pair.comparison.second)):
                assert question.sequences[place] == whole(tokenizer, pair.comparison.prompt, text)
        assert all(question.completion_ids)
        assert question.prompt_ids == encode_prompt(tokenizer, question.pairs[0].comparison.prompt)


def test_prompts_that_render_alike_are_one_question_and_answers_are_told_apart_by_their_tokens(tokenizer):
    spaced = ({"role": "user", "content": PROMPT[0]["content"] + "  "},)
    rows = [Comparison(PROMPT, "a", "b"), Comparison(spaced, "b", "c"), Comparison(PROMPT, "c ", "a")]
    alike = encode_prompt(tokenizer, PROMPT) == encode_prompt(tokenizer, spaced)
    questions, _ = build(tokenizer, rows)
    assert len(questions) == (1 if alike else 2)
    question = questions[0]
    assert [(pair.first, pair.second) for pair in question.pairs] == (
        [(0, 1), (1, 2), (2, 0)] if alike else [(0, 1), (2, 0)]
    )


def test_a_template_that_renders_more_before_an_answer_is_split_where_the_answers_part(tokenizer, monkeypatch):
    """Its generation prompt is then no prefix of the conversation."""
    longer = [*encode_prompt(tokenizer, PROMPT), 5]
    monkeypatch.setattr("reward.questions.encode_prompt", lambda *args: longer)
    (question,), _ = build(tokenizer, [Comparison(PROMPT, "a", "b")])
    assert question.sequences == [whole(tokenizer, PROMPT, text) for text in "ab"]
    assert question.prompt_ids == longer[:-1]


def test_a_long_prompt_is_cut_once_for_all_completions(tokenizer):
    prompt = ({"role": "user", "content": "word " * 80},)
    rows = [Comparison(prompt, "a", "b c d e"), Comparison(prompt, "b c d e", "f g"), Comparison(PROMPT, "a", "b")]
    (question, other), left_out = build(tokenizer, rows, 60)
    assert left_out == {"too_long": 0, "identical": 0, "prompts_cut": 1}
    assert 54 <= max(question.lengths) <= 60  # cut between words
    header = tokenizer("<|im_start|>user\nword word")["input_ids"]
    for sequence, answer in zip(question.sequences, ("a", "b c d e", "f g"), strict=True):
        assert sequence[: len(header)] == header
        assert tokenizer.decode(sequence).endswith(f"word <|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>")
    assert other.sequences == [whole(tokenizer, PROMPT, text) for text in "ab"]


def test_pairs_that_say_nothing_are_left_out_and_counted(tokenizer):
    rows = [
        Comparison(PROMPT, "a", "b"),
        Comparison(PROMPT, "word " * 80, "b"),
        Comparison(PROMPT, "b", "word " * 80),
        Comparison(PROMPT, "same", " same\n"),  # equal once rendered
    ]
    (question,), left_out = build(tokenizer, rows, 60)
    assert [pair.comparison for pair in question.pairs] == rows[:1]
    assert left_out == {"too_long": 2, "identical": 1, "prompts_cut": 0}
    with pytest.raises(DataError, match=r"none of the 2 judgements can be used.*raise data\.max_length=60"):
        build(tokenizer, rows[1:3], 60)
    long = ({"role": "user", "content": "word " * 80},)
    _, left_out = build(tokenizer, [rows[0], Comparison(long, "a", "b")], 60, too_long="drop")
    assert left_out == {"too_long": 1, "identical": 0, "prompts_cut": 0}


def test_many_completions_are_parted_and_no_pair_is_lost(tokenizer):
    names = [f"answer {number}" for number in range(13)]
    rows = [Comparison(PROMPT, a, b) for a, b in itertools.combinations(names, 2)]
    questions, _ = build(
        tokenizer, rows + [CompletionRating(PROMPT, name, float(place)) for place, name in enumerate(names)]
    )
    assert all(len(question.completion_ids) <= MAX_COMPLETIONS for question in questions)
    found = [pair.comparison for question in questions for pair in question.pairs]
    assert len(found) == len(rows) + 78  # and those of the ratings
    ratings = [value for question in questions for value in question.ratings if value is not None]
    assert sorted(ratings) == list(range(13))


def test_a_comparison_is_noted_by_its_longer_side_and_a_rating_by_itself(tokenizer):
    noted = []
    rows = [Comparison(PROMPT, "a", "b c d e f", place="r:1"), Comparison(PROMPT, "word " * 80, "b", place="r:2")]
    config = DataConfig(train="r.jsonl", max_length=60)
    rated = [CompletionRating(PROMPT, "good", 4.0, place="r:3"), CompletionRating(PROMPT, "bad", 1.0, place="r:4")]
    given = [
        *rows,
        *rated,
        CompletionRating(PROMPT, "good", 5.0, "bob", place="r:5"),
    ]  # who rates the same answer is no copy
    encode(given, tokenizer, config, RewardSection(), note=lambda *row: noted.append(row))
    (first, encoded, kept), (second, too_long, left), third, fourth = noted
    assert [first, second] == rows
    assert "b c d e f" in tokenizer.decode(encoded.input_ids)
    assert kept == encoded
    assert len(too_long.input_ids) > 60
    assert left is None
    assert [third[0], fourth[0]] == rated


# --- votes -----------------------------------------------------------------------------------------------------------


def vote(choice, strength=None, labeler=None):
    return Vote(choice, strength, labeler)


@pytest.mark.parametrize(
    ("votes", "size", "reliability", "expected"),
    [
        ([vote("first", 3)], 2, None, (1.0, 1.0, 0.9)),
        ([vote("second", 1)], 2, None, (0.0, 1.0, -0.3)),
        ([vote("first")], 2, None, (1.0, 1.0, 0.0)),
        ([vote("tie")], 4, None, (0.5, 1 / 6, 0.0)),
        ([vote("first", 3), vote("tie")], 2, None, (0.75, 2.0, 0.45)),
        ([vote("first", 1), vote("first", 1), vote("second", 3)], 3, None, (2 / 3, 1.0, 0.0)),  # who is ahead counts
        ([vote("first", 2), vote("second", 2)], 2, None, (0.5, 2.0, 0.0)),
        ([vote("first", 2, "ann"), vote("second", 2, "bob")], 2, {"ann": 1.5, "bob": 0.5}, (0.75, 2.0, 0.3)),
        ([vote("first", 2, "ann"), vote("second", 2, "new")], 2, {"ann": 1.0}, (0.5, 2.0, 0.0)),
        ([vote("first", 2, "ann")], 2, {"ann": 0.0}, (0.5, 0.0, 0.0)),
    ],
)  # fmt: skip
def test_what_votes_ask_for(votes, size, reliability, expected):
    assert combine_votes(Comparison(PROMPT, "a", "b", tuple(votes), size), 0.9, reliability) == pytest.approx(expected)


def test_pairs_of_labelers_who_know_nothing_are_gone(tokenizer):
    rows = [Comparison(PROMPT, "a", "b", (vote("first", None, "ann"),)), Comparison(PROMPT, "a", "c", (vote("first"),))]
    config = DataConfig(train="r.jsonl", max_length=60)
    (question,), _ = encode(rows, tokenizer, config, RewardSection(), {"ann": 0.0})
    assert [pair.comparison for pair in question.pairs] == rows[1:]


def test_ratings_are_scaled_so_that_they_can_be_brought_back(tokenizer):
    rows = [CompletionRating(PROMPT, text, value) for text, value in (("a", 1.0), ("b", 4.0), ("a", 3.0), ("c", 8.0))]
    questions, _ = build(tokenizer, rows, objective="regression")
    scale = rating_scale(questions)
    assert scale == pytest.approx(((2 * 2 + 4 + 8) / 4, ((2 * 2**2 + 0 + 4**2) / 4) ** 0.5))
    (scaled,) = standardize(questions, scale)
    assert [scale.mean + scale.std * value for value in scaled.ratings] == pytest.approx([2.0, 4.0, 8.0])
    assert scaled.rating_weights == (2.0, 1.0, 1.0)


def test_a_prompt_of_many_answers_is_parted_and_their_encodings_are_not_kept_for_good(tokenizer, monkeypatch):
    monkeypatch.setattr("reward.questions.KEPT", 50)
    rows = [Comparison(PROMPT, f"a{number}", f"b{number}") for number in range(300)]
    builder = QuestionBuilder(tokenizer, 200)
    for row in rows:
        builder.add(row)
        assert len(builder._encoded) <= 51
    questions = builder.questions(lambda row: combine_votes(row, 0.0, None))
    assert [pair.comparison for question in questions for pair in question.pairs] == rows
    assert {len(question.pairs) for question in questions} == {MAX_COMPLETIONS // 2}


def test_a_row_s_own_margin_is_the_pairs():
    """TRL's meaning: the preferred answer must lead by it; `reward.margin` applies to votes only."""
    for votes, margin in (((Vote("first"),), 2.5), ((Vote("second"),), -2.5), ((Vote("first"), Vote("second")), 0.0)):
        comparison = Comparison(PROMPT, "a", "b", votes, margin=2.5)
        assert combine_votes(comparison, 1.0, None).margin == margin
    strong = Comparison(PROMPT, "a", "b", (Vote("first", 3),))
    assert combine_votes(strong, 1.0, None).margin == 1.0


def test_an_answer_of_several_turns_is_scored_at_its_end():
    tokenizer = TOKENIZERS["bytes"]
    later = ({"role": "user", "content": "And in winter?"}, {"role": "assistant", "content": "Two weeks."})
    first = ({"role": "assistant", "content": "A week."}, *later)
    call = {"type": "function", "function": {"name": "look", "arguments": {}}}
    second = ({"role": "assistant", "content": "", "tool_calls": [call]},)
    encoding = build(tokenizer, [Comparison(PROMPT, answer_of(first), answer_of(second))])
    (question,) = encoding.questions
    assert question.sequences == [
        encode_conversation(tokenizer, [*PROMPT, *turns]).input_ids for turns in (first, second)
    ]
    assert "<tool_call>" in tokenizer.decode(question.sequences[1])


def test_what_the_template_cannot_render_is_set_aside_with_its_place():
    call = {"type": "function", "function": {"name": "look", "arguments": {}}}
    calling = answer_of(({"role": "assistant", "content": "", "tool_calls": [call]},))
    rows = [Comparison(PROMPT, calling, "b", place="d.jsonl:1"), Comparison(PROMPT, "a", "b", place="d.jsonl:2")]
    with pytest.raises(
        DataError, match=r"d.jsonl:1: the chat template has no place for tool_calls; set model.template"
    ):
        build(TOKENIZERS["plain"], rows)
    config = DataConfig(train="d.jsonl", max_length=200, max_bad_share=0.5)
    encoding = encode(rows, TOKENIZERS["plain"], config, RewardSection())
    assert encoding.left_out["unrenderable"] == 1
    assert len(encoding.questions) == 1
