"""What ends a command from outside of the maths (training: tests/recipe/test_faults.py)."""

import pytest

from rfft.errors import Interrupted
from rfft.faults import painting


def test_a_process_lost_while_painting() -> None:
    """There is no checkpoint that evaluation or generation could go on from."""
    with pytest.raises(Interrupted, match="The same command starts anew$"), painting(4):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:3. Sorry")


def test_bugs_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes"), painting(4):
        raise RuntimeError("shapes do not fit")
