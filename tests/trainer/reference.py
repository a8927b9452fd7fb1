"""Released encoders written down once more, plainly, from their published description.

Functions of a state dict under the released names: channels first where they have convolutions,
loops where they have kernels, no code of the trainer. They are the oracles of
``trainer.released`` and of the backbones.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

State = dict[str, Tensor]


def farthest(xyz: Tensor, count: int) -> list[int]:
    """Farthest-point sample of (N, 3), from point 0."""
    chosen = [0]
    nearest = (xyz - xyz[0]).pow(2).sum(1)
    while len(chosen) < count:
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, (xyz - xyz[chosen[-1]]).pow(2).sum(1))
    return chosen


def first_in_ball(xyz: Tensor, centre: Tensor, radius: float, k: int) -> list[int]:
    inside = ((xyz - centre).pow(2).sum(1) <= radius**2).nonzero().flatten().tolist()[:k]
    return inside + [inside[0]] * (k - len(inside))


def conv(state: State, name: str, x: Tensor) -> Tensor:
    """Convolution of size 1 on (channels, ...)."""
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    out = torch.einsum("oi,i...->o...", weight.flatten(1), x)
    return out + bias.view(-1, *[1] * (x.ndim - 1))


def batch_norm(state: State, name: str, x: Tensor) -> Tensor:
    """In evaluation, on (channels, ...)."""
    shape = (-1, *[1] * (x.ndim - 1))
    mean, var = state[f"{name}.running_mean"].view(shape), state[f"{name}.running_var"].view(shape)
    weight, bias = state[f"{name}.weight"].view(shape), state[f"{name}.bias"].view(shape)
    return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias


def layer_norm(state: State, name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + eps)
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(state: State, name: str, x: Tensor) -> Tensor:
    out = x @ state[f"{name}.weight"].T
    return out + state[f"{name}.bias"] if f"{name}.bias" in state else out


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Softmax attention on (T, heads * width)."""
    outs = []
    for q, k, v in zip(
        query.chunk(heads, -1), key.chunk(heads, -1), value.chunk(heads, -1), strict=True
    ):
        outs.append(torch.softmax(q @ k.T / math.sqrt(q.shape[1]), dim=-1) @ v)
    return torch.cat(outs, dim=-1)


