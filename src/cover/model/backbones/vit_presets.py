"""The published plain vision transformers: sizes, epsilons, activations, positions and pixels of each.

Sources are the released configurations. Frames are those of a training clip; an image network has clips of one frame
each, or of `frames` of a recipe.
"""

from __future__ import annotations

from typing import Any

IMAGENET_PIXELS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CLIP_PIXELS = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
# Letter of a size -> width, depth, attention heads, hidden values of the MLP.
SIZES = {
    "mini": (128, 4, 4, 512),
    "ti": (192, 12, 3, 768),
    "s": (384, 12, 6, 1536),
    "b": (768, 12, 12, 3072),
    "m": (1024, 12, 16, 4096),
    "l": (1024, 24, 16, 4096),
    "h": (1280, 32, 16, 5120),
    "so400m": (1152, 27, 16, 4304),
    "vjepa_g": (1408, 40, 22, 6144),
    "dinov2_g": (1536, 40, 24, 4096),
    "dinov3_hplus": (1280, 32, 20, 5120),
    "eva_b": (768, 12, 12, 2048),
    "eva_l": (1024, 24, 16, 2730),
}


def _sized(letter: str, **changes: Any) -> dict[str, Any]:
    width, depth, heads, hidden = SIZES[letter]
    return {"width": width, "depth": depth, "attention_heads": heads, "hidden": hidden, **changes}


def _dinov2(size: str, registers: int = 0, **changes: Any) -> dict[str, Any]:
    dino = {"patch": 14, "size": 518, "registers": registers, "layer_scale": 1e-5, **IMAGENET_PIXELS}
    return _sized(size, **{**dino, **changes})


def _dinov3(size: str, **changes: Any) -> dict[str, Any]:
    dino: dict[str, Any] = {"size": 256, "registers": 4, "layer_scale": 1e-5, "norm_eps": 1e-5, "qkv_bias": "qv"}
    return _sized(size, **{**dino, "position": "none", "rotary": "halves", **IMAGENET_PIXELS, **changes})


def _clip(size: str, patch: int, pixels: int = 224) -> dict[str, Any]:
    clip = {"patch": patch, "size": pixels, "patch_bias": False, "entry_norm": True, "norm_eps": 1e-5}
    return _sized(size, **clip, mlp="gelu_quick", **CLIP_PIXELS)


def _siglip(size: str, patch: int, pixels: int) -> dict[str, Any]:
    return _sized(size, patch=patch, size=pixels, class_token=False, mlp="gelu_tanh", pool="probe")


def _eva02(size: str) -> dict[str, Any]:
    eva = {"patch": 14, "qkv_bias": "qv", "mlp": "swiglu", "mlp_norm": True, "rotary": "pairs", "rotary_grid": 16}
    return _sized(size, **eva, pool="mean_norm", **CLIP_PIXELS)


def _videomae(size: str, tubelet: int = 2, frames: int = 16) -> dict[str, Any]:
    # The tables of these checkpoints are for 8 x 14 x 14 tokens.
    mae = {"tubelet": tubelet, "frames": frames, "class_token": False, "qkv_bias": "qv", "position": "sincos"}
    return _sized(size, **mae, position_grid=(8, 14, 14), pool="mean_norm", attention="joint", **IMAGENET_PIXELS)


def _vjepa2(size: str, pixels: int = 256) -> dict[str, Any]:
    jepa = {"size": pixels, "tubelet": 2, "frames": 16, "class_token": False, "position": "none", "rotary": "3d"}
    return _sized(size, **jepa, pool="mean", attention="joint", **IMAGENET_PIXELS)


def _vivit(size: str, **changes: Any) -> dict[str, Any]:
    return _sized(size, tubelet=2, frames=32, mlp="gelu_tanh", **{"position": "learned_joint", **changes})


def _vatt(size: str) -> dict[str, Any]:
    vatt = {"tubelet": 4, "frames": 32, "position": "factorised", "attention": "joint", "drop_tokens": 0.5}
    return _sized(size, **vatt)


