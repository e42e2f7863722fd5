"""The names of tensors in the published checkpoints of plain vision transformers, one table for each naming.

A row of a table is our name and the names that form it, concatenated along the first axis. `{}` is the number of a
block. Several rows may make the same tensor; the first whose parts are all in the file counts. Names that begin with
`raw.` are changed by `cover.model.starts.vit` before they are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Names = tuple[str, ...]
Row = tuple[str, Names]
PROBE_BLOCKS = 8  # largest number of blocks of an attentive probe that the tables name


@dataclass(frozen=True)
class Naming:
    """The tensor names of one library or release.

    `marks`: tensors, one of which every checkpoint has. `prefixes`: prefixes that a name may have. `unused`: beginnings
    of names that are no part of the network -> why. `blocks`: what stands before the number of a block.
    """

    title: str
    marks: Names
    prefixes: Names
    rows: tuple[Row, ...]
    blocks: str
    unused: Mapping[str, str] = field(default_factory=dict)
    only: str = ""


def _layer(ours: str, *theirs: str) -> list[Row]:
    """The rows of the weight and the bias of a layer, or of layers that are stacked."""
    return [(f"{ours}.{kind}", tuple(f"{part}.{kind}" for part in theirs)) for kind in ("weight", "bias")]


def _block(
    block: str, norms: tuple[str, str], attention: Names, proj: str, mlp: tuple[Names, ...], ours: str = "blocks.{}"
) -> list[Row]:
    """The rows of one block. `attention`: queries, keys and values, or one layer. `mlp`: what may be its first layer,
    then what may be its second.
    """
    rows = [*_layer(f"{ours}.norm1", f"{block}.{norms[0]}"), *_layer(f"{ours}.norm2", f"{block}.{norms[1]}")]
    parts = tuple(f"{block}.{part}" for part in attention)
    rows += [*_layer(f"{ours}.attn.qkv", *parts), *_layer(f"{ours}.attn.proj", f"{block}.{proj}")]
    if len(parts) == 3:  # keys without a bias
        rows += [(f"{ours}.attn.q_bias", (f"{parts[0]}.bias",)), (f"{ours}.attn.v_bias", (f"{parts[2]}.bias",))]
    firsts, seconds = mlp
    for first in firsts:
        rows += _layer(f"{ours}.mlp.fc1", *(f"{block}.{part}" for part in first.split(" + ")))
    for second in seconds:
        rows += _layer(f"{ours}.mlp.fc2", f"{block}.{second}")
    return rows


def _plain(*rows: tuple[str, str]) -> list[Row]:
    return [(ours, (theirs,)) for ours, theirs in rows]


def _probe(
    prefix: str, block: str, norms: tuple[str, str], attention: Names, proj: str, cross: str, queries: Names
) -> list[Row]:
    """The rows of V-JEPA 2's attentive probe."""
    mlp = (("mlp.fc1",), ("mlp.fc2",))
    rows = _plain(("raw.pool.query", f"{prefix}.query_tokens"))
    for number in range(PROBE_BLOCKS):
        place = f"{prefix}.{block}.{number}"
        rows += _block(place, norms, attention, proj, mlp, f"pool.blocks.{number}")
    rows += _layer("pool.norm1", f"{prefix}.{cross}.{norms[0]}") + _layer("pool.norm2", f"{prefix}.{cross}.{norms[1]}")
    rows += _layer("pool.attn.q", f"{prefix}.{cross}.{queries[0]}")
    rows += _layer("pool.attn.kv", *(f"{prefix}.{cross}.{part}" for part in queries[1:]))
    rows += _layer("pool.mlp.fc1", f"{prefix}.{cross}.mlp.fc1") + _layer("pool.mlp.fc2", f"{prefix}.{cross}.mlp.fc2")
    return rows


_MLP = (("mlp.fc1",), ("mlp.fc2",))

