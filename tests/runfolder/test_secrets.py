from __future__ import annotations

import pytest

from rankrun.runfolder.secrets import filtered_environment, mask_arguments, mask_text

CANARY = "hunter2hunter2"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (["--api-key", CANARY, "x"], ["--api-key", "***", "x"]),
        ([f"--api_key={CANARY}"], ["--api_key=***"]),
        ([f"WANDB_API_KEY={CANARY}"], ["WANDB_API_KEY=***"]),
        ([f"logger.token={CANARY}"], ["logger.token=***"]),
        (["--password", CANARY], ["--password", "***"]),
        (["--token", "--next"], ["--token", "--next"]),
        ([f"https://me:{CANARY}@host/x"], ["https://me:***@host/x"]),
        ([f"data.root=s3://me:{CANARY}@host"], ["data.root=s3://me:***@host"]),
        ([f"https://h/x?a=1&token={CANARY}&b=2"], ["https://h/x?a=1&token=***&b=2"]),
        (["x=ghp_abcdefghij0123456789ABCDEFGHIJ"], ["x=***"]),
        (["hf_abcdefghij0123456789ABCDEF"], ["***"]),
        (["AKIAIOSFODNN7EXAMPLE"], ["***"]),
        (["aB3" * 15], ["***"]),
        ([f"-H=Authorization: Bearer {CANARY}"], ["-H=Authorization: Bearer ***"]),
        # What is no secret stays.
        (["launch.py", "run", "configs/digits.yaml", "--name", "keyboard", "optim.lr=0.1"],) * 2,
        (["model.args={num_tokens: 16}", "tokenizer=bert", "data.root=/data/monkeys"],) * 2,
        (["deadbeef" * 8],) * 2,
        (["--max-tokens", "128", "--author", "me"],) * 2,
    ],
)
def test_arguments(given: list[str], shown: list[str]) -> None:
    assert mask_arguments(given) == shown


def test_a_diff_is_masked_line_by_line() -> None:
    diff = (
        f'+password = "{CANARY}"\n+url = "postgres://me:{CANARY}@db/x"\n+API_KEY: {CANARY}\n+lr = 0.1\n'
        f'+{{"token": "{CANARY}"}}\n'
    )
    masked = mask_text(diff)
    assert CANARY not in masked
    assert masked.count("\n") == 5
    assert "+lr = 0.1\n" in masked


def test_the_environment_is_an_allow_list() -> None:
    env = {
        "RANK": "0", "SLURM_JOB_ID": "42", "NCCL_DEBUG": "INFO", "PATH": "/bin", "SLURM_JWT": CANARY,
        "AWS_SECRET_ACCESS_KEY": CANARY, "HF_TOKEN": CANARY, "WANDB_API_KEY": CANARY, "MY_VAR": CANARY,
        "RANKRUN_TOKEN": CANARY, "TORCH_HOME": f"https://me:{CANARY}@host/x", "MASTER_PORT": "1",
    }  # fmt: skip
    shown = filtered_environment(env)
    assert sorted(shown) == ["MASTER_PORT", "NCCL_DEBUG", "PATH", "RANK", "SLURM_JOB_ID", "TORCH_HOME"]
    assert CANARY not in str(shown)


def test_masking_a_megabyte_ends() -> None:
    assert mask_text("a" * 1_000_000).startswith("aaa")
    assert mask_text("a:" * 200_000).startswith("a:a:")
    assert mask_text("://" * 200_000).startswith("://")
    assert mask_text("&a" * 200_000).startswith("&a")
