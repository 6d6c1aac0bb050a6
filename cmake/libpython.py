"""Prints `soname;directory` of the running interpreter's shared library, as a CMake list.

An interpreter built without one (those of wheel-building images are) still names what the library of its version is called, because the
wheel made with it runs on machines that have it.
"""

import sys
import sysconfig

version = f"{sys.version_info.major}.{sys.version_info.minor}"
soname = sysconfig.get_config_var("INSTSONAME") or ""
if ".so" not in soname:
    soname = f"libpython{version}.so.1.0"
print(f"{soname};{sysconfig.get_config_var('LIBDIR') or ''}", end="")
