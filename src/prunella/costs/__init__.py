"""What a model costs: predicted from a plan, counted on a model, measured with a stopwatch."""

from prunella.costs.counted import count_macs, count_params
from prunella.costs.predicted import predict

__all__ = ["count_macs", "count_params", "predict"]
