"""The networks of the table in docs/networks.md: how each is made, and what it is called with.

All have random weights, and are small or cut down in width and depth so that a row takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from _own_networks import (
    CLASSES,
    Attention,
    FromZeros,
    Recurrent,
    SqueezeExcitation,
    Tied,
    Timed,
    Translator,
    audio,
    autoencoder,
    compiled,
    compiled_in_place,
    distributed,
    lazy,
    parametrized,
    plain,
    sharded,
    volume,
)
from torch import Tensor, nn

BATCH = 4


@dataclass(frozen=True, eq=False)
class Row:
    """One network of the table.

    Attributes:
        name: as the table has it.
        build: makes it, with random weights.
        inputs: a batch, as ``example_inputs`` of a search takes it.
        targets: what the loss compares with; None where the network returns its own loss.
        loss: from outputs and targets to a scalar; None is the cross-entropy of the logits.
        output: from what the network returns to a tensor; None is the default of the searches.
        init: options of `pabzip.init_`.
        wrap: put around the network after it is drawn.
        input_shape: what to export to ONNX with in place of the batch, for images.
        third: one of those that run with the tests.
        package: what has to be installed besides.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Any
    targets: Any = None
    loss: Callable[..., Tensor] | None = None
    output: Callable[[Any], Tensor] | None = None
    init: Mapping[str, Any] = field(default_factory=dict)
    wrap: Callable[[nn.Module], nn.Module] | None = None
    third: bool = False
    package: str = "torch"


def drawn(*shape: int) -> Tensor:
    """Return normal numbers, the same ones for every shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def tokens(length: int = 12, words: int = 60) -> Tensor:
    """Return token ids ``int64[B, length]``."""
    return torch.randint(1, words, (BATCH, length), generator=torch.Generator().manual_seed(2))


LABELS = torch.arange(BATCH) % CLASSES


def pixels(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of each pixel of ``[B, classes, H, W]``."""
    return F.cross_entropy(outputs, targets)


def out(returned: Mapping[str, Tensor]) -> Tensor:
    """Return what the segmentation networks of torchvision call ``out``."""
    return returned["out"]


def vision(name: str, size: int = 64, *, third: bool = False, **options: Any) -> Row:
    """Return a classifier of torchvision by its own function, options and all."""

    def build() -> nn.Module:
        make = getattr(import_module("torchvision").models, name)
        net: nn.Module = make(weights=None, num_classes=CLASSES, **options)
        return net

    return Row(name, build, drawn(BATCH, 3, size, size), LABELS, third=third, package="torchvision")


def small_vision(
    name: str, build: Callable[[Any], nn.Module], size: int = 64, *, third: bool = False
) -> Row:
    """Return a classifier of torchvision that is cut down; ``build`` is given its models."""
    return Row(
        name, lambda: build(import_module("torchvision").models), drawn(BATCH, 3, size, size),
        LABELS, third=third, package="torchvision",
    )  # fmt: skip


def classified(features: nn.Module, width: int) -> nn.Module:
    """Return the features of a network with a small classifier in place of its huge one."""
    return nn.Sequential(
        features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(width, 64),
        nn.ReLU(inplace=True), nn.Linear(64, CLASSES),
    )  # fmt: skip


def alexnet(models: Any) -> nn.Module:
    return classified(models.alexnet().features, 256)


def vgg(models: Any, *, batch_norm: bool) -> nn.Module:
    plan = [16, "M", 32, "M", 64, 64, "M", 64, 64, "M"]
    return classified(models.vgg.make_layers(plan, batch_norm), 64)


def resnet(models: Any, block: str, layers: tuple[int, ...] = (1, 1, 1, 1), **options: Any) -> Any:
    kind = getattr(models.resnet, block)
    net = models.ResNet(kind, list(layers), **options)
    if kind.expansion > 1:  # the last stage has most of the weights
        net.layer4 = nn.Identity()
    net.fc = nn.Linear((256 if kind.expansion > 1 else 512) * kind.expansion, CLASSES)
    return net


def densenet(models: Any) -> Any:
    return models.DenseNet(8, (2, 2, 2, 2), 16, num_classes=CLASSES)


