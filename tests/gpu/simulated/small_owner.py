"""A process that owns memory and an event of the card, with no more than ctypes: ``python small_owner.py LIBRARY``.

It prints where its memory begins, the handle of the memory, and the handle of the event. Then it answers each line:

- ``write OFFSET VALUE`` writes a byte,
- ``read OFFSET`` answers with a byte,
- ``issue`` puts the event behind work that is not done, ``reach`` does that work,
- ``free`` frees the memory.
"""

from __future__ import annotations

import ctypes
import sys

SIZE_BYTES = 1 << 20
_DISABLE_TIMING, _INTERPROCESS = 2, 4


def say(*words: object) -> None:
    """Answer with a line."""
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Answer until the input ends."""
    cuda = ctypes.CDLL(sys.argv[1])
    context, start, event = ctypes.c_void_p(), ctypes.c_uint64(), ctypes.c_uint64()
    memory_handle, event_handle = (ctypes.c_ubyte * 64)(), (ctypes.c_ubyte * 64)()
    for status in (
        cuda.cuInit(0),
        cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0),
        cuda.cuCtxSetCurrent(context),
        cuda.cuMemAlloc_v2(ctypes.byref(start), ctypes.c_size_t(SIZE_BYTES)),
        cuda.cuEventCreate(ctypes.byref(event), _DISABLE_TIMING | _INTERPROCESS),
        cuda.cuIpcGetMemHandle(memory_handle, start),
        cuda.cuIpcGetEventHandle(event_handle, event),
    ):
        assert status == 0
    say(start.value, bytes(memory_handle).hex(), bytes(event_handle).hex())
    memory = (ctypes.c_ubyte * SIZE_BYTES).from_address(start.value)
    record = 0
    for line in sys.stdin:
        match line.split():
            case ["write", offset, value]:
                memory[int(offset)] = int(value)
                say("done")
            case ["read", offset]:
                say(memory[int(offset)])
            case ["issue"]:
                record = cuda.card_event_issue(event)
                say("done")
            case ["reach"]:
                cuda.card_event_reach(event, record)
                say("done")
            case ["free"]:
                say(cuda.cuMemFree_v2(start))


if __name__ == "__main__":
    main()
