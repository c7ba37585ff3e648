"""Write the config of a pruned Hugging Face model: numbers found by trying, then proven."""

from prunella.configuring.configuring import reconfigure

__all__ = ["reconfigure"]
