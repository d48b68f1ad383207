"""The schema: every key of a config with its type, its default and what it means. The only truth for a default."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

__all__ = [
    "FREE",
    "Checkpoint",
    "Columns",
    "Data",
    "Eval",
    "Launch",
    "Loss",
    "Model",
    "Optim",
    "Path",
    "Schedule",
    "Section",
    "Settings",
    "Train",
]

# Marks a key that may change between the attempts of a run. Every other key is the run's identity.
FREE: Final = "free to change within a run"
# Marks a string that names a place in the file system.
Path: Final = "path"

_MOST: Final = 2**63 - 1

# One name, or one name with its arguments: RandomHorizontalFlip, or RandomCrop: {size: 28}.
Transform = str | dict[str, dict[str, Any]]
PathText = Annotated[str, Field(min_length=1), Path]
PathList = Annotated[list[PathText], Field(min_length=1)]


class Section(BaseModel):
    """A mapping of the config. Unknown keys are refused, values are never converted, nothing changes later."""

    # defer_build: one validator is built for Settings when a config is read, instead of one per section at import.
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=(), defer_build=True
    )


# A column's name in the header line (or its key in JSON lines), or its number.
Column = Annotated[str, Field(min_length=1)] | Annotated[int, Field(ge=0, le=_MOST)]


class Columns(Section):
    """Which columns of a CSV or TSV file, or keys of JSON lines, hold what, where looking doesn't tell."""

    path: Annotated[Column | None, Field(description="name or number (from 0) of the column of paths")] = None
    label: Annotated[Column | None, Field(description="of labels, one in each row")] = None
    labels: Annotated[Column | None, Field(description="of labels, several in each row")] = None
    frames: Annotated[Column | None, Field(description="of the number of frames that a folder holds")] = None
    start: Annotated[Column | None, Field(description="of the second at which a span of a video begins")] = None
    stop: Annotated[Column | None, Field(description="of the second at which it ends")] = None

    @model_serializer(mode="wrap")
    def _given(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {role: column for role, column in whole(self).items() if column is not None}


class Data(Section):
    """What is trained and evaluated on, and how it is read."""

    train: Annotated[
        PathText | PathList,
        Field(
            description=(
                "what to train on: a meta file, a list or glob of them, class folders, tar shards, or a Parquet file; "
                "relative to the current folder"
            )
        ),
    ]
    val: Annotated[PathText | PathList | None, Field(description=("the same for evaluation; null: no evaluation"))] = (
        None
    )
    root: Annotated[
        PathText | None,
        Field(description=("folder that relative image paths start from; null: the folder of the meta file")),
    ] = None
    mode: Annotated[
        Literal["rank", "indexed"],
        Field(
            description=(
                "rank: each rank holds only its own rows; indexed: all rows are within reach; the samples are the same"
            )
        ),
    ] = "rank"
    order: Annotated[
        Literal["row", "block"],
        Field(
            description=(
                "row: an exact shuffle of all rows; block: a shuffle of pieces of the file, then within lanes of them, "
                "for huge files on slow shared disks: a rank reads only its part of the file"
            )
        ),
    ] = "row"
    read: Annotated[
        Literal["shard", "direct"],
        FREE,
        Field(
            description=(
                "shard: a rank reads its rows of an epoch at once and holds them as bytes; direct: it reads each row "
                "when it is due and holds none; for mode rank (indexed always reads directly)"
            )
        ),
    ] = "shard"
    format: Annotated[
        Literal["lines", "csv", "tsv", "jsonl", "frames"] | None,
        Field(description=("how the lines of meta files are written; null: look")),
    ] = None
    columns: Annotated[
        Columns | None,
        Field(
            description=("columns of CSV, TSV or JSON lines by name or number, as {path: file, label: 2}; null: look")
        ),
    ] = None
    exclude: Annotated[
        PathText | PathList | None,
        Field(description=("file, or list of files, of row numbers of the training data to leave out")),
    ] = None
    classes: Annotated[
        Annotated[int, Field(ge=1, le=_MOST)] | list[str] | PathText | None,
        Field(
            description=(
                "number of classes, their names in order of the labels, or a file with one name per line; null: look"
            )
        ),
    ] = None
    channels: Annotated[Literal[1, 3], Field(description="3 decodes as RGB, 1 as grey")] = 3
    decoder: Annotated[
        Literal["auto", "torchcodec", "pillow"],
        Field(description=("what decodes images; auto: torchcodec, or Pillow where it is missing or broken")),
    ] = "auto"
    train_transforms: Annotated[
        list[Transform],
        Field(
            description=(
                "transforms of training samples in order: names of torchvision's v2, ours, or dotted paths, with their "
                "arguments as a mapping, e.g. RandomCrop: {size: 28}"
            )
        ),
    ] = Field(default_factory=list)
    eval_transforms: Annotated[
        list[Transform], Field(description=("transforms of samples for evaluation and prediction"))
    ] = Field(default_factory=list)
    workers: Annotated[
        int, FREE, Field(ge=0, le=4096, description=("loader processes per rank; 0: load in the training process"))
    ] = 2
    worker_start: Annotated[
        Literal["fork", "forkserver", "spawn"], FREE, Field(description=("how loader processes start"))
    ] = "fork"
    on_error: Annotated[
        Literal["raise", "replace"],
        Field(description=("a sample that can't be read ends the run, or is replaced by another row")),
    ] = "raise"
    bad_budget: Annotated[
        float, Field(ge=0, le=1, description=("share of an epoch's samples that may be replaced before all ranks stop"))
    ] = 0.001
    allow_outside_root: Annotated[
        bool, Field(description=("accept image paths that are absolute or leave the root"))
    ] = False
    audit: Annotated[
        bool, FREE, Field(description=("every rank writes the rows of each step to audit/rank-*.jsonl"))
    ] = False

    def reading(self) -> dict[str, Any]:
        """What data.open_dataset takes of this section, but for the sources and their transforms."""
        return self.model_dump(
            exclude={"train", "val", "train_transforms", "eval_transforms", "workers", "worker_start", "audit"}
        )


class Model(Section):
    """What is trained, and what it starts from."""

    name: Annotated[
        str,
        Field(min_length=1, description=("a model of ours, any classification model of torchvision, or a dotted path")),
    ] = "small_resnet"
    args: Annotated[dict[str, Any], Field(description="keyword arguments of the model")] = Field(default_factory=dict)
    init: Annotated[
        Literal["default", "kaiming", "xavier", "orthogonal", "trunc_normal"],
        Field(description=("how weights are drawn; default: as the model's own code does")),
    ] = "kaiming"
    zero_init_last_norm: Annotated[
        bool, Field(description=("each residual branch starts at zero, by the weight of its last norm"))
    ] = True


class Train(Section):
    """How long, in what portions and where."""

    epochs: Annotated[int, Field(ge=1, le=_MOST, description="passes over the training data")]
    global_batch: Annotated[
        int,
        Field(
            ge=1,
            le=_MOST,
            description=("samples of all ranks in one optimiser step, accumulation included; fixed for a run"),
        ),
    ]
    micro_batch: Annotated[
        Annotated[int, Field(ge=1, le=_MOST)] | None,
        FREE,
        Field(description=("samples that one rank computes at once; null: its whole share of the step")),
    ] = None
    device: Annotated[Literal["auto", "cpu", "cuda"], Field(description="auto: cuda where there is one")] = "auto"
    threads: Annotated[
        int,
        Field(
            ge=1,
            le=4096,
            description=("threads of one operation per rank on CPU; the number changes results in the last bits"),
        ),
    ] = 1
    log_every_steps: Annotated[
        int, FREE, Field(ge=1, le=_MOST, description=("a line of the log and of metrics.jsonl every so many steps"))
    ] = 20


class Loss(Section):
    """What is minimised."""

    name: Annotated[Literal["cross_entropy"], Field(description="the loss")] = "cross_entropy"
    label_smoothing: Annotated[
        float, Field(ge=0, lt=1, description=("share of each label that is spread over all classes"))
    ] = 0.0


class Optim(Section):
    """How weights follow gradients."""

    name: Annotated[Literal["sgd", "adamw"], Field(description="the optimiser")] = "sgd"
    lr: Annotated[float, Field(gt=0, description="learning rate at the end of the warm-up")] = 0.1
    weight_decay: Annotated[float, Field(ge=0, description="decay of weights")] = 5e-4
    momentum: Annotated[float, Field(ge=0, lt=1, description="of sgd")] = 0.9
    nesterov: Annotated[bool, Field(description="Nesterov's form of momentum, of sgd")] = True
    betas: Annotated[
        list[Annotated[float, Field(ge=0, lt=1)]],
        Field(min_length=2, max_length=2, description=("decay of the two running means of adamw")),
    ] = Field(default_factory=lambda: [0.9, 0.999])
    no_decay_on_norm_and_bias: Annotated[bool, Field(description=("weights of norms and biases don't decay"))] = True


class Schedule(Section):
    """The learning rate as a pure function of the step."""

    name: Annotated[Literal["cosine", "constant"], Field(description="the shape after the warm-up")] = "cosine"
    warmup_epochs: Annotated[
        float, Field(ge=0, description=("epochs over which the learning rate rises from 0; fractions are fine"))
    ] = 1.0
    final_lr_fraction: Annotated[
        float, Field(ge=0, le=1, description=("share of optim.lr that is left at the end"))
    ] = 0.0


class Eval(Section):
    """When and how the validation data is looked at."""

    every_epochs: Annotated[int, FREE, Field(ge=1, le=_MOST, description="epochs between evaluations")] = 1
    global_batch: Annotated[
        Annotated[int, Field(ge=1, le=_MOST)] | None,
        Field(description=("samples of all ranks at once; null: train.global_batch")),
    ] = None


class Checkpoint(Section):
    """When the run is saved and what is kept."""

    every_steps: Annotated[
        Annotated[int, Field(ge=1, le=_MOST)] | None,
        FREE,
        Field(description=("steps between checkpoints; null: at the end of each epoch only")),
    ] = None
    keep: Annotated[int, FREE, Field(ge=1, le=_MOST, description="newest checkpoints kept beside the best")] = 2


class Launch(Section):
    """What `launch.py run` takes from the config when its options don't say otherwise."""

    nproc: Annotated[
        Annotated[int, Field(ge=1, le=65536)] | None,
        FREE,
        Field(description=("ranks on this machine; null: one per GPU, else 1")),
    ] = None
    max_restarts: Annotated[
        int, FREE, Field(ge=0, le=_MOST, description=("failures after which the run is given up"))
    ] = 3
    grace_s: Annotated[float, FREE, Field(gt=0, description=("seconds that ranks get to save after a notice"))] = 30.0
    hang_timeout_s: Annotated[
        Annotated[float, Field(ge=1)] | None,
        FREE,
        Field(
            description=(
                "seconds without a sign of life in any phase after which it is a hang; null: five times what is usual "
                "in that phase, at least 30 s, and 30 min for what the run has not been through yet"
            )
        ),
    ] = None


class Settings(Section):
    """The whole config of a run."""

    seed: Annotated[
        int,
        Field(
            ge=0,
            le=_MOST,
            description=("the only source of chance: order, augmentation and initial weights follow from it"),
        ),
    ] = 0
    data: Data
    model: Model = Field(default_factory=Model)
    train: Train
    loss: Loss = Field(default_factory=Loss)
    optim: Optim = Field(default_factory=Optim)
    schedule: Schedule = Field(default_factory=Schedule)
    eval: Eval = Field(default_factory=Eval)
    checkpoint: Checkpoint = Field(default_factory=Checkpoint)
    launch: Launch = Field(default_factory=Launch)
