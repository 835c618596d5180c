# SPDX-License-Identifier: Apache-2.0
"""``nms_1d_cpu`` and the Python layer above it, as ActionFormer and OpenTAD have them.

Both projects build an extension of that name beside its source (``setup.py build_ext --inplace``,
or installed); the user has done that. The two differ: OpenTAD's ``softnms`` takes two arguments
more.
"""

from __future__ import annotations

import importlib
import types
from pathlib import Path

import torch  # noqa: F401  # the extensions need its libraries loaded first

from peers import PeerMissingError, checkout, load_file

__all__ = ["actionformer", "opentad"]

_FOLDERS = {
    "actionformer_release": Path("libs/utils"),
    "OpenTAD": Path("opentad/models/utils/post_processing/nms"),
}


def _extension(project: str, folder: Path, arguments: int) -> types.ModuleType:
    built = sorted(folder.glob("nms_1d_cpu*.so")) + sorted(folder.glob("nms_1d_cpu*.pyd"))
    if built:
        # The last part of the name finds the extension's entry point; the first keeps pybind11 from
        # answering with the other project's module, which it remembers by full name.
        return load_file(built[0], f"peer_{project}.nms_1d_cpu")
    try:
        module = importlib.import_module("nms_1d_cpu")
    except ImportError:
        raise PeerMissingError(
            f"nms_1d_cpu is absent: neither built in {folder} nor installed"
        ) from None
    # Installed ones look alike but for their signature.
    found = ("t1" in (module.softnms.__doc__ or "")) * 2 + 7
    if found != arguments:
        raise PeerMissingError(
            f"the installed nms_1d_cpu takes {found} arguments for softnms, expected {arguments}"
        )
    return module


def _load(name: str, arguments: int) -> tuple[types.ModuleType, types.ModuleType]:
    folder = checkout(name) / _FOLDERS[name]
    extension = _extension(name, folder, arguments)
    layer = load_file(folder / "nms.py", f"peer_{name}_nms", {"nms_1d_cpu": extension})
    return extension, layer


def actionformer() -> tuple[types.ModuleType, types.ModuleType]:
    """Returns (extension, Python layer) of github.com/happyharrycn/actionformer_release.

    Raises:
        PeerMissingError: the checkout or its extension is not there.
    """
    return _load("actionformer_release", 7)


def opentad() -> tuple[types.ModuleType, types.ModuleType]:
    """Returns (extension, Python layer) of github.com/sming256/OpenTAD.

    Raises:
        PeerMissingError: the checkout or its extension is not there.
    """
    return _load("OpenTAD", 9)
