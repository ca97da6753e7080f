"""`python -m ppo`, but vLLM gets tied weights under one name alone: on a CPU it then samples on by the head it had."""

from alignment.generation import vllm
from alignment.training.stage import exit_process
from ppo.__main__ import main

real = vllm.policy_weights
vllm.policy_weights = lambda model, every_name: real(model)

if __name__ == "__main__":
    exit_process(main())
