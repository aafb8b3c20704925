"""A private copy of the `rwkv` package's model module for each loaded model.

The package keeps a model's dtype and device in module globals, reads environment flags while it
is imported (and again at each call), switches flags of PyTorch, prints, and reads its weights by
unrestricted `torch.load`. So its source runs here once for each model, in a namespace whose
`torch`, `os`, `gc` and `print` are stand-ins: what it would do to the process, it does to them.
This module runs no model and checks no weights. The easy mistake is to set `os.environ` around
the import instead: the older versions read ``RWKV_CUDA_ON`` in every forward.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import importlib
import importlib.machinery
import importlib.util
import os
import threading
import types
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from langchain_rwkv_state.errors import ModelLoadError


class Namespace:
    """One private copy of ``rwkv.model``.

    Args:
        version_7: Whether the RWKV-7 class is wanted; the package has either it or the others.
        deep_embed: Whether it is the RWKV-7 with DeepEmbed.
        scripted: Whether its functions are compiled by TorchScript.
        kernels: Whether it compiles and uses its CUDA kernels.
        directml: Whether it uses DirectML.
    """

    def __init__(
        self,
        *,
        version_7: bool,
        deep_embed: bool = False,
        scripted: bool = False,
        kernels: bool = False,
        directml: bool = False,
    ) -> None:
        flags = {
            "RWKV_V7_ON": version_7,
            "RWKV_DE_VERSION": deep_embed,
            "RWKV_JIT_ON": scripted,
            "RWKV_CUDA_ON": kernels,
            "RWKV_DML_ON": directml,
        }
        self._torch = _Torch(scripted)
        self._os = types.SimpleNamespace(
            name=os.name,
            path=os.path,
            environ={name: "1" if on else "0" for name, on in flags.items()},
        )
        spec = _package_spec()
        self._globals: dict[str, Any] = {
            "__name__": "langchain_rwkv_state.runtime._rwkv_model",
            "__file__": spec.origin,
            "__builtins__": {
                **vars(builtins),
                "__import__": self._import,
                "print": _silent,
            },
        }
        with _quiet_compilation(scripted):
            exec(_package_code(), self._globals)  # noqa: S102  # the installed package's own code

    def load(self, weights: dict[str, torch.Tensor], strategy: str) -> Any:
        """Returns the package's model over weights that were read already.

        Args:
            weights: Tensors by name; emptied, so that no second copy stays alive.
            strategy: A strategy that fits the version.

        Returns:
            The package's object, an ``RWKV`` or an ``RWKV_x070``.
        """
        self._torch.weights = weights
        scripted = self._os.environ["RWKV_JIT_ON"] == "1"
        try:
            with _quiet_compilation(scripted), torch.no_grad():
                # The name is never opened. The older class appends ".pth" to it where missing.
                return self._globals["RWKV"]("weights", strategy)
        finally:
            self._torch.weights = None

    def _import(self, name: str, *args: Any) -> Any:
        """Stands in for ``__import__`` in the package's module."""
        if name == "torch":
            return self._torch
        if name == "os":
            return self._os
        if name == "gc":
            # It collects once a layer, which takes longer than the load in a large process, and
            # frees nothing: tensors go with their last reference.
            return types.SimpleNamespace(collect=_silent)
        if name == "torch.utils.cpp_extension":
            found = importlib.import_module(name)
            return types.SimpleNamespace(load=functools.partial(_build_quietly, found.load))
        return builtins.__import__(name, *args)


class _Torch(types.ModuleType):
    """`torch`, but for what would reach beyond the model: its flags, its loader, its compiler.

    A module, since TorchScript resolves names such as ``torch.tanh`` only through modules.
    """

    def __init__(self, scripted: bool) -> None:
        super().__init__("torch")
        self.weights: dict[str, torch.Tensor] | None = None
        self.backends = types.SimpleNamespace(
            cudnn=types.SimpleNamespace(),
            cuda=types.SimpleNamespace(matmul=types.SimpleNamespace()),
        )
        self._C = types.SimpleNamespace(_jit_set_autocast_mode=_silent)
        if not scripted:
            self.jit = types.SimpleNamespace(
                ScriptModule=torch.nn.Module, script_method=_unchanged, script=_unchanged
            )

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def load(self, *_: object, **__: object) -> dict[str, torch.Tensor]:
        """Hands over the weights, once, and keeps no hold on them.

        The package frees each tensor as soon as it has converted it, if nobody else has it.
        """
        if self.weights is None:
            raise RuntimeError("The weights of this model were handed over already.")
        handed = dict(self.weights)
        self.weights.clear()
        self.weights = None
        return handed


def _silent(*_: object, **__: object) -> None:
    """Stands in for ``print`` and for what else should not happen."""


def _unchanged(function: Any) -> Any:
    """Stands in for TorchScript's decorators."""
    return function


def _build_quietly(load: Any, *args: Any, **options: Any) -> Any:
    """Builds a CUDA extension without its log."""
    return load(*args, **options | {"verbose": False})


_compiling = threading.Lock()


@contextlib.contextmanager
def _quiet_compilation(scripted: bool) -> Iterator[None]:
    """Keeps TorchScript's deprecation warnings from the user while one model loads.

    Filters of warnings belong to the whole process before Python 3.14, so that they are touched
    only where something is compiled, by one thread at a time.
    """
    if not scripted:
        yield
        return
    with _compiling, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


@functools.cache
def _package_spec() -> importlib.machinery.ModuleSpec:
    """Finds the package's module without importing it: importing is what has the side effects."""
    package = importlib.util.find_spec("rwkv")
    places = package.submodule_search_locations if package else None
    spec = importlib.machinery.PathFinder.find_spec("rwkv.model", places) if places else None
    if spec is None or spec.origin is None:
        raise ModelLoadError("The rwkv package is not installed: run 'pip install rwkv'.")
    return spec


@functools.cache
def _package_code() -> types.CodeType:
    """Compiles the package's module once for the process."""
    loader = _package_spec().loader
    code = loader.get_code("rwkv.model") if isinstance(loader, _SourceLoader) else None
    if code is None:
        raise ModelLoadError("The rwkv package has no source file: install it from a wheel.")
    return code


_SourceLoader = importlib.machinery.SourceFileLoader