PRESETS: dict[str, dict[str, Any]] = {
    "vit_mini8": _sized("mini", patch=8, size=32),
    # ViT and AugReg (Dosovitskiy et al., 2021; Steiner et al., 2022); Ti and S: DeiT
    "vit_ti16": _sized("ti"),
    "vit_s16": _sized("s"),
    "vit_b16": _sized("b"),
    "vit_b32": _sized("b", patch=32),
    "vit_l16": _sized("l"),
    "vit_h14": _sized("h", patch=14),
    "deit_b16": _sized("b", **IMAGENET_PIXELS),
    "deit_b16_distilled": _sized("b", distillation=True, pool="class_distillation", **IMAGENET_PIXELS),
    # DINOv2 (Oquab et al., 2023), with registers (Darcet et al., 2023), DINOv3 (Simeoni et al., 2025)
    "dinov2_s14": _dinov2("s"),
    "dinov2_b14": _dinov2("b"),
    "dinov2_l14": _dinov2("l"),
    "dinov2_g14": _dinov2("dinov2_g", mlp="swiglu"),
    "dinov2_s14_reg4": _dinov2("s", 4),
    "dinov2_b14_reg4": _dinov2("b", 4),
    "dinov2_l14_reg4": _dinov2("l", 4),
    "dinov2_g14_reg4": _dinov2("dinov2_g", 4, mlp="swiglu"),
    "dinov3_s16": _dinov3("s"),
    "dinov3_splus16": _dinov3("s", mlp="swiglu"),
    "dinov3_b16": _dinov3("b"),
    "dinov3_l16": _dinov3("l"),
    "dinov3_hplus16": _dinov3("dinov3_hplus", mlp="swiglu"),
    # CLIP (Radford et al., 2021), SigLIP 2 (Tschannen et al., 2025), EVA-02 (Fang et al., 2023)
    "clip_b32": _clip("b", 32),
    "clip_b16": _clip("b", 16),
    "clip_l14": _clip("l", 14),
    "clip_l14_336": _clip("l", 14, 336),
    "siglip2_b16": _siglip("b", 16, 224),
    "siglip2_l16": _siglip("l", 16, 256),
    "siglip2_so400m14": _siglip("so400m", 14, 224),
    "eva02_b14": _eva02("eva_b"),
    "eva02_l14": _eva02("eva_l"),
    # VideoMAE (Tong et al., 2022; v2: Wang et al., 2023), UMT (Li et al., 2023), V-JEPA 2 (Assran et al., 2025)
    "videomae_s16": _videomae("s"),
    "videomae_b16": _videomae("b"),
    "videomae_l16": _videomae("l"),
    "videomae_h16": _videomae("h"),
    "umt_b16": _videomae("b", tubelet=1, frames=8),
    "umt_l16": _videomae("l", tubelet=1, frames=8),
    "vjepa2_l16": _vjepa2("l"),
    "vjepa2_h16": _vjepa2("h"),
    "vjepa2_g16": _vjepa2("vjepa_g"),
    "vjepa2_g16_384": _vjepa2("vjepa_g", 384),
    # ViViT, models 1 to 4 (Arnab et al., 2021)
    "vivit1_b16x2": _vivit("b", attention="joint"),
    "vivit2_b16x2": _vivit("b", attention="late", position="learned", late_pool="class"),
    "vivit2_l16x2": _vivit("l", attention="late", position="learned", late_pool="class"),
    "vivit3_b16x2": _vivit("b", attention="divided", time="none", class_token=False, pool="mean"),
    "vivit4_b16x2": _vivit("b", attention="dot_product", class_token=False, pool="mean"),
    # VATT, the vision branch (Akbari et al., 2021)
    "vatt_base": _vatt("b"),
    "vatt_medium": _vatt("m"),
    "vatt_large": _vatt("l"),
}
