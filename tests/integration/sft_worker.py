"""Several SFT runs one after the other in the processes of one launch, which costs more than the runs do.

accelerate launch ... sft_worker.py CONFIG... (JSON files; each becomes one run)
"""

import json
import sys
from pathlib import Path

from alignment.config.loading import load_config
from alignment.distributed.processes import is_main_process, wait_for_everyone
from alignment.training.stage import quiet_libraries


def main(paths):
    quiet_libraries()
    import sft.train
    from sft.config import SFTStageConfig

    for path in paths:
        config = load_config(SFTStageConfig, path)
        if is_main_process():
            config.run_dir.mkdir(parents=True)
        wait_for_everyone()
        result = sft.train.train(config)
        if is_main_process():
            (config.run_dir / "exit.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(map(Path, sys.argv[1:]))
