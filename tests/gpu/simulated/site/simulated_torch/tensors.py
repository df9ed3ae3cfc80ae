"""Tensors on the card, and torch's functions on them."""

import ctypes
import weakref
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from .driver import call, u64
from .line import line
from .segments import segments

_CARD = torch.device("cuda", 0)
_pinned: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()  # buffers of the host, by address


# Memory as tensors.


def _tensor_at(address, num_bytes, meta, give_back):
    """Return a tensor of the shape of ``meta`` in memory that is given back when its storage ends."""
    buffer = (ctypes.c_ubyte * num_bytes).from_address(address)
    weakref.finalize(buffer, give_back, address).atexit = False
    storage = torch.frombuffer(buffer, dtype=torch.uint8).untyped_storage()
    return torch.empty(0, dtype=meta.dtype).set_(storage, 0, meta.size(), meta.stride()), buffer


def _storage_bytes(meta):
    if not meta.numel():
        return 1
    last = sum((size - 1) * stride for size, stride in zip(meta.size(), meta.stride(), strict=True))
    return (last + 1) * meta.element_size()


def new_on_card(meta):
    """Return a tensor on the card like one that has no memory."""
    num_bytes = _storage_bytes(meta)
    return _tensor_at(segments.allocate(num_bytes), num_bytes, meta, segments.release)[0]


def to_card(tensor):
    """Return the tensor if it is on the card, otherwise a copy there."""
    if is_on_card(tensor):
        return tensor
    copy = new_on_card(torch.empty_like(tensor, device="meta"))
    return copy.copy_(tensor.detach())


def is_on_card(tensor):
    """Return whether the tensor's storage is memory of the card."""
    if tensor.device.type != "cpu" or tensor.layout is not torch.strided:
        return False
    return segments.holds(_address(tensor))


def _pin(tensor, device=None):
    if is_on_card(tensor):
        raise RuntimeError("cannot pin a tensor on the card: only dense CPU tensors can be pinned")
    meta = torch.empty_like(tensor, device="meta")
    address, num_bytes = u64(), _storage_bytes(meta)
    call("cuMemHostAlloc", ctypes.byref(address), ctypes.c_size_t(num_bytes), 0)
    pinned, buffer = _tensor_at(address.value, num_bytes, meta, lambda at: call("cuMemFreeHost", u64(at)))
    _pinned[address.value] = buffer
    return pinned.copy_(tensor)


def _is_pinned(tensor, device=None):
    return _address(tensor) in _pinned


# Arguments and results.


def _tensors(values):
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _without_memory(value):
    return torch.empty_like(value, device="meta") if isinstance(value, torch.Tensor) else value


def _is_card(device):
    return isinstance(device, torch.device | str) and torch.device(device).type == "cuda"


def _result_on_card(result, arguments):
    """Return a result on the card. An argument, or a tensor with gradients, stays where it is."""
    if isinstance(result, torch.Tensor):
        is_argument = any(result is argument for argument in arguments)
        return result if is_argument or result.grad_fn is not None else to_card(result)
    if isinstance(result, list | tuple) and result:
        moved = [_result_on_card(each, arguments) for each in result]
        return type(result)(*moved) if hasattr(result, "_fields") else type(result)(moved)
    return result


def _address(tensor):
    return tensor.untyped_storage().data_ptr()


def _wait_as_a_copy_does(source, non_blocking=False):
    """A copy between the host and the card returns when it is done, unless the memory is pinned and it need not be."""
    if not is_on_card(source) and not (non_blocking and _is_pinned(source)):
        line.wait()


def _wait_for_values_of(arguments):
    if line.is_busy and any(is_on_card(each) and line.writes_to(_address(each)) for each in arguments):
        line.wait()


# Functions that have to do with where a tensor is.


def _device(tensor):
    return _CARD if is_on_card(tensor) else tensor.device


def _is_cuda(tensor):
    return is_on_card(tensor)


