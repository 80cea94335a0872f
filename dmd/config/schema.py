"""The config of a training: a typed tree of frozen dataclasses, which `dmd.config.loading` makes of files."""

from dataclasses import dataclass, field, fields
from typing import Literal

from data_shards.places import redact
from dmd.kernels.backend import KernelChoice, PrecisionChoice
from dmd.losses import MisaConfig, ObjectiveConfig
from dmd.model import ModelConfig
from dmd.model.baselines.self_mm_config import SelfMMConfig
from dmd.model.lora import ALL_LINEAR, DEFAULT, LoraSettings
from dmd.model.quantize import Quantize
from dmd.system.models import MODELS, unread_keys

TrackerName = Literal["wandb", "mlflow"]
"""The rows of `dmd.training.logging.trackers.table`."""


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The text encoder, used when the shards hold token ids; shards with text features need none."""

    encoder: str = "bert-base-uncased"
    """Local directory or hub name of any Hugging Face encoder; its tokenizer must be the one that made the shards."""
    frozen: bool = False
    """Keep the encoder's pretrained weights."""
    compile: bool = False
    """Run the encoder through torch.compile."""
    learning_rate: float | None = None
    """Learning rate of the encoder's weights; none: `train.learning_rate`."""
    warmup_epochs: int = 0
    """Epochs over which the encoder's learning rate rises to its own, in equal parts; 0: at once, as published."""
    layer_decay: float = 1.0
    """Learning rate of an encoder's layer over that of the layer above it, in (0, 1]. The last layer keeps
    `text.learning_rate`, the embeddings lie below the first. 1: all the same."""
    gradient_checkpointing: bool = False
    """Keep of each encoder layer its input alone, and run it again in backward: less memory for one more forward pass,
    and bitwise the same gradients."""
    lora_rank: int = 0
    """Rank of LoRA's adapters, by peft: they alone are trained of the encoder, and checkpoints and exports hold them
    with the name and digest of its weights instead of those. 0: none."""
    lora_targets: tuple[str, ...] | str = DEFAULT
    """Linear layers that get an adapter, by the ends of their names, such as [query, value]. default: those that peft
    knows for the type of the encoder; all-linear: all."""
    lora_alpha: int = 16
    """An adapter's output is multiplied by this over the rank."""
    lora_dropout: float = 0.0
    """Dropout of an adapter's input."""

    quantize: Quantize = "none"
    """Store the linear layers of an encoder that is not trained itself (LoRA, or frozen) in 8 or 4 bits, by
    bitsandbytes; checkpoints name its weights, as LoRA's do."""

    @property
    def lora(self) -> LoraSettings | None:
        """The adapters, None without any."""
        if not self.lora_rank:
            return None
        return LoraSettings(
            rank=self.lora_rank, targets=self.lora_targets, alpha=self.lora_alpha, dropout=self.lora_dropout
        )

    def __post_init__(self) -> None:
        if "://" in self.encoder:
            raise ValueError(f"text.encoder is {redact(self.encoder)}; give a directory or a name on the hub")
        if self.learning_rate is not None and self.learning_rate <= 0:
            raise ValueError(f"text.learning_rate is {self.learning_rate}; it must be above 0")
        if self.warmup_epochs < 0:
            raise ValueError(f"text.warmup_epochs is {self.warmup_epochs}; it must be at least 0")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"text.layer_decay is {self.layer_decay}; it must be above 0 and at most 1")
        if self.frozen and self.layer_decay < 1:
            raise ValueError(
                f"text.layer_decay is {self.layer_decay} and text.frozen is true, but frozen layers have no learning "
                "rate: set text.layer_decay=1, or text.frozen=false"
            )
        if self.frozen and self.gradient_checkpointing:
            raise ValueError(
                "text.gradient_checkpointing and text.frozen are true, but frozen encoders keep nothing for backward: "
                "set text.gradient_checkpointing=false"
            )
        if self.quantize != "none" and not (self.frozen or self.lora_rank):
            raise ValueError(
                f"text.quantize is {self.quantize!r}, but quantised weights are not trained; set text.lora_rank=8, or "
                "text.frozen=true"
            )
        self._check_lora()

    def _check_lora(self) -> None:
        if self.lora_rank < 0:
            raise ValueError(f"text.lora_rank is {self.lora_rank}; it must be at least 1, or 0 for none")
        if self.lora_rank and self.frozen:
            raise ValueError(
                f"text.lora_rank is {self.lora_rank} and text.frozen is true; adapters are trained: set text.frozen="
                "false, which with them keeps the encoder's own weights too"
            )
        if not self.lora_targets:
            raise ValueError(f"text.lora_targets is empty; give {DEFAULT}, {ALL_LINEAR}, or names of layers")
        if self.lora_alpha <= 0:
            raise ValueError(f"text.lora_alpha is {self.lora_alpha}; it must be above 0")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"text.lora_dropout is {self.lora_dropout}; it must be at least 0 and below 1")
        if not self.lora_rank:
            for name in ("lora_targets", "lora_alpha", "lora_dropout"):
                value, default = getattr(self, name), getattr(TextConfig, name)
                if value != default:
                    raise ValueError(
                        f"text.{name} is {value!r}, but text.lora_rank is 0, so there are no adapters; set "
                        f"text.lora_rank=8, or text.{name}={default}"
                    )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How samples are read."""

    reader: Literal["random", "stream"] = "random"
    """How samples are read; they and their order are the same. `random`: each from its place in its shard; remote
    shards are copied to the node's cache first. `stream`: the shards of a window from end to end, without a copy, for
    sets larger than the disks here; two windows are in memory, shared out over the ranks (docs/data.md)."""
    workers: int | Literal["auto"] = "auto"
    """Reader threads per rank; 0 reads between the steps. Does not change the order. A stream has one at most. auto: 1
    on CUDA and for a stream, else 0."""
    window: int = 16
    """Shards whose samples are mixed with each other at a time; changes the order."""
    classes: Literal["sentiment", "stored", "emotions"] = "sentiment"
    """Which labels a model learns. sentiment: the sentiment, or 2, 3, 5 or 7 classes of it. stored: the class numbers
    that the shards hold. emotions: their emotions. Follows `model.task`, but where shards hold sentiments and class
    numbers, which take `stored`."""
    check: bool = True
    """Compare each sample's checksum when it is first read."""

    def __post_init__(self) -> None:
        if self.workers != "auto" and self.workers < 0:
            raise ValueError(f"data.workers is {self.workers}; it must be at least 0")
        if self.window < 1:
            raise ValueError(f"data.window is {self.window}; it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Steps, optimizer, schedule, stopping. Defaults are the published ones for CMU-MOSI."""

    seed: int = 1111
    """Seed of weights, sample order and dropout."""
    epochs: int = 100
    """Epochs at most; early stopping usually comes first."""
    max_steps: int | None = None
    """Optimizer steps at most; none: no limit."""
    ghost_batch_size: int = 16
    """Samples that the relational losses compare with each other: a hyperparameter of the objective."""
    ghost_batches_per_step: int = 10
    """Ghost batches of one optimizer step, over all ranks. More ranks than these share them, up to one rank a sample;
    numbers of ranks that are multiples of it are the fast ones (docs/scaling.md)."""
    ghost_batches_per_forward: int | Literal["auto"] = "auto"
    """Ghost batches that a rank runs at once, at most: memory against speed, the result is the same but for the draws
    of a trained text encoder's dropout, which are those of a pass. auto: on CUDA all of its share, or as many as its
    memory holds; on a CPU 10, of long sequences 2. run.json says how many."""
    learning_rate: float = 1e-4
    """Adam's learning rate."""
    clip: Literal["none", "value", "norm"] = "value"
    """Clip the gradient of a step by value, by its global norm, or not at all."""
    clip_at: float = 0.06
    """Limit of the clip. The published 0.6 is for the sum of ten ghost batches; a step here is their mean."""
    schedule: Literal["plateau", "cosine"] = "plateau"
    """Learning rate over the epochs: `plateau` (published), or `cosine`, half a wave down to 0 over `epochs`."""
    ema_decay: float = 0.0
    """Exponential moving average of all trained weights, the GD-Units' too: the share of it that a step keeps, such as
    0.99. After t steps the share is at most (1 + t) / (10 + t), so that short trainings forget their start. Validation,
    best, evaluate, predict, export and report use the average; the training goes on from its own weights. 0: none."""
    plateau_factor: float = 0.5
    """Factor on the learning rate after `plateau_patience` epochs without a better validation loss."""
    plateau_patience: int = 5
    """Epochs without improvement that the schedule accepts."""
    early_stop: int = 10
    """Epochs without a better validation loss after which the training ends."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed's ZeRO stage: 0 keeps the optimizer state on every rank, 1 divides it, 2 the gradients as well, 3 the
    text encoder's weights as well (docs/text-encoders.md)."""
    offload: Literal["none", "cpu"] = "none"
    """Where the optimizer's state and its float32 weights are at ZeRO stages 1 to 3: on the device, or in the memory of
    its host, where Adam then runs."""
    reduce_precision: Literal["fp32", "bf16"] = "fp32"
    """Precision in which gradients travel between ranks and are added; their average, clip and Adam stay in float32.
    bf16 halves the bytes, and keeps 8 bits of each rank's gradient and of each sum. Nothing to one rank."""
    reduce_bucket_mb: float = 25
    """Megabytes of gradient that travel at once. A bucket starts as soon as its gradients are there, while backward
    goes on to the others. More than the whole gradient: one bucket, when backward has ended, and one of its own for a
    text encoder. To one rank too the weights of a bucket are one tensor at ZeRO stage 0."""
    precision: PrecisionChoice = "auto"
    """Precision of the network's products; weights and losses stay in float32. fp32: IEEE float32. tf32: float32 whose
    products on CUDA keep 10 bits of mantissa. bf16: autocast to bfloat16, 7 bits. auto: bf16 on CUDA from compute
    capability 8.0 on, else fp32."""
    kernels: KernelChoice = "auto"
    """Implementation of encoders and losses: Triton kernels (fused), or PyTorch (plain). auto: fused on CUDA from
    compute capability 8.0 on, where Triton is installed and its kernels compile, else plain."""
    cuda_graph: Literal["auto", "off"] = "off"
    """Capture forward and backward as a CUDA graph. auto: where kernels are fused and a step is one pass; run.json says
    whether, and why not. Twice as fast on an H100 (docs/gpu.md); off, since it was changed after it ran there."""
    adam: Literal["torch", "deepspeed"] = "torch"
    """Implementation of Adam on CUDA: torch's fused one, or DeepSpeed's FusedAdam, which is compiled at the first start
    and needs an nvcc of torch's CUDA version. A CPU has torch's alone. Checkpoints of one continue with the other."""
    deterministic: bool = False
    """Make trainings on CUDA bitwise reproducible: torch.use_deterministic_algorithms, deterministic cuDNN without its
    benchmark, CUBLAS_WORKSPACE_CONFIG=:4096:8, scaled_dot_product_attention by its math implementation. Costs time and
    memory. Changes nothing on a CPU, where trainings always are."""
    save_every: int = 0
    """Steps between two checkpoints inside an epoch; 0: at epoch ends only."""
    save_minutes: float = 0
    """Minutes after which a checkpoint is written at the next step; 0: no limit."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept beside the best; at least 2."""
    log_every: int = 1
    """Steps between two lines of the log."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """A loss or gradient that is not finite is never applied: end the training, or skip the step and go on."""
    nonfinite_limit: int = 3
    """Steps in a row that `on_nonfinite: skip` bears with; one more ends the training."""
    on_storage_error: Literal["continue", "stop"] = "continue"
    """A checkpoint or log that cannot be written: go on and try again at the next, or end the training. The weights
    in memory may be all there is of the last steps; the end of a training must be written either way."""
    collective_timeout: float = 600
    """Seconds that a rank waits for the others before the training ends. One that gives no heartbeat for so long prints
    its stacks, and is killed if it gives none for as long again."""
    trackers: tuple[TrackerName, ...] = ()
    """Trackers that get the numbers of TensorBoard too, of [wandb, mlflow] (docs/tracking.md)."""

    def __post_init__(self) -> None:
        at_least = {
            "epochs": 1,
            "ghost_batch_size": 2,
            "ghost_batches_per_step": 1,
            "plateau_patience": 0,
            "early_stop": 1,
            "save_every": 0,
            "save_minutes": 0,
            "keep_checkpoints": 2,
            "log_every": 1,
            "seed": 0,
            "nonfinite_limit": 0,
        }
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise ValueError(f"train.{name} is {getattr(self, name)}; it must be at least {least}")
        if self.ghost_batches_per_forward != "auto" and self.ghost_batches_per_forward < 1:
            raise ValueError(
                f"train.ghost_batches_per_forward is {self.ghost_batches_per_forward}; it must be at least 1, or auto"
            )
        if len(set(self.trackers)) < len(self.trackers):
            given = ",".join(self.trackers)
            raise ValueError(f"train.trackers is [{given}]; name each tracker once")
        for name in ("learning_rate", "clip_at", "collective_timeout", "reduce_bucket_mb"):
            if getattr(self, name) <= 0:
                raise ValueError(f"train.{name} is {getattr(self, name)}; it must be above 0")
        if not 0 < self.plateau_factor < 1:
            raise ValueError(f"train.plateau_factor is {self.plateau_factor}; it must lie between 0 and 1")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"train.ema_decay is {self.ema_decay}; it must be at least 0 and below 1")
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"train.max_steps is {self.max_steps}; it must be at least 1, or null")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that a training is, but its data and its run directory."""

    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    misa: MisaConfig = field(default_factory=MisaConfig)
    self_mm: SelfMMConfig = field(default_factory=SelfMMConfig)
    text: TextConfig = field(default_factory=TextConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        self._check_model()
        train = self.train
        smoothing = self.objective.label_density_smoothing
        if smoothing and self.model.task == "multilabel":
            raise ValueError(
                f"objective.label_density_smoothing is {smoothing:g}, but the model learns emotions, of which a sample "
                "has any number, so there is no density of its label; set objective.label_density_smoothing=0"
            )
        if train.offload != "none" and train.zero_stage == 0:
            raise ValueError(
                f"train.offload is {train.offload!r}, which ZeRO does from stage 1 on; set train.zero_stage=1, 2 or 3"
            )
        if train.offload != "none" and train.adam == "deepspeed":
            raise ValueError(
                f"train.offload is {train.offload!r}, and train.adam is 'deepspeed', which runs on the GPU alone; set "
                "train.adam=torch"
            )
        if train.zero_stage == 3 and train.ema_decay > 0:
            raise ValueError(
                f"train.zero_stage is 3, where no rank has the weights that ema_decay={train.ema_decay} averages; "
                "set train.ema_decay=0, or train.zero_stage=2"
            )
        if train.zero_stage == 3 and self.text.quantize != "none":
            raise ValueError(
                f"train.zero_stage is 3 and text.quantize is {self.text.quantize!r}, but ranks cannot divide quantised "
                "weights; set train.zero_stage=2, which divides what is trained"
            )
        if train.zero_stage == 3 and self.text.compile:
            raise ValueError(
                "train.zero_stage is 3 and text.compile is true, but compiled modules run without the hooks that "
                "gather their weights; set text.compile=false, or train.zero_stage=2"
            )

    def _check_model(self) -> None:
        """Raise ValueError for what the model cannot predict, a value under a key that it does not read, or attention
        heads that do not fit."""
        model = self.model
        kinds = MODELS[model.name].kinds
        if model.task != "auto" and model.kind not in kinds:
            raise ValueError(
                f"model.name is {model.name!r}, which learns {' and '.join(kinds)} alone, and model.task is "
                f"{model.task!r}; set another model.name, or model.task={kinds[0]} where the shards hold it"
            )
        if MODELS[model.name].reads_key("model.heads"):
            model.check_heads()
        if model.name == "misa" and model.task not in ("auto", "regression") and self.misa.regression_loss != "squared":
            raise ValueError(
                f"misa.regression_loss is {self.misa.regression_loss!r}, which is of sentiments, and model.task is "
                f"{model.task!r}; leave it out"
            )
        given = {
            f"{section.name}.{key.name}": getattr(getattr(self, section.name), key.name)
            for section in fields(self)
            for key in fields(getattr(self, section.name))
            if getattr(getattr(self, section.name), key.name) != key.default
        }
        for key in unread_keys(model.name, given):
            raise ValueError(
                f"{key} is {given[key]!r}, which model.name={model.name} does not read; leave it out "
                "(docs/models.md says which model reads which keys)"
            )
