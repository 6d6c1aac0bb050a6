"""Prints what the build must know of the interpreter that runs this, as a CMake list: see `facts`.

Asked of the interpreter itself, because CMake's own search keeps what it found for the one before when a build directory changes Python.
"""

import sys
import sysconfig

version = f"{sys.version_info.major}.{sys.version_info.minor}"
soname = sysconfig.get_config_var("INSTSONAME") or ""
if ".so" not in soname:
    # Built without a shared library, as those of wheel-building images are: the wheel will run where there is one.
    soname = f"libpython{version}.so.1.0"

facts = (
    version,
    sysconfig.get_path("include"),  # holds Python.h
    sysconfig.get_config_var("EXT_SUFFIX"),  # of extension modules
    soname,  # what the shared library is called
    sysconfig.get_config_var("LIBDIR") or "",  # where it was when Python was built
    sysconfig.get_path("purelib"),  # installed packages
)
print(";".join(facts), end="")
