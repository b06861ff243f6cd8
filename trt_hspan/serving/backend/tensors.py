"""NumPy arrays to and from Triton's tensors. The only module that knows how they cross the boundary.

*Measured* with Triton 2.51 (24.10) and NumPy 2: `pb_utils.Tensor(name, array)` sends 0 bytes, because the stub was
compiled for NumPy 1 and reads the item size from the wrong place. DLPack has no such layout to agree on. That stub
renames the capsule to "used_dlpack" where NumPy expects "used_dltensor", and NumPy then prints an error when the
capsule dies; so it is renamed once more here.
"""

from __future__ import annotations

import ctypes
import json
from typing import Any, Final

import numpy as np
import numpy.typing as npt

_USED: Final = b"used_dltensor"  # must outlive every capsule: the name is not copied
_rename = ctypes.pythonapi.PyCapsule_SetName
_rename.argtypes = (ctypes.py_object, ctypes.c_char_p)
_rename.restype = ctypes.c_int


class _Exported:
    """An array whose capsule stays within reach."""

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self._array = array
        self.capsule: Any = None

    def __dlpack__(self, **_: object) -> Any:
        self.capsule = self._array.__dlpack__()
        return self.capsule

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()


def tensor_from_array(pb_utils: Any, name: str, array: npt.NDArray[Any]) -> Any:
    """A Triton tensor of an array's type and shape; the array must not be changed afterwards."""
    exported = _Exported(np.ascontiguousarray(array))
    tensor = pb_utils.Tensor.from_dlpack(name, exported)
    if exported.capsule is not None:
        _rename(exported.capsule, _USED)
    return tensor


def array_from_tensor(tensor: Any) -> npt.NDArray[Any]:
    """The values of a tensor, read-only, without a copy; they live as long as the request."""
    return np.from_dlpack(tensor)


def request_parameters(request: Any) -> dict[str, Any]:
    """What the client put beside the tensors; empty when it is not a JSON object."""
    try:
        parameters = json.loads(request.parameters())
    except ValueError:
        return {}
    return parameters if isinstance(parameters, dict) else {}


def model_parameters(config: dict[str, Any]) -> dict[str, str]:
    """The `parameters` of a model's configuration, as Triton hands it to a Python model."""
    return {name: str(value["string_value"]) for name, value in config.get("parameters", {}).items()}