def _get_device(tensor):
    return 0 if is_on_card(tensor) else -1


def _cuda(tensor, *args, **kwargs):
    _wait_as_a_copy_does(tensor, kwargs.get("non_blocking", False))
    return to_card(tensor)


def _cpu(tensor, **kwargs):
    line.wait()
    return tensor.clone() if is_on_card(tensor) else tensor


def _to(tensor, *args, **kwargs):
    target = kwargs.get("device", args[0] if args else None)
    if isinstance(target, torch.device | str):
        wants_card = _is_card(target)
    else:  # the device of another tensor, or a type alone
        wants_card = is_on_card(target if isinstance(target, torch.Tensor) else tensor)
    if wants_card:
        _wait_as_a_copy_does(tensor, kwargs.get("non_blocking", False))
        _wait_for_values_of([tensor])
    else:
        line.wait()
    args = tuple("cpu" if _is_card(each) else each for each in args)
    kwargs = {name: "cpu" if _is_card(each) else each for name, each in kwargs.items()}
    changed = tensor.to(*args, **kwargs)
    return to_card(changed) if wants_card else changed.clone() if is_on_card(changed) else changed


def _numpy(tensor, *args, **kwargs):
    if is_on_card(tensor):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it to host memory")
    return tensor.numpy(*args, **kwargs)


_WHERE = {
    torch.Tensor.device.__get__: _device,
    torch.Tensor.is_cuda.__get__: _is_cuda,  # type: ignore[attr-defined]  # a property
    torch.Tensor.get_device: _get_device,
    torch.Tensor.cuda: _cuda,
    torch.Tensor.cpu: _cpu,
    torch.Tensor.to: _to,
    torch.Tensor.numpy: _numpy,
    torch.Tensor.pin_memory: _pin,
    torch.Tensor.is_pinned: _is_pinned,
}
_MAKE_WITHOUT_VALUES = {torch.empty, torch.empty_like, torch.empty_strided, torch.Tensor.new_empty}
_TOUCH_NO_VALUES = {
    "__get__", "data_ptr", "dim", "element_size", "is_contiguous", "nelement", "numel", "select", "size",
    "storage_offset", "stride", "unbind", "untyped_storage", "view",
}  # fmt: skip


def _is_in_place(func):
    name = func.__name__
    return name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))


class OnCard(TorchFunctionMode):
    """Sees every call of torch in this thread. The CPU does all the work.

    While the line is busy, work that writes into a tensor of the card stands in it. Work that makes a new tensor is
    done at once, unless it needs what the line has yet to write.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in _WHERE:
            return _WHERE[func](*args, **kwargs)
        arguments = [*_tensors(args), *_tensors(kwargs.values())]
        device = kwargs.get("device")
        on_card = _is_card(device) if device is not None else any(is_on_card(each) for each in arguments)
        if on_card and device is not None:
            kwargs["device"] = "cpu"
        if on_card and func in _MAKE_WITHOUT_VALUES:
            return new_on_card(func(*args, **kwargs | {"device": "meta", "pin_memory": False}))
        if line.is_busy and func.__name__ not in _TOUCH_NO_VALUES:
            if _is_in_place(func) and arguments and all(is_on_card(each) or _is_pinned(each) for each in arguments):
                return self._do_later(func, args, kwargs)
            if func is torch.Tensor.copy_:
                _wait_as_a_copy_does(args[1], kwargs.get("non_blocking", False))
            _wait_for_values_of(arguments)
        result = func(*args, **kwargs)
        return _result_on_card(result, arguments) if on_card else result

    def _do_later(self, func, args, kwargs):
        if func is torch.Tensor.copy_:
            func(*(_without_memory(each) for each in args), **kwargs)  # shapes that differ are refused at once
        line.add(lambda: func(*args, **kwargs), _address(args[0]))
        return None if func is torch.Tensor.__setitem__ else args[0]
