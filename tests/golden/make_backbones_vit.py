"""Makes tests/golden/backbones_vit_*.npz: tiny vision transformers of the authors and of three libraries, their outputs
and samples of the gradients.

    pip install torch==2.13.0 torchvision==0.28.0 timm==1.0.31 transformers==5.24.0
    git clone https://github.com/facebookresearch/dinov2 CHECKOUTS/dinov2  (at b8931f7)
    git clone https://github.com/facebookresearch/dinov3 CHECKOUTS/dinov3  (at 6876159)
    git clone https://github.com/openai/CLIP CHECKOUTS/CLIP  (at d05afc4)
    python -m tests.golden.make_backbones_vit CHECKOUTS

Weights, images and the weights of the scalar that is differentiated follow from their names (`drawn.py`); of weights
the files hold names and shapes as JSON. Names of transformers are those that it saves, which differ from those of its
`state_dict()`; the latter are another case.
"""

import functools
import importlib.util
import json
import pathlib
import sys
import tempfile

import numpy as np
import safetensors.torch
import torch
from torch import nn

# A torchvision whose compiled operators do not load would stop the others from importing.
_LIBRARY = torch.library.Library("torchvision", "DEF")
for operator in ("nms", "qnms"):
    _LIBRARY.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import timm  # noqa: E402
import torchvision  # noqa: E402
import transformers  # noqa: E402
from timm.models.eva import Eva  # noqa: E402
from timm.models.vision_transformer import VisionTransformer  # noqa: E402

from tests.golden.drawn import draw, sample  # noqa: E402

FOLDER = pathlib.Path(__file__).parent
NATIVE, ODD = (
    (16, 16),
    (20, 12),
)  # of patches of 4 x 4 pixels; the second grid is larger one way and smaller the other


def shapes(arrays):
    return {name: list(array.shape) for name, array in arrays.items()}


def drawn(arrays):
    return {name: torch.from_numpy(draw(name, tuple(a.shape))) for name, a in arrays.items()}


def saved(model):
    """The arrays of a model of transformers by the names in its files."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return safetensors.torch.load_file(f"{folder}/model.safetensors")


def filled(model, *, as_saved=False, fixed=()):
    """Gives a model the drawn weights; returns it and the shapes of its arrays by name."""
    if not as_saved:
        state = model.state_dict()
        model.load_state_dict(
            {**drawn(state), **{k: v for k, v in state.items() if k.endswith(fixed)}}
        )
        return model.eval(), shapes(state)
    arrays = saved(model)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        safetensors.torch.save_file(drawn(arrays), f"{folder}/model.safetensors", {"format": "pt"})
        return type(model).from_pretrained(folder).eval(), shapes(arrays)


def record(model, names, forward, sizes, *, as_saved=False):
    """Outputs at the sizes, samples of the gradients at the last of them."""
    arrays = {"names": np.array(json.dumps(names))}
    for height, width in sizes:
        images = torch.from_numpy(draw("images", (2, 3, height, width)) * 4).requires_grad_()
        outputs = dict(zip(("token", "parts"), forward(model, images), strict=True))
        for name, output in outputs.items():
            arrays[f"{name}/{height}x{width}"] = output.detach().numpy()
    weights = {n: torch.from_numpy(draw(n, tuple(x.shape))) for n, x in outputs.items()}
    model.zero_grad()
    sum((x * weights[n]).sum() for n, x in outputs.items()).backward()
    used = {name for name, p in model.named_parameters() if p.grad is not None}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(
                torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            )
    gradients = saved(model) if as_saved else model.state_dict()
    kept = {name: g.numpy() for name, g in gradients.items() if as_saved or name in used}
    arrays["images/grad"] = sample(images.grad.numpy())
    arrays["grads"] = np.array(json.dumps(list(kept)))
    arrays["grad"] = np.concatenate([sample(gradient) for gradient in kept.values()])
    return arrays


def split(tokens, prefix):
    return tokens[:, 0], tokens[:, prefix:]


def hugging_face(kind, config, *, prefix=1, as_saved=True, resize=False, pooled=False):
    def forward(model, images):
        options = {"interpolate_pos_encoding": True} if resize else {}
        output = model(pixel_values=images, **options)
        token, parts = split(output.last_hidden_state, prefix)
        if hasattr(output, "image_embeds"):
            # transformers normalises the token alone.
            tower = model.vision_model
            return output.image_embeds, tower.post_layernorm(parts)
        if isinstance(model, transformers.CLIPVisionModel):
            return output.pooler_output, model.post_layernorm(parts)
        return (output.pooler_output, output.last_hidden_state) if pooled else (token, parts)

    model, names = filled(kind(config), as_saved=as_saved)
    sizes = (NATIVE, ODD) if as_saved else (NATIVE,)
    return record(model, names, forward, sizes, as_saved=as_saved)


def of_timm(model, prefix, sizes, *, pool=False):
    def forward(model, images):
        tokens = model.forward_features(images)
        return (model.attn_pool(tokens), tokens) if pool else split(tokens, prefix)

    return record(*filled(model), forward, sizes)


def of_google(model, arrays, prefix, sizes, *, pool=False):
    """A model of timm with the weights of a file of Flax, as timm reads it; gradients are by timm's names."""

    def forward(model, images):
        tokens = model.forward_features(images)
        return (model.attn_pool(tokens), tokens) if pool else split(tokens, prefix)

    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/w.npz", **{name: draw(name, shape) for name, shape in arrays.items()})
        model.load_pretrained(f"{folder}/w.npz")
    made = record(model.eval(), arrays, forward, sizes)
    return {name: array for name, array in made.items() if not name.startswith("grad")}


