"""Models: ours for small images, torchvision's by name, a user's own by dotted path.

`build` gives a network ready to train; importing this package imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .factory import build as build

__all__ = ["build"]


def __getattr__(name: str) -> Any:
    if name == "build":
        from .factory import build

        return build
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
