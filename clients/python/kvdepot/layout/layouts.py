"""Named layouts of paged KV buffers.

A name lists the dimensions from the outermost to the innermost: NL layers, TWO (K, then V), NB blocks, BS tokens of a
block, NH heads, HS elements of a head, ONE where a tensor has one head. Dimensions before an X are nested lists, those
after the last X are dimensions of a tensor: `NL_X_TWO_NB_BS_NH_HS` is a list of one tensor per
layer, each of the shape `[2, num_blocks, block_size, num_heads, head_size]`. Two names stand for two dimensions in
one: NBBS for blocks and their tokens, C for K and V side by side. KV is the same as C, but one plane.

    shared = SharedRegions()
    group = layouts.NL_X_TWO_NB_BS_NH_HS.from_tensors(kv_caches, shared)
    attachment = client.attach(..., groups=[group], regions=shared.regions)

A layout without TWO, C and KV has one LATENT plane per layer (multi-head latent attention). A hybrid model makes one
group for each kind of layer; they may share a `SharedRegions`. For a layout that is not among the constants, make a
`Layout` of its name. `states_from_tensors` describes layers that keep a state (Mamba, gated delta nets).
"""

from __future__ import annotations

from kvdepot.layout.layout import Layout
from kvdepot.layout.shape import KvShape
from kvdepot.layout.states import states_from_tensors

__all__ = ["KvShape", "Layout", "states_from_tensors"]

# Tokens of a block before heads ("NHD").
NB_NL_TWO_BS_NH_HS = Layout("NB_NL_TWO_BS_NH_HS")
NL_X_TWO_NB_BS_NH_HS = Layout("NL_X_TWO_NB_BS_NH_HS")
NL_X_NB_TWO_BS_NH_HS = Layout("NL_X_NB_TWO_BS_NH_HS")
TWO_X_NL_X_NBBS_NH_HS = Layout("TWO_X_NL_X_NBBS_NH_HS")

# Heads before tokens of a block ("HND").
NB_NL_TWO_NH_BS_HS = Layout("NB_NL_TWO_NH_BS_HS")
NL_X_TWO_NB_NH_BS_HS = Layout("NL_X_TWO_NB_NH_BS_HS")
NL_X_NB_TWO_NH_BS_HS = Layout("NL_X_NB_TWO_NH_BS_HS")

# Multi-head latent attention.
NL_X_NB_BS_HS = Layout("NL_X_NB_BS_HS")
NL_X_NBBS_ONE_HS = Layout("NL_X_NBBS_ONE_HS")

# vLLM's views of its one backing allocation, [blocks, heads, tokens, content] for each layer, in any physical order.
VLLM = Layout("NL_X_NB_NH_BS_C")
VLLM_MLA = Layout("NL_X_NB_ONE_BS_HS")
# The same with the content of a head taken as one: pieces are twice as long, and need not be K and V of one size.
VLLM_PACKED = Layout("NL_X_NB_NH_BS_KV")

# That allocation as a whole, in the six orders that vLLM names by these letters.
VLLM_LBNHC = Layout("NL_NB_BS_NH_C")
VLLM_LBHNC = Layout("NL_NB_NH_BS_C")
VLLM_BLHNC = Layout("NB_NL_NH_BS_C")
VLLM_BLNHC = Layout("NB_NL_BS_NH_C")
VLLM_LHBNC = Layout("NL_NH_NB_BS_C")
VLLM_BHLNC = Layout("NB_NH_NL_BS_C")
