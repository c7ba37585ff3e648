"""What a model costs: predicted from a plan, counted on a model, measured with a stopwatch."""

from prunella.costs.counted import count_macs, count_params, count_weight_bytes
from prunella.costs.memory import count_activation_bytes
from prunella.costs.predicted import predict

__all__ = [
    "count_activation_bytes",
    "count_macs",
    "count_params",
    "count_weight_bytes",
    "predict",
]
