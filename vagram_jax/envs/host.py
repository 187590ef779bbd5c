"""Functions on the host that a compiled program calls, such as a simulator's step.

JAX keeps no program on disk that contains a `jax.pure_callback`, so such a program is
compiled by every process. On a CPU a `HostFunction` is therefore an XLA FFI call
(`jax.ffi`): the program contains only a name, and the process that runs the program
looks the function up at each call. Such a program is kept like any other. A call also
takes a tenth of the time. On accelerators, and with a JAX whose FFI is of a version
that this file doesn't know, it is a callback. The results are the same.

The structures below are those of XLA's `c_api.h`, the part of the FFI that is stable
between versions; `jax.ffi.include_dir()` has the file.
"""

from __future__ import annotations

import collections
import ctypes
import functools
import math
import re
import traceback
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

_TARGET = "vagram_jax_host"
# An API of this major version is compatible with the structures below.
_MAJOR_VERSION = 0
_INTERNAL_ERROR = 13
# By XLA's number of a type.
_DTYPES = {
    1: np.dtype(np.bool_),
    4: np.dtype(np.int32),
    5: np.dtype(np.int64),
    8: np.dtype(np.uint32),
    9: np.dtype(np.uint64),
    11: np.dtype(np.float32),
    12: np.dtype(np.float64),
}


class HostFunction:
    """A function of NumPy arrays that compiled programs can call.

    It must be pure and mustn't call JAX, which may deadlock. It may be called from
    several threads at the same time. It has to exist as long as its programs run. A
    program on disk is found if functions of one name are made in the same order.

    Args:
      name: what the function does. Functions of the same name are numbered.
      function: arrays `[..., a], [..., b], ...` to a sequence of arrays, all with the
        leading axes that vmap has added. The arguments are copies.
    """

    def __init__(self, name: str, function: Callable[..., Sequence[np.ndarray]]):
        _register()
        self._function = function
        self._name = f"{name} {_num_made[name]}"
        _num_made[name] += 1
        _functions[self._name] = self

    def __call__(
        self, results: Sequence[jax.ShapeDtypeStruct], *arguments: jax.Array
    ) -> Sequence[jax.Array]:
        """Calls the function, once for all lanes of a vmap.

        An exception ends the program; the last line of its message is the exception's.

        Args:
          results: shapes and dtypes of one lane's results, to which they are cast.
          *arguments: of one lane.
        """
        dtypes = [result.dtype for result in results]
        callback = functools.partial(
            jax.pure_callback,
            functools.partial(self._call_back, dtypes),
            tuple(results),
            vmap_method="broadcast_all",
        )
        if not _register():
            return callback(*arguments)
        call = jax.ffi.ffi_call(_TARGET, tuple(results), vmap_method="broadcast_all")
        named = functools.partial(call, function=self._name)
        return jax.lax.platform_dependent(*arguments, cpu=named, default=callback)

    def _call_back(self, dtypes, *arguments):
        # The dtypes are given because the thread may not know that x64 is on.
        results = self._function(*map(np.asarray, arguments))
        return tuple(map(np.asarray, results, dtypes))


_num_made: collections.Counter[str] = collections.Counter()
# An environment owns its functions.
_functions: weakref.WeakValueDictionary[str, HostFunction] = (
    weakref.WeakValueDictionary()
)


def _struct(**fields: Any) -> type[ctypes.Structure]:
    """Returns a structure that begins with its size and its extensions."""
    head = {"struct_size": ctypes.c_size_t, "extensions": ctypes.c_void_p}
    members = {"_fields_": [*(head | fields).items()]}
    return type("Struct", (ctypes.Structure,), members)


_Version = _struct(major=ctypes.c_int, minor=ctypes.c_int)
_Error = _struct(message=ctypes.c_char_p, code=ctypes.c_int)
_Api = _struct(
    version=_Version,
    internal=ctypes.c_void_p,
    create_error=ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(_Error)),
)
_Buffer = _struct(
    dtype=ctypes.c_int,
    data=ctypes.c_void_p,
    rank=ctypes.c_int64,
    dims=ctypes.POINTER(ctypes.c_int64),
)
_Buffers = _struct(
    count=ctypes.c_int64,
    types=ctypes.c_void_p,
    items=ctypes.POINTER(ctypes.POINTER(_Buffer)),
)


class _Text(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_size_t))


_Attributes = _struct(
    count=ctypes.c_int64,
    types=ctypes.c_void_p,
    names=ctypes.c_void_p,
    values=ctypes.POINTER(ctypes.POINTER(_Text)),
)
_Frame = _struct(
    api=ctypes.POINTER(_Api),
    context=ctypes.c_void_p,
    stage=ctypes.c_int,
    arguments=_Buffers,
    results=_Buffers,
    attributes=_Attributes,
)


class _Metadata(ctypes.Structure):
    _fields_ = (("struct_size", ctypes.c_size_t), ("version", _Version))


class _MetadataExtension(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("type", ctypes.c_int),
        ("next", ctypes.c_void_p),
        ("metadata", ctypes.POINTER(_Metadata)),
    )


@ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(_Frame))
def _handle(pointer: Any) -> int | None:
    """Answers a call of XLA; returns an error or None."""
    frame = pointer.contents
    if frame.extensions:  # XLA asks for the version instead of calling
        extension = _MetadataExtension.from_address(frame.extensions)
        version = extension.metadata.contents.version
        version.major, version.minor = _api_version()
        return None
    try:
        text = frame.attributes.values[0].contents
        name = ctypes.string_at(text.data, text.size).decode()
        if (function := _functions.get(name)) is None:
            raise RuntimeError(f"host function {name}: it no longer exists; keep it")
        arguments = [view.copy() for view in _views(frame.arguments)]
        results = function._function(*arguments)
        for view, result in zip(_views(frame.results), results, strict=True):
            view[...] = result
    except BaseException:
        message = traceback.format_exc().strip().encode()
        error = _Error(ctypes.sizeof(_Error), None, message, _INTERNAL_ERROR)
        return frame.api.contents.create_error(ctypes.byref(error))
    return None


def _views(buffers: Any) -> list[np.ndarray]:
    """Returns XLA's buffers as NumPy arrays, which share their memory."""
    views = []
    for index in range(buffers.count):
        buffer = buffers.items[index].contents
        shape, dtype = buffer.dims[: buffer.rank], _DTYPES[buffer.dtype]
        memory = ctypes.c_char * (math.prod(shape) * dtype.itemsize)
        flat = np.frombuffer(memory.from_address(buffer.data), dtype)
        views.append(flat.reshape(shape))
    return views


@functools.cache
def _api_version() -> tuple[int, int]:
    """Returns the version of JAX's FFI, `(-1, 0)` if it is unknown."""
    try:
        header = Path(jax.ffi.include_dir(), "xla", "ffi", "api", "c_api.h").read_text()
    except OSError:
        return -1, 0
    numbers = dict(re.findall(r"#define XLA_FFI_API_(M\w+) (\d+)", header))
    return int(numbers.get("MAJOR", -1)), int(numbers.get("MINOR", 0))


@functools.cache
def _register() -> bool:
    """Tells JAX where calls go; returns False if its FFI isn't known here."""
    if _api_version()[0] != _MAJOR_VERSION:
        return False
    address = ctypes.cast(_handle, ctypes.c_void_p).value
    jax.ffi.register_ffi_target(_TARGET, jax.ffi.pycapsule(address), platform="cpu")
    return True
