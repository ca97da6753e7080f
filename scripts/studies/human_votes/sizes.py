"""How much of everything a run takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """Lengths in tokens."""

    seeds: int
    max_length: int
    """Of a prompt with its longer answer; longer pairs are left out."""
    pairs: int | None
    """Of each half of the votes, and held out; None: all."""
    epochs: int
    """Of the reward models; SFT has as many."""
    prompt_length: int
    """Longest prompt that the policies answer."""
    held_out: int
    """Prompts that the policies are compared on."""
    max_new_tokens: int
    n: int
    """Answers that best-of-n chooses from, a power of 2."""
    iterations: int
    batch_size: int
    temperature: float = 1.0
    match_kl: bool = True
    """Let PPO's KL coefficient adapt so that its KL is about that of best-of-n."""
    own_prompts: int = 12
    sampling_batch: int = 32

    @property
    def counts(self) -> tuple[int, ...]:
        """The n of best-of-n: 2, 4, ... up to `n`."""
        return tuple(2**power for power in range(1, self.n.bit_length()))


SIZES = {
    "quick": Size(
        seeds=1, max_length=112, pairs=16, epochs=1, prompt_length=64, held_out=4, max_new_tokens=12, n=2,
        iterations=1, batch_size=4, own_prompts=2,
    ),
    "small": Size(
        seeds=3, max_length=192, pairs=240, epochs=1, prompt_length=112, held_out=64, max_new_tokens=64, n=8,
        iterations=12, batch_size=16, match_kl=False,
    ),
    # Otherwise than on small, where answers were often incoherent and PPO's KL was 3 times that of best-of-8.
    "night": Size(
        seeds=3, max_length=320, pairs=None, epochs=2, prompt_length=144, held_out=128, max_new_tokens=80, n=16,
        iterations=32, batch_size=32, temperature=0.8,
    ),
}  # fmt: skip
