"""The real storage classes of SGLang's wheel, imported without installing SGLang.

SGLang needs CUDA's torch and a hundred packages. Its storage backends, host pools and controllers need none of them to
move pages of host memory. So these modules are the wheel's own, and whatever else they import is a stand-in.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

VERSION = "0.5.23"
REPOSITORY = Path(__file__).parents[2]
CACHE = REPOSITORY / "build" / "sglang"
DOWNLOAD_SECONDS = 120

REAL = (
    *("sglang.srt.environ", "sglang.srt.runtime_context", "sglang.srt.managers.cache_controller"),
    *("sglang.srt.mem_cache.hicache_storage", "sglang.srt.mem_cache.hicache_key_scheme"),
    *("sglang.srt.mem_cache.device_pool_info", "sglang.srt.mem_cache.host_memory"),
    *("sglang.srt.mem_cache.storage", "sglang.srt.mem_cache.storage.backend_factory"),
    *("sglang.srt.mem_cache.storage.mmap", "sglang.srt.mem_cache.storage.mmap.mmap_allocator"),
    *("sglang.srt.mem_cache.pool_host", "sglang.srt.mem_cache.pool_host.base", "sglang.srt.mem_cache.pool_host.common"),
    *(
        "sglang.srt.mem_cache.pool_host.mha",
        "sglang.srt.mem_cache.pool_host.mla",
        "sglang.srt.mem_cache.pool_host.mamba",
    ),
    *("sglang.srt.mem_cache.pool_host.dsa", "sglang.srt.mem_cache.pool_host.group"),
    *("sglang.srt.mem_cache.pool_host.page_unified", "sglang.srt.mem_cache.pool_host.hisparse"),
    *("sglang.srt.mem_cache.pool_host.host_pool_decl",),
    "sglang.srt.mem_cache.hybrid_cache.hybrid_cache_controller",
)
"""The modules of the wheel that run. Packages above them are empty."""

METRICS = "srt/observability/metrics_collector.py"

UNPACKED = (
    *("sglang/srt/environ.py", "sglang/srt/runtime_context.py", "sglang/srt/managers/cache_controller.py"),
    *("sglang/srt/mem_cache/", f"sglang/{METRICS}"),
)

MISSING = ("psutil", "triton", "sgl_kernel", "orjson")
"""Packages that the real modules import, and that need not be installed."""


class Anything:
    """Stands for a function, an object or a decorator of a package that is not there. It is false."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        is_decorator = len(args) == 1 and not kwargs and callable(args[0]) and not isinstance(args[0], Anything)
        return args[0] if is_decorator else Anything()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return anything(name)

    def __getitem__(self, _: Any) -> Any:
        return Anything()

    def __or__(self, _: Any) -> Any:
        return Anything()

    __ror__ = __or__

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __bool__(self) -> bool:
        return False

    def __mro_entries__(self, _: Any) -> tuple[type, ...]:
        return (object,)


def anything(name: str) -> Any:
    """Return a stand-in: a class if its name is one, so that `isinstance` works."""
    return type(name, (), {}) if name[:1].isupper() and not name.isupper() else Anything()


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = anything(name)
        setattr(self, name, value)  # the same class for all who import it
        return value


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the real modules in the wheel, and makes stand-ins of all other ones that can't be found."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.stand_ins: set[str] = set()
        self.is_importing = True

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name in REAL:
            location = self._root.joinpath(*name.split(".")[1:])
            is_package = location.is_dir()
            file = location / "__init__.py" if is_package else location.with_suffix(".py")
            folders = [str(location)] if is_package else None
            return importlib.util.spec_from_file_location(name, file, submodule_search_locations=folders)
        top = name.partition(".")[0]
        if top == "sglang" or (top in MISSING and self.is_importing):
            self.stand_ins.add(name)
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = _StandIn(spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module: ModuleType) -> None:
        pass


def wheel_modules() -> Path:
    """Return the folder with the wheel's storage modules. The first call downloads the wheel, 39 MB.

    Raises: OSError, subprocess.SubprocessError.
    """
    folder = CACHE / f"sglang-{VERSION}"
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        if not list(CACHE.glob(f"sglang-{VERSION}-*.whl")):
            command = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download", "--no-deps")
            subprocess.run(
                (*command, "--only-binary", ":all:", "--dest", str(CACHE), f"sglang=={VERSION}"),
                check=True,
                capture_output=True,
                timeout=DOWNLOAD_SECONDS,
            )
        (wheel,) = CACHE.glob(f"sglang-{VERSION}-*.whl")
        with tempfile.TemporaryDirectory(dir=CACHE) as unpacked, zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked, [each for each in archive.namelist() if each.startswith(UNPACKED)])
            Path(unpacked, "sglang").rename(folder)
    return folder


def dataclass_of_wheel(file: str, name: str) -> Any:
    """Return a dataclass of a module that can't be imported here: only its own lines run."""
    tree = ast.parse((wheel_modules() / file).read_text())
    (found,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    names: dict[str, Any] = {"dataclass": dataclasses.dataclass, "field": dataclasses.field, "List": list}
    exec(compile(ast.Module([found], []), file, "exec"), names)
    return names[name]


@cache
def import_wheel() -> None:
    """Import the wheel's modules into this process. Only they see stand-ins of packages that are not SGLang's.

    Raises: OSError, subprocess.SubprocessError.
    """
    finder = _Finder(wheel_modules())
    sys.meta_path.append(finder)  # last, so that packages that are installed are themselves
    for name in REAL:
        importlib.import_module(name)
    finder.is_importing = False
    for name in finder.stand_ins:
        if not name.startswith("sglang"):
            del sys.modules[name]
