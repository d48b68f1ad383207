"""What a rank leaves behind when it fails: one JSON file, in the form of torch's own `@record`, for whoever judges.

Beside torch's `message` stand `where` (file:line), `ns` (monotonic, comparable on one machine), and for a told error
`told`, `told_by` and the `exit_code` it means.
"""

from __future__ import annotations

import json
import re
import sys
import time
import traceback
from typing import Any

from rankrun.errors import format_error, is_told, told_by

# What a healthy rank says when another one is gone: never the cause.
PEER_GONE = re.compile(
    r"Connection (closed|reset|refused)|Broken pipe|[Tt]imed out|DistNetworkError|DistBackendError|NCCL|ncclRemoteError"
)


def write_failure(path: str, error: BaseException, exit_code: int | None = None) -> None:
    """Write `error` to the file that `TORCHELASTIC_ERROR_FILE` names; what can't be written is said on stderr."""
    frames = traceback.extract_tb(error.__traceback__)
    stack = "".join(traceback.format_exception(error))
    content: dict[str, Any] = {
        "message": {
            "message": format_error(error),
            "extraInfo": {"py_callstack": stack, "timestamp": str(int(time.time()))},
        },
        "where": f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None,
        "ns": time.monotonic_ns(),
        "told": is_told(error),
        "told_by": told_by(error),
        "exit_code": exit_code,
    }
    try:
        with open(path, "w", encoding="utf-8") as file:
            json.dump(content, file)
    except OSError as problem:
        print(f"the error could not be written to {path}: {problem.strerror}", file=sys.stderr)
