"""rankrun launches PyTorch training runs and feeds them: every rank reads only its own rows."""

from __future__ import annotations

__version__ = "0.1.0"
