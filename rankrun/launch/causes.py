"""From what a failed program said to its likely cause and the next step, for the failures that everybody meets.

Only what a message does not say itself is worth a line: a `ValueError: lr must be positive` needs no cause.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass


@dataclass(frozen=True)
class Cause:
    """Two lines for a person: `what` it is, and the `cure`, which is what to do next."""

    what: str
    cure: str


@dataclass(frozen=True)
class _Known:
    """One failure by its words. `ours` is the cure in terms of a config's keys."""

    words: str
    what: str
    cure: str
    ours: str | None = None


_SHM = "shared memory (/dev/shm) is too small for what loader workers or NCCL hand over through it"
_SHM_CURE = "make it larger: docker run --shm-size=8g or --ipc=host, mount -o remount,size=8G /dev/shm"
_LESS_MEMORY = "fewer loader workers, smaller batches, or more memory for the job (--memory, --mem)"
_LESS_MEMORY_OURS = "lower data.workers or train.micro_batch, use data.mode: rank, or give the job more memory"
_SMI = "`nvidia-smi` shows whether another process, perhaps of an earlier run, holds memory of this GPU"
_NO_GPU = "`nvidia-smi` on that host; is CUDA_VISIBLE_DEVICES empty, was the job given GPUs (--gres, docker --gpus)?"

