"""Compare what torch and ONNX Runtime make of the same file, and find the node where they part."""

import copy
import logging
from collections.abc import Container, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor

from prunella.calibration import Calibration
from prunella.errors import CertificateError, ConfigError, TraceError
from prunella.model.outputs import tensors_in
from prunella.onnxfiles.network import NUMBERS, OnnxNetwork, OnnxNode
from prunella.onnxfiles.numbers import LONGEST, Host, Operand, UnreadError
from prunella.onnxfiles.opening import OnnxFile, open_file, read_tensor

log = logging.getLogger("prunella")

_TOLERANCES = {torch.float16: 2e-2, torch.bfloat16: 1e-1}
_TOLERANCE = 1e-3
"""Largest relative difference of outputs in single precision that we put down to rounding.

The same node in another order of sums is off by 1e-6; a hundred layers with random weights, 1e-4.
"""
_TIMES, _MOST = 10, 0.1  # where a network makes more of rounding: so often its own, so much at most
_FOLDER = "session.model_external_initializers_file_folder_path"


class NobodyRunsError(Exception):
    """Neither torch nor ONNX can run a node; `output` is what it makes."""

    def __init__(self, name: str, op: str, output: str, why: str) -> None:
        super().__init__(f"`{op}` in `{name}`: {why}")
        self.output = output


def settle(network: OnnxNetwork, inputs: Sequence[Tensor]) -> None:
    """Run all nodes once; those that torch cannot run as they are used are run as ONNX says.

    Raises:
        NobodyRunsError: Neither can.
    """
    values = dict(zip(network.inputs, inputs, strict=True)) | {
        name: network.tensor(name) for name in network.places
    }
    alone = {n for n in network.places if not network.tensor(n).is_floating_point()}
    with torch.no_grad():
        for name, operands, outputs in network.calls:
            node, given = network.node(name), [values.get(operand) for operand in operands]
            if all(not n or n in alone or isinstance(values.get(n), Host | None) for n in operands):
                alone.update(outputs)  # it depends on no input
            _keep_numbers(node, operands, given, alone)
            if not node.unread:
                try:
                    made = node(*given)
                except (UnreadError, RuntimeError, TypeError, ValueError, IndexError) as error:
                    node.unread = str(error) or type(error).__name__
                    log.info("`%s` in `%s` is run by ONNX: %s", node.op, name, node.unread)
            if node.unread:
                try:
                    made = node(*given)
                except Exception as error:
                    raise NobodyRunsError(
                        name, node.op, next(filter(None, outputs)), str(error)
                    ) from error
            several = isinstance(made, tuple | list)
            kept = [output for output in outputs if output]
            values.update(zip(kept, made if several else (made,), strict=False))


def _keep_numbers(
    node: OnnxNode, operands: Sequence[str], given: Sequence[Operand], alone: Container[str]
) -> None:
    """Let a node use numbers that were computed as a table: pads that were a matrix, reversed."""
    for index in NUMBERS.get(node.op, ()):
        value = given[index] if index < len(given) else None
        if not isinstance(value, Tensor) or operands[index] not in alone or value.ndim > 1:
            continue
        if value.numel() <= LONGEST and not value.is_floating_point():
            node.keep(
                index, Host(tuple(value.reshape(-1).tolist()), tuple(value.shape), value.dtype)
            )


def agree(network: OnnxNetwork, path: Path, inputs: Sequence[Tensor]) -> float:
    """See that torch makes of the original file what ONNX Runtime makes; return by how much not.

    A node that comes out otherwise is run as ONNX says from then on.

    Raises:
        TraceError: They still differ.
    """
    for _ in range(len(network.calls)):
        error = difference(network, path, inputs)
        if error <= _tolerance(network):
            return error
        name = _first_apart(network, path, inputs)
        if name is None and error <= min(_TIMES * _rounding(network, inputs), _MOST):
            return error
        if name is None or network.node(name).unread:
            break
        network.node(name).unread = "torch computes something else"
        log.warning(
            "`%s` in `%s` is run by ONNX: torch computes something else with these settings",
            network.node(name).op,
            name,
        )
    raise TraceError(
        f"what torch makes of `{path}` differs from ONNX Runtime's result by {error:.2g} "
        "(relative), and no single node explains it. Report this file, or prune the model before "
        "it is exported"
    )


def confirm(network: OnnxNetwork, path: Path, inputs: Sequence[Tensor], dense: float) -> float:
    """See that the written file holds the proven model's weights, and computes what it does.

    Args:
        network: The pruned network.
        path: The written file.
        inputs: What to run both on.
        dense: How far apart both were on the original file.

    Raises:
        CertificateError: They differ.
    """
    file = open_file(path)
    for name in network.places:
        if name in file.constants:  # and no node's own copy, or made by filling a shape
            found = read_tensor(file.constants[name], path.parent)
            if not torch.equal(found, network.tensor(name)):
                raise CertificateError(
                    f"tensor `{name}` in `{path}` is not that of the proven model. Do not use the "
                    "file, and look at the disk it is on"
                )
    error = difference(network, path, inputs)
    allowed = max(0.1 * _tolerance(network), _TIMES * dense)
    if not error <= allowed:
        raise CertificateError(
            f"ONNX Runtime makes of `{path}` something else than the proven model computes (by "
            f"{error:.2g}, relative; allowed {allowed:.2g}). Do not use the file, and report it"
        )
    return error


