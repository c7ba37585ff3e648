"""Model + `Plan` -> the smaller model, of the user's own class where its code allows."""

from prunella.transforming.transforming import (
    example_of,
    runnable,
    smaller,
    transform,
    transform_and_prove,
    with_scales,
)

__all__ = ["example_of", "runnable", "smaller", "transform", "transform_and_prove", "with_scales"]
