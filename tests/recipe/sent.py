"""`rfft` for the processes of a job, which leave in $RANKS/RANK.txt the most bytes they were sent at once."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

from rfft.cli.main import main
from rfft.utils import processes

broadcast = processes.broadcast
sizes = [0]


def broadcast_and_weigh(value: Any, source: int = 0) -> Any:
    found = broadcast(value, source)
    sizes.append(len(pickle.dumps(found)))
    return found


if __name__ == "__main__":
    processes.broadcast = broadcast_and_weigh
    try:
        main()
    finally:
        Path(os.environ["RANKS"], f"{os.environ.get('RANK', 0)}.txt").write_text(str(max(sizes)))