# The first that matches counts, so what is more telling stands above. Read tests/launch/test_causes.py for where the
# words come from.
_KNOWN = (
    # memory
    _Known(
        r"CUDA out of memory|CUDA error: out of memory|OutOfMemoryError|(CUBLAS|CUDNN)_STATUS_ALLOC_FAILED",
        "the GPU's memory is full",
        f"a smaller batch per rank, with gradient accumulation if the step must stay as large; {_SMI}",
        f"lower train.micro_batch, which leaves the result as it is; {_SMI}",
    ),
    _Known(
        r"(is killed by signal: Bus error|out of shared memory|allocate shared memory|shared memory segment|/dev/shm)",
        _SHM,
        f"{_SHM_CURE}, or num_workers=0",
        f"{_SHM_CURE}, or data.workers: 0",
    ),
    _Known(
        r"DataLoader worker \(pid\(?s?\)? [\d, ]+\) is killed by signal: Killed|BrokenProcessPool",
        "a loader worker was killed, most often by the kernel when memory ran out",
        _LESS_MEMORY,
        _LESS_MEMORY_OURS,
    ),
    _Known(
        r"DataLoader worker \(pid\(?s?\)? [\d, ]+\) (is killed by signal|exited unexpectedly)",
        "a loader worker died: it crashed in a decoder, called exit, or was killed",
        "with num_workers=0 the loading runs in the rank itself and shows where; `dmesg` names processes that were "
        "killed for want of memory",
        "with data.workers=0 the loading runs in the rank itself and shows where; `dmesg` names processes that were "
        "killed for want of memory",
    ),
    _Known(
        r"DefaultCPUAllocator: can't allocate|_ArrayMemoryError|\bMemoryError\b|Cannot allocate memory|bad_alloc",
        "this machine, or the limit set for this job, has no more memory",
        _LESS_MEMORY,
        _LESS_MEMORY_OURS,
    ),
    # disks and limits
    _Known(
        r"Disk quota exceeded|Errno 122\b",
        "the disk quota is used up",
        "`quota -s` shows it; make room, or let --runs DIR name another disk",
    ),
    _Known(
        r"No space left on device|\[Errno 28\]|inline_container\.cc.*unexpected pos|PytorchStreamWriter failed writing",
        "a disk is full, or has no inodes left",
        "`df -h` and `df -i` show which; make room, or let --runs DIR name another disk",
    ),
    _Known(
        r"Read-only file system",
        "the place is mounted read-only",
        "write elsewhere (--runs DIR for what a run leaves), or mount it for writing",
    ),
    _Known(
        r"Stale file handle|\[Errno (116|5)\]|Input/output error",
        "the disk or the file server does not answer as it should",
        "look at `dmesg` and the mount on that host; the same command goes on when it is back",
    ),
    _Known(
        r"Too many open files|\[Errno 24\]|received 0 items of ancdata",
        "the limit of open files is too low, often because each tensor from a loader worker holds one",
        "`ulimit -n 65536` before the launch, or torch.multiprocessing.set_sharing_strategy('file_system')",
    ),
    _Known(
        r"can't start new thread|fork[\s\S]{0,300}Resource temporarily unavailable",
        "the limit of processes and threads is reached",
        "`ulimit -u` shows it, and a container has a limit of its own; fewer loader workers, or OMP_NUM_THREADS=1",
    ),
    # checkpoints
    _Known(
        r"Weights only load failed",
        "the file holds more than weights, or objects that torch does not load from a file that might be hostile",
        "save state_dict()s and plain numbers only; for a file that you trust, torch.serialization.add_safe_globals "
        "allows the classes that the message names",
    ),
    _Known(
        r"(Missing|Unexpected) key\(s\) in state_dict:[\s\S]*[\"'](module|_orig_mod)\.",
        "the weights were saved from a wrapped model: names begin with module. (DDP) or _orig_mod. (compile)",
        "take the wrapper's prefix off the names, or load into the wrapped model",
    ),
    _Known(
        r"size mismatch for|(Missing|Unexpected) key\(s\) in state_dict|different number of parameter groups",
        "the checkpoint is of another model: other layers, widths or number of classes",
        "build the model that was saved, or load only the tensors that fit; strict=False passes over names, not shapes",
        "make model.* and data.classes those of the run that saved it, or give this run a --name of its own",
    ),
    _Known(
        r"PytorchStreamReader failed|failed finding central directory|invalid load key|deserializing header",
        "the file is torn or no checkpoint: its writer was killed half-way, the disk was full, or a download broke off",
        "take the checkpoint before it; write to another name and rename when it is whole",
    ),
    _Known(
        r"deserialize object on (a )?CUDA device",
        "the checkpoint was saved from a GPU that is not here",
        "torch.load(…, map_location='cpu')",
    ),
    # GPUs
    _Known(
        r"driver on your system is too old|CUDA driver version is insufficient|unsupported display driver",
        "the NVIDIA driver is older than this torch's CUDA asks for",
        "a newer driver on that host, or a torch for an older CUDA; `nvidia-smi` shows up to which the driver goes",
    ),
    _Known(
        r"no kernel image is available|CUDA capability sm_\d+ is not compatible",
        "this torch was not built for this GPU's architecture",
        "install a torch whose CUDA supports it: torch.cuda.get_arch_list() against torch.cuda.get_device_capability()",
    ),
    _Known(
        r"Found no NVIDIA driver|No CUDA GPUs are available|CUDA driver initialization failed|no CUDA-capable device"
        r"|not compiled with CUDA|no GPUs found",
        "the program wants a GPU, and this process sees none",
        f"{_NO_GPU} Without one: the backend gloo and the device 'cpu'",
        f"{_NO_GPU} train.device=cpu runs without one",
    ),
    _Known(
        r"invalid device ordinal|Invalid device (index|argument|id)|Duplicate GPU detected|device < num_gpus",
        "there are more ranks on this host than GPUs, or two ranks use one GPU",
        "--nproc at most the number of GPUs that `nvidia-smi -L` and CUDA_VISIBLE_DEVICES leave; a rank's GPU is "
        "torch.cuda.set_device(int(os.environ['LOCAL_RANK']))",
    ),
    _Known(
        r"Cannot re-initialize CUDA in forked subprocess",
        "a process was forked after CUDA had been used",
        "start workers before the first CUDA call, or with the start method spawn or forkserver",
        "data.worker_start: spawn or forkserver",
    ),
    _Known(
        r"device-side assert|Target -?\d+ is out of bounds",
        "an index is out of range on the device, most often a label that is not below the number of classes",
        "check labels against the model's outputs; on a GPU CUDA_LAUNCH_BLOCKING=1 shows the line",
        "`launch.py data check` finds labels out of range; data.classes is the number of outputs",
    ),
    _Known(
        r"uncorrectable ECC error|GPU has fallen off the bus|unspecified launch failure|CUDA error: misaligned|Xid",
        "the GPU or its driver failed",
        "`dmesg | grep -i xid` and `nvidia-smi -q` on that host; leave it out until it was reset",
    ),
    _Known(
        r"illegal memory access",
        "a kernel wrote or read outside of its memory",
        "CUDA_LAUNCH_BLOCKING=1 shows the line, compute-sanitizer the kernel; own and compiled kernels first",
    ),
    # the network and the group
    _Known(
        r"EADDRINUSE|[Aa]ddress already in use",
        "another process listens on the port, perhaps one of an earlier run",
        "`ss -ltnp` shows which; without a port of your own the launcher chooses a free one for MASTER_PORT",
    ),
    _Known(
        r"code: -13, name: EACCES|(?m:bind\([\s\S]*PermissionError: \[Errno 13\] Permission denied$)",
        "ports below 1024 belong to root",
        "take a port from 1024 on, or none: the launcher chooses one",
    ),
    _Known(
        r"gaierror|Name or service not known|Temporary failure in name resolution",
        "a host's name can't be resolved from that host",
        "`getent hosts NAME` there; use an address, or enter the name in DNS or /etc/hosts",
    ),
    _Known(
        r"No route to host|Network is unreachable|Unable to find (address|interface)|ENODEV",
        "there is no way from that host to the other one by this interface",
        "`ip route get ADDRESS` there; GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name the interface to use",
    ),
    _Known(
        r"environment variable \w+ expected, but not set|Default process group has not been initialized",
        "the program was not told its place among the ranks, or has no process group at that line",
        "leave out --no-dist-env, and call init_process_group before, and destroy_process_group after, all collectives",
    ),
    _Known(
        r"Expected to have finished reduction in the prior iteration|did not receive grad",
        "a parameter of the DDP model got no gradient in a step, on this rank or on all",
        "use every parameter in the loss, or DistributedDataParallel(…, find_unused_parameters=True)",
    ),
    _Known(
        r"appears not to match sizes of the same param",
        "ranks built different models",
        "build the model from the same numbers on all ranks; the count of classes must not come from a rank's own data",
    ),
    # Python
    _Known(
        r"operator torchvision::\w+ does not exist|undefined symbol|'torchvision' object has no attribute",
        "packages that were built for different versions of torch are installed together",
        "`make setup` installs versions that fit; pip install torch and torchvision in one command",
    ),
    _Known(
        r"cannot open shared object file|GLIBC(XX)?_[\d.]+' not found",
        "a library of the system or of CUDA is missing, or too old, on that host",
        "install it there, or use the environment of the other hosts; LD_LIBRARY_PATH is as in the launching shell",
    ),
    _Known(
        r"ModuleNotFoundError|No module named",
        "the module is not installed for this Python, or not where Python looks",
        "install it on that host into the environment that `which python` shows in the launching shell, or start from "
        "the folder that holds it",
    ),
    _Known(
        r"ImportError: cannot import name",
        "another version of the module is installed, or a file of yours has its name",
        "python -c 'import NAME; print(NAME.__file__)' shows which is found",
    ),
    _Known(
        r"finished its bootstrapping phase",
        "a spawned process imports the script again, and the script starts processes when it is imported",
        'put what the script does under `if __name__ == "__main__":`',
    ),
    _Known(
        r"[Cc]an't pickle|cannot pickle|PicklingError|Can't get (local )?(attribute|object)",
        "with the start methods spawn and forkserver what a worker gets is pickled, and this can't be",
        "lambdas, local functions and open files become functions and classes of a module's top level",
    ),
    _Known(
        r"PermissionError|Permission denied|Operation not permitted",
        "this user may not do that on that host",
        "`ls -ld` on the file and its folder there, and `id`",
    ),
)

