"""Set what a plan removes to zero, the shapes as they were."""

from prunella.masking.masking import apply_mask, check_digest, mask, slices, zeroed

__all__ = ["apply_mask", "check_digest", "mask", "slices", "zeroed"]
