"""Writes models with layers that hold states, with random weights that make each token depend on the whole context."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.e2e_vllm.model import MAX_TOKENS, VOCABULARY

_COMMON = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": MAX_TOKENS,
    "rope_theta": 10000.0,
    "torch_dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}

GATED_DELTA_NETS = {
    **_COMMON,
    "architectures": ["Qwen3NextForCausalLM"],
    "model_type": "qwen3_next",
    "head_dim": 64,
    "intermediate_size": 512,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "linear_conv_kernel_dim": 4,
    "layer_types": [*3 * ["linear_attention"], "full_attention"],
    "mlp_only_layers": [1, 2, 3],  # vLLM needs a layer with experts
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 128,
    "shared_expert_intermediate_size": 128,
    "decoder_sparse_step": 1,
    "partial_rotary_factor": 0.25,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
}

SHORT_CONVOLUTIONS = {
    **_COMMON,
    "architectures": ["Lfm2ForCausalLM"],
    "model_type": "lfm2",
    "layer_types": ["conv", "conv", "full_attention", "conv"],
    "intermediate_size": 512,
    "conv_L_cache": 3,
    "conv_dim": 256,
    "conv_dim_out": 256,
    "conv_bias": False,
    "block_dim": 256,
    "block_ff_dim": 512,
    "block_multiple_of": 64,
    "block_ffn_dim_multiplier": 1.0,
    "block_use_swiglu": True,
    "block_auto_adjust_ff_dim": False,
    "norm_eps": 1e-5,
    "pad_token_id": 0,
}

# Runs with vLLM's Python, which has transformers. Its random weights are too small. `A_log` makes states forget slowly.
_WEIGHTS = """
import sys, torch
from transformers import AutoConfig, AutoModelForCausalLM
folder = sys.argv[1]
torch.manual_seed(7)
model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).float()
for name, weight in model.state_dict().items():
    if name.endswith("A_log"):
        weight.fill_(-5.0)
    elif "embed_tokens" in name:
        weight.copy_(torch.randn(weight.shape))
    elif weight.ndim > 1:
        scale = 2.0 if "proj" in name or "conv" in name else 1.0
        weight.copy_(torch.randn(weight.shape) * scale * weight.shape[-1] ** -0.5)
model.save_pretrained(folder)
"""


def write(folder: Path, python: Path, config: dict[str, Any]) -> Path:
    """Write a model into a folder, with a Python that has transformers and safetensors; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    subprocess.run([python, "-c", _WEIGHTS, folder], check=True)
    (folder / "config.json").write_text(json.dumps(config))  # without what transformers has added
    return folder
