"""Runs a plan: the memory that it needs, the threads that it may use, one release of the GIL."""

import numpy as np

from libc.stdint cimport int64_t
from cpython.buffer cimport PyBuffer_FillInfo
from libc.string cimport memset
from posix.mman cimport (
    MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_READ, PROT_WRITE, mmap, munmap,
)

cimport cython

from convserve.kernels._operations cimport Operations
from convserve.kernels._plan cimport cs_pace, cs_plan_run

cdef extern from "team.h" nogil:
    void cs_team_run(int threads, void (*work)(void *argument, int rank, int size) noexcept nogil,
                     void *argument)


cdef void run_on_team(int threads, void (*work)(void *argument, int rank, int size) noexcept nogil,
                      void *argument) noexcept nogil:
    cs_team_run(threads, work, argument)


# Below this number of multiply-accumulates a call a second thread costs more than it brings.
cdef double THREADS_FROM = 6e5
# Below this number other threads wait for the lock of the interpreter for so short a time that they
# lose less than by taking it over and giving it back.
cdef double UNLOCK_FROM = 2e6
cdef int MAX_THREADS = 256
# After so many runs arenas that they did not need are given back, but for those that were in use
# one period ago: only one less is kept for each period.
cdef int PERIOD = 1024


# Results of so many bytes lie in pages that are used again: fresh ones take longer than to fill.
cdef size_t LARGE_RESULT = 1 << 20
cdef size_t LARGEST_KEPT = 1 << 27