def efficientnet(models: Any) -> Any:
    part = models.efficientnet
    blocks = [
        part.FusedMBConvConfig(1, 3, 1, 16, 16, 1), part.FusedMBConvConfig(4, 3, 2, 16, 24, 1),
        part.MBConvConfig(4, 3, 2, 24, 32, 1),
    ]  # fmt: skip
    return models.EfficientNet(blocks, 0.2, last_channel=64, num_classes=CLASSES)


def convnext(models: Any) -> Any:
    block = models.convnext.CNBlockConfig
    parts = [block(16, 32, 1), block(32, 64, 1), block(64, None, 2)]
    return models.ConvNeXt(parts, num_classes=CLASSES)


def vit(models: Any) -> Any:
    return models.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=CLASSES)


def swin(models: Any, version: str) -> Any:
    part = models.swin_transformer
    blocks: Any = part.SwinTransformerBlock
    more = {}
    if version == "v2":
        blocks, more = part.SwinTransformerBlockV2, {"downsample_layer": part.PatchMergingV2}
    return models.SwinTransformer(
        [4, 4], 16, [1, 1], [2, 2], [4, 4], num_classes=CLASSES, block=blocks, **more
    )


def maxvit(models: Any) -> Any:
    return models.MaxVit(
        (64, 64), 16, 4, [16, 32], [1, 1], head_dim=8, stochastic_depth_prob=0.0,
        num_classes=CLASSES,
    )  # fmt: skip


def backbone(models: Any) -> nn.Module:
    getter = import_module("torchvision.models._utils").IntermediateLayerGetter
    net: nn.Module = getter(resnet(models, "BasicBlock"), {"layer2": "out"})
    return net


def segmentation(name: str, build: Callable[[Any], Any], *, third: bool = False) -> Row:
    """Return a segmentation network of torchvision, which returns its maps by name."""
    targets = torch.arange(BATCH * 32 * 32).view(BATCH, 32, 32) % CLASSES
    return Row(
        name, lambda: build(import_module("torchvision").models), drawn(BATCH, 3, 32, 32), targets,
        pixels, out, third=third, package="torchvision",
    )  # fmt: skip


def fcn(models: Any) -> Any:
    part = models.segmentation.fcn
    return part.FCN(backbone(models), part.FCNHead(128, CLASSES))


def deeplab(models: Any) -> Any:
    part = models.segmentation.deeplabv3
    return part.DeepLabV3(backbone(models), part.DeepLabHead(128, CLASSES, (1, 2)))


def lraspp(models: Any) -> Any:
    make = models.segmentation.lraspp_mobilenet_v3_large
    return make(weights=None, weights_backbone=None, num_classes=CLASSES)


def video(models: Any) -> Any:
    net = models.video.r3d_18(num_classes=CLASSES)
    net.layer3, net.layer4 = nn.Identity(), nn.Identity()
    net.fc = nn.Linear(128, CLASSES)
    return net


def transformer(
    model: str,
    config: str,
    inputs: Mapping[str, Tensor],
    targets: Tensor | None = None,
    *,
    third: bool = False,
    skip: tuple[str, ...] = (),
    **options: Any,
) -> Row:
    """Return a network of transformers from a random configuration of this class."""

    def build() -> nn.Module:
        package = import_module("transformers")
        net: nn.Module = getattr(package, model)(getattr(package, config)(**options))
        return net

    return Row(
        model, build, dict(inputs), targets, third=third, package="transformers",
        init={"skip": skip} if skip else {},
    )  # fmt: skip


SMALL: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 32,
}  # fmt: skip
TEXT = {"input_ids": tokens(), "attention_mask": torch.ones(BATCH, 12, dtype=torch.int64)}
NEXT = {"input_ids": tokens(), "labels": tokens()}
SEQ2SEQ = {**NEXT, "attention_mask": TEXT["attention_mask"]}
SPECIAL: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


IMAGES = drawn(BATCH, 3, 4, 4)
SIGNALS = drawn(BATCH, 1, 16).sigmoid()
PICTURES = drawn(BATCH, 1, 8, 8).sigmoid()


