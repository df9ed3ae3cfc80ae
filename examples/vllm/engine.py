"""A vLLM engine that shares its KV: ``python engine.py MODEL``. The second engine finds the prompt of the first."""

import sys

from vllm import LLM, SamplingParams
from vllm.inputs import TokensPrompt

KVDEPOT = {
    "kv_connector": "KvdepotConnector",
    "kv_connector_module_path": "kvdepot.vllm",
    "kv_role": "kv_both",
    "kv_load_failure_policy": "recompute",
}

if __name__ == "__main__":
    engine = LLM(sys.argv[1], kv_transfer_config=KVDEPOT, skip_tokenizer_init=True, max_model_len=2048)
    prompt = TokensPrompt(prompt_token_ids=list(range(100, 1600)))
    (answer,) = engine.generate([prompt], SamplingParams(temperature=0, max_tokens=8, detokenize=False))
    print(f"{answer.num_cached_tokens} of 1500 tokens were cached; it goes on with {answer.outputs[0].token_ids}")
