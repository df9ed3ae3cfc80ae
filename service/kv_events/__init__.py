"""KV events of this depot: which blocks its chunks have, where they are, and which readers get what."""