def of_flax(prefix, modules, *, pool):
    """The shapes in a file of Flax; `modules` are those of a layer: norm, attention, norm, MLP."""

    def attention(name):
        for map_ in ("query", "key", "value"):
            yield f"{name}/{map_}/kernel", (16, 2, 8)
            yield f"{name}/{map_}/bias", (2, 8)
        yield f"{name}/out/kernel", (2, 8, 16)
        yield f"{name}/out/bias", (16,)

    def norm(name):
        yield f"{name}/scale", (16,)
        yield f"{name}/bias", (16,)

    def mlp(name):
        yield f"{name}/Dense_0/kernel", (16, 24)
        yield f"{name}/Dense_0/bias", (24,)
        yield f"{name}/Dense_1/kernel", (24, 16)
        yield f"{name}/Dense_1/bias", (16,)

    shapes = {f"{prefix}embedding/kernel": (4, 4, 3, 16), f"{prefix}embedding/bias": (16,)}
    for i in range(2):
        layer = f"{prefix}Transformer/encoderblock_{i}"
        for kind, module in zip((norm, attention, norm, mlp), modules, strict=True):
            shapes |= kind(f"{layer}/{module}")
    shapes |= norm(f"{prefix}Transformer/encoder_norm")
    if pool:
        shapes[f"{prefix}MAPHead_0/probe"] = (1, 1, 16)
        shapes |= attention(f"{prefix}MAPHead_0/MultiHeadDotProductAttention_0")
        shapes |= norm(f"{prefix}MAPHead_0/LayerNorm_0")
        shapes |= mlp(f"{prefix}MAPHead_0/MlpBlock_0")
    return shapes


TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
TIMM = {
    "img_size": 16,
    "patch_size": 4,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "num_classes": 3,
    "dynamic_img_size": True,
}


