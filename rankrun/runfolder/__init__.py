"""The run folder: what one training run writes, who may write it, and how it is read again."""

from __future__ import annotations

from rankrun.runfolder.audit import AuditLog, audit_positions
from rankrun.runfolder.claiming import Claim, claim
from rankrun.runfolder.files import write_atomically
from rankrun.runfolder.lines import JsonLines, read_json_lines
from rankrun.runfolder.paths import RunFolder
from rankrun.runfolder.recording import record
from rankrun.runfolder.stopping import stopped_before

__all__ = [
    "AuditLog",
    "Claim",
    "JsonLines",
    "RunFolder",
    "audit_positions",
    "claim",
    "read_json_lines",
    "record",
    "stopped_before",
    "write_atomically",
]
