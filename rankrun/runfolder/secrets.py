"""What must never be written down: passwords in URLs, tokens in arguments, secrets in the environment."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

__all__ = ["filtered_environment", "mask_arguments", "mask_text"]

HIDDEN: Final = "***"

_SECRET_NAME: Final = re.compile(
    r"token|secret|passw|passphrase|pwd|credential|cookie|jwt|auth|bearer|private|(?:^|[^a-z])key(?:$|[^a-z])|apikey",
    re.IGNORECASE,
)
_URL_PASSWORD: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,20}://[^\s/@:]{0,200}:)[^\s/@]{1,500}(?=@)")
_URL_NAME_ONLY: Final = re.compile(r"(\bhttps?://)[^\s/@:]{16,500}(?=@)")  # https://TOKEN@host
_QUERY: Final = re.compile(
    r"([?&;][\w-]*(?:token|secret|passw\w*|pwd|api_?key|access_?key|signature|sig|auth)[\w-]*=)[^&\s;#]+",
    re.IGNORECASE,
)
# Shapes that services give their tokens, so that a leak can be found; nothing else looks like them.
_TOKEN: Final = re.compile(
    r"\b(?:sk-[A-Za-z0-9_-]{16,}|gh[opsur]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}|hf_[A-Za-z0-9]{20,}"
    r"|glpat-[A-Za-z0-9_-]{16,}|xox[abeprs]-[A-Za-z0-9-]{10,}|A[KS]IA[A-Z0-9]{16}|AIza[A-Za-z0-9_-]{30,}"
    r"|npm_[A-Za-z0-9]{30,}|pypi-[A-Za-z0-9_-]{30,}|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?)"
)
_LONG: Final = re.compile(r"[A-Za-z0-9_+=-]{40,}\Z")
_ASSIGNMENT: Final = re.compile(
    r"(?<![\w.-])((?:--?)?[A-Za-z_][\w.-]{0,80})(['\"]?[ \t]*[=:][ \t]*)(['\"]?)([^\s'\",;]{6,})"
)
_HEADER: Final = re.compile(r"\b(bearer|basic)( +)[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE)

_ALLOWED: Final = (
    "SLURM_", "SRUN_", "CUDA_", "NVIDIA_VISIBLE", "ROCR_", "HIP_", "NCCL_", "GLOO_", "TORCH_", "PYTORCH_",
    "TORCHELASTIC_", "RANKRUN_", "OMP_", "MKL_", "OPENBLAS_", "KMP_", "MASTER_", "LOCAL_", "GROUP_", "ROLE_", "LC_",
    "UCX_", "FI_",
)  # fmt: skip
_ALLOWED_NAMES: Final = frozenset((
    "RANK", "WORLD_SIZE", "PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHASHSEED", "VIRTUAL_ENV", "CONDA_PREFIX",
    "CONDA_DEFAULT_ENV", "LANG", "TZ", "HOSTNAME", "USER", "TMPDIR", "CUBLAS_WORKSPACE_CONFIG", "LOADEDMODULES",
))  # fmt: skip


def mask_text(text: str) -> str:
    """`text` without what looks like a password or a token, e.g. for a diff; the rest of it stays as it is."""
    text = _URL_PASSWORD.sub(rf"\1{HIDDEN}", text)
    text = _URL_NAME_ONLY.sub(rf"\1{HIDDEN}", text)
    text = _QUERY.sub(rf"\1{HIDDEN}", text)
    text = _HEADER.sub(rf"\1\2{HIDDEN}", text)
    text = _TOKEN.sub(HIDDEN, text)
    return _ASSIGNMENT.sub(lambda m: f"{m[1]}{m[2]}{m[3]}{HIDDEN}" if _is_secret_name(m[1]) else m[0], text)


def mask_arguments(arguments: Sequence[str]) -> list[str]:
    """A command line that can be shown: `--api-key ***`, `token=***`, `https://me:***@host/`."""
    masked: list[str] = []
    secret_follows = False
    for argument in arguments:
        if secret_follows and not argument.startswith("--"):
            masked.append(HIDDEN)
            secret_follows = False
            continue
        secret_follows = False
        name, equals, value = argument.partition("=")
        if equals and _is_secret_name(name) and value:
            masked.append(f"{name}={HIDDEN}")
        elif argument.startswith("-") and not equals and _is_secret_name(name):
            masked.append(argument)
            secret_follows = True
        elif _is_random(value if equals else argument):
            masked.append(f"{name}={HIDDEN}" if equals else HIDDEN)
        else:
            masked.append(mask_text(argument))
    return masked


def filtered_environment(env: Mapping[str, str]) -> dict[str, str]:
    """The variables that explain how a run went: an allow-list, less what is named like a secret, values masked."""
    return {
        name: mask_text(value)
        for name, value in sorted(env.items())
        if (name in _ALLOWED_NAMES or name.startswith(_ALLOWED)) and not _is_secret_name(name)
    }


# Names of settings of machine learning that hold such a word and no secret.
_HARMLESS: Final = re.compile(
    r"tokeni[sz]er|(?<![a-z])(?:max|num|n|new)[_-]?tokens?|author|tokens?[_-](?:len|per|count)", re.IGNORECASE
)


def _is_secret_name(name: str) -> bool:
    return _SECRET_NAME.search(_HARMLESS.sub("", name)) is not None


def _is_random(text: str) -> bool:
    """True for a long word that mixes cases and digits as only made-up tokens do; hashes have one case."""
    return bool(
        _LONG.match(text)
        and re.search(r"[A-Z]", text)
        and re.search(r"[a-z]", text)
        and len(re.findall(r"[0-9]", text)) >= 3
    )
