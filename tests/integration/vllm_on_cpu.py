"""`python -m ppo` with vLLM on a CPU: `vllm_on_cpu.py CONFIG [key=value ...]`.

On a CPU vLLM packs the weights of linear layers (for oneDNN, small ones for AMX) and lets go of what it packed, so that
no other weights can be loaded. Both are turned off here. On a GPU nothing is packed.
"""

from vllm import _custom_ops
from vllm.model_executor.layers import utils

_custom_ops._supports_onednn = False
utils.check_cpu_sgl_kernel = lambda *_: False

from alignment.training.stage import exit_process  # noqa: E402
from ppo.__main__ import main  # noqa: E402

if __name__ == "__main__":
    exit_process(main())
