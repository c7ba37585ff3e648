"""What is written down of one network."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

Status = Literal["ok", "failed", "nothing removed", "certificate failed"]

STAGES = ("trace", "couple", "score", "allocate", "transform", "probe", "certify")


@dataclass(frozen=True)
class Row:
    """One network, pruned at one ratio.

    Attributes:
        name: The network.
        status: What became of it.
        stage: Where it failed.
        why: The error, where there is one.
        where: File and line that raised it.
        error: The certificate's.
        dtype: Precision of the certificate.
        signal: How far two random inputs differ at the pruned model's output, on the scale of the
            certificate's error: near 0 it would prove nothing.
        form: "class", or "graph" where the rewritten graph came back.
        macs: Multiply-accumulates of one dense sample.
        macs_left: Share of them that is left.
        params: Parameters of the dense model.
        params_left: Share of them that is left.
        units: Channels that may be cut.
        groups: Groups that they form.
        frozen: Groups that may not be cut.
        reasons: Why not, most costly first: reason, groups, channels, share of the MACs they hold.
        uneven: The certificate's error at uneven ratios, where that was asked for.
        seconds: Spent in each stage and in each check; "all" is the whole call of `prune`.
        memory_gb: Peak of the process when the pruned model was there.
        checks: What was tried on the pruned model: "yes", or what went wrong.
        limits: Seconds and GB that it might take.
    """

    name: str
    status: Status = "failed"
    stage: str = ""
    why: str = ""
    where: str = ""
    error: float | None = None
    dtype: str = ""
    signal: float | None = None
    form: str = ""
    macs: int = 0
    macs_left: float = 1.0
    params: int = 0
    params_left: float = 1.0
    units: int = 0
    groups: int = 0
    frozen: int = 0
    reasons: tuple[tuple[str, int, int, float], ...] = ()
    uneven: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    memory_gb: float = 0.0
    checks: dict[str, str] = field(default_factory=dict)
    limits: tuple[int, int] = (0, 0)

    @property
    def whole(self) -> bool:
        """Say whether it was pruned and proven, and stood every check."""
        fine = ("yes", "dense does not either")
        return self.status == "ok" and all(said in fine for said in self.checks.values())

    def to_json(self) -> dict[str, Any]:
        """Return the row as plain data."""
        return asdict(self)

    @staticmethod
    def from_json(record: dict[str, Any]) -> "Row":
        """Read a row; fields of another version are left out."""
        known = {field.name for field in fields(Row)}
        kept = {key: value for key, value in record.items() if key in known}
        kept["reasons"] = tuple(tuple(reason) for reason in kept.get("reasons", ()))
        kept["limits"] = tuple(kept.get("limits", (0, 0)))
        return Row(**kept)