# What ranks say that only miss the others. Looked at when no rank failed by itself.
_MISSED = (
    _Known(
        r"clients joined|waiting for clients|wait timeout after|connectFullMesh|timed out connecting",
        "some ranks never joined the group, or can't be reached from there",
        "the logs of the missing ranks; WORLD_SIZE is the number of ranks that really start, and the firewall must let "
        "the nodes through",
    ),
    _Known(
        r"client socket has|Connection refused|failed to connect",
        "nobody listens at the address where the ranks meet, or a firewall is in between",
        "MASTER_ADDR and MASTER_PORT must lead to rank 0's host from all nodes; leave them to the launcher",
    ),
    _Known(
        r"[Tt]imed out|[Tt]imeout|before timing out|monitoredBarrier",
        "the ranks did not come to the same collective in time: one took another branch, was too slow, or is stuck",
        "every rank must call the same collectives in the same order (TORCH_DISTRIBUTED_DEBUG=DETAIL names the odd "
        "one); slow first steps need a longer timeout in init_process_group",
    ),
    _Known(
        r"[\s\S]",
        "the connection between ranks broke, and no rank, node or warm parent was seen to fail",
        "the network between the hosts: `ip -s link`, the switch, the firewall; NCCL_DEBUG=INFO says more with GPUs",
    ),
)

_SIGNALS: dict[int, Cause] = {
    signal.SIGBUS: Cause(_SHM, f"{_SHM_CURE}; a file that was cut short while it was mapped does it too"),
    signal.SIGSEGV: Cause(
        "a library in C or C++ crashed",
        "the Python line above is where it was called; try it with the newest version, or without compiled extensions",
    ),
    signal.SIGILL: Cause(
        "a library was built for another processor",
        "install it on the kind of host that it runs on, or without AVX-512",
    ),
    signal.SIGXCPU: Cause("the limit of CPU time was reached", "`ulimit -t` shows it; the job's limits may set it"),
}


def likely(
    text: str, *, code: int | None, by_itself: bool = True, ours: bool = False, oom: bool = False
) -> Cause | None:
    """The likely cause of a failure, if it is a known one.

    `text` is what the rank said (message, traceback or the end of its log), `code` its exit code (negative: a signal).
    `by_itself` is False for ranks that only missed another one, `ours` True for config targets, whose cures are keys of
    the config, and `oom` True if the kernel has killed a process of that node for want of memory.
    """
    killed_for_memory = oom and (code == -signal.SIGKILL or re.search(r"worker.*(killed|exited)", text) is not None)
    if killed_for_memory:
        return Cause("memory ran out", _LESS_MEMORY_OURS if ours else _LESS_MEMORY)
    for known in _KNOWN if by_itself else _MISSED:
        if re.search(known.words, text):
            return Cause(known.what, known.ours if ours and known.ours is not None else known.cure)
    return _SIGNALS.get(-code) if code is not None else None