def dinov2(checkouts):
    t, small = transformers, {**TINY, "mlp_ratio": 2}
    registers = t.Dinov2WithRegistersConfig(**small, num_register_tokens=4)
    sys.path.insert(0, str(checkouts / "dinov2"))
    from dinov2.models.vision_transformer import DinoVisionTransformer

    def facebook(sizes, **options):
        def forward(model, images):
            output = model.forward_features(images)
            return output["x_norm_clstoken"], output["x_norm_patchtokens"]

        shape = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
        model = DinoVisionTransformer(**shape, init_values=1.0, mlp_ratio=2, **options)
        return record(*filled(model), forward, sizes)

    swiglu = {"ffn_layer": "swiglufused"}
    reg = {"num_register_tokens": 4, "interpolate_antialias": True, "interpolate_offset": 0.0}
    packed = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": nn.SiLU}
    both = (NATIVE, ODD)
    with_scale = {**TIMM, "init_values": 1.0}
    return {
        "transformers": hugging_face(t.Dinov2Model, t.Dinov2Config(**small)),
        "transformers_swiglu": hugging_face(
            t.Dinov2Model, t.Dinov2Config(**small, use_swiglu_ffn=True)
        ),
        "transformers_registers": hugging_face(t.Dinov2WithRegistersModel, registers, prefix=5),
        "state": hugging_face(t.Dinov2Model, t.Dinov2Config(**small), as_saved=False),
        "state_swiglu": hugging_face(
            t.Dinov2Model, t.Dinov2Config(**small, use_swiglu_ffn=True), as_saved=False
        ),
        "facebook": facebook(both, block_chunks=0),
        "facebook_swiglu_registers": facebook(both, block_chunks=0, **swiglu, **reg),
        "facebook_one_chunk": facebook((NATIVE,), block_chunks=1),
        "timm": of_timm(VisionTransformer(**with_scale, mlp_ratio=2), 1, (NATIVE,)),
        "timm_swiglu_registers": of_timm(
            VisionTransformer(
                **with_scale, **packed, mlp_ratio=3, reg_tokens=4, no_embed_class=True
            ),
            5,
            both,
        ),
    }


def dinov3(checkouts):
    t = transformers
    sys.path.insert(0, str(checkouts / "dinov3"))
    from dinov3.models.vision_transformer import DinoVisionTransformer

    small = {**TINY, "num_register_tokens": 4}

    def facebook(gated):
        def forward(model, images):
            output = model.forward_features(images)
            return output["x_norm_clstoken"], output["x_norm_patchtokens"]

        model = DinoVisionTransformer(
            img_size=16,
            patch_size=4,
            embed_dim=16,
            depth=2,
            num_heads=2,
            ffn_ratio=2.25 if gated else 1.5,
            ffn_layer="swiglu" if gated else "mlp",
            pos_embed_rope_dtype="fp32",
            pos_embed_rope_rescale_coords=2,
            layerscale_init=1.0,
            norm_layer="layernormbf16",
            n_storage_tokens=4,
            mask_k_bias=True,
            untie_global_and_local_cls_norm=gated,
        )
        model.init_weights()
        model, names = filled(model, fixed=(".bias_mask", ".periods"))
        with torch.no_grad():
            for block in model.blocks:
                block.attn.qkv.bias.mul_(block.attn.qkv.bias_mask)
        return record(model, names, forward, (NATIVE, ODD))

    def eva(gated, bias):
        model = Eva(
            **TIMM,
            mlp_ratio=1.5,
            qkv_bias=bias,
            init_values=1.0,
            rope_type="dinov3",
            rope_temperature=100,
            rope_rotate_half=True,
            use_rot_pos_emb=True,
            use_abs_pos_emb=False,
            swiglu_mlp=gated,
            swiglu_align_to=8,
            num_reg_tokens=4,
            use_fc_norm=False,
            norm_layer=functools.partial(nn.LayerNorm, eps=1e-5),
        )
        return of_timm(model, 5, (NATIVE, ODD))

    def config(gated):
        return t.DINOv3ViTConfig(
            **small,
            intermediate_size=24,
            use_gated_mlp=gated,
            hidden_act="silu" if gated else "gelu",
            layerscale_value=1.0,
        )

    return {
        "transformers": hugging_face(t.DINOv3ViTModel, config(False), prefix=5),
        "transformers_gated": hugging_face(t.DINOv3ViTModel, config(True), prefix=5),
        "state": hugging_face(t.DINOv3ViTModel, config(False), prefix=5, as_saved=False),
        "facebook": facebook(False),
        "facebook_gated": facebook(True),
        "timm": eva(False, True),
        "timm_gated": eva(True, True),
        "timm_without_bias": eva(False, False),
    }


