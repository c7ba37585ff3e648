"""What a launcher (`accelerate launch`, `torchrun`) says of this process, in the environment.

Nothing here imports torch: `prunella --help` need not wait for it.
"""

import os


def launched() -> bool:
    """Tell whether a launcher started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE") or 1) > 1


def first() -> bool:
    """Tell whether this is the one of a launcher's processes that speaks; alone it is."""
    return int(os.environ.get("RANK") or 0) == 0
