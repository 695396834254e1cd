"""A group of files, written to tmp/ and given their names where readers look, without the GIL.

A thread that took the GIL again after each call of the system would wait for the loop's thread as often, and that for it: it
costs more than the calls. Names and contents are bytes; folders are open descriptors.
"""

import os
import re
import sys

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.errno cimport EEXIST, EINTR, EINVAL, ENOSYS, errno
from libc.math cimport floor
from posix.fcntl cimport O_CLOEXEC, O_CREAT, O_EXCL, O_WRONLY, openat
from posix.time cimport timespec
from posix.unistd cimport close, fsync, write
from ...loop._dl cimport RTLD_DEFAULT, dlsym

cdef extern from "fcntl.h":
    int O_NOFOLLOW

cdef extern from "sys/stat.h" nogil:
    int futimens(int fd, const timespec *times)

cdef extern from "unistd.h" nogil:
    int linkat(int, const char *, int, const char *, int)
    int unlinkat(int, const char *, int)

cdef enum:
    RENAME_NOREPLACE = 1
    ENOUGH = 8  # from so many files on, one syncfs is cheaper than an fsync of each (100 files: 4 ms against 27 ms)

ctypedef int (*Rename)(int, const char *, int, const char *, unsigned int) noexcept nogil
ctypedef int (*Sync)(int) noexcept nogil

cdef struct NewFile:
    const char *name
    const char *data
    size_t size
    bint is_timed
    timespec times[2]
    int fd                  # -1 until it is made

cdef struct Place:
    const char *file
    const char *name
    bint taken              # by this file

# Of Linux: NULL where the C library has none, or where syncfs does not tell of errors, as before 5.8.
cdef Rename renameat2 = NULL
cdef Sync syncfs = NULL
cdef object version

if sys.platform == "linux":
    renameat2 = <Rename>dlsym(RTLD_DEFAULT, b"renameat2")
    version = re.match(r"(\d+)\.(\d+)", os.uname().release)
    if version is not None and tuple(map(int, version.groups())) >= (5, 8):
        syncfs = <Sync>dlsym(RTLD_DEFAULT, b"syncfs")


# --------------------------------------------------------------------------------------------------------------- Writing

def write_files(int folder, list names not None, list contents not None, list times not None, *, bint sync):
    """Make these files in `folder`. `times`: when each arrived, in seconds since 1970, or None. With `sync` each is on the disk
    when this returns. Raises OSError, and leaves what it has made until then."""
    cdef Py_ssize_t count = len(names), at
    cdef int number = 0, fd = -1
    if len(contents) != count or len(times) != count:
        raise ValueError("each file has a name, a content and a time")
    cdef NewFile *files = <NewFile *>PyMem_Malloc(count * sizeof(NewFile))
    if files == NULL:
        raise MemoryError
    try:
        for at in range(count):
            describe(&files[at], names[at], contents[at], times[at])
        with nogil:
            for at in range(count):
                number = write_file(folder, &files[at], sync)
                if number:
                    fd = files[at].fd
                    break
    finally:
        PyMem_Free(files)
    if number:
        raise OSError(number, os.strerror(number), *((names[at],) if fd < 0 else ()))


cdef int describe(NewFile *file, bytes name, bytes content, time) except -1:
    if name is None or content is None:
        raise TypeError("names and contents are bytes")
    cdef double seconds
    file.name = PyBytes_AS_STRING(name)
    file.data = PyBytes_AS_STRING(content)
    file.size = PyBytes_GET_SIZE(content)
    file.is_timed = time is not None
    if file.is_timed:
        seconds = time
        file.times[0].tv_sec = <long>floor(seconds)
        file.times[0].tv_nsec = <long>(1e9 * (seconds - floor(seconds)))
        file.times[1] = file.times[0]
    file.fd = -1
    return 0


cdef int write_file(int folder, NewFile *file, bint sync) noexcept nogil:
    """0, or the errno."""
    cdef int number
    while file.fd < 0:
        file.fd = openat(folder, file.name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0o600)
        if file.fd < 0 and errno != EINTR:
            return errno
    number = fill(file, sync)
    if close(file.fd) != 0 and errno != EINTR and number == 0:
        number = errno
    return number


cdef int fill(NewFile *file, bint sync) noexcept nogil:
    """0, or the errno."""
    cdef size_t done = 0
    cdef ssize_t written
    while done < file.size:
        written = write(file.fd, file.data + done, file.size - done)
        if written >= 0:
            done += written
        elif errno != EINTR:
            return errno
    if file.is_timed and futimens(file.fd, file.times) != 0:  # mail readers take it for the time of arrival
        return errno
    return bring_to_disk(fsync, file.fd) if sync else 0


cdef int bring_to_disk(Sync call, int fd) noexcept nogil:
    """0, or the errno."""
    while call(fd) != 0:
        if errno != EINTR:
            return errno
    return 0


def syncs_in_one(Py_ssize_t files):
    """Whether `sync_filesystem` is the way for so many files."""
    return syncfs != NULL and files >= ENOUGH


def sync_filesystem(int folder):
    """Get all files of the file system that `folder` is on to the disk. It reports each error since the descriptor was opened,
    once."""
    cdef int number
    with nogil:
        number = bring_to_disk(syncfs, folder)
    if number:
        raise OSError(number, os.strerror(number))


# ------------------------------------------------------------------------------------------------------------ Publishing

def publish_files(int tmp, int folder, list files not None, list names not None, list published not None):
    """Move `files` in the folder `tmp` to `folder` under these names, and bring that folder to the disk. No file takes the
    place of another: where one has that name already, it stays. The names that are taken by these files are appended to
    `published`, also if this raises OSError. All of `files` are gone otherwise."""
    cdef Py_ssize_t count = len(files), at
    cdef int number = 0
    cdef bytes file, name
    if len(names) != count:
        raise ValueError("each file has a name")
    cdef Place *places = <Place *>PyMem_Malloc(count * sizeof(Place))
    if places == NULL:
        raise MemoryError
    try:
        for at in range(count):
            file, name = files[at], names[at]
            if file is None or name is None:
                raise TypeError("names are bytes")
            places[at] = Place(PyBytes_AS_STRING(file), PyBytes_AS_STRING(name), False)
        with nogil:
            for at in range(count):
                number = publish(tmp, folder, &places[at])
                if number:
                    break
            if number == 0:
                number = bring_to_disk(fsync, folder)
        for at in range(count):
            if places[at].taken:
                published.append(names[at])
    finally:
        PyMem_Free(places)
    if number:
        raise OSError(number, os.strerror(number))


cdef int publish(int tmp, int folder, Place *place) noexcept nogil:
    """0, or the errno."""
    cdef int number = 0
    if renameat2 != NULL:
        if renameat2(tmp, place.file, folder, place.name, RENAME_NOREPLACE) == 0:
            place.taken = True
            return 0
        if errno != EEXIST and errno != EINVAL and errno != ENOSYS:
            return errno
    # The name is taken, or this file system, as NFS, or this kernel has no such call.
    if linkat(tmp, place.file, folder, place.name, 0) == 0:
        place.taken = True
    elif errno != EEXIST:
        number = errno
    if unlinkat(tmp, place.file, 0) != 0 and number == 0:
        number = errno
    return number
