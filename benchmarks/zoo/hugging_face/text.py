"""What texts look like to these models: token numbers, their length, how many there are."""

from torch import ones_like

from benchmarks.zoo.network import Arguments, Draw, numbers

VOCABULARY, LENGTH, LONGEST = 120, 12, 64

# The lowest numbers are special: padding, start, end.
tokens = numbers(VOCABULARY, LENGTH, low=5)


def prompt(samples: int) -> Arguments:
    """Draw a text as it is handed to a language model: one positional argument."""
    return (tokens(samples),), {}


def tokenized(samples: int) -> Arguments:
    """Draw a text as a tokenizer hands it over: `model(**tokenized)`."""
    drawn = tokens(samples)
    return (), {"input_ids": drawn, "attention_mask": ones_like(drawn)}


def translated(samples: int) -> Arguments:
    """Draw a text and the beginning of its translation, which is shorter."""
    kwargs = tokenized(samples)[1]
    return (), {**kwargs, "decoder_input_ids": tokens(samples)[:, :-3].contiguous()}


def with_text(other: Draw) -> Draw:
    """Return a draw of a text beside something else."""

    def draw(samples: int) -> Arguments:
        return (), {**tokenized(samples)[1], **other(samples)[1]}

    return draw
