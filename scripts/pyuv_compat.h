/* Lets pyuv 1.4.0 (2017) compile on CPython 3.11 to 3.15. Force-included by install_pyuv.sh.
 *
 * pyuv uses three things that CPython has since changed or removed. Each is given back here, in terms of what there
 * is now; nothing else in pyuv is touched. libuv's own sources, which see this header too, use none of them.
 */
#ifndef PYUV_COMPAT_H
#define PYUV_COMPAT_H

/* libuv's sources ask for the same before their first system header. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <Python.h>

/* pyuv assigns to Py_REFCNT(ob), which since 3.10 is a function's result. */
#undef Py_REFCNT
#ifdef Py_GIL_DISABLED
/* Its own thread's part of the count: all of it, with the GIL on. */
#define Py_REFCNT(ob) (((PyObject *)(ob))->ob_ref_local)
#else
#define Py_REFCNT(ob) (((PyObject *)(ob))->ob_refcnt)
#endif

/* A no-op since 3.7, deprecated since 3.9, gone in 3.13. */
#define PyEval_InitThreads() ((void)0)

/* Gone in 3.12: the Py_UNICODE form of a str. pyuv uses it in one place, to encode a str as UTF-8. */
#undef PyUnicode_AS_UNICODE
#undef PyUnicode_GET_SIZE
#define PyUnicode_AS_UNICODE(str) (str)
#define PyUnicode_GET_SIZE(str) 0
#define PyUnicode_EncodeUTF8(str, size, errors) PyUnicode_AsEncodedString(str, "utf-8", errors)

#endif
