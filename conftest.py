"""Read before tests/conftest.py, which imports what looks for a network when it is imported."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
