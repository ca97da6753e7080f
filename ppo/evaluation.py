from typing import NamedTuple, Any


class Judged(NamedTuple):
    scores: Any
    held_out_scores: Any
    kl: Any
    lengths: Any
    ended: Any
    texts: Any


def check_selection(*a, **k):
    pass


def figures(now, start, groups):
    m = lambda x: sum(x) / len(x)
    return {"score": m(now.scores), "kl": m(now.kl), "length": m(now.lengths), "ended": m(now.ended)}


class BestPolicy:
    step = None
    figures = None
    should_stop = False

    def __init__(self, *a):
        pass

    def consider(self, *a):
        return False

    def weights(self):
        return None
