"""The keys of a recipe, which is one run: typed sections. ``trainer.recipe`` reads them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Representation = Literal["normalised_similarity", "similarity", "distance"]
Discrepancy = Literal["jeffreys", "kl", "reverse_kl", "l1", "l2", "huber"]
Weighting = Literal["mixture", "uncertainty", "fixed"]
CrossRows = Literal["other", "same"]
Centre = Literal["none", "teacher", "both"]
AlignKind = Literal["infonce", "siglip", "multi_positive"]
LearnTau = Literal["none", "student", "both"]
DIVERGENCES = ("jeffreys", "kl", "reverse_kl")  # compare rows that sum to one

Share = Annotated[float, Field(ge=0.0, le=1.0)]
BelowOne = Annotated[float, Field(ge=0.0, lt=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
SEEDS = 1 << 63  # torch takes no larger one


TEMPERATURES = ("teacher_intra", "student_intra", "teacher_cross", "student_cross")


class Section(BaseModel):
    """Base of all sections: frozen, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataConfig(Section):
    """What is read from the shards, and in which order."""

    n_points: Count = 10_000  # leading points kept of every cloud
    batch_size: Annotated[int, Field(ge=2)] = 200  # rows that the losses compare with one another
    val_fraction: BelowOne = 0.01  # of the shapes, chosen by hash of the uid
    val_rows: Annotated[int, Field(ge=2)] = 4000  # held out at most: validation is to stay short
    splits: tuple[str, ...] = ("train",)  # rows of other splits are not read; without a split: are
    # How often the rows of each shard set come up in an epoch, in the order of --shards: 0.5 is
    # half of them, in turn. Empty: once each.
    weights: tuple[Positive, ...] = ()
    shuffle_groups: Count = 32  # row groups mixed with one another at a time
    # A batch is put together from groups of so many objects that are alike, as far as a window
    # (shuffle_groups) has them; 1: from single ones, at random.
    near: Count = 1
    # What tells so: the teacher's pictures or texts, or the student of model.init.
    near_by: Literal["image", "text", "student"] = "image"
    near_after: Share = 0.0  # share of the run, in whole epochs, before which they are single ones
    # Which of an object's views a batch has: a random one, the mean of all, or all as positives.
    image_sampling: Literal["one", "mean", "all"] = "one"
    image_views: Whole = 0  # mean, all: of that many views drawn for each epoch; 0: of all views
    thumbnail: Share = 0.5  # probability that a thumbnail, where there is one, stands for the view
    # Texts likewise; "source": a random source (name, caption ...), then a random text of it.
    text_sampling: Literal["one", "source", "mean", "all"] = "one"
    cache_mib: Whole = 4096  # a set that fits is kept in memory, quantised
    prefetch: Count = 4  # batches made ahead by a thread
    readers: Count = 4  # threads that read row groups ahead

    @model_validator(mode="after")
    def _legal(self) -> DataConfig:
        if self.near > self.batch_size:
            raise ValueError(
                f"near: groups of {self.near} similar objects do not fit into batch_size "
                f"{self.batch_size}; lower near"
            )
        if self.near_after > 0 and self.near == 1:
            raise ValueError(
                "near_after needs near, the size of groups of similar objects, above 1"
            )
        return self


class AugmentConfig(Section):
    """Changes made to the training clouds; 0 switches one off."""

    drop_color: Share = 0.5  # probability that a cloud's colours become the neutral 0.4
    scale: tuple[float, float] = (0.8, 1.25)  # uniform factor, drawn per cloud
    shift: NonNegative = 0.1  # largest shift along each axis
    rotate_sigma: NonNegative = 0.06  # radians, small rotation about each axis
    rotate_clip: NonNegative = 0.18  # radians, its largest value
    yaw: bool = True  # uniform rotation about +y
    drop_points: BelowOne = 0.875  # largest share of points dropped

    @model_validator(mode="after")
    def _ordered(self) -> AugmentConfig:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError("scale must be two positive numbers, the smaller first")
        return self


class ModelConfig(Section):
    """The student."""

    backbone: str = "pointbert-32m"
    options: dict[str, Any] = Field(default_factory=dict)  # overrides of the backbone's options
    # Weights to begin with: a run folder, checkpoint, file of OpenShape or Uni3D, or hub's model.
    init: str = ""
    trunk: str = ""  # uni3d: file of timm weights of the trunk to begin with; "": from scratch

    @model_validator(mode="after")
    def _one_beginning(self) -> ModelConfig:
        if self.init and self.trunk:
            raise ValueError("init has the weights of the trunk too; leave out one of the two")
        return self


