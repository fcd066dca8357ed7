"""What threads of this process have computed: see `csrc/threads.h`."""

import os

from libc.errno cimport errno
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc

from convserve.kernels._arguments import integer


cdef extern from "threads.h" nogil:
    ctypedef struct cs_thread_time:
        int id
        int64_t ran
    int cs_bound_times(int core, cs_thread_time *found, int room)


def bound_times(core):
    """{the kernel's number of a thread: nanoseconds of processor time} of those bound to `core`.

    Without the GIL, which threads of Python would otherwise pass around once for each of them.
    Raises OSError where threads can't be listed.
    """
    cdef int of = integer(core, "core", 0), room = 64, count, reason = 0
    cdef cs_thread_time *found
    while True:
        with nogil:
            found = <cs_thread_time *>malloc(room * sizeof(cs_thread_time))
            count = -1
            if found != NULL:
                count = cs_bound_times(of, found, room)
                reason = errno
        try:
            if found == NULL:
                raise MemoryError("no memory for a list of threads")
            if count < 0:
                raise OSError(reason, os.strerror(reason), "/proc/self/task")
            if count <= room:
                return {found[n].id: found[n].ran for n in range(count)}
        finally:
            free(found)
        room = 2 * count
