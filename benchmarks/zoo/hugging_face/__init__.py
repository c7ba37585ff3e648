"""Architectures of transformers, built from small configurations that keep their structure.

Real head counts, grouped key/value heads, fused projections, tied embeddings, windows and experts;
only widths, depths and vocabularies are small. Random weights, no network.
"""

from benchmarks.zoo.hugging_face import audio, decoders, encoders, pairs, vision
from benchmarks.zoo.network import Network

_BUILDERS = {
    **encoders.BUILDERS,
    **decoders.BUILDERS,
    **pairs.BUILDERS,
    **vision.BUILDERS,
    **audio.BUILDERS,
}


def names() -> list[str]:
    """List the architectures."""
    return list(_BUILDERS)


def network(name: str) -> Network:
    """Build one of the list."""
    return _BUILDERS[name]()
