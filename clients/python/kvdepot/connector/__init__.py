"""The engine-neutral part of a connector: lookups, loads and stores, the attachment, reports of blocks.

An engine's own package, such as `kvdepot.vllm`, turns the engine's objects into the values of these modules.
`scheduler` decides in the process of the engine's scheduler. `worker` moves blocks in each worker's process. `commands`
has the messages between them, which the engine's steps carry.
"""
