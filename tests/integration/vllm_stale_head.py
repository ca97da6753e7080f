"""As `vllm_on_cpu.py`, but vLLM does not get the embeddings, which are the head too."""

import vllm_on_cpu

from alignment.generation import vllm

real = vllm._generation_class


def with_its_own_head(dtype: str) -> type:
    class Stale(real(dtype)):
        def _iter_named_params(self):
            yield from ((name, tensor) for name, tensor in super()._iter_named_params() if "embed_tokens" not in name)

    return Stale


vllm._generation_class = with_its_own_head

if __name__ == "__main__":
    vllm_on_cpu.exit_process(vllm_on_cpu.main())
