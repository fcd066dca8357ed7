"""The instruction set in use, the number of threads, and memory for the other compiled modules."""

import os
import time

from cpython.buffer cimport PyBuffer_FillInfo
from cython.parallel cimport prange

from libc.stdlib cimport free
from libc.string cimport memset

from convserve.errors import ConvserveError, ShapeError, UnknownNameError
from convserve.kernels._arguments import integer, positive
from convserve.kernels._cores import usable_cores

cdef extern from "cs.h" nogil:
    const cs_kernels *cs_kernels_for(const char *isa)
    int cs_available(const char **names, int room)

cdef extern from "stdlib.h" nogil:
    int posix_memalign(void **memory, size_t alignment, size_t size)

cdef extern from "omp.h" nogil:
    ctypedef enum omp_pause_resource_t:
        omp_pause_hard
    int omp_pause_resource_all(omp_pause_resource_t kind)

cdef const cs_kernels *in_use = NULL
cdef int threads = 1


cdef const cs_kernels *table() noexcept nogil:
    return in_use


cdef int thread_count() noexcept nogil:
    return threads


def available_isas():
    """The instruction sets that this build and this CPU have, the best first: list[str]."""
    cdef const char *names[8]
    cdef int i
    return [(<bytes>names[i]).decode() for i in range(cs_available(names, 8))]


def isa():
    """The instruction set in use: "avx512", "avx2" or "base"."""
    return (<bytes>in_use.isa).decode()


def use_isa(name):
    """Switch to another instruction set; raises UnknownNameError where it is absent."""
    global in_use
    cdef const cs_kernels *found = cs_kernels_for(str(name).encode())
    if found == NULL:
        raise UnknownNameError(
            f"instruction set {name!r} is not available; this build on this CPU has "
            + ", ".join(available_isas())
        )
    in_use = found


def block():
    """Floats of a vector, and so channels of a block: 16, 8 or 4."""
    return in_use.block


def register_tile(int ow, int blocks, int widest=4):
    """(output blocks, pixels) of direct convolution's tile for rows of `ow` pixels.

    blocks: of the layer's output; widest: output blocks at the most.
    """
    cdef int size = in_use.conv_tile_blocks(ow, blocks)
    while size > widest:
        size //= 2
    return size, in_use.conv_tile_pixels(size)


def by_pixels(int ow, int filters, int taps, bint planar=False):
    """Whether an NCHW image's convolution of stride 1 runs by vectors of pixels.

    planar: its output is to be NCHW too.
    """
    if planar:
        return in_use.conv_planar_by_pixels(ow, filters, taps) != 0
    return in_use.conv_by_pixels(ow, filters, taps) != 0


def num_threads():
    """How many threads the public functions use at the most."""
    return threads


def set_num_threads(n):
    """Let the public functions use n threads (1 to 1024); the results are the same bits."""
    global threads
    n = integer(n, "set_num_threads: n", 1)
    if n > 1024:
        raise ShapeError(f"set_num_threads: n must be from 1 to 1024, got {n}")
    threads = n


def peak_gflops(threads=1, seconds=0.2):
    """The highest multiply-add rate that this machine reaches, in GFLOP/s over all threads.

    Runs a loop of independent multiply-adds on registers for about `seconds` and takes the best
    of many short rounds.
    """
    cdef int64_t rounds = 400_000 // in_use.block
    cdef int n = integer(threads, "peak_gflops: threads", 1), i
    cdef double work = 0
    cdef Buffer sinks = Buffer(<size_t>n * 64)
    for i in range(n):
        sinks.data[i * 64] = 1.0
        sinks.data[i * 64 + 1] = 1e-3
    best = 0.0
    end = time.perf_counter() + positive(seconds, "peak_gflops: seconds")
    while True:
        start = time.perf_counter()
        work = 0
        for i in prange(n, nogil=True, num_threads=n, schedule="static", chunksize=1):
            work += in_use.peak(rounds, sinks.data + i * 64)
        now = time.perf_counter()
        best = max(best, work / (now - start))
        if now > end:
            return best * 1e-9


cdef class Buffer:
    def __cinit__(self, size_t floats, array=None):
        cdef const float[::1] values
        cdef size_t size = (floats * sizeof(float) + 64) // 64 * 64
        self.floats = floats
        self.own = NULL
        if array is not None:
            values = array
            self.array, self.data = array, <float *>&values[0]
            if <size_t>values.shape[0] != floats or <size_t>self.data % 64:
                raise ShapeError(f"{floats} float32 values, 64-byte aligned, can't lie in the "
                                 f"{values.shape[0]} at {<size_t>self.data:#x}")
            return
        if size < floats or posix_memalign(&self.own, 64, size):
            raise MemoryError(f"no memory for {floats} float32 values")
        if size < 1 << 20:
            memset(self.own, 0, size)
        else:
            with nogil:  # others run meanwhile: the first touch of 100 MB takes a while
                memset(self.own, 0, size)
        self.data = <float *>self.own

    def __dealloc__(self):
        free(self.own)  # the garbage collector may have taken `array` away by now

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.data, self.floats * sizeof(float), 1, flags)


cdef list idle = []          # buffers that nobody uses, guarded by the GIL
cdef size_t IDLE_FLOATS = 1 << 24   # keep 64 MiB at the most


cdef Buffer borrow(size_t floats):
    cdef Buffer buffer, best = None
    for buffer in idle:
        if buffer.floats >= floats and (best is None or buffer.floats < best.floats):
            best = buffer
    if best is None:
        return Buffer(floats)
    idle.remove(best)
    return best


cdef size_t kept_floats() except? 0:
    cdef Buffer buffer
    cdef size_t floats = 0
    for buffer in idle:
        floats += buffer.floats
    return floats


cdef int release(Buffer buffer) except -1:
    idle.append(buffer)
    while kept_floats() > IDLE_FLOATS:
        idle.pop(0)   # the oldest
    return 0


def _choose():
    """The best instruction set, or the one that CONVSERVE_ISA names."""
    wanted = os.environ.get("CONVSERVE_ISA")
    if not wanted:
        return available_isas()[0]
    if wanted not in available_isas():
        raise ConvserveError(
            f"CONVSERVE_ISA={wanted!r} is not available; this build on this CPU has "
            + ", ".join(available_isas())
        )
    return wanted


def _end_idle_threads():
    """End the OpenMP threads that wait for the calling thread; its next loop starts new ones."""
    omp_pause_resource_all(omp_pause_hard)


use_isa(_choose())
set_num_threads(usable_cores())
if hasattr(os, "register_at_fork"):
    # A fork copies no threads, and the child would wait for these for ever.
    os.register_at_fork(before=_end_idle_threads)
