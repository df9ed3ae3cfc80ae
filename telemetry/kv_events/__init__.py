"""KV events: what the depot holds, published for routers in the format of vLLM, which Dynamo and llm-d read."""
