"""The model's shape, and a small Phi-3 in plain PyTorch to train it with.

The parameter names equal those of transformers' ``Phi3ForCausalLM``, so a checkpoint moves over without a
mapping. Written out here because training needs three things the library's class does not offer at once:
block-diagonal attention over packed conversations, quantised weights passed in from outside, and a forward
pass that compiles into one graph.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

VOCAB_SIZE = 1664  # must differ from hidden, 3 x hidden and 2 x intermediate, see tests/demo_model
SHAPE = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 768,
    "max_position_embeddings": 1024,
    "original_max_position_embeddings": 1024,
    "vocab_size": VOCAB_SIZE,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}


def initial_parameters(shape: dict, seed: int) -> dict[str, Tensor]:
    """Random float32 parameters by their transformers names; output projections start small (GPT-2's rule)."""
    generator = torch.Generator().manual_seed(seed)
    hidden, inner, layers = shape["hidden_size"], shape["intermediate_size"], shape["num_hidden_layers"]

    def normal(rows: int, columns: int, std: float) -> Tensor:
        return torch.randn(rows, columns, generator=generator) * std

    out_std = 0.02 / math.sqrt(2 * layers)
    parameters = {"model.embed_tokens.weight": normal(shape["vocab_size"], hidden, 0.02)}
    for i in range(layers):
        prefix = f"model.layers.{i}."
        parameters |= {
            prefix + "self_attn.qkv_proj.weight": normal(3 * hidden, hidden, 0.02),
            prefix + "self_attn.o_proj.weight": normal(hidden, hidden, out_std),
            prefix + "mlp.gate_up_proj.weight": normal(2 * inner, hidden, 0.02),
            prefix + "mlp.down_proj.weight": normal(hidden, inner, out_std),
            prefix + "input_layernorm.weight": torch.ones(hidden),
            prefix + "post_attention_layernorm.weight": torch.ones(hidden),
        }
    parameters["model.norm.weight"] = torch.ones(hidden)
    return parameters


def rope_tables(length: int, head_size: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine tables of rotary position embedding, each of shape (length, head_size)."""
    frequencies = 1.0 / theta ** (torch.arange(0, head_size, 2, dtype=torch.float32) / head_size)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x = x.float()
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def hidden_states(parameters: dict[str, Tensor], tokens: Tensor, documents: Tensor, shape: dict) -> Tensor:
    """Final hidden states (batch, length, hidden); a token sees only earlier tokens of its own document.

    ``tokens`` and ``documents`` are (batch, length). Positions run along the row and do not restart:
    rotary embedding is relative, so a document may lie anywhere in its row.
    """
    batch, length = tokens.shape
    heads, eps = shape["num_attention_heads"], shape["rms_norm_eps"]
    head_size = shape["hidden_size"] // heads
    cos, sin = rope_tables(length, head_size, shape["rope_theta"])
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    mask = (causal & (documents[:, :, None] == documents[:, None, :]))[:, None]

    x = F.embedding(tokens, parameters["model.embed_tokens.weight"])
    for i in range(shape["num_hidden_layers"]):
        layer = {name: parameters[f"model.layers.{i}.{name}.weight"] for name in _LAYER_NAMES}
        h = _rms_norm(x, layer["input_layernorm"], eps)
        qkv = F.linear(h, layer["self_attn.qkv_proj"]).view(batch, length, 3, heads, head_size)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        q, k = _rotate(q.float(), cos, sin).to(v.dtype), _rotate(k.float(), cos, sin).to(v.dtype)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        attended = attended.transpose(1, 2).reshape(batch, length, -1)
        x = x + F.linear(attended, layer["self_attn.o_proj"])
        h = _rms_norm(x, layer["post_attention_layernorm"], eps)
        gate, up = F.linear(h, layer["mlp.gate_up_proj"]).chunk(2, dim=-1)
        x = x + F.linear(F.silu(gate) * up, layer["mlp.down_proj"])
    return _rms_norm(x, parameters["model.norm.weight"], eps)


_LAYER_NAMES = (
    "input_layernorm",
    "self_attn.qkv_proj",
    "self_attn.o_proj",
    "post_attention_layernorm",
    "mlp.gate_up_proj",
    "mlp.down_proj",
)


def logits(parameters: dict[str, Tensor], tokens: Tensor, documents: Tensor, shape: dict) -> Tensor:
    """Next-token logits (batch, length, vocabulary); the output layer is the embedding matrix."""
    hidden = hidden_states(parameters, tokens, documents, shape)
    return F.linear(hidden, parameters["model.embed_tokens.weight"])
