"""The sections of a training configuration: plain dataclasses, so that one YAML file is one run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mmdit.bounds import (
    AtATime,
    ClosedUnitInterval,
    Decay,
    InferenceSteps,
    Layers,
    Nodes,
    NonNegativeInt,
    NonNegativeNumber,
    PositiveInt,
    PositiveNumber,
    Rows,
    Seed,
    TrainingSteps,
    Width,
    Workers,
)
from mmdit.training.network_config import (
    AutoencoderConfig,
    CaptionerConfig,
    CLIPConfig,
    DecoderConfig,
    DetectorConfig,
    ImageEncoderConfig,
    StylesConfig,
    TeacherConfig,
)
from mmdit.training.optimizers import OptimizerConfig

LATENTS = "latents"  # alignment.teacher: no network, the clean latents themselves

__all__ = [
    "LATENTS",
    "AlignmentConfig",
    "AutoencoderConfig",
    "CLIPConfig",
    "CaptionerConfig",
    "DataConfig",
    "DecoderConfig",
    "DetectorConfig",
    "EMAConfig",
    "FrechetConfig",
    "ImageEncoderConfig",
    "LoRAConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "PreviewConfig",
    "PromptsConfig",
    "RoutingConfig",
    "StylesConfig",
    "TaskConfig",
    "TeacherConfig",
    "TrainerConfig",
    "TrainingConfig",
]


@dataclass
class ModelConfig:
    """The transformer. Class count and latent size come from the data.

    Args:
        size: name in ``mmdit.models.config.SIZES``; hidden_size, depth and num_heads override it where given.
        modalities: what it generates and reads, in order; null = all that the data has.
        hidden_size: width D; null = the size's.
        depth: number of blocks; null = the size's.
        num_heads: attention heads; null = the size's.
        mlp_ratio: width of the blocks' MLP over D.
        patch_size: side of a patch in latent cells.
        class_dropout_prob: share of prompts dropped, for classifier-free guidance.
        drop_class_given_rgb: never show the prompt beside an RGB condition, so that understanding can't lean on it.
        qk_norm: null or "rms_norm".
        position_embedding: "sincos" or "rope".
        time_embedding: "fused" (MMGen) or "sum", which a model that starts from REPA or SiT needs.
        gradient_checkpointing: trade a third more compute for activations of one block at a time.
        pretrained: pipeline folder whose transformer to start from, or null. It may have fewer modalities, another conditioner,
            and the block that ``block`` derives from; the rest must match.
        weights_from: beginning of weights' names, as in ``trainable`` -> pipeline folder or bundled model; these weights begin as
            they are there, after ``pretrained``.
        block: name in ``mmdit.models.blocks.BLOCKS``: "dit", or "cross" and "joint", which also attend to the prompt's tokens.
        conditioner: name in ``mmdit.models.conditioners.CONDITIONERS``, the kind of prompt.
        conditioner_settings: further arguments of the conditioner, by name.
        second_time: let the network take a second time, for objectives that jump from one time to another.
        trainable: beginnings of the names of the weights that are trained, such as ["conditioner.pseudo_word"] or, of all
            blocks, ["blocks.*.cross"]; null = all.
        internal_guidance_depth: number of blocks before a second head with a loss of its own, away from whose prediction
            sampling can be led (internal guidance); null = none.
    """

    size: str = "nano"
    modalities: list[str] | None = None
    hidden_size: Width | None = None
    depth: Layers | None = None
    num_heads: Layers | None = None
    mlp_ratio: PositiveNumber = 4.0
    patch_size: Layers = 2
    class_dropout_prob: ClosedUnitInterval = 0.1
    drop_class_given_rgb: bool = False
    qk_norm: str | None = None
    position_embedding: str = "sincos"
    time_embedding: str = "fused"
    gradient_checkpointing: bool = False
    pretrained: str | None = None
    weights_from: dict[str, str] = field(default_factory=dict)
    block: str = "dit"
    conditioner: str = "class"
    conditioner_settings: dict[str, Any] = field(default_factory=dict)
    second_time: bool = False
    trainable: list[str] | None = None
    internal_guidance_depth: Layers | None = None


@dataclass
class LoRAConfig:
    """Low-rank updates (LoRA, arXiv 2106.09685) of model.pretrained, whose own weights stay as they are.

    The network, its modalities and their whitening are then those of model.pretrained, a pipeline folder or a bundled model;
    of the section model only gradient_checkpointing and drop_class_given_rgb are read. Categories go by their names; samples of
    one that the model lacks are trained without. The run ends with ``lora/``, for ``pipe.load_lora_weights``.

    Args:
        rank: of the updates; 4 to 64 is usual.
        alpha: the updates count alpha / rank times; null = rank, so once.
        target_modules: ends of the names of the linear layers that are updated, such as ["attn.qkv", "attn.proj"]; null = those
            of attention and MLP in all blocks.
    """

    rank: Width = 16
    alpha: PositiveNumber | None = None
    target_modules: list[str] | None = None


@dataclass
class PromptsConfig:
    """Prompts of text and subjects beside the latents, and the frozen encoders that read them.

    Args:
        path: the dataset folder that the latents were encoded from, with ``prompts.jsonl``.
        text_encoder: folder or Hub id: a CLIP model or its text tower, an encoder of the kinds of T5 and BERT, or, for the
            conditioner "interleaved", a multimodal LLM; a bundled model's name or a pipeline folder = its encoders; null = those
            of model.pretrained.
        image_encoder: folder or Hub id of a CLIP model or its image tower; null = that of ``text_encoder`` where it has one.
        pictures: what a subject is shown by: "other" pictures of it, a "crop" of the sample's own, or "either"; floors and walls
            are shown by a square of themselves, styles by another picture.
        max_subjects: the most pictures in one prompt; 0 = text alone.
        plain_share: share of the samples whose caption comes without pictures (UNIMO-G: 0.1).
        anonymous_share: share of the subjects whose words are replaced by "object", so that the picture alone says what they
            are.
        hidden_layer: of the text encoder, whose states are the prompt: 0 = embeddings, -1 = the last; null = what its config
            says, else the last.
        attention_loss: between the attention to a subject's tokens and where it is in the picture: "mask" (UNIMO-G's: its map
            is its mask) or "choice" (each location reads, of all subjects, the one that is there).
        attention_loss_weight: of that loss; 0 = off.
        attention_loss_on: "subjects" (tokens that a picture stands for, UNIMO-G's) or "words" (all that name something whose mask
            is known).
        attention_blocks: numbers of the blocks whose attention it compares, 1 = the first; null = three, spread evenly.
        label_share: share of the samples that keep their category beside or instead of the caption.
        label_alone_share: share of those whose caption is hidden.
        counts: how many pictures a prompt has: "uniform" from 1 to the most, or "unimo", by UNIMO-G's shares from 0 on.
    """

    path: str | None = None
    text_encoder: str | None = None
    image_encoder: str | None = None
    pictures: str = "other"
    max_subjects: Rows = 4
    plain_share: ClosedUnitInterval = 0.0
    anonymous_share: ClosedUnitInterval = 0.0
    hidden_layer: int | None = None
    attention_loss: str = "mask"
    attention_loss_weight: NonNegativeNumber = 0.0
    attention_loss_on: str = "subjects"
    attention_blocks: list[Layers] | None = None
    label_share: ClosedUnitInterval = 0.4
    label_alone_share: ClosedUnitInterval = 0.6
    counts: str = "uniform"


@dataclass
class DataConfig:
    """What to train on.

    Args:
        path: folder of latents made by ``mmdit data encode`` (transformer), or a dataset folder (all other
            recipes); null = a synthetic set that needs nothing on disk.
        batch_size: samples per optimizer step over all processes, before gradient accumulation.
        num_workers: loader processes per process; 0 = load in the training process. Batches come through shared memory, two of
            each at a time: containers want --shm-size.
        train_split: name of the split to train on.
        val_split: name of the split to validate on; null turns validation off.
        whitening: of latents: "dataset" (mean and std of each modality's channels in the training split, from the encoded
            data), "vae" (the VAE's own scaling factor for all: MMGen's, and what its weights expect) or "pretrained" (that of
            model.pretrained, on other data than it was trained on, encoded as its own were).
        allow_outside: accept a dataset whose manifests name files outside its folder.
    """

    path: str | None = None
    batch_size: AtATime = 32
    num_workers: Workers = 0
    train_split: str = "train"
    val_split: str | None = "val"
    whitening: str = "dataset"
    allow_outside: bool = False


@dataclass
class TaskConfig:
    """Which tasks are mixed.

    Args:
        mixture: "mmgen", "any_to_any", "understanding", or weights per task.
        absent_share: share of the samples with some modalities ABSENT; null = the mixture's own.
    """

    mixture: str | dict[str, float] = "any_to_any"
    absent_share: ClosedUnitInterval | None = None


@dataclass
class ObjectiveConfig:
    """The loss.

    Args:
        name: of the objective, in ``mmdit.flow.objective.OBJECTIVES``: "flow" is flow matching; "solution_flow" (SoFlow) and
            "mean_flow" (MeanFlow) train few steps too, of a model with ``second_time``.
        settings: arguments of the objective that are its own (``mmdit.flow.flow_map.FlowMapObjective``).
        prediction: "velocity" (MMGen, SiT) or "sample" (the clean latent).
        timesteps: "uniform", "logit_normal" or "mixed".
        timestep_settings: mean and std of the logit-normal, uniform_share of the mixed.
        loss_weights: weight per modality; null = each modality's own. Modalities that the data lack are ignored.
        max_condition_time: conditions are at t_c ~ U[0, this].
        pure_noise_share: share of the samples with a condition that are trained at t = 1, where a single step is taken.
        internal_guidance_weight: of the second head's loss, with model.internal_guidance_depth; the paper's code has 0.5.
        internal_guidance_scale: of the trained model where a call names none; 1 = off.
        sampling_shift: of the steps of the trained model's scheduler, as of diffusers' (``mmdit.flow.schedulers.shifted``); above
            1 more of them are at much noise, where a picture's layout is decided.
        draws_per_sample: how often a step trains on each sample of its batch, with a time, noise and a task of its own each time
            (MAR, arXiv 2406.11838, draws four). Reading a sample and encoding its prompt then cost once.
    """

    prediction: str = "velocity"
    timesteps: str = "uniform"
    timestep_settings: dict[str, float] = field(default_factory=dict)
    loss_weights: dict[str, float] | None = None
    max_condition_time: ClosedUnitInterval = 0.01
    pure_noise_share: ClosedUnitInterval = 0.0
    sampling_shift: PositiveNumber = 1.0
    name: str = "flow"
    settings: dict[str, Any] = field(default_factory=dict)
    internal_guidance_weight: PositiveNumber = 0.5
    internal_guidance_scale: NonNegativeNumber = 1.0
    draws_per_sample: Layers = 1


@dataclass
class AlignmentConfig:
    """Representation alignment (REPA) with features of a frozen teacher, stored beside the latents or computed; or without one.

    Args:
        weight: weight of the alignment loss.
        depth: number of blocks before the tap.
        hidden_size: width of the projector.
        teacher: null = features that ``mmdit data encode --teacher`` stored; a teacher's folder or timm name (such as
            vit_base_patch14_dinov2), whose features are computed in each step and need no disk; "latents" = no teacher, the
            clean latents of all modalities (SRA 2); "vae" = the last hidden layer of the VAE's encoder, from ``images``.
        images: with a ``teacher`` that sees images: the dataset folder that the latents were encoded from.
        projector: "mlp" (three layers, REPA) or "conv" (one 3 x 3 convolution, iREPA; it has no ``hidden_size``).
        spatial_norm: γ of iREPA: features less this share of their mean over the image, over their deviation; its code has 0.6;
            null = as they are.
        distance: of projected tokens from features: "cosine" (REPA) or "smooth_l1" (SRA).
    """

    weight: NonNegativeNumber = 0.5
    depth: Layers = 8
    hidden_size: Width = 2048
    teacher: str | None = None
    images: str | None = None
    projector: str = "mlp"
    spatial_norm: ClosedUnitInterval | None = None
    distance: str = "cosine"

    @property
    def sees_images(self) -> bool:
        """Whether targets are computed from images in each step."""
        return self.teacher not in (None, LATENTS)


@dataclass
class RoutingConfig:
    """Token routing in training (TREAD): tokens drawn anew in each step skip blocks; sampling has all tokens everywhere.

    Args:
        share: of each sample's tokens.
        first: number of the first block that they skip, 1 = the first of the network.
        last: number of the last one; null = as many blocks after it as before ``first``.
    """

    share: ClosedUnitInterval = 0.5
    first: Layers = 3
    last: Layers | None = None


@dataclass
class FrechetConfig:
    """Post-training on the Fréchet distance of features of RGB (FD-loss, arXiv 2604.28190), beside the objective.

    Judge such a model by another network's features, ``mmdit sweep --teacher``: in these it is better than it looks.

    Args:
        weight: of the distance's logarithm in the loss.
        teacher: the feature network: a folder or timm name; null = the folder teacher of model.pretrained.
        share: of a batch that is sampled in each step, at most; of samples of which everything is generated.
        num_inference_steps: in which they are sampled; gradients go through all of them.
        decay: what stays in a step of the moments of what was sampled.
        num_samples: of the training set, for the reference; and that must have been sampled before the loss counts.
    """

    weight: NonNegativeNumber = 1.0
    teacher: str | None = None
    share: ClosedUnitInterval = 0.25
    num_inference_steps: InferenceSteps = 1
    decay: ClosedUnitInterval = 0.99
    num_samples: Width = 2048


@dataclass
class DistillationConfig:
    """Targets that trained models predict, in place of the data's, by the samples' kind of prompt.

    Each is a pipeline folder or a bundled model's name, of this model's modalities, encoders and latents; null = the data say.

    Args:
        no_prompt: of samples without words: none there, or dropped, or hidden beside a condition.
        text: of samples whose words have no pictures.
        pictures: of samples of whose words some have pictures.
        ground: of those among them that show a floor, a wall or a scene's style; null = pictures says it.
    """

    no_prompt: str | None = None
    text: str | None = None
    pictures: str | None = None
    ground: str | None = None


@dataclass
class TrainerConfig:
    """How long and on what.

    Args:
        max_steps: optimizer steps.
        max_hours: also stop after this many hours of this process, with a checkpoint, decayed where optimizer.decay_by says time;
            null = no limit.
        checkpoint_every: steps between checkpoints; the last two are kept.
        validate_every: steps between validations and previews; 0 = never.
        log_every: steps between log entries.
        accelerator: "auto", "cpu", "gpu", …
        devices: how many, which, as in "0,1", -1 for all, or "auto".
        num_nodes: machines that train together.
        precision: "32-true", "bf16-mixed", …, as in Lightning.
        strategy: "auto", "ddp", "fsdp2" (weights, gradients and optimizer states sharded over all processes), or another name in
            ``mmdit.training.strategies.STRATEGIES``.
        compile: compile the network with torch.compile, block by block.
        float8: matrix products of the blocks in FP8 with torchao, on GPUs that have them (compute capability 8.9 or newer);
            set compile too, which fuses the casts.
        accumulate_grad_batches: batches per optimizer step.
        gradient_clip_val: largest norm of the gradient; null = no clipping.
    """

    max_steps: TrainingSteps = 1000
    max_hours: PositiveNumber | None = None
    checkpoint_every: PositiveInt = 500
    validate_every: NonNegativeInt = 500
    log_every: PositiveInt = 10
    accelerator: str = "auto"
    devices: int | str = "auto"
    num_nodes: Nodes = 1
    strategy: str = "auto"
    precision: str = "32-true"
    compile: bool = False
    float8: bool = False
    accumulate_grad_batches: Width = 1
    gradient_clip_val: PositiveNumber | None = 1.0


@dataclass
class EMAConfig:
    """Exponential moving average of the weights, used for validation, previews and export.

    Args:
        decay: the average's memory, below 1: at 1 the average stays at the weights before training.
        warmup: approach the decay from below as (1 + n) / (10 + n), so that short runs have an average too; false = the decay
            itself from the first step on, as in the official codes.
    """

    decay: Decay = 0.9999
    warmup: bool = True


@dataclass
class PreviewConfig:
    """Sample grids and decoded metrics in TensorBoard at each validation.

    Args:
        num_samples: rows of the grid; 0 = none.
        num_measured: validation samples whose understanding is decoded and measured; 0 = none.
        num_inference_steps: steps of the sampler.
        guidance_scale: on the class.
    """

    num_samples: Rows = 4
    num_measured: Rows = 64
    num_inference_steps: InferenceSteps = 10
    guidance_scale: NonNegativeNumber = 2.0


@dataclass
class TrainingConfig:
    """Everything that one YAML file says about a run.

    Args:
        recipe: what is trained: transformer, autoencoder, decoder, teacher, clip, image_encoder, styles, captioner or detector.
        seed: of weights, data order, roles, timesteps and noise.
        model: the transformer.
        autoencoder: the VAE, for recipe autoencoder.
        decoder: what a VAE's decoder learns to decode, for recipe decoder.
        teacher: the ViT, for recipe teacher.
        clip: the text and image encoder, for recipe clip.
        image_encoder: colours that pictures' words tell, for recipe image_encoder.
        styles: what else stays as it was, for recipe styles.
        detector: the U-Net, for recipe detector.
        captioner: the multimodal LLM, for recipe captioner.
        data: what it is trained on.
        task: which tasks are mixed.
        objective: the loss.
        alignment: alignment with a teacher's features; null = off.
        optimizer: AdamW or Muon, and the learning rate over time.
        trainer: steps, devices, precision.
        ema: moving average of the weights; null = off.
        preview: sample grids.
        prompts: captions and subjects, for conditioners that read them; null = none.
        lora: train low-rank updates of model.pretrained in place of a model; null = off.
        routing: tokens that skip blocks in training; null = none.
        frechet: a loss on the features of samples, for post-training; null = off.
        distillation: targets that trained models predict; null = those of the data alone.
    """

    recipe: str = "transformer"
    seed: Seed = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    clip: CLIPConfig = field(default_factory=CLIPConfig)
    image_encoder: ImageEncoderConfig = field(default_factory=ImageEncoderConfig)
    styles: StylesConfig = field(default_factory=StylesConfig)
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    captioner: CaptionerConfig = field(default_factory=CaptionerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    alignment: AlignmentConfig | None = None
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    ema: EMAConfig | None = field(default_factory=EMAConfig)
    preview: PreviewConfig = field(default_factory=PreviewConfig)
    prompts: PromptsConfig | None = None
    lora: LoRAConfig | None = None
    routing: RoutingConfig | None = None
    frechet: FrechetConfig | None = None
    distillation: DistillationConfig | None = None