cdef class Arena:
    """Zeroed floats in pages of their own, so that the system gets them back as soon as they are
    freed: the C library would keep them for the thread that happened to ask for them."""

    cdef float *data
    cdef size_t size

    def __cinit__(self, int64_t floats, bint touch=True):
        self.size = floats * sizeof(float)
        cdef void *pages = mmap(NULL, self.size, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if pages == MAP_FAILED:
            self.size = 0
            raise MemoryError(f"no memory for an arena of {floats} float32 values")
        if touch:
            memset(pages, 0, self.size)     # now rather than in a call
        self.data = <float *>pages

    def __dealloc__(self):
        if self.size:
            munmap(self.data, self.size)


@cython.no_gc_clear
cdef class ResultMemory:
    """Floats of a large result; its pages are spare once no array holds it any more."""

    cdef Arena pages
    cdef size_t size
    cdef list spare
    cdef int most       # of them

    def __init__(self, size_t size, list spare, int most):
        self.size, self.spare, self.most = size, spare, most
        for i, pages in enumerate(spare):
            if size <= (<Arena>pages).size <= 2 * size:
                self.pages = spare.pop(i)
                return
        del spare[:max(0, len(spare) + 1 - most)]   # of other sizes, for the one that comes back
        self.pages = Arena(size // sizeof(float), False)

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.pages.data, self.size, 0, flags)

    def __dealloc__(self):
        if self.pages is not None and self.pages.size <= LARGEST_KEPT:
            if len(self.spare) < self.most:
                self.spare.append(self.pages)


cdef class Executor(Operations):
    """A plan's operations, and the memory in which they run; any thread may run it.

    macs_per_image: about how much work an image is.
    """

    cdef cs_pace pace
    cdef double macs
    # Memory for the tensors, guarded by the GIL. Each call takes an arena of its own; those of the
    # other threads go to one call at a time, as the team of threads does.
    cdef list idle, of_team
    cdef bint team_lent
    cdef int in_use, most, runs             # arenas in use now and at the most, in this period
    cdef int kept_arenas
    cdef list spare         # pages of results that are gone

    def __init__(self, groups, results, double macs_per_image):
        super().__init__(groups, results)
        self.macs = macs_per_image
        self.idle, self.of_team, self.spare = [], [], []

    def run(self, inputs, int threads, spent=None, byte_values=None):
        """inputs: float32[N, ...] each, C-contiguous, already checked; a list of new arrays.

        byte_values: float32[C, 256], what bytes stand for in inputs that are uint8[N, C, H, W].

        spent: int64[threads, operations], C-contiguous, to which each thread adds the nanoseconds
        that it spends on each operation.
        """
        cdef int64_t n = len(inputs[0])
        cdef float *arenas[256]
        cdef Arena arena, own = None
        cdef float **results
        cdef const float **sources
        cdef const float **tables
        cdef const float[::1] given
        cdef const unsigned char[::1] bytes_
        cdef const float[:, ::1] values
        cdef float[::1] flat
        outs = [self._result((n, *shape)) for shape in self.output_shapes]
        if n == 0:
            return outs
        if n * self.macs < THREADS_FROM:
            threads = 1
        # a single image is shared, several are dealt out
        threads = max(1, min(threads, MAX_THREADS, n if n > 1 else threads))
        cdef int64_t *nanoseconds = NULL
        cdef int64_t[:, ::1] spent_view
        if spent is not None:
            spent_view = spent
            assert spent_view.shape[0] >= threads and spent_view.shape[1] == self.plan.op_count
            nanoseconds = &spent_view[0, 0]
        self.plan.scratch = self.arena_floats
        # asked and answered without a call of Python between, so that no other thread comes in
        cdef bint lent = threads > 1 and not self.team_lent
        if lent:
            self.team_lent = True
        else:
            threads = 1
        try:
            own = self._take()
            arenas[0] = own.data
            while len(self.of_team) < threads - 1:
                self.of_team.append(self._arena())
            for i in range(1, threads):
                arena = self.of_team[i - 1]
                arenas[i] = arena.data
            # behind the tensors: the steady state allocates nothing but the results
            results = <float **>(own.data + self._tensor_floats())
            sources = <const float **>(results + len(self.output_shapes))
            tables = sources + self.input_count
            for i, out in enumerate(outs):
                flat = out.reshape(-1)
                results[i] = &flat[0]
            for i, x in enumerate(inputs):
                if x.dtype == np.uint8:
                    bytes_, values = x.reshape(-1), byte_values
                    sources[i], tables[i] = <const float *>&bytes_[0], &values[0, 0]
                else:
                    given = x.reshape(-1)
                    sources[i], tables[i] = &given[0], NULL
            if threads == 1 and n * self.macs < UNLOCK_FROM:
                cs_plan_run(&self.plan, &self.pace, n, sources, tables, results, arenas, threads,
                            nanoseconds)
            else:
                with nogil:
                    cs_plan_run(&self.plan, &self.pace, n, sources, tables, results, arenas,
                                threads, nanoseconds)
        finally:
            if lent:
                self.team_lent = False
            if own is not None:
                self._give_back(own)
        return outs

    @property
    def held_arenas(self):
        """How many arenas there are, those in use counted too."""
        return len(self.idle) + self.in_use + len(self.of_team)

    cdef _result(self, tuple shape):
        cdef size_t size = sizeof(float)
        for extent in shape:
            size *= extent
        if size < LARGE_RESULT:
            return np.empty(shape, np.float32)
        memory = ResultMemory(size, self.spare, len(self.output_shapes))
        return np.frombuffer(memory, np.float32).reshape(shape)

    cdef int64_t _tensor_floats(self) noexcept:
        return (self.arena_floats + self.scratch_floats + 15) // 16 * 16

    cdef Arena _arena(self):
        """Memory for the tensors, and for the addresses of results, inputs and their tables."""
        addresses = len(self.output_shapes) + 2 * self.input_count
        return Arena(self._tensor_floats() + 2 * <int64_t>addresses)

    cdef Arena _take(self):
        cdef Arena own = self.idle.pop() if self.idle else self._arena()
        self.in_use += 1
        self.most = max(self.most, self.in_use)
        return own

    cdef int _give_back(self, Arena own) except -1:
        self.idle.append(own)
        self.in_use -= 1
        self.runs += 1
        if self.runs >= PERIOD:
            self.kept_arenas = max(self.most, self.kept_arenas - 1)
            del self.idle[:max(0, len(self.idle) + self.in_use - self.kept_arenas)]
            self.runs, self.most = 0, self.in_use
        return 0