def difference(network: OnnxNetwork, path: Path, inputs: Sequence[Tensor]) -> float:
    """Return the largest relative difference of any output between torch and ONNX Runtime."""
    with torch.no_grad():
        wanted = [tensor.numpy(force=True) for tensor in tensors_in(network(*inputs))]
    file = open_file(path)
    _restrict(file, network, network.outputs)
    found = run(session_of(file), network.inputs, inputs, network.outputs)
    return max((_gap(a, b) for a, b in zip(found, wanted, strict=True)), default=0.0)


def moved(network: OnnxNetwork, dense: Path, pruned: Path, data: Calibration) -> float:
    """Return how far outputs moved, as ONNX Runtime computes them: a share of their own size."""
    sessions = []
    for path in (dense, pruned):
        file = open_file(path)
        _restrict(file, network, network.outputs)
        sessions.append(session_of(file))
    off, size = np.zeros(len(network.outputs)), np.zeros(len(network.outputs))
    for args, _ in data.batches:
        before, after = (run(s, network.inputs, args, network.outputs) for s in sessions)
        for i, (a, b) in enumerate(zip(before, after, strict=True)):
            if a.dtype.kind == "f":
                off[i] += np.square(a.astype(np.float64) - b).sum()
                size[i] += np.square(a.astype(np.float64)).sum()
    return float(np.sqrt(off / np.maximum(size, 1e-30)).max())


def _gap(a: np.ndarray, b: np.ndarray) -> float:
    if a.shape != b.shape:
        return float("inf")
    if not a.size:
        return 0.0
    if a.dtype.kind not in "fV":
        return float((a != b).mean())
    a, b = a.astype(np.float64), b.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    scale = np.abs(a[np.isfinite(a)]).max(initial=0.0)
    with np.errstate(invalid="ignore"):
        gap = np.nan_to_num(np.where(same, 0.0, np.abs(a - b)), nan=np.inf).max()
    return float(gap / max(scale, 1e-12))


def _first_apart(network: OnnxNetwork, path: Path, inputs: Sequence[Tensor]) -> str | None:
    """Name the first node of which torch makes something else, given what ONNX Runtime has."""
    file = open_file(path)
    names = [output for _, _, outputs in network.calls for output in outputs if output]
    _restrict(file, network, names)
    found = dict(zip(names, run(session_of(file), network.inputs, inputs, names), strict=True))
    limit = _tolerance(network)
    with torch.no_grad():
        values = network.run(inputs, keep=True)
        # Each node gets what ONNX Runtime has, so that rounding does not add up.
        given = {
            name: torch.from_numpy(found[name])
            if name in found and isinstance(value, Tensor)
            else value
            for name, value in values.items()
        }
        for name, operands, outputs in network.calls:
            made = network.node(name)(*(given.get(operand) for operand in operands))
            several = isinstance(made, tuple | list)
            kept = [output for output in outputs if output]
            for output, value in zip(kept, made if several else (made,), strict=False):
                mine = value.tensor() if isinstance(value, Host) else value
                if not _gap(found[output], mine.numpy(force=True)) <= limit:
                    return name
    return None


def _tolerance(network: OnnxNetwork) -> float:
    kinds = {network.tensor(name).dtype for name in network.places}
    return max(_TOLERANCES.get(kind, _TOLERANCE) for kind in kinds | {torch.float32})


def _rounding(network: OnnxNetwork, inputs: Sequence[Tensor]) -> float:
    """Return how far the network's outputs are from what it computes in double precision."""
    wide = copy.deepcopy(network).double()
    with torch.no_grad():
        mine = tensors_in(network(*inputs))
        try:
            exact = tensors_in(wide(*(x.double() if x.is_floating_point() else x for x in inputs)))
            pairs = zip(exact, mine, strict=True)
            return max(_gap(a.numpy(force=True), b.numpy(force=True)) for a, b in pairs)
        except (RuntimeError, TypeError):  # a node that is there in single precision only
            return 0.0


def _restrict(file: OnnxFile, network: OnnxNetwork, outputs: Sequence[str]) -> None:
    """Leave only what the network has of a file, returning these values."""
    graph = file.model.graph
    held = {name for _, _, made in network.calls for name in made}
    held |= {*network.filled, *network.aliases}
    nodes = [
        node
        for node in graph.node
        if held.intersection(filter(None, node.output)) or node.output[0] in file.constants
    ]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.output[:]
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    del graph.value_info[:]


def session_of(file: OnnxFile) -> onnxruntime.InferenceSession:
    """Load a graph; weights that stand outside are found in the file's folder."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry(_FOLDER, str(file.path.parent.resolve()))
    try:
        return onnxruntime.InferenceSession(
            file.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise ConfigError(
            f"ONNX Runtime cannot load `{file.path}`: {str(error)[:300]}. Give a file that it runs"
        ) from error


def run(
    session: onnxruntime.InferenceSession,
    names: Sequence[str],
    inputs: Sequence[Tensor],
    outputs: Sequence[str],
) -> list[np.ndarray]:
    """Run a session on tensors."""
    asked = {entry.name for entry in session.get_inputs()}
    feeds: Mapping[str, np.ndarray] = {
        name: tensor.numpy(force=True)
        for name, tensor in zip(names, inputs, strict=True)
        if name in asked
    }
    found: list[np.ndarray] = session.run(list(outputs), dict(feeds))
    return found
