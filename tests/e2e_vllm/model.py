"""Writes models with random weights, so that nothing is downloaded.

The weights are large enough that each token depends on the whole context: wrong KV gives other tokens.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

VOCABULARY = 4096
HIDDEN_SIZE = 768
MAX_TOKENS = 4096

_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": HIDDEN_SIZE,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": MAX_TOKENS,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "torch_dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}

# Make it a Llama 4 without experts, in which two of three layers read the tokens since the last multiple of 192.
LOCAL_CHUNKS = {
    "architectures": ["Llama4ForCausalLM"],
    "model_type": "llama4_text",
    "intermediate_size_mlp": 2048,
    "interleave_moe_layer_step": 0,
    "moe_layers": [],
    "num_local_experts": 1,
    "use_qk_norm": False,
    "no_rope_layers": [1, 1, 0] * 4,
    "attention_chunk_size": 192,
    "attn_temperature_tuning": False,
}

# Multi-head latent attention. Its weights are vLLM's dummies, so its tokens prove nothing.
_LATENT_CONFIG = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "hidden_act": "silu",
    "hidden_size": 512,
    "intermediate_size": 1024,
    "moe_intermediate_size": 256,
    "num_hidden_layers": 4,
    "first_k_dense_replace": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "q_lora_rank": None,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": MAX_TOKENS,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}

# Runs with vLLM's Python, which has torch and safetensors.
_WEIGHTS = """
import json, sys, torch
from pathlib import Path
from safetensors.torch import save_file
folder = Path(sys.argv[1])
c = json.loads((folder / "config.json").read_text())
torch.manual_seed(int(sys.argv[2]))
h, kv, m, v = c["hidden_size"], c["num_key_value_heads"] * c["head_dim"], c["intermediate_size"], c["vocab_size"]
def normal(*shape, scale=1.0):
    return torch.randn(shape) * scale * shape[-1] ** -0.5
weights = {"model.embed_tokens.weight": torch.randn(v, h), "lm_head.weight": normal(v, h),
           "model.norm.weight": torch.ones(h)}
for i in range(c["num_hidden_layers"]):
    p = f"model.layers.{i}."
    for name, shape in {"q_proj": (h, h), "k_proj": (kv, h), "v_proj": (kv, h), "o_proj": (h, h)}.items():
        weights[f"{p}self_attn.{name}.weight"] = normal(*shape, scale=2.0)
    mlp = "feed_forward" if c["model_type"] == "llama4_text" else "mlp"
    for name, shape in {"gate_proj": (m, h), "up_proj": (m, h), "down_proj": (h, m)}.items():
        weights[f"{p}{mlp}.{name}.weight"] = normal(*shape)
    weights[p + "input_layernorm.weight"] = weights[p + "post_attention_layernorm.weight"] = torch.ones(h)
save_file({name: weight.clone() for name, weight in weights.items()}, folder / "model.safetensors")
"""


_ADAPTER_CONFIG = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 8,
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "bias": "none",
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
}

_ADAPTER_WEIGHTS = """
import json, sys, torch
from safetensors.torch import save_file
folder, seed, c, layers = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]), json.loads(sys.argv[4])
torch.manual_seed(seed)
h, kv = c["hidden_size"], c["num_key_value_heads"] * c["head_dim"]
weights = {}
for i in range(c["num_hidden_layers"]):
    for name in layers:
        p = f"base_model.model.model.layers.{i}.self_attn.{name}."
        weights[p + "lora_A.weight"] = torch.randn(8, h) * h ** -0.5
        weights[p + "lora_B.weight"] = torch.randn(kv if name in ("k_proj", "v_proj") else h, 8)
save_file(weights, f"{folder}/adapter_model.safetensors")
"""


def write_latent(folder: Path) -> Path:
    """Write the configuration of a model with latent attention into a folder; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(_LATENT_CONFIG))
    return folder


def write(folder: Path, python: Path, *, seed: int = 7, **changes: Any) -> Path:
    """Write the model into a folder, with a Python that has torch and safetensors; return the folder.

    ``changes`` of its configuration leave the weights as they are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**_CONFIG, **changes}))
    subprocess.run([python, "-c", _WEIGHTS, folder, str(seed)], check=True)
    return folder


def write_adapter(folder: Path, python: Path, *, seed: int) -> Path:
    """Write a LoRA adapter of the model into a folder, over an older one; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(_ADAPTER_CONFIG))
    model, layers = json.dumps(_CONFIG), json.dumps(_ADAPTER_CONFIG["target_modules"])
    subprocess.run([python, "-c", _ADAPTER_WEIGHTS, folder, str(seed), model, layers], check=True)
    return folder
