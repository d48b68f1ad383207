"""Where everything of a run lies. Paths only: nothing is read or made here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["RunFolder"]


@dataclass(frozen=True)
class RunFolder:
    """The places below `runs/NAME/`.

    ```
    config.yaml  record.json  metrics.jsonl  final.json  best  curves.png  bad_samples.csv  stop
    attempts/0000/{verdict.json, outcome, logs/rank-00000.log, stacks/}
    audit/rank-00000.jsonl      checkpoints/step-00001200/
    live/                       while a launch holds the folder: who it is, and its heartbeat
    launches/TOKEN/             the same of launches that have ended
    ```
    """

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def record_file(self) -> Path:
        return self.path / "record.json"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def final_file(self) -> Path:
        return self.path / "final.json"

    @property
    def curves_file(self) -> Path:
        return self.path / "curves.png"

    @property
    def bad_samples_file(self) -> Path:
        return self.path / "bad_samples.csv"

    @property
    def best(self) -> Path:
        return self.path / "best"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def stop_marker(self) -> Path:
        return self.path / "stop"

    @property
    def live(self) -> Path:
        return self.path / "live"

    @property
    def launches(self) -> Path:
        return self.path / "launches"

    @property
    def attempts(self) -> Path:
        return self.path / "attempts"

    @property
    def audit(self) -> Path:
        return self.path / "audit"

    def audit_file(self, rank: int) -> Path:
        return self.audit / f"rank-{rank:05d}.jsonl"

    def attempt(self, number: int) -> Path:
        return self.attempts / f"{number:04d}"

    def log_file(self, attempt: int, rank: int) -> Path:
        return self.attempt(attempt) / "logs" / f"rank-{rank:05d}.log"

    def stacks(self, attempt: int) -> Path:
        return self.attempt(attempt) / "stacks"

    def verdict_file(self, attempt: int) -> Path:
        return self.attempt(attempt) / "verdict.json"

    def outcome_file(self, attempt: int) -> Path:
        return self.attempt(attempt) / "outcome"

    def attempt_numbers(self) -> list[int]:
        """The attempts that there are, in order; reads the folder's names."""
        if not self.attempts.is_dir():
            return []
        return sorted(int(entry.name) for entry in self.attempts.iterdir() if entry.name.isdecimal())