def openshape(
    state: State, xyz: Tensor, rgb: Tensor, radius: float, k: int, centres: Tensor | None = None
) -> Tensor:
    """Embedding of one cloud (N, 3), (N, 3); 64 farthest points are its centres by default."""
    if centres is None:
        centres = xyz[farthest(xyz, 64)]
    groups = torch.stack([xyz.new_tensor(first_in_ball(xyz, c, radius, k)).long() for c in centres])
    near = xyz[groups] - centres[:, None]
    x = torch.cat([near, xyz[groups], rgb[groups]], dim=-1).permute(2, 1, 0)  # channels, k, patches
    for i in range(3):
        x = conv(state, f"ppat.sa.mlp_convs.{i}", x)
        x = batch_norm(state, f"ppat.sa.mlp_bns.{i}", x).clamp(min=0)
    x = torch.cat([centres.T, x.max(1).values])
    x = layer_norm(state, "ppat.lift.2", conv(state, "ppat.lift.0", x).T)
    x = torch.cat([state["ppat.cls_token"][None], x])
    depth = 1 + max(int(key.split(".")[3]) for key in state if ".layers." in key)
    for i in range(depth):
        name = f"ppat.transformer.layers.{i}"
        qkv = linear(state, f"{name}.0.fn.to_qkv", layer_norm(state, f"{name}.0.norm", x))
        query, key, value = qkv.chunk(3, dim=-1)
        mixed = attend(query, key, value, heads=query.shape[1] // 64)
        x = x + linear(state, f"{name}.0.fn.to_out.0", mixed)
        hidden = linear(state, f"{name}.1.fn.net.0", layer_norm(state, f"{name}.1.norm", x))
        x = x + linear(state, f"{name}.1.fn.net.3", gelu(hidden))
    return linear(state, "proj", x[0]) if "proj.weight" in state else x[0]


def uni3d(state: State, xyz: Tensor, rgb: Tensor, heads: int, groups: int, k: int) -> Tensor:
    """Embedding of one cloud; names without ``point_encoder.``."""
    centres = xyz[farthest(xyz, groups)]
    rows = []
    for c in centres:
        index = (xyz - c).pow(2).sum(1).argsort()[:k]
        group = torch.cat([xyz[index] - c, rgb[index]], dim=1).T
        x = conv(state, "encoder.first_conv.0", group)
        x = batch_norm(state, "encoder.first_conv.1", x).clamp(min=0)
        x = conv(state, "encoder.first_conv.3", x)
        x = torch.cat([x.max(1, keepdim=True).values.expand(-1, k), x])
        x = conv(state, "encoder.second_conv.0", x)
        x = batch_norm(state, "encoder.second_conv.1", x).clamp(min=0)
        rows.append(conv(state, "encoder.second_conv.3", x).max(1).values)
    x = linear(state, "encoder2trans", torch.stack(rows))
    position = linear(state, "pos_embed.2", gelu(linear(state, "pos_embed.0", centres)))
    x = torch.cat([state["cls_token"][0], x]) + torch.cat([state["cls_pos"][0], position])
    depth = 1 + max(int(key.split(".")[2]) for key in state if key.startswith("visual.blocks."))
    for i in range(depth):
        x = eva_block(state, f"visual.blocks.{i}", x, heads)
    return linear(state, "trans2embed", layer_norm(state, "visual.fc_norm", x[0], 1e-6))


def eva_block(state: State, name: str, x: Tensor, heads: int) -> Tensor:
    """A block of EVA or EVA-02 without rotary embedding, (T, C); keys have no bias."""
    normed = layer_norm(state, f"{name}.norm1", x, 1e-6)
    if f"{name}.attn.qkv.weight" in state:
        query, key, value = (normed @ state[f"{name}.attn.qkv.weight"].T).chunk(3, dim=-1)
        query = query + state[f"{name}.attn.q_bias"]
        value = value + state[f"{name}.attn.v_bias"]
    else:
        query = linear(state, f"{name}.attn.q_proj", normed)
        key = linear(state, f"{name}.attn.k_proj", normed)
        value = linear(state, f"{name}.attn.v_proj", normed)
    x = x + linear(state, f"{name}.attn.proj", attend(query, key, value, heads))
    normed = layer_norm(state, f"{name}.norm2", x, 1e-6)
    mlp = f"{name}.mlp"
    if f"{mlp}.fc1_g.weight" in state:  # SwiGLU with a norm
        gate = linear(state, f"{mlp}.fc1_g", normed)
        hidden = gate * torch.sigmoid(gate) * linear(state, f"{mlp}.fc1_x", normed)
        hidden = layer_norm(state, f"{mlp}.norm", hidden, 1e-6)
    else:
        hidden = linear(state, f"{mlp}.fc1", normed)
        if hidden.shape[1] == state[f"{mlp}.fc2.weight"].shape[1]:  # plain
            hidden = gelu(hidden)
        else:  # SwiGLU, packed: the gate first
            gate, value = hidden.chunk(2, dim=-1)
            hidden = gate * torch.sigmoid(gate) * value
    return x + linear(state, f"{mlp}.fc2", hidden)


def _random(shapes: dict[str, tuple[int, ...]], seed: int) -> State:
    """Values of a size that keeps activations near 1 and every tensor in play."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator)
        if name.endswith("running_var"):
            value = 0.5 + value.abs()
        elif len(shape) >= 2 and "cls" not in name:
            value = value / math.sqrt(math.prod(shape[1:]))
        elif name.endswith("weight"):
            value = 1 + 0.2 * value
        else:
            value = 0.2 * value
        state[name] = value
    return state


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _bn(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {
        **_norm(name, width),
        f"{name}.running_mean": (width,),
        f"{name}.running_var": (width,),
    }


def _dense(
    name: str, inner: int, outer: int, *ones: int, bias: bool = True
) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {f"{name}.weight": (outer, inner, *ones)}
    return {**found, f"{name}.bias": (outer,)} if bias else found


def openshape_state(
    dim: int, depth: int, mlp: int, local: int, width: int | None, seed: int = 0
) -> State:
    """Random weights under the names of OpenShape's PPAT; heads are 64 wide."""
    shapes: dict[str, tuple[int, ...]] = {}
    last = 9
    for i, outer in enumerate((64, 64, local)):
        shapes |= _dense(f"ppat.sa.mlp_convs.{i}", last, outer, 1, 1)
        shapes |= _bn(f"ppat.sa.mlp_bns.{i}", outer)
        last = outer
    shapes |= _dense("ppat.lift.0", local + 3, dim, 1) | _norm("ppat.lift.2", dim)
    shapes["ppat.cls_token"] = (dim,)
    for i in range(depth):
        name = f"ppat.transformer.layers.{i}"
        shapes |= _norm(f"{name}.0.norm", dim) | _norm(f"{name}.1.norm", dim)
        shapes |= _dense(f"{name}.0.fn.to_qkv", dim, 3 * dim, bias=False)
        shapes |= _dense(f"{name}.0.fn.to_out.0", dim, dim)
        shapes |= _dense(f"{name}.1.fn.net.0", dim, mlp) | _dense(f"{name}.1.fn.net.3", mlp, dim)
    if width is not None:
        shapes |= _dense("proj", dim, width)
    return _with_counts(_random(shapes, seed))


def uni3d_state(
    dim: int, depth: int, hidden: int, kind: str, width: int, local: int = 512, seed: int = 0
) -> State:
    """Random weights under Uni3D's names (without ``point_encoder.``), unused ones included.

    ``kind`` of the blocks: "packed" (tiny, small), "split" (base, large), "plain" (giant).
    """
    shapes = _dense("encoder.first_conv.0", 6, 128, 1) | _bn("encoder.first_conv.1", 128)
    shapes |= _dense("encoder.first_conv.3", 128, 256, 1)
    shapes |= _dense("encoder.second_conv.0", 512, local, 1) | _bn("encoder.second_conv.1", local)
    shapes |= _dense("encoder.second_conv.3", local, local, 1)
    shapes |= _dense("encoder2trans", local, dim) | _dense("trans2embed", dim, width)
    shapes |= _dense("pos_embed.0", 3, 128) | _dense("pos_embed.2", 128, dim)
    shapes |= {"cls_token": (1, 1, dim), "cls_pos": (1, 1, dim)}
    for i in range(depth):
        name = f"visual.blocks.{i}"
        shapes |= _norm(f"{name}.norm1", dim) | _norm(f"{name}.norm2", dim)
        shapes |= _dense(f"{name}.attn.proj", dim, dim)
        if kind == "split":
            for part in "qkv":
                shapes |= _dense(f"{name}.attn.{part}_proj", dim, dim, bias=part != "k")
            shapes |= _dense(f"{name}.mlp.fc1_g", dim, hidden)
            shapes |= _dense(f"{name}.mlp.fc1_x", dim, hidden) | _norm(f"{name}.mlp.norm", hidden)
        else:
            shapes |= {f"{name}.attn.q_bias": (dim,), f"{name}.attn.v_bias": (dim,)}
            shapes |= _dense(f"{name}.attn.qkv", dim, 3 * dim, bias=False)
            shapes |= _dense(f"{name}.mlp.fc1", dim, 2 * hidden if kind == "packed" else hidden)
        shapes |= _dense(f"{name}.mlp.fc2", hidden, dim)
    shapes |= _norm("visual.fc_norm", dim)
    # Of the image model that the trunk was taken from.
    shapes |= {"visual.cls_token": (1, 1, dim), "visual.pos_embed": (1, 257, dim)}
    shapes |= _dense("visual.patch_embed.proj", 3, dim, 14, 14) | _dense("visual.head", dim, 10)
    return _with_counts(_random(shapes, seed))


def _with_counts(state: State) -> State:
    """The counters of steps that BatchNorm keeps."""
    counts = {
        key.replace("running_mean", "num_batches_tracked"): torch.tensor(7)
        for key in state
        if key.endswith("running_mean")
    }
    return {**state, **counts}


def double(state: State) -> State:
    return {key: value.double() for key, value in state.items()}
