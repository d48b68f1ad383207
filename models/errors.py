"""What can be wrong with the choice of a model.

ModelError  E301  a model, an initialisation or an argument that does not exist or does not fit
"""

from __future__ import annotations


class ModelError(Exception):
    """A mistake in the `model:` part of a configuration; the text is one line that says what would be legal.

    `code` and `exit_code` are how the training program recognises a mistake that is told without a traceback.
    """

    code = "E301"
    exit_code = 2

    def __reduce__(self) -> tuple[type[ModelError], tuple[str]]:
        return type(self), (str(self),)
