"""A limit on the size of files from the first optimizer step on, as `ulimit -f` sets it."""

import os
import resource


def install() -> None:
    limit = int(os.environ["FILE_LIMIT"])
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
