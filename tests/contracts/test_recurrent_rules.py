"""Recurrent layers: units are cut from all gates, in every layer and direction equally many."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import prunella
from tests import oracle
from tests.models import randomize

HIDDEN = 8


class Reader(nn.Module):
    """Embeds, runs a recurrent layer, reads the outputs and the last states."""

    def __init__(self, layer: nn.Module, width: int, *, states: int = 0, packed: bool = False):
        super().__init__()
        self.inputs = nn.Linear(3, layer.input_size)
        self.layer = layer
        self.fc = nn.Linear(width + states, 4)
        self.states, self.packed = states, packed

    def forward(self, x: Tensor) -> Tensor:
        x = self.inputs(x)
        if self.packed:
            lengths = torch.tensor([5, 3])
            packed = pack_padded_sequence(x, lengths, batch_first=True)
            y, state = self.layer(packed)
            y, _ = pad_packed_sequence(y, batch_first=True)
        else:
            y, state = self.layer(x)
        y = y.mean(1)
        if self.states:
            hidden = state[0] if isinstance(state, tuple) else state
            y = torch.cat([y, hidden[-1]], 1)
        return self.fc(y)


class Cells(nn.Module):
    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.inputs = nn.Linear(3, 6)
        self.cell = cell
        self.fc = nn.Linear(HIDDEN, 4)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in self.inputs(x).unbind(1):
            state = self.cell(step, state)
        return self.fc(state[0] if isinstance(state, tuple) else state)


class Tells(nn.Module):
    """An encoder whose last states are a decoder's first."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.GRU(3, HIDDEN, batch_first=True)
        self.decoder = nn.GRU(3, HIDDEN, batch_first=True)
        self.fc = nn.Linear(HIDDEN, 4)

    def forward(self, x: Tensor) -> Tensor:
        _, state = self.encoder(x)
        return self.fc(self.decoder(x.flip(1), state)[0])


MODELS: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: Reader(nn.LSTM(6, HIDDEN, batch_first=True), HIDDEN),
    "gru": lambda: Reader(nn.GRU(6, HIDDEN, batch_first=True), HIDDEN),
    "rnn": lambda: Reader(nn.RNN(6, HIDDEN, batch_first=True), HIDDEN),
    "relu": lambda: Reader(nn.RNN(6, HIDDEN, nonlinearity="relu", batch_first=True), HIDDEN),
    "no_bias": lambda: Reader(nn.LSTM(6, HIDDEN, bias=False, batch_first=True), HIDDEN),
    "deep": lambda: Reader(nn.LSTM(6, HIDDEN, 3, batch_first=True), HIDDEN),
    "both_ways": lambda: Reader(
        nn.LSTM(6, HIDDEN, 2, batch_first=True, bidirectional=True), 2 * HIDDEN),
    "both_ways_gru": lambda: Reader(
        nn.GRU(6, HIDDEN, 2, batch_first=True, bidirectional=True), 2 * HIDDEN, states=HIDDEN),
    "states": lambda: Reader(nn.LSTM(6, HIDDEN, 2, batch_first=True), HIDDEN, states=HIDDEN),
    "projected": lambda: Reader(nn.LSTM(6, HIDDEN, 2, batch_first=True, proj_size=5), 5),
    "packed": lambda: Reader(nn.GRU(6, HIDDEN, batch_first=True), HIDDEN, packed=True),
    "lstm_cell": lambda: Cells(nn.LSTMCell(6, HIDDEN)),
    "gru_cell": lambda: Cells(nn.GRUCell(6, HIDDEN)),
    "rnn_cell": lambda: Cells(nn.RNNCell(6, HIDDEN)),
    "encoder_decoder": Tells,
}  # fmt: skip


@pytest.mark.parametrize("ratio", [0.25, 0.5])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_units_are_cut_and_pruned_equals_masked(name: str, ratio: float) -> None:
    torch.manual_seed(0)
    model = randomize(MODELS[name]()).double().eval()
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    result = prunella.prune(model, x, ratio=ratio)
    assert type(result.model) is type(model)
    oracle.check_pruned(model, result.plan, result.model, (x,), {})
    recurrent = next(
        m for m in result.model.modules() if isinstance(m, nn.RNNBase | nn.RNNCellBase)
    )
    assert recurrent.hidden_size == HIDDEN - round(HIDDEN * ratio)
    assert result.plan.after.macs == prunella.count_macs(result.model, x)
    assert result.plan.before.macs == prunella.count_macs(model, x)
    assert result.plan.after.params == prunella.count_params(result.model)


def test_single_precision_is_counted_too() -> None:
    model = MODELS["both_ways"]().eval()
    x = torch.randn(2, 5, 3)
    result = prunella.prune(model, x, ratio=0.5)
    assert result.plan.before.macs == prunella.count_macs(model, x)
    assert result.plan.after.macs == prunella.count_macs(result.model, x)


def test_a_pruned_layer_trains_saves_and_loads(tmp_path) -> None:
    model = MODELS["both_ways"]().eval()
    x = torch.randn(2, 5, 3)
    result = prunella.prune(model, x, ratio=0.5)
    result.model.train()(x).sum().backward()
    assert all(p.grad is not None for p in result.model.parameters())
    prunella.save(result.model, tmp_path / "half")
    loaded = prunella.load(tmp_path / "half", MODELS["both_ways"]())
    assert torch.equal(loaded.eval()(x), result.model.eval()(x))
