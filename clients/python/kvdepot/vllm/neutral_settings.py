"""The settings of vLLM that do not change KV. A model's identity leaves them out."""

from __future__ import annotations


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# These have facts of their own, or are part of the model's final configuration.
MODEL_IN_OTHER_FACTS = _names(
    """
    model model_weights revision hf_config hf_text_config hf_config_path hf_overrides config_format max_model_len
    original_max_model_len spec_target_max_model_len multimodal_config seed is_submodel_config
    word_embeddings_untied_by_checkpoint
    """
)
# These choose or show tokens, or save memory and time.
MODEL_WITHOUT_EFFECT = _names(
    """
    runner tokenizer tokenizer_mode tokenizer_revision skip_tokenizer_init allowed_local_media_path
    allowed_media_domains hf_token served_model_name enforce_eager disable_cascade_attn max_logprobs logprobs_mode
    return_sampling_mask use_fp64_gumbel enable_trace_replay logits_processors io_processor_plugin renderer_num_workers
    pooler_config generation_config override_generation_config enable_prompt_embeds enable_sleep_mode
    sleep_preserve_parameter_names sleep_mode_backend sleep_mode_offload_cudagraph enable_nccl_comm_suspend
    enable_cumem_allocator allow_deprecated_quantization
    """
)
CACHE_WITHOUT_EFFECT = _names(
    """
    block_size user_specified_block_size kv_cache_layout prefix_match_unit gpu_memory_utilization
    num_gpu_blocks_override num_gpu_blocks num_cpu_blocks enable_prefix_caching prefix_cache_retention_interval
    is_attention_free mamba_page_size_padded skip_page_size_padded mamba_block_size mamba_cache_dtype
    mamba_ssm_cache_dtype mamba_cache_mode enable_mamba_shared_prefix_checkpoint replayssm_buffer_len use_replayssm
    use_kda_recoverssm effective_attention_block_size kv_cache_size_tokens kv_cache_max_concurrency hash_block_size
    cache_hit_alignment_tokens kv_cache_memory_bytes kv_offloading_size kv_offloading_backend _block_size_resolved
    """
)
MULTIMODAL_WITHOUT_EFFECT = _names(
    """
    limit_per_prompt mm_processor_cache_gb mm_processor_cache_type mm_shm_cache_max_object_size_mb mm_encoder_tp_mode
    mm_encoder_attn_backend mm_encoder_fp8_scale_save_path mm_encoder_fp8_scale_save_margin interleave_mm_strings
    skip_mm_profiling mm_tensor_ipc mm_ipc_gpu_memory_gb mm_processor_device allow_missing_mm_embeddings
    mm_encoder_only
    """
)
LORA_WITHOUT_EFFECT = _names(
    """
    max_loras max_cpu_loras max_lora_rank fully_sharded_loras specialize_active_lora max_lora_cls_labels
    """
)

# Rotary embeddings that depend on no length but the checkpoint's. Others may depend on `max_model_len`.
ROPES_OF_ANY_LENGTH = _names(
    """
    default linear ntk yarn llama3 mrope bailing_mrope proportional mllama4 deepseek_yarn deepseek_llama_scaling
    """
)