# timm, and the released files of VideoMAE, UMT, V-JEPA 2, DINOv2 and DINOv3, which share most of their names.
FUSED = Naming(
    "names of timm and of the original releases",
    ("blocks.0.norm1.weight",),
    ("module.", "model.", "backbone.", "encoder."),
    (
        *_layer("embed.patches", "patch_embed.proj"),
        *_plain(
            ("raw.cls_token", "cls_token"),
            ("raw.dist_token", "dist_token"),
            ("raw.reg_tokens", "reg_token"),
            ("raw.reg_tokens", "register_tokens"),
            ("raw.reg_tokens", "storage_tokens"),
            ("raw.positions", "pos_embed"),
            ("raw.bias_mask.{}", "blocks.{}.attn.qkv.bias_mask"),
            ("blocks.{}.attn.q_bias", "blocks.{}.attn.q_bias"),
            ("blocks.{}.attn.v_bias", "blocks.{}.attn.v_bias"),
            *(
                (f"blocks.{{}}.scale{n}", f"blocks.{{}}.{name}")
                for n in (1, 2)
                for name in (f"ls{n}.gamma", f"gamma_{n}")
            ),
        ),
        *_layer("embed.norm", "norm_pre"),
        *_block("blocks.{}", ("norm1", "norm2"), ("attn.qkv",), "attn.proj", _MLP),
        *_block(
            "blocks.{}",
            ("norm1", "norm2"),
            ("attn.q_proj", "attn.k_proj", "attn.v_proj"),
            "attn.proj",
            (("mlp.fc1_g + mlp.fc1_x", "mlp.w12", "mlp.w1 + mlp.w2"), ("mlp.fc2", "mlp.w3")),
        ),
        *_layer("blocks.{}.mlp.norm", "blocks.{}.mlp.norm"),
        *_layer("norm", "fc_norm"),
        *_layer("norm", "norm"),
        *_plain(("raw.pool.query", "attn_pool.latent")),
        *_layer("pool.attn.q", "attn_pool.q"),
        *_layer("pool.attn.kv", "attn_pool.kv"),
        *_layer("pool.proj", "attn_pool.proj"),
        *_layer("pool.norm", "attn_pool.norm"),
        *_layer("pool.mlp.fc1", "attn_pool.mlp.fc1"),
        *_layer("pool.mlp.fc2", "attn_pool.mlp.fc2"),
        *_probe(
            "probe.pooler",
            "blocks",
            ("norm1", "norm2"),
            ("attn.qkv",),
            "attn.proj",
            "cross_attention_block",
            ("xattn.q", "xattn.kv"),
        ),
        *_layer("head", "head"),
        *_layer("head", "probe.linear"),
        *_layer("raw.head_dist", "head_dist"),
    ),
    "blocks.",
    {
        "mask_token": "stands for hidden patches, in pre-training alone",
        "rope_embed.periods": "computed from the sizes",
        "decoder": "the decoder of the pre-training",
        "predictor": "the predictor of the pre-training",
    },
)
_HUGGING = _plain(
    ("raw.cls_token", "embeddings.cls_token"),
    ("raw.dist_token", "embeddings.distillation_token"),
    ("raw.reg_tokens", "embeddings.register_tokens"),
    ("raw.positions", "embeddings.position_embeddings"),
)
ENCODER_LAYER = Naming(
    "transformers, encoder.layer",
    ("encoder.layer.0.attention.attention.query.weight", "encoder.layer.0.attention.query.weight"),
    ("vit.", "deit.", "dinov2.", "dinov2_with_registers.", "videomae.", "vivit.", "vjepa2.", "ijepa."),
    (
        *_HUGGING,
        *_layer("embed.patches", "embeddings.patch_embeddings.projection"),
        *_layer("embed.patches", "encoder.embeddings.patch_embeddings.proj"),
        *_block(
            "encoder.layer.{}",
            ("layernorm_before", "layernorm_after"),
            tuple(f"attention.attention.{part}" for part in ("query", "key", "value")),
            "attention.output.dense",
            (("intermediate.dense",), ("output.dense",)),
        ),
        *_block(
            "encoder.layer.{}",
            ("norm1", "norm2"),
            ("attention.query", "attention.key", "attention.value"),
            "attention.proj",
            (("mlp.fc1", "mlp.weights_in"), ("mlp.fc2", "mlp.weights_out")),
        ),
        *_plain(
            ("blocks.{}.attn.q_bias", "encoder.layer.{}.attention.attention.q_bias"),
            ("blocks.{}.attn.v_bias", "encoder.layer.{}.attention.attention.v_bias"),
            ("blocks.{}.scale1", "encoder.layer.{}.layer_scale1.lambda1"),
            ("blocks.{}.scale2", "encoder.layer.{}.layer_scale2.lambda1"),
        ),
        *_layer("norm", "fc_norm"),
        *_layer("norm", "layernorm"),
        *_layer("norm", "encoder.layernorm"),
        *_probe(
            "pooler",
            "self_attention_layers",
            ("layer_norm1", "layer_norm2"),
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "self_attn.out_proj",
            "cross_attention_layer",
            ("cross_attn.q_proj", "cross_attn.k_proj", "cross_attn.v_proj"),
        ),
        *_layer("head", "classifier"),
        *_layer("head", "cls_classifier"),
        *_layer("raw.head_dist", "distillation_classifier"),
    ),
    "encoder.layer.",
    {
        "embeddings.mask_token": "stands for hidden patches, in pre-training alone",
        "pooler.dense": "a layer on the class token that no classifier reads",
        "predictor": "the predictor of the pre-training",
        "decoder": "the decoder of the pre-training",
        "encoder_to_decoder": "the decoder of the pre-training",
        "mask_token": "stands for hidden patches, in pre-training alone",
    },
)
SELF_ATTN = Naming(
    "transformers, CLIP and SigLIP",
    ("encoder.layers.0.self_attn.q_proj.weight",),
    ("vision_model.",),
    (
        *_layer("embed.patches", "embeddings.patch_embedding"),
        *_plain(
            ("raw.cls_token", "embeddings.class_embedding"),
            ("raw.positions", "embeddings.position_embedding.weight"),
            ("raw.pool.query", "head.probe"),
            ("raw.pool.in_proj.weight", "head.attention.in_proj_weight"),
            ("raw.pool.in_proj.bias", "head.attention.in_proj_bias"),
        ),
        *_layer("embed.norm", "pre_layrnorm"),
        *_block(
            "encoder.layers.{}",
            ("layer_norm1", "layer_norm2"),
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "self_attn.out_proj",
            _MLP,
        ),
        *_layer("norm", "post_layernorm"),
        *_layer("pool.proj", "head.attention.out_proj"),
        *_layer("pool.norm", "head.layernorm"),
        *_layer("pool.mlp.fc1", "head.mlp.fc1"),
        *_layer("pool.mlp.fc2", "head.mlp.fc2"),
    ),
    "encoder.layers.",
    {
        "text_model": "the text encoder",
        "text_projection": "the text encoder",
        "visual_projection": "the projection to the space shared with text; features here come before it",
        "logit_scale": "for the comparison with text",
        "logit_bias": "for the comparison with text",
        "embeddings.position_ids": "the numbers of the positions",
    },
)
DINOV3_LAYER = Naming(
    "transformers, DINOv3",
    ("layer.0.attention.q_proj.weight",),
    ("dinov3_vit.", "dinov3.", "model."),
    (
        *_HUGGING,
        *_layer("embed.patches", "embeddings.patch_embeddings"),
        *_block(
            "layer.{}",
            ("norm1", "norm2"),
            ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
            "attention.o_proj",
            (("mlp.gate_proj + mlp.up_proj", "mlp.up_proj"), ("mlp.down_proj",)),
        ),
        *_plain(
            ("blocks.{}.scale1", "layer.{}.layer_scale1.lambda1"),
            ("blocks.{}.scale2", "layer.{}.layer_scale2.lambda1"),
        ),
        *_layer("norm", "norm"),
    ),
    "layer.",
    {"embeddings.mask_token": "stands for hidden patches, in pre-training alone"},
)
OPENAI = Naming(
    "OpenAI's CLIP",
    ("transformer.resblocks.0.ln_1.weight",),
    ("visual.",),
    (
        *_plain(
            ("embed.patches.weight", "conv1.weight"),
            ("raw.cls_token", "class_embedding"),
            ("raw.positions", "positional_embedding"),
            ("blocks.{}.attn.qkv.weight", "transformer.resblocks.{}.attn.in_proj_weight"),
            ("blocks.{}.attn.qkv.bias", "transformer.resblocks.{}.attn.in_proj_bias"),
        ),
        *_layer("embed.norm", "ln_pre"),
        *_layer("blocks.{}.attn.proj", "transformer.resblocks.{}.attn.out_proj"),
        *_layer("blocks.{}.norm1", "transformer.resblocks.{}.ln_1"),
        *_layer("blocks.{}.norm2", "transformer.resblocks.{}.ln_2"),
        *_layer("blocks.{}.mlp.fc1", "transformer.resblocks.{}.mlp.c_fc"),
        *_layer("blocks.{}.mlp.fc2", "transformer.resblocks.{}.mlp.c_proj"),
        *_layer("norm", "ln_post"),
    ),
    "transformer.resblocks.",
    {"proj": "the projection to the space shared with text; features here come before it"},
    only="visual.",
)