def plain(_):
    t, small = transformers, {**TINY, "intermediate_size": 24, "layer_norm_eps": 1e-6}

    def forward(model, images):
        x = model._process_input(images)
        x = torch.cat([model.class_token.expand(len(x), -1, -1), x], 1)
        return split(model.encoder(x), 1)

    net = torchvision.models.VisionTransformer(
        image_size=16, patch_size=4, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=24
    )
    vit = functools.partial(hugging_face, t.ViTModel, t.ViTConfig(**small))
    modules = ("LayerNorm_0", "MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3")
    google = {
        "cls": (1, 1, 16),
        "Transformer/posembed_input/pos_embedding": (1, 17, 16),
        "head/kernel": (16, 3),
        "head/bias": (3,),
        **of_flax("", modules, pool=False),
    }
    return {
        "google": of_google(VisionTransformer(**TIMM, mlp_ratio=1.5), google, 1, (NATIVE,)),
        "timm": of_timm(VisionTransformer(**TIMM, mlp_ratio=1.5), 1, (NATIVE, ODD)),
        "torchvision": record(*filled(net), forward, (NATIVE,)),
        "transformers": vit(resize=True),
        "state": vit(as_saved=False),
    }


def clip(checkouts):
    t, small = transformers, {**TINY, "intermediate_size": 24}
    spec = importlib.util.spec_from_file_location("clip_model", checkouts / "CLIP/clip/model.py")
    authors = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(authors)

    def forward(model, images):
        tower = model.visual
        tokens = []
        handle = tower.transformer.register_forward_hook(lambda m, i, o: tokens.append(o))
        token = tower(images)
        handle.remove()
        return token, tower.ln_post(tokens[0].transpose(0, 1)[:, 1:])

    whole = authors.CLIP(8, 16, 2, 128, 4, 5, 7, 8, 2, 1)
    whole.visual = authors.VisionTransformer(16, 4, 16, 2, 2, 8)
    texts = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
    }
    tokens = {"vocab_size": 5, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    both = t.CLIPModel(
        t.CLIPConfig(vision_config=small, text_config={**texts, **tokens}, projection_dim=8)
    )
    projected = functools.partial(hugging_face, t.CLIPVisionModelWithProjection, resize=True)
    config = functools.partial(t.CLIPVisionConfig, **small, projection_dim=8)
    net = VisionTransformer(
        **TIMM,
        mlp_ratio=1.5,
        pre_norm=True,
        act_layer=timm.layers.QuickGELU,
        norm_layer=functools.partial(nn.LayerNorm, eps=1e-5),
    )
    return {
        "transformers": projected(config(hidden_act="quick_gelu")),
        "transformers_gelu": projected(config(hidden_act="gelu")),
        "transformers_vision": hugging_face(t.CLIPVisionModel, config(), resize=True),
        "transformers_both": {"names": np.array(json.dumps(shapes(saved(both))))},
        "openai": record(*filled(whole), forward, (NATIVE,)),
        "timm": of_timm(net, 1, (NATIVE, ODD)),
    }


def siglip(_):
    t, small = transformers, {**TINY, "intermediate_size": 24}
    texts = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
    }
    tokens = {"vocab_size": 5, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    both = t.SiglipModel(t.SiglipConfig(vision_config=small, text_config={**texts, **tokens}))
    pooled = functools.partial(
        VisionTransformer,
        **TIMM | {"num_classes": 0},
        mlp_ratio=1.5,
        class_token=False,
        global_pool="map",
        act_layer="gelu_tanh",
    )
    image = "params/img/"
    modules = ("LayerNorm_0", "MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")
    big_vision = {
        f"{image}pos_embedding": (1, 16, 16),
        "params/txt/head/kernel": (2, 2),
        "params/t": (1,),
        "params/b": (1,),
        **of_flax(image, modules, pool=True),
    }
    return {
        "big_vision": of_google(pooled(), big_vision, 0, (NATIVE,), pool=True),
        "transformers": hugging_face(
            t.SiglipVisionModel, t.SiglipVisionConfig(**small), prefix=0, resize=True, pooled=True
        ),
        "transformers_both": {"names": np.array(json.dumps(shapes(saved(both))))},
        "timm": of_timm(pooled(), 0, (NATIVE, ODD), pool=True),
    }


def main():
    torch.manual_seed(0)
    checkouts = pathlib.Path(sys.argv[1]).resolve()
    for make in (dinov2, dinov3, plain, clip, siglip):
        arrays = {
            f"{case}/{name}": array
            for case, found in make(checkouts).items()
            for name, array in found.items()
        }
        file = FOLDER / f"backbones_vit_{make.__name__}.npz"
        np.savez_compressed(file, **arrays)
        print(file.name, file.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
