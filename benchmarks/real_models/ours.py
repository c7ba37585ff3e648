"""Prune with Prunella: by its weights alone, and with unlabelled inputs."""

from torch import nn

import prunella
from benchmarks.real_models.subject import Subject

BUDGET = 0.9


def by_weights(subject: Subject, model: nn.Module) -> nn.Module:
    """Prune in one call, without data."""
    return prunella.prune(model, subject.example(), macs=BUDGET).model


def calibrated(subject: Subject, model: nn.Module) -> nn.Module:
    """Prune in one call, with inputs that the test does not use."""
    inputs = list(subject.unlabelled())
    return prunella.prune(model, subject.example(), macs=BUDGET, calibration=inputs).model


SETTINGS = {"weights alone": by_weights, "calibration": calibrated}
