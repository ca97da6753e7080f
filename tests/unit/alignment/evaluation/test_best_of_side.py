"""A side that is the best of several answers: a reward model chooses among draws, the first of them the plain one."""

from dataclasses import asdict

from helpers.comparing import question
from helpers.tiny import make_policy, make_scalar, make_tokenizer, write

from alignment.evaluation.answers import AnswerSettings, SideAnswer
from alignment.evaluation.drawing import DrawOptions, ModelSide
from alignment.evaluation.independence import trained_on
from alignment.evaluation.score_judges import RewardModelScorer
from alignment.evaluation.sides import parse_side
from alignment.registry import Registry


def test_the_highest_score_of_all_draws_is_kept(tmp_path):
    tokenizer, registry = make_tokenizer(), Registry(tmp_path / "registry")
    policy = write(tmp_path / "policy", make_policy(tokenizer), tokenizer)
    make_scalar(tmp_path / "body", make_policy(tokenizer, 1), tokenizer).model.save_pretrained(tmp_path / "reward")
    tokenizer.save_pretrained(tmp_path / "reward")
    prompts = [question(f"What is {number}?") for number in range(5)]

    def drawn(text):
        side = ModelSide(parse_side(text), registry, AnswerSettings(0, 1.0, 8), DrawOptions(batch_size=2))
        found = {}
        side.draw(prompts, set(), lambda some, answers: found.update(zip(map(id, some), answers, strict=True)))
        return side, [found[id(prompt)] for prompt in prompts]

    _, plain = drawn(f"{policy}")
    side, best = drawn(f"{policy}?best_of=6&chosen_by={tmp_path / 'reward'}")
    scorer = RewardModelScorer(str(tmp_path / "reward"), registry)
    scores = [scorer.scores(prompts, answers) for answers in (plain, best)]
    assert all(chosen >= first for first, chosen in zip(*scores, strict=True)) and scores[1] != scores[0]
    draws = [side._draw(side_policy(policy), [p.messages for p in prompts], numbers(prompts), n) for n in range(6)]
    expected = [max(column) for column in zip(*(scorer.scores(prompts, each) for each in draws), strict=True)]
    assert [round(score, 3) for score in scores[1]] == [round(score, 3) for score in expected]
    assert trained_on(registry, side.identity, scorer.identity) and side.identity["best_of"] == 6
    assert all(asdict(answer)["latency"] is not None for answer in best) and isinstance(best[0], SideAnswer)


def side_policy(folder):
    from alignment.models.policies import load_policy

    return load_policy(str(folder))


def numbers(prompts):
    from alignment.evaluation.answers import prompt_id

    return [int(prompt_id(prompt.messages), 16) for prompt in prompts]
