"""Moving blocks: address plans, the backends that carry them out, the mapping of foreign memory."""
