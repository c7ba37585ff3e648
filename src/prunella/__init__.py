"""Prunella prunes neural networks by whole channels and heals them: smaller, faster, still dense."""

from prunella.allocating import allocate
from prunella.certifying import Certificate, certify
from prunella.costs import count_macs, count_params
from prunella.coupling import couple
from prunella.criteria import CRITERIA, Criterion
from prunella.errors import PrunellaError
from prunella.graph import Graph
from prunella.masking import mask
from prunella.plan import Axis, Budget, Frozen, Group, Groups, Plan, Scores
from prunella.pruning import PruneResult, prune
from prunella.scoring import score
from prunella.sensitivity import Sensitivity, analyze
from prunella.storing import load, save
from prunella.tracing import trace
from prunella.transforming import plan_of, transform

__all__ = [
    "CRITERIA",
    "Axis",
    "Budget",
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
    "count_macs",
    "count_params",
    "couple",
    "load",
    "mask",
    "plan_of",
    "prune",
    "save",
    "score",
    "trace",
    "transform",
]
