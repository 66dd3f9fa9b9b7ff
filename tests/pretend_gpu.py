"""A GPU that is not there: tensors that say they lie on it, computed on the CPU

Within `pretend_gpu()`, `device='cuda'` gives tensors that say so. As on a GPU, an operation that
mixes them with tensors of the CPU, a generator of the other device and `.numpy()` without
`.cpu()` are errors. The numbers are the CPU's, to the last bit.
"""
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

GPU, CPU = torch.device("cuda:0"), torch.device("cpu")
CROSSING = {"copy_", "index", "index_put_", "index_put", "_index_put_impl_"} # may name the CPU
RANDOM = {"rand", "randn", "randint", "multinomial", "normal", "randperm", "uniform_", "normal_",
          "bernoulli", "bernoulli_"}


class OnGPU(torch.Tensor):
    "Holds a tensor of the CPU and says that it lies on a GPU"
    @staticmethod
    def __new__(cls, inner):
        out = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, device=inner.device)
        out.inner = inner
        return out

    @property
    def device(self): return GPU
    @property
    def is_cuda(self): return True
    def __repr__(self, **_): return f"OnGPU({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        check_devices(name, tree_flatten((args, kwargs))[0])
        out = func(*tree_map(inner_of, args), **tree_map(inner_of, kwargs))
        if torch.Tag.inplace_view in func.tags: # its shape changes as well
            with torch._C._DisableTorchDispatch(): func(*args, **kwargs)
        if func._schema.is_mutable:
            if "out" in kwargs: return kwargs["out"]
            return args[0] if isinstance(out, torch.Tensor) else None
        return tree_map(on_gpu, out)


def inner_of(x): return x.inner if isinstance(x, OnGPU) else x
def on_gpu(x): return OnGPU(x) if type(x) is torch.Tensor else x
def is_gpu(device): return device is not None and torch.device(device).type == "cuda"


def check_devices(name, values): # as torch does
    "Raises RuntimeError"
    tensors = [x for x in values if isinstance(x, torch.Tensor)]
    strangers = [x for x in tensors if not isinstance(x, OnGPU) and x.ndim]
    if not strangers or not any(isinstance(x, OnGPU) for x in tensors): return
    if torch._C._current_graph_task_id() >= 0 and not any(x.any() for x in strangers):
        return # zeros that the backward pass of autograd makes by itself
    if name in CROSSING and (name == "copy_" or isinstance(tensors[0], OnGPU)): return
    raise RuntimeError(f"{name}: expected all tensors on one device, found cuda:0 and a tensor "
                       f"of shape {tuple(strangers[0].shape)} on cpu")


class Generator(torch.Generator):
    "A generator of the CPU that remembers where it should be"
    def __new__(cls, device="cpu"):
        out = super().__new__(cls)
        out.where = GPU if is_gpu(device) else CPU
        return out
    @property
    def device(self): return self.where


class Move(torch.autograd.Function):
    "To the other device and, for gradients, back"
    @staticmethod
    def forward(ctx, x, there): return OnGPU(x.detach().clone()) if there else x.inner.clone()
    @staticmethod
    def backward(ctx, g): return (g.inner if isinstance(g, OnGPU) else OnGPU(g)), None


def moved(x, device): # to a device, with the same numbers
    if device is None or is_gpu(device) == isinstance(x, OnGPU): return x
    return Move.apply(x, is_gpu(device))


class PretendGPU(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.made = 0 # tensors that were made on the GPU

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        first = args[0] if args else None
        if isinstance(first, torch.Tensor):
            if name == "cpu": return moved(first, CPU)
            if name == "cuda": return moved(first, GPU)
            if name == "to": return self.to(*args, **kwargs)
            if isinstance(first, OnGPU):
                if name == "tolist": return first.inner.tolist()
                if name in ("numpy", "__array__"):
                    raise TypeError("can't convert cuda:0 device type tensor to numpy; use "
                                    "Tensor.cpu() first")
        given = kwargs.pop("device", None)
        there = is_gpu(given) or given is None and isinstance(first, OnGPU)
        generator = kwargs.get("generator")
        if name in RANDOM and generator is not None and is_gpu(generator.device) != there:
            raise RuntimeError(f"{name}: expected a generator of '{'cuda' if there else 'cpu'}', "
                               f"found one of '{generator.device.type}'")
        if given is None: return func(*args, **kwargs)
        self.made += there
        out = func(*args, device=CPU if is_gpu(given) else given, **kwargs)
        return on_gpu(out) if there else out

    def to(self, x, *args, device=None, dtype=None, **kwargs):
        args = list(args)
        if args and isinstance(args[0], torch.Tensor):
            like = args.pop(0)
            device, dtype = like.device, like.dtype
        elif args and isinstance(args[0], (str, torch.device)): device = args.pop(0)
        elif args and args[0] is None: args.pop(0)
        if args and isinstance(args[0], torch.dtype): dtype = args.pop(0)
        if device is not None and torch.device(device).type == "meta":
            return torch.empty_like(inner_of(x), device="meta")
        x = moved(x, device)
        return x if dtype is None else torch.Tensor.type(x, dtype)


_module_to = torch.nn.Module.to

def module_to(module, *args, **kwargs): # reads the device of a tensor in Python
    if args and isinstance(args[0], torch.Tensor):
        return _module_to(module, args[0].device, args[0].dtype)
    return _module_to(module, *args, **kwargs)


@contextmanager
def pretend_gpu():
    "-> PretendGPU, which counts the tensors made there"
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True) # of a module that moves
    try:
        with patch.object(torch, "Generator", Generator), \
                patch.object(torch.nn.Module, "to", module_to), PretendGPU() as mode: yield mode
    finally: torch.__future__.set_overwrite_module_params_on_conversion(before)
