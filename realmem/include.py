"""Where compiled users find what they cimport."""

from __future__ import annotations

from pathlib import Path


def get_include() -> str:
    """
    Give the folder to pass to Cython as ``-I``, for ``from realmem... cimport ...``.

    :return: of the installed package, or of the sources that it runs from.
    """
    package = Path(__file__).resolve().parent
    installed = (package / "types.pxd").is_file()
    return str(package.parent if installed else package.parent / "cython")
