"""Calls of the card's driver, each with the context that torch uses current on the thread."""

import ctypes
import functools

u64 = ctypes.c_uint64


def call(name, *arguments):
    """Call the driver."""
    library = _library()
    if library.cuCtxGetDevice(ctypes.byref(ctypes.c_int())):
        library.cuCtxSetCurrent(_context())
    return check(name, getattr(library, name)(*arguments))


def check(name, status):
    """Raise the error that torch raises."""
    if status:
        text = ctypes.c_char_p()
        _library().cuGetErrorName(status, ctypes.byref(text))
        raise RuntimeError(f"CUDA error in {name}: {(text.value or b'%d' % status).decode()}")


@functools.cache
def _library():
    library = ctypes.CDLL("libcuda.so.1")
    check("cuInit", library.cuInit(0))
    return library


@functools.cache
def _context():
    context = ctypes.c_void_p()
    check("cuDevicePrimaryCtxRetain", _library().cuDevicePrimaryCtxRetain(ctypes.byref(context), 0))
    return context


def issue_event(event):
    """Queue the record of an event; return the number of this record."""
    return _library().card_event_issue(u64(event))


def reach_event(event, record):
    """Make that record of the event happen."""
    _library().card_event_reach(u64(event), record)