class AlignConfig(Section):
    """Contrastive alignment with the teacher's embeddings (``trainer.losses.align``)."""

    kind: AlignKind = "infonce"
    image_weight: NonNegative = 1.0
    text_weight: NonNegative = 1.0
    joint_weight: NonNegative = 0.0  # of point and image together against the text (MixCon3D)
    # Initial multiplier of cosines; SigLIP's authors begin at 10.
    logit_scale: Annotated[float, Field(ge=1.0, le=100.0)] = 1 / 0.07
    learn_scale: bool = True
    shared_scale: bool = True  # one scale (and bias) for images and texts, or one each
    logit_bias: float = -10.0  # siglip: initial bias of the logits
    learn_bias: bool = True
    # Which pairs are no negatives of one another, though they are different objects.
    drop_same_category: bool = False  # both have this category name
    drop_same_text: bool = False  # their text embeddings are equal
    drop_image_above: Share = 1.0  # image term: teacher cosine of their images; 1: none dropped
    drop_text_above: Share = 1.0  # text terms: teacher cosine of their texts; 1: none dropped
    hard_negatives: NonNegative = 0.0  # infonce: how much more the negatives most alike count
    hard_warmup: Share = 0.0  # share of the run over which that rises from 0: easy ones first

    @model_validator(mode="after")
    def _legal(self) -> AlignConfig:
        if self.hard_negatives > 0 and self.kind != "infonce":
            raise ValueError(
                f"hard_negatives apply to kind infonce only, not {self.kind}; leave them at 0"
            )
        return self

    @property
    def aligns(self) -> bool:
        """Whether any term has a weight."""
        return self.image_weight > 0 or self.text_weight > 0 or self.joint_weight > 0


class DistillConfig(Section):
    """Relation distillation (``trainer.losses.distill``)."""

    enabled: bool = True
    weight: NonNegative = 1.0  # against the alignment
    warmup: Share = 0.05  # share of the run over which ``weight`` rises from 0
    representation: Representation = "normalised_similarity"
    discrepancy: Discrepancy = "jeffreys"
    intra_image: bool = True
    intra_text: bool = True
    cross: bool = True
    cross_text: bool = True  # part of cross: point-text like image-text
    cross_image: bool = True  # part of cross: point-image like text-image
    # The teacher's rows of cross: of the other modality (image-text, as MRD has it), or of the
    # same one (text-text), which needs no pictures for texts and no texts for pictures.
    cross_rows: CrossRows = "other"
    weighting: Weighting = "mixture"
    floor: Annotated[float, Field(ge=0.0, le=1 / 3)] = (
        0.1  # mixture: no term falls below this weight
    )
    fixed_intra_image: NonNegative = 1.0  # weights under weighting = "fixed"
    fixed_intra_text: NonNegative = 1.0
    fixed_cross: NonNegative = 1.0
    mask_diagonal: bool = True  # leave self-similarity out of intra-modal relations
    centre: Centre = "none"  # subtract the batch mean of each modality before comparing
    tau_teacher_intra: Positive = 0.1
    tau_student_intra: Positive = 0.1
    tau_teacher_cross: Positive = 0.1
    tau_student_cross: Positive = 0.1
    learn_tau: LearnTau = "none"  # which temperatures are learned, from the values above
    tau_min: Positive = 0.01  # bounds of learned temperatures
    tau_max: Positive = 1.0
    huber_delta: Positive = 1.0
    queue: Whole = 0  # objects of past batches kept as further columns of the relations
    detach_columns: bool = False  # the student's features get gradients as rows only

    @model_validator(mode="after")
    def _legal(self) -> DistillConfig:
        if self.discrepancy in DIVERGENCES and self.representation != "normalised_similarity":
            raise ValueError(
                f"discrepancy {self.discrepancy} needs representation normalised_similarity, not "
                f"{self.representation}; use l1, l2 or huber with it"
            )
        if self.enabled and not (self.intra_image or self.intra_text or self.cross):
            raise ValueError("all terms are off; set enabled = false instead")
        if self.cross and not (self.cross_text or self.cross_image):
            raise ValueError("cross_text and cross_image are both off; set cross = false instead")
        if self.learn_tau != "none":
            self._check_learned()
        return self

    def crosses(self, modality: Literal["image", "text"]) -> bool:
        """Whether the cross-modal relations read the teacher's features of a modality."""
        columns = self.cross_image if modality == "image" else self.cross_text
        return self.cross and (columns or self.cross_rows == "other")

    def _check_learned(self) -> None:
        if self.representation != "normalised_similarity":
            raise ValueError(
                f"learn_tau {self.learn_tau} needs representation normalised_similarity: "
                f"{self.representation} has no temperature"
            )
        for name in TEMPERATURES:
            value = getattr(self, f"tau_{name}")
            if not self.tau_min <= value <= self.tau_max:
                raise ValueError(f"tau_{name} {value} is not between tau_min and tau_max")


