/* py.h -- the one include of Python.h. It is a file of its own because Python wants to be included before the standard headers, with
 * PY_SSIZE_T_CLEAN, and because only the two files that include it may know that Python exists. */
#ifndef PY_H
#define PY_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#endif