def rows() -> list[Row]:
    """Return the rows of the table, in its order."""
    weight_norm = torch.nn.utils.parametrizations.weight_norm
    steps = drawn(BATCH, 6, 16)
    return [
        # torchvision
        small_vision("alexnet", alexnet),
        small_vision("vgg", partial(vgg, batch_norm=False)),
        small_vision("vgg with batch norm", partial(vgg, batch_norm=True), third=True),
        small_vision("resnet, basic blocks", lambda m: resnet(m, "BasicBlock")),
        small_vision("resnet, bottlenecks", lambda m: resnet(m, "Bottleneck"), 32),
        small_vision(
            "resnext", lambda m: resnet(m, "Bottleneck", groups=32, width_per_group=4), 32
        ),
        small_vision(
            "wide_resnet", lambda m: resnet(m, "Bottleneck", width_per_group=128), 32
        ),
        small_vision("densenet", densenet),
        vision("googlenet", aux_logits=False, init_weights=False),
        vision("inception_v3", 75, aux_logits=False, init_weights=False),
        vision("squeezenet1_1"),
        vision("shufflenet_v2_x0_5"),
        vision("mnasnet0_5"),
        vision("mobilenet_v2", width_mult=0.25, third=True),
        vision("mobilenet_v3_small"),
        vision("efficientnet_b0"),
        small_vision("efficientnet_v2", efficientnet, 32),
        vision("regnet_x_400mf"),
        vision("regnet_y_400mf"),
        small_vision("convnext", convnext, third=True),
        small_vision("vit", vit, 32, third=True),
        small_vision("swin", partial(swin, version="v1"), 32),
        small_vision("swin v2", partial(swin, version="v2"), 32),
        small_vision("maxvit", maxvit),
        segmentation("fcn", fcn),
        segmentation("deeplabv3", deeplab),
        segmentation("lraspp", lraspp),
        Row("r3d", lambda: video(import_module("torchvision").models), drawn(BATCH, 3, 4, 16, 16),
            LABELS, package="torchvision"),
        # transformers
        transformer("BertForSequenceClassification", "BertConfig", TEXT, LABELS, third=True,
                    num_labels=CLASSES, **SMALL),
        transformer("DistilBertForSequenceClassification", "DistilBertConfig", TEXT, LABELS,
                    num_labels=CLASSES, vocab_size=64, dim=32, n_layers=2, n_heads=2,
                    hidden_dim=64, max_position_embeddings=32),
        transformer("RobertaForMaskedLM", "RobertaConfig", NEXT, pad_token_id=0, **SMALL),
        transformer("AlbertForSequenceClassification", "AlbertConfig", TEXT, LABELS,
                    num_labels=CLASSES, embedding_size=16, **SMALL),
        transformer("GPT2LMHeadModel", "GPT2Config", NEXT, third=True, vocab_size=64,
                    n_positions=32, n_embd=32, n_layer=2, n_head=2, **SPECIAL),
        transformer("OPTForCausalLM", "OPTConfig", NEXT, vocab_size=64, hidden_size=32,
                    num_hidden_layers=2, num_attention_heads=2, ffn_dim=64,
                    max_position_embeddings=32, word_embed_proj_dim=32, **SPECIAL),
        transformer("LlamaForCausalLM", "LlamaConfig", NEXT, third=True,
                    num_key_value_heads=1, **SMALL, **SPECIAL),
        transformer("MistralForCausalLM", "MistralConfig", NEXT, num_key_value_heads=1,
                    **SMALL, **SPECIAL),
        transformer("Qwen2ForCausalLM", "Qwen2Config", NEXT, num_key_value_heads=1,
                    tie_word_embeddings=True, **SMALL, **SPECIAL),
        transformer("T5ForConditionalGeneration", "T5Config", SEQ2SEQ, vocab_size=64, d_model=32,
                    d_kv=16, d_ff=64, num_layers=2, num_heads=2, decoder_start_token_id=0,
                    pad_token_id=0, eos_token_id=1),
        transformer("BartForConditionalGeneration", "BartConfig", SEQ2SEQ, vocab_size=64,
                    d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                    decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64,
                    max_position_embeddings=32, decoder_start_token_id=2, **SPECIAL),
        transformer("ViTForImageClassification", "ViTConfig",
                    {"pixel_values": drawn(BATCH, 3, 16, 16)}, LABELS, num_labels=CLASSES,
                    image_size=16, patch_size=4, hidden_size=32, num_hidden_layers=2,
                    num_attention_heads=2, intermediate_size=64),
        transformer("WhisperForConditionalGeneration", "WhisperConfig",
                    {"input_features": drawn(BATCH, 8, 32), "labels": tokens(6)}, vocab_size=64,
                    d_model=32, num_mel_bins=8, encoder_layers=1, decoder_layers=1,
                    encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=64,
                    decoder_ffn_dim=64, max_source_positions=16, max_target_positions=16,
                    decoder_start_token_id=1, **SPECIAL),
        transformer("Wav2Vec2ForSequenceClassification", "Wav2Vec2Config",
                    {"input_values": drawn(BATCH, 400)}, LABELS, num_labels=CLASSES,
                    hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                    intermediate_size=64, conv_dim=(16, 16), conv_stride=(4, 4),
                    conv_kernel=(8, 4), num_conv_pos_embeddings=4,
                    num_conv_pos_embedding_groups=2, classifier_proj_size=16,
                    mask_time_prob=0.0, layerdrop=0.0,
                    skip=("wav2vec2.encoder.pos_conv_embed",)),
        # torch's own layers
        Row("LSTM classifier", lambda: Recurrent(nn.LSTM), tokens(), LABELS, third=True),
        Row("LSTM, two ways, two layers",
            lambda: Recurrent(nn.LSTM, bidirectional=True, num_layers=2), tokens(), LABELS),
        Row("LSTM with its own h0", FromZeros, drawn(BATCH, 5, 16), LABELS, third=True),
        Row("timestep", Timed, (drawn(BATCH, 16), torch.arange(BATCH)), LABELS, third=True),
        Row("GRU classifier", lambda: Recurrent(nn.GRU), tokens(), LABELS),
        Row("RNN classifier", lambda: Recurrent(nn.RNN), tokens(), LABELS),
        Row("MultiheadAttention", Attention, steps, LABELS, third=True),
        Row("Transformer, two inputs", Translator, (steps, drawn(BATCH, 5, 16)), LABELS),
        Row("Conv1d audio", audio, drawn(BATCH, 1, 400), LABELS, third=True),
        Row("Conv3d", volume, drawn(BATCH, 1, 8, 8, 8)[..., :8], LABELS),
        Row("autoencoder, 1-D", lambda: autoencoder(1), SIGNALS, SIGNALS, F.mse_loss, third=True),
        Row("autoencoder, 2-D", lambda: autoencoder(2), PICTURES, PICTURES, F.mse_loss),
        Row("squeeze-and-excitation, ReLU6", SqueezeExcitation, drawn(BATCH, 3, 8, 8), LABELS,
            third=True),
        Row("tied embedding", Tied, tokens(), LABELS, third=True),
        Row("embeddings drawn too", lambda: Recurrent(nn.GRU), tokens(), LABELS,
            init={"only": lambda module, name: True}),
        # forms of weights
        Row("LazyLinear, not initialized", lazy, IMAGES, LABELS, third=True),
        Row("weight_norm", lambda: parametrized(weight_norm), IMAGES, LABELS, third=True),
        Row("weight_norm, left out", lambda: parametrized(weight_norm), IMAGES, LABELS,
            init={"skip": ["1"]}),
        Row("bfloat16", lambda: plain().bfloat16(), IMAGES.bfloat16(), LABELS, third=True),
        Row("float64", lambda: plain().double(), IMAGES.double(), LABELS),
        # wrappers
        Row("torch.compile, before init_", lambda: compiled(plain()), IMAGES, LABELS),
        Row("torch.compile, after", plain, IMAGES, LABELS, wrap=compiled, third=True),
        Row("net.compile()", plain, IMAGES, LABELS, wrap=compiled_in_place),
        Row("DataParallel", plain, IMAGES, LABELS, wrap=nn.DataParallel),
        Row("DDP, before init_", lambda: distributed(plain()), IMAGES, LABELS),
        Row("DDP, compiled, after", plain, IMAGES, LABELS, third=True,
            wrap=lambda net: compiled(distributed(net))),
        Row("fully_shard (FSDP), after", plain, IMAGES, LABELS, wrap=sharded),
    ]  # fmt: skip
