"""Finetuning experiments: which there are, which go on, and the best of them."""

from prunella.experiments.halving import total_epochs as total_epochs
from prunella.experiments.ledger import Experiment as Experiment
from prunella.experiments.search import Search as Search
from prunella.experiments.search import Space as Space
from prunella.experiments.search import search as search
from prunella.experiments.search import spread as spread

__all__ = ["Experiment", "Search", "Space", "search", "spread", "total_epochs"]
