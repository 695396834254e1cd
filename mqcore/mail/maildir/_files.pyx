"""A group of files, written to tmp/ and given their names where readers look, without the GIL.

A thread that took the GIL again after each call of the system would wait for the loop's thread as often, and that for it: it
costs more than the calls. Names and contents are bytes; folders are open descriptors.
"""

import os
import re
import sys

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from libc.errno cimport EEXIST, EINTR, EINVAL, ENOSYS, errno
from libc.math cimport floor
from libc.string cimport memset
from posix.fcntl cimport O_CLOEXEC, O_CREAT, O_EXCL, O_WRONLY, openat
from posix.time cimport timespec
from posix.unistd cimport close, fsync, write
from ...loop._dl cimport RTLD_DEFAULT, dlsym
from .._jobs cimport Job

cdef extern from "fcntl.h":
    int O_NOFOLLOW

cdef extern from "sys/stat.h" nogil:
    int futimens(int fd, const timespec *times)

cdef extern from "unistd.h" nogil:
    int linkat(int, const char *, int, const char *, int)
    int unlinkat(int, const char *, int)

cdef enum:
    RENAME_NOREPLACE = 1
    # From so many files on, one syncfs takes the place of an fsync of each. It costs less from two on, but also writes what
    # others have left to be written: a server with so much to do at once does best so, and a mail that comes alone does not
    # wait for them.
    ENOUGH = 4

ctypedef int (*Rename)(int, const char *, int, const char *, unsigned int) noexcept nogil
ctypedef int (*Sync)(int) noexcept nogil

cdef struct File:
    const char *file        # its name in tmp/
    int folder              # where it goes from there
    const char *name        # as which
    const char *data
    size_t size
    bint is_timed
    timespec times[2]
    bint is_made
    bint is_published       # that name is of this file

# Of Linux: NULL where the C library has none, or where syncfs does not tell of errors, as before 5.8.
cdef Rename renameat2 = NULL
cdef Sync syncfs = NULL
cdef object version

if sys.platform == "linux":
    renameat2 = <Rename>dlsym(RTLD_DEFAULT, b"renameat2")
    version = re.match(r"(\d+)\.(\d+)", os.uname().release)
    if version is not None and tuple(map(int, version.groups())) >= (5, 8):
        syncfs = <Sync>dlsym(RTLD_DEFAULT, b"syncfs")


def syncs_in_one(Py_ssize_t files):
    """Whether so many are brought to the disk by one call for their whole file system."""
    return syncfs != NULL and files >= ENOUGH


