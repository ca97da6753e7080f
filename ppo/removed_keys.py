"""Keys that PPO no longer has, each with what to do instead; a config with one of them is refused with these words."""

from __future__ import annotations

_LENGTH = "write a reward function that takes off for length (rewards.others), or raise rollout.max_new_tokens"
_UNFILTERED = (
    "filtered sampling is from another distribution than the one that is trained, so the KL is biased; take it out, "
    "or lower rollout.temperature"
)

REMOVED_KEYS = {
    "model.publish_value": "a critic of its own is always published beside its policy; take it out",
    "ppo.clip_range_high": "write both sides of the clip: ppo.clip_range=[0.2, 0.28]",
    "ppo.dual_clip": "take it out: a large ratio at a negative advantage is held by ppo.num_epochs and the KL",
    "ppo.entropy_coef": "the KL keeps the entropy up: raise ppo.kl_coef, or the upper side of ppo.clip_range",
    "ppo.epoch_stop_kl": "lower ppo.num_epochs or training.learning_rate",
    "ppo.gamma": "responses are not discounted (gamma is 1); take it out",
    "ppo.kl_estimator": "it follows from ppo.kl_in: k1 in the reward, k2 in the loss; take it out",
    "ppo.kl_horizon": "ppo.kl_target adapts over 10,000 episodes or a sixth of the run's; take it out",
    "ppo.value_gae_lambda": "returns have the lambda of the advantages; set ppo.gae_lambda",
    "ppo.value_pretrain_episodes": "ppo.value_pretrain uses 1,024 answers; take it out",
    "ppo.value_warmup_steps": "fit the critic before the policy moves: ppo.value_pretrain=rollouts",
    "ppo.whiten_advantages": "advantages are whitened; ppo.advantage_estimator=dr_grpo leaves them as they are",
    "ptx.batch_size": "each optimizer step has 8 rows, or one for each process; set ptx.coef to weigh them",
    "rewards.clip": "scores are in standard deviations (rewards.normalize); clip inside a reward function",
    "rewards.missing_eos_score": "set rewards.missing_eos_penalty, which is taken off the score (null: none)",
    "rewards.model_weight": "it is 1; divide the weights in rewards.others by what it was",
    "rewards.others.max_retries": "a request is tried three more times; raise timeout",
    "rewards.others.send_tokens": "a service that reads token ids asks for them; take it out",
    "rewards.overlong_buffer": _LENGTH,
    "rewards.overlong_penalty": _LENGTH,
    "rewards.scaling": "set rewards.normalize, which has its values and `each`",
    "rollout.allow_filtered": _UNFILTERED,
    "rollout.engine": "vLLM samples where rollout.vllm is a mapping; for vllm write rollout.vllm={}, for transformers "
    "rollout.vllm=null, in its place",
    "rollout.importance_cap": "the weight that corrects vLLM's log-probabilities is capped at 2; take it out",
    "rollout.top_k": _UNFILTERED,
    "rollout.top_p": _UNFILTERED,
    "rollout.vllm.enable_sleep_mode": "a colocated vLLM on a GPU always gives its memory back in training; take it out",
    "rollout.vllm.group_port": "a free port of the main process is taken; take it out",
    "rollout.vllm.mode": "a server is used where rollout.vllm.server_base_url is set; take it out",
    "training.best_of_n": "it follows from the run's size; take it out (alignment compare has sides with best_of=16)",
    "training.save_total_limit": "the newest two checkpoints are kept, as one may turn out to be damaged; take it out",
    "training.weight_decay": "the KL holds the policy, not a decay of its weights; take it out",
}