class LossConfig(Section):
    """All terms of the objective."""

    align: AlignConfig = AlignConfig()
    distill: DistillConfig = DistillConfig()

    @model_validator(mode="after")
    def _something(self) -> LossConfig:
        if not (self.align.aligns or self.distill.enabled):
            raise ValueError("nothing to learn: every term has weight 0")
        return self

    @property
    def needs_image(self) -> bool:
        """Whether some term reads image embeddings."""
        align, distill = self.align, self.distill
        return (
            align.image_weight > 0
            or align.joint_weight > 0
            or (distill.enabled and (distill.intra_image or distill.crosses("image")))
        )

    @property
    def needs_text(self) -> bool:
        """Whether some term reads text embeddings."""
        align, distill = self.align, self.distill
        drops = align.drop_same_text and align.image_weight > 0
        return (
            align.text_weight > 0
            or align.joint_weight > 0
            or drops
            or (distill.enabled and (distill.intra_text or distill.crosses("text")))
        )

    @property
    def needs_category(self) -> bool:
        """Whether some term reads category names."""
        return self.align.drop_same_category and self.align.aligns


class OptimConfig(Section):
    """AdamW, and the schedule of its rate."""

    lr: Positive = 5e-4
    schedule: Literal["cosine", "step"] = "cosine"
    min_lr: NonNegative = 0.0  # where the cosine ends; the step schedule does not fall below it
    decay_every: Count = 10_000  # step schedule: steps until the rate is multiplied ...
    decay_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 0.967  # ... by this
    warmup: Share = 0.05  # share of the run over which the rate rises from 0
    warmup_steps: Whole = 0  # when positive, decides instead of warmup
    weight_decay: NonNegative = 0.05  # of matrices only
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0  # of the rate, from layer to layer
    beta1: BelowOne = 0.9
    beta2: BelowOne = 0.98
    eps: Positive = 1e-6
    clip: NonNegative = 5.0  # largest gradient norm; 0: no limit

    @model_validator(mode="after")
    def _falls(self) -> OptimConfig:
        if self.min_lr > self.lr:
            raise ValueError(
                f"min_lr {self.min_lr:g} is above lr {self.lr:g}, so the rate would not fall; "
                "lower min_lr too"
            )
        return self


class TrainConfig(Section):
    """Length, numbers and records of the run."""

    epochs: Count = 100
    steps: Whole = 0  # when positive, decides instead of epochs
    seed: Annotated[int, Field(ge=0, lt=SEEDS)] = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 on CUDA, fp32 on CPU
    compile: bool = False  # torch.compile of the backbone and the losses, where it works
    micro_batch: Whole = 0  # rows through the backbone at once, per process; 0: all
    recompute: bool = False  # blocks keep their input only and are run again for the gradient
    # Several processes: a copy of the student in each, or its weights, gradients and moments
    # shared out among them; auto: shared out on GPUs from 300M parameters on.
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    log_every: Count = 10  # steps
    val_every: Count = 500
    checkpoint_every: Count = 500
    keep: Count = 2  # newest checkpoints kept, beside the best
    wandb: str = ""  # project, or ENTITY/PROJECT, of Weights & Biases for the records


class EmaConfig(Section):
    """Exponential moving average of the student's weights."""

    enabled: bool = False
    decay: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.9995


class Recipe(Section):
    """Everything that decides a run but the data set and the machine."""

    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    ema: EmaConfig = EmaConfig()

    @model_validator(mode="after")
    def _fits(self) -> Recipe:
        for name in ("image", "text"):
            every = getattr(self.data, f"{name}_sampling") == "all"
            if every and self.loss.align.kind == "infonce":
                raise ValueError(
                    f"data.{name}_sampling all needs loss.align.kind multi_positive or siglip: "
                    "infonce has one positive per row"
                )
        if self.data.image_views and self.data.image_sampling == "one":
            raise ValueError("data.image_views needs data.image_sampling mean or all, not one")
        if self.data.near > 1 and self.data.near_by == "student" and not self.model.init:
            raise ValueError("data.near_by student needs model.init, the student to use")
        return self