@cython.final
@cython.no_gc_clear  # which would let go what the thread reads
cdef class Group(Job):
    """Files that get their names where readers look all together, or not at all.

    Each is added, as one of `tmp` that becomes one of another folder. `write` makes those that are new; `publish` brings all to
    the disk, moves them, and brings their folders to the disk. No file takes the place of another: where one has that name
    already, it stays, and ours is dropped. `undo` removes whatever was made. As a job, it does all three, `undo` if one failed;
    then `check` says so. They raise OSError.

    `in_one`: one call syncs the whole file system. It reports each error since the descriptor was opened, once.
    """

    cdef int tmp
    cdef bint in_one
    cdef list names                     # pairs of bytes that files refer to
    cdef list contents                  # likewise, of those that are not written yet
    cdef File *files
    cdef Py_ssize_t room
    cdef Py_ssize_t count
    cdef Py_ssize_t written             # so many of them are, if nothing failed
    cdef readonly Py_ssize_t unwritten  # octets of the others
    cdef int number                     # the errno of what failed
    cdef Py_ssize_t culprit             # the file that could not be made, if that was it

    def __cinit__(self, int tmp, *, bint in_one):
        self.tmp = tmp
        self.in_one = in_one
        self.names = []
        self.contents = []
        self.culprit = -1

    def __dealloc__(self):
        PyMem_Free(self.files)

    def add(self, bytes file not None, int folder, bytes name not None, bytes content not None, time):
        """`time`: when it arrived, in seconds since 1970, or None."""
        cdef double seconds = 0 if time is None else time
        self.make_room()
        cdef File *new = &self.files[self.count]
        memset(new, 0, sizeof(File))
        new.file = PyBytes_AS_STRING(file)
        new.folder = folder
        new.name = PyBytes_AS_STRING(name)
        new.data = PyBytes_AS_STRING(content)
        new.size = PyBytes_GET_SIZE(content)
        new.is_timed = time is not None
        new.times[0].tv_sec = <long>floor(seconds)
        new.times[0].tv_nsec = <long>(1e9 * (seconds - floor(seconds)))
        new.times[1] = new.times[0]
        self.names.append((file, name))
        self.contents.append(content)
        self.count += 1
        self.unwritten += new.size

    cdef int make_room(self) except -1:
        if self.count < self.room:
            return 0
        cdef Py_ssize_t room = 2 * self.room or 16
        cdef File *files = <File *>PyMem_Realloc(self.files, room * sizeof(File))
        if files == NULL:
            raise MemoryError
        self.files = files
        self.room = room
        return 0

    def write(self):
        """Make those that were added since, and let go their contents."""
        with nogil:
            self.write_files()
        self.contents.clear()
        self.unwritten = 0
        self.check()

    def publish(self):
        with nogil:
            self.publish_files()
        self.check()

    def undo(self):
        with nogil:
            self.remove_files()

    def check(self):
        """Raise OSError if something failed."""
        if not self.number:
            return
        names = () if self.culprit < 0 else (self.names[self.culprit][0],)
        raise OSError(self.number, os.strerror(self.number), *names)

    cdef void run(self) noexcept nogil:
        if self.write_files() != 0 or self.publish_files() != 0:
            self.remove_files()

    cdef int write_files(self) noexcept nogil:
        """0, or the errno, also of what failed before."""
        cdef Py_ssize_t at
        for at in range(self.written, self.count):
            if self.number == 0:
                self.number = write_file(self.tmp, &self.files[at], not self.in_one)
                if self.number and not self.files[at].is_made:
                    self.culprit = at
        self.written = self.count
        return self.number

    cdef int publish_files(self) noexcept nogil:
        """0, or the errno, also of what failed before. Each folder in turn."""
        cdef Py_ssize_t at, other
        if self.number == 0 and self.in_one:
            self.number = bring_to_disk(syncfs, self.tmp)
        for at in range(self.count):
            if self.number or self.is_done(at):
                continue
            for other in range(at, self.count):
                if self.number == 0 and self.files[other].folder == self.files[at].folder:
                    self.number = publish(self.tmp, &self.files[other])
            if self.number == 0:
                self.number = bring_to_disk(fsync, self.files[at].folder)
        return self.number

    cdef bint is_done(self, Py_ssize_t at) noexcept nogil:
        """Whether one before it went to the same folder, and so all that do."""
        cdef Py_ssize_t before
        for before in range(at):
            if self.files[before].folder == self.files[at].folder:
                return True
        return False

    cdef void remove_files(self) noexcept nogil:
        cdef Py_ssize_t at
        for at in range(self.count):
            if self.files[at].is_published:
                unlinkat(self.files[at].folder, self.files[at].name, 0)
            elif self.files[at].is_made:
                unlinkat(self.tmp, self.files[at].file, 0)


cdef int write_file(int folder, File *file, bint sync) noexcept nogil:
    """0, or the errno."""
    cdef int fd = -1, number
    while fd < 0:
        fd = openat(folder, file.file, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0o600)
        if fd < 0 and errno != EINTR:
            return errno
    file.is_made = True
    number = fill(fd, file, sync)
    if close(fd) != 0 and errno != EINTR and number == 0:
        number = errno
    return number


cdef int fill(int fd, File *file, bint sync) noexcept nogil:
    """0, or the errno."""
    cdef size_t done = 0
    cdef ssize_t written
    while done < file.size:
        written = write(fd, file.data + done, file.size - done)
        if written >= 0:
            done += written
        elif errno != EINTR:
            return errno
    if file.is_timed and futimens(fd, file.times) != 0:  # mail readers take it for the time of arrival
        return errno
    return bring_to_disk(fsync, fd) if sync else 0


cdef int bring_to_disk(Sync call, int fd) noexcept nogil:
    """0, or the errno."""
    while call(fd) != 0:
        if errno != EINTR:
            return errno
    return 0


cdef int publish(int tmp, File *file) noexcept nogil:
    """0, or the errno."""
    cdef int number = 0
    if renameat2 != NULL:
        if renameat2(tmp, file.file, file.folder, file.name, RENAME_NOREPLACE) == 0:
            file.is_published = True
            return 0
        if errno != EEXIST and errno != EINVAL and errno != ENOSYS:
            return errno
    # The name is taken, or this file system, as NFS, or this kernel has no such call.
    if linkat(tmp, file.file, file.folder, file.name, 0) == 0:
        file.is_published = True
    elif errno != EEXIST:
        number = errno
    if unlinkat(tmp, file.file, 0) != 0 and number == 0:
        number = errno
    return number
