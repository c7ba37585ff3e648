"""Prunella prunes neural networks by whole channels and heals them: smaller, faster, dense."""

import importlib as _importlib
import typing as _typing

if _typing.TYPE_CHECKING:
    from prunella.allocating import allocate as allocate
    from prunella.calibration import Calibration as Calibration
    from prunella.certifying import Certificate as Certificate
    from prunella.certifying import certify as certify
    from prunella.costs import count_activation_bytes as count_activation_bytes
    from prunella.costs import count_macs as count_macs
    from prunella.costs import count_params as count_params
    from prunella.costs import count_weight_bytes as count_weight_bytes
    from prunella.coupling import couple as couple
    from prunella.errors import PrunellaError as PrunellaError
    from prunella.exporting import export as export
    from prunella.exporting import quantize as quantize
    from prunella.graph import Graph as Graph
    from prunella.masking import mask as mask
    from prunella.model.carrying import plan_of as plan_of
    from prunella.onnxfiles import prune_onnx as prune_onnx
    from prunella.plan import Axis as Axis
    from prunella.plan import Budget as Budget
    from prunella.plan import Frozen as Frozen
    from prunella.plan import Group as Group
    from prunella.plan import Groups as Groups
    from prunella.plan import Plan as Plan
    from prunella.plan import Scores as Scores
    from prunella.pruning import PruneResult as PruneResult
    from prunella.pruning import prune as prune
    from prunella.repairing.compensating import compensate as compensate
    from prunella.repairing.reconstructing import reconstruct as reconstruct
    from prunella.scoring import score as score
    from prunella.scoring.criteria import CRITERIA as CRITERIA
    from prunella.scoring.criteria import Criterion as Criterion
    from prunella.sensitivity import Sensitivity as Sensitivity
    from prunella.sensitivity import analyze as analyze
    from prunella.sensitivity import estimate as estimate
    from prunella.sensitivity.valuing import value as value
    from prunella.storing import load as load
    from prunella.storing import save as save
    from prunella.tracing import trace as trace
    from prunella.transforming import transform as transform

# Where each name is. They are looked up when first asked for: torch takes seconds to import, which
# `prunella --help` need not wait for.
_HOMES = {
    "CRITERIA": "scoring.criteria",
    "Axis": "plan",
    "Budget": "plan",
    "Calibration": "calibration",
    "Certificate": "certifying",
    "Criterion": "scoring.criteria",
    "Frozen": "plan",
    "Graph": "graph",
    "Group": "plan",
    "Groups": "plan",
    "Plan": "plan",
    "PruneResult": "pruning",
    "PrunellaError": "errors",
    "Scores": "plan",
    "Sensitivity": "sensitivity",
    "allocate": "allocating",
    "analyze": "sensitivity",
    "certify": "certifying",
    "compensate": "repairing.compensating",
    "count_activation_bytes": "costs",
    "count_weight_bytes": "costs",
    "count_macs": "costs",
    "count_params": "costs",
    "couple": "coupling",
    "estimate": "sensitivity",
    "export": "exporting",
    "load": "storing",
    "mask": "masking",
    "plan_of": "model.carrying",
    "prune": "pruning",
    "prune_onnx": "onnxfiles",
    "quantize": "exporting",
    "reconstruct": "repairing.reconstructing",
    "save": "storing",
    "score": "scoring",
    "trace": "tracing",
    "transform": "transforming",
    "value": "sensitivity.valuing",
}

__all__ = [
    "CRITERIA",
    "Axis",
    "Budget",
    "Calibration",
    "Certificate",
    "Criterion",
    "Frozen",
    "Graph",
    "Group",
    "Groups",
    "Plan",
    "PruneResult",
    "PrunellaError",
    "Scores",
    "Sensitivity",
    "allocate",
    "analyze",
    "certify",
    "compensate",
    "count_activation_bytes",
    "count_macs",
    "count_params",
    "count_weight_bytes",
    "couple",
    "estimate",
    "export",
    "load",
    "mask",
    "plan_of",
    "prune",
    "prune_onnx",
    "quantize",
    "reconstruct",
    "save",
    "score",
    "trace",
    "transform",
    "value",
]


def __getattr__(name: str) -> _typing.Any:
    """Import what is asked for: one of `__all__`, or a module such as `prunella.masking`."""
    try:
        module = _importlib.import_module(f"{__name__}.{_HOMES.get(name, name)}")
    except ModuleNotFoundError as cause:
        if cause.name != f"{__name__}.{name}":
            raise
        raise AttributeError(f"module `{__name__}` has no attribute `{name}`") from None
    value = getattr(module, name) if name in _HOMES else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