def _scenic_block(block: str, ours: str) -> list[Row]:
    """The rows of an encoder block of scenic, whose tensors have got the names and shapes of PyTorch's layers."""
    dot = f"{block}/MultiHeadDotProductAttention"
    rows = [*_layer(f"{ours}.norm1", f"{block}/LayerNorm_0"), *_layer(f"{ours}.norm2", f"{block}/LayerNorm_1")]
    rows += _layer(f"{ours}.attn.qkv", *(f"{dot}_0/{part}" for part in ("query", "key", "value")))
    rows += _layer(f"{ours}.attn.proj", f"{dot}_0/out")
    # Model 3 has an attention over space and one over time.
    for name, kind in (("attn", "space"), ("temporal_attn", "time")):
        rows += _layer(f"{ours}.{name}.qkv", *(f"{dot}_{kind}/{part}" for part in ("query", "key", "value")))
        rows += _layer(f"{ours}.{name}.proj", f"{dot}_{kind}/out")
    rows += _layer(f"{ours}.norm1", f"{block}/LayerNorm_space") + _layer(f"{ours}.norm2", f"{block}/LayerNorm_mlp")
    rows += _layer(f"{ours}.temporal_norm", f"{block}/LayerNorm_time")
    for mlp in ("MlpBlock_0", "MlpBlock"):
        rows += _layer(f"{ours}.mlp.fc1", f"{block}/{mlp}/Dense_0") + _layer(
            f"{ours}.mlp.fc2", f"{block}/{mlp}/Dense_1"
        )
    return rows


