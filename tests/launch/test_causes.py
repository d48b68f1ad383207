"""Each known failure by its real words: provoked here with the installed torch where a CPU can, else as it was met.

So a torch that words an error differently fails the first table. The texts of the second are those of torch 2.14 and
NCCL 2.30: met in processes that were killed, limited or run in small file systems, or, where that takes a GPU, read
from their libraries.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import traceback

import pytest

from rankrun.launch.causes import likely


def weights_only(folder):
    import torch

    torch.save({"a": socket.socket}, folder / "w.pt")
    torch.load(folder / "w.pt")


def torn_checkpoint(folder):
    import torch

    torch.save(torch.ones(1000), folder / "t.pt")
    (folder / "t.pt").write_bytes((folder / "t.pt").read_bytes()[:2000])
    torch.load(folder / "t.pt")


def torn_safetensors(folder):
    from safetensors.torch import load_file

    (folder / "t.safetensors").write_bytes(b"\x80\x00\x00\x00\x00\x00\x00\x00{")
    load_file(folder / "t.safetensors")


def other_shape(folder):
    import torch

    torch.nn.Linear(3, 4).load_state_dict(torch.nn.Linear(3, 5).state_dict())


def other_names(folder):
    import torch

    torch.nn.Linear(3, 4).load_state_dict({"weights": torch.ones(4, 3)})


def wrapped_names(folder):
    import torch

    torch.nn.Linear(3, 4).load_state_dict({"module.weight": torch.ones(4, 3)})


def other_groups(folder):
    import torch

    one, two = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
    saved = torch.optim.SGD([{"params": [one]}, {"params": [two]}], lr=1).state_dict()
    torch.optim.SGD([one], lr=1).load_state_dict(saved)


def missing_module(folder):
    import not_there_at_all  # noqa: F401


def missing_name(folder):
    from json import not_there_at_all  # noqa: F401


def missing_library(folder):
    import ctypes

    ctypes.CDLL("libnothing.so.9")


def port_taken(folder):
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.socket() as second:
        second.bind(taken.getsockname())


def store_port_taken(folder):
    from torch.distributed import TCPStore

    first = TCPStore("127.0.0.1", 0, 1, True)
    TCPStore("127.0.0.1", first.port, 1, True)


def no_world(folder):
    import torch.distributed as dist

    dist.init_process_group("gloo", rank=-1, world_size=-1)


def no_group(folder):
    import torch
    import torch.distributed as dist

    dist.all_reduce(torch.ones(1))


def no_such_host(folder):
    socket.getaddrinfo("no-such-host.invalid", 80)


def not_enough_memory(folder):
    import torch

    torch.empty(1 << 60)


def not_enough_memory_for_numpy(folder):
    import numpy

    numpy.ones(1 << 48)


def label_out_of_range(folder):
    import torch

    torch.nn.functional.cross_entropy(torch.ones(2, 3), torch.tensor([1, 7]))


def lambda_for_a_spawned_worker(folder):
    from torch.utils.data import DataLoader

    next(iter(DataLoader([1, 2], num_workers=1, collate_fn=lambda rows: rows, multiprocessing_context="spawn")))


def full_disk(folder):
    os.write(os.open("/dev/full", os.O_WRONLY), b"x")


@pytest.mark.parametrize(
    ("act", "what"),
    [
        (weights_only, "more than weights"),
        (torn_checkpoint, "torn or no checkpoint"),
        (torn_safetensors, "torn or no checkpoint"),
        (other_shape, "of another model"),
        (other_names, "of another model"),
        (wrapped_names, "saved from a wrapped model"),
        (other_groups, "of another model"),
        (missing_module, "not installed for this Python"),
        (missing_name, "another version of the module"),
        (missing_library, "a library of the system or of CUDA is missing"),
        (port_taken, "listens on the port"),
        (store_port_taken, "listens on the port"),
        (no_world, "not told its place"),
        (no_group, "not told its place"),
        (no_such_host, "can't be resolved"),
        (not_enough_memory, "no more memory"),
        (not_enough_memory_for_numpy, "no more memory"),
        (label_out_of_range, "below the number of classes"),
        (lambda_for_a_spawned_worker, "is pickled, and this can't be"),
        (full_disk, "a disk is full"),
    ],
)
def test_what_this_torch_and_this_python_say(tmp_path, monkeypatch, act, what):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(Exception) as raised:  # noqa: PT011  # the types are not the point
        act(tmp_path)
    text = f"{type(raised.value).__name__}: {raised.value}\n{''.join(traceback.format_exception(raised.value))}"
    cause = likely(text, code=1)
    assert cause is not None, text
    assert what in cause.what


MET = [
    (
        "OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB of "
        "which 3.20 GiB is free.",
        "the GPU's memory is full",
    ),
    ("RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "the GPU's memory"),
    (
        "RuntimeError: DataLoader worker (pid 4711) is killed by signal: Bus error. It is possible that dataloader's "
        "workers are out of shared memory. Please try to raise your shared memory limit.",
        "/dev/shm",
    ),
    (
        "RuntimeError: unable to allocate shared memory(shm) for file </torch_12122_590190466_0>: No space left on "
        "device (28)",
        "/dev/shm",
    ),
    (
        "DistBackendError: NCCL error: unhandled system error\nLast error:\nError while creating shared memory segment "
        "/dev/shm/nccl-x (size 9637888), error: No space left on device (28)",
        "/dev/shm",
    ),
    ("RuntimeError: DataLoader worker (pid 10227) is killed by signal: Killed. ", "a loader worker was killed"),
    ("RuntimeError: DataLoader worker (pid(s) 10227) exited unexpectedly", "a loader worker died"),
    ("RuntimeError: DataLoader worker (pid 99) is killed by signal: Segmentation fault. ", "a loader worker died"),
    (
        "RuntimeError: [enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you "
        "tried to allocate 68719476736 bytes. Error code 12 (Cannot allocate memory)",
        "no more memory",
    ),
    ("MemoryError", "no more memory"),
    ("OSError: [Errno 122] Disk quota exceeded", "quota"),
    ("RuntimeError: [enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534", "a disk is full"),
    ("SafetensorError: Error while serializing: I/O error: No space left on device (os error 28)", "a disk is full"),
    ("OSError: [Errno 30] Read-only file system: '/data/x'", "read-only"),
    ("OSError: [Errno 116] Stale file handle", "file server"),
    ("OSError: [Errno 24] Too many open files: '/dev/null'", "open files"),
    (
        "RuntimeError: Too many open files. Communication with the workers is no longer possible. Please increase the "
        "limit using `ulimit -n` in the shell",
        "open files",
    ),
    ("RuntimeError: can't start new thread", "limit of processes"),
    ("    os.fork()\nBlockingIOError: [Errno 11] Resource temporarily unavailable", "limit of processes"),
    (
        "RuntimeError: Attempting to deserialize object on a CUDA device but "
        "torch.cuda.is_available() is False. If you "
        "are running on a CPU-only machine, please use torch.load with map_location=torch.device('cpu')",
        "saved from a GPU that is not here",
    ),
    ("RuntimeError: Attempting to deserialize object on CUDA device 3 but torch.cuda.device_count() is 1.", "not here"),
    (
        "RuntimeError: The NVIDIA driver on your system is too old (found version 11040).",
        "driver is older",
    ),
    ("RuntimeError: CUDA error: no kernel image is available for execution on the device", "architecture"),
    (
        "RuntimeError: Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a "
        "driver from http://www.nvidia.com/Download/index.aspx",
        "sees none",
    ),
    ("RuntimeError: No CUDA GPUs are available", "sees none"),
    ("ValueError: ProcessGroupNCCL is only supported with GPUs, no GPUs found!", "sees none"),
    ("AcceleratorError: CUDA error: invalid device ordinal\nGPU device may be out of range", "more ranks on this host"),
    (
        "DistBackendError: NCCL error in: /pytorch/ProcessGroupNCCL.cpp:94, invalid usage (run "
        "with NCCL_DEBUG=WARN for "
        "details), NCCL version 2.30.7\nncclInvalidUsage: This usually reflects invalid usage of NCCL library.\nLast "
        "error:\nDuplicate GPU detected : rank 1 and rank 0 both on CUDA device 1b000",
        "more ranks on this host",
    ),
    ("RuntimeError: Cannot re-initialize CUDA in forked subprocess.", "forked after"),
    ("RuntimeError: CUDA error: device-side assert triggered", "index is out of range"),
    ("RuntimeError: CUDA error: uncorrectable ECC error encountered", "GPU or its driver failed"),
    ("RuntimeError: CUDA error: an illegal memory access was encountered", "outside of its memory"),
    (
        "DistNetworkError: The server socket has failed to bind. port: 81, useIpv6: 0, code: -13, "
        "name: EACCES, message: "
        "permission denied",
        "below 1024",
    ),
    (
        "PermissionError: [Errno 13] Permission denied\nTraceback (most recent call last):\n  File \"j.py\", line 1\n"
        "    s.bind(('127.0.0.1', 80))\nPermissionError: [Errno 13] Permission denied\n",
        "below 1024",
    ),
    ("PermissionError: [Errno 13] Permission denied: '/root/x'", "this user may not"),
    ("OSError: [Errno 113] No route to host", "no way from that host"),
    (
        "RuntimeError: Expected to have finished reduction in the prior iteration before starting "
        "a new one. This error "
        "indicates that your module has parameters that were not used in producing loss.",
        "got no gradient",
    ),
    (
        "RuntimeError: [1]: params[0] in this process with sizes [3, 2] appears not to match sizes "
        "of the same param in "
        "process 0.",
        "different models",
    ),
    ("RuntimeError: operator torchvision::nms does not exist", "different versions of torch"),
    (
        "RuntimeError: \n        An attempt has been made to start a new process before the\n      "
        "  current process has "
        "finished its bootstrapping phase.",
        "imports the script again",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("text", "what"), MET)
def test_what_was_met_elsewhere(text, what):
    cause = likely(text, code=1)
    assert cause is not None
    assert what in cause.what
    assert "\n" not in cause.what + cause.cure


MISSED = [
    (
        "RuntimeError: [/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed "
        "out waiting 4000ms for "
        "recv operation to complete",
        "same collective in time",
    ),
    (
        "DistBackendError: [Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, OpType=ALLREDUCE, "
        "NumelIn=1, NumelOut=1, Timeout(ms)=600000) ran for 600029 milliseconds before timing out.",
        "same collective in time",
    ),
    ("DistStoreError: Timed out after 5 seconds waiting for clients. 2/3 clients joined.", "never joined"),
    ("DistStoreError: wait timeout after 4000ms, keys: /default_pg/0//cpu//0/0", "never joined"),
    (
        "DistNetworkError: The client socket has timed out after 2000ms while trying to connect to (127.0.0.1, 9).",
        "nobody listens",
    ),
    (
        "RuntimeError: [/pytorch/gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:2205. This is "
        "typically caused by a remote worker crashing.",
        "the connection between ranks broke",
    ),
    (
        "DistBackendError: NCCL error: ncclRemoteError: A call failed possibly due to a network error or a remote "
        "process exiting prematurely.",
        "the connection between ranks broke",
    ),
]


@pytest.mark.parametrize(("text", "what"), MISSED)
def test_what_ranks_say_that_only_missed_another(text, what):
    cause = likely(text, code=1, by_itself=False)
    assert cause is not None
    assert what in cause.what


@pytest.mark.parametrize(
    "text", ["", "ValueError: lr must be positive", "KeyError: 'x'", "SystemExit: 7", "AssertionError"]
)
def test_an_error_that_says_it_all_gets_no_cause(text):
    assert likely(text, code=1) is None


def test_signals():
    assert likely("", code=-signal.SIGKILL) is None
    assert likely("", code=-signal.SIGKILL, oom=True).what == "memory ran out"
    assert "crashed" in likely("", code=-signal.SIGSEGV).what
    assert "/dev/shm" in likely("", code=-signal.SIGBUS).what
    assert likely("", code=-64) is None


def test_a_worker_that_the_kernel_killed():
    assert (
        likely("RuntimeError: DataLoader worker (pid(s) 7) exited unexpectedly", code=1, oom=True).what
        == "memory ran out"
    )


def test_configs_get_the_keys_that_help():
    text = "OutOfMemoryError: CUDA out of memory."
    assert "train.micro_batch" in likely(text, code=1, ours=True).cure
    assert "train.micro_batch" not in likely(text, code=1).cure
    assert likely("No space left on device", code=1, ours=True) == likely("No space left on device", code=1)


def test_a_long_text_is_searched_in_good_time():
    likely("x (" * 500_000, code=1)


def test_errno_numbers_are_this_systems():
    assert (errno.ENOSPC, errno.EMFILE, errno.ESTALE, errno.EDQUOT, errno.EIO) == (28, 24, 116, 122, 5)
