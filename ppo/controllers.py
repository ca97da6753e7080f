
class KLController:
    def __init__(self, c, t, h): self.value=c
    def update(self, kl, n): pass
class RewardScaler:
    def __init__(self, m, c): pass
    def __call__(self, s, r): return s