def _token_learner(module: str) -> list[Row]:
    """The rows of TokenLearner in both versions, and of TokenFuser."""
    rows: list[Row] = []
    for name in (f"{module}_{{}}", f"{module}V11_{{}}"):
        rows += _layer("learning.learners.{}.norm", f"{name}/LayerNorm_0")
        for dense in (0, 1):
            rows += _layer(f"learning.learners.{{}}.fc{dense + 1}", f"{name}/token_masking/Dense_{dense}")
        rows += _plain(*((f"learning.learners.{{}}.convs.{n}.weight", f"{name}/Conv_{n}.weight") for n in range(4)))
    fuser = "Transformer/TokenFuser_{}"
    layers = {"norm1": "fuser_mix_norm1", "norm2": "fuser_mix_norm2", "norm": "LayerNorm_0", "mix": "Dense_0"}
    layers |= {"fc1": "token_masking/Dense_0", "fc2": "token_masking/Dense_1"}
    return rows + [
        row for ours, theirs in layers.items() for row in _layer(f"learning.fusers.{{}}.{ours}", f"{fuser}/{theirs}")
    ]


SCENIC = Naming(
    "scenic's ViViT",
    ("Transformer/encoder_norm.weight", "SpatialTransformer/encoder_norm.weight"),
    (),
    (
        *_layer("embed.patches", "embedding"),
        *_plain(
            ("raw.cls_token", "cls"),
            ("raw.cls_token", "cls_SpatialTransformer"),
            ("raw.positions", "Transformer/posembed_input/pos_embedding"),
            ("raw.positions", "SpatialTransformer/posembed_input/pos_embedding"),
            ("raw.late.cls_token", "cls_TemporalTransformer"),
            ("raw.late.pos_embed", "TemporalTransformer/posembed_input/pos_embedding"),
        ),
        *_scenic_block("Transformer/encoderblock_{}", "blocks.{}"),
        *_scenic_block("SpatialTransformer/encoderblock_{}", "blocks.{}"),
        *(row for n in range(12) for row in _scenic_block(f"TemporalTransformer/encoderblock_{n}", f"late.blocks.{n}")),
        *_token_learner("Transformer/TokenLearnerModule"),
        *_layer("norm", "Transformer/encoder_norm"),
        *_layer("norm", "SpatialTransformer/encoder_norm"),
        *_layer("late.norm", "TemporalTransformer/encoder_norm"),
        *_layer("head", "output_projection"),
    ),
    "encoderblock_",
)
NAMINGS = (ENCODER_LAYER, SELF_ATTN, DINOV3_LAYER, OPENAI, SCENIC, FUSED)
