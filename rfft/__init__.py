"""RFFT: fine-tune advertising-image generators on human feedback."""

__version__ = "0.1.0"
