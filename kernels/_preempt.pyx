"""Threads that interrupt others: see `csrc/preempt.h`."""

from convserve.kernels._arguments import integer


cdef extern from "preempt.h" nogil:
    ctypedef struct cs_preempt
    cs_preempt *cs_preempt_start(const char *const *names, int home)
    void cs_preempt_follow(cs_preempt *p, int home)
    long cs_preempt_times(const cs_preempt *p)
    void cs_preempt_stop(cs_preempt *p)


cdef class Preemption:
    """Interrupts threads that keep a core while others wait for it, until `close()`."""

    cdef cs_preempt *_preempt

    def __cinit__(self, list names, home):
        """names: the beginnings of the threads' names, at most 8; home: the core they share."""
        cdef const char *begins[9]
        kept = [name.encode() for name in names[:8]]
        for n, name in enumerate(kept):
            begins[n] = name
        begins[len(kept)] = NULL
        cdef int core = integer(home, "home", 0)
        with nogil:
            self._preempt = cs_preempt_start(begins, core)

    def __dealloc__(self):
        self.close()

    @property
    def works(self):
        """Whether it looks at all: not where there is no such system call or thread to be had."""
        return self._preempt != NULL

    @property
    def times(self):
        """How many times it has moved them away."""
        return 0 if self._preempt == NULL else cs_preempt_times(self._preempt)

    def follow(self, home):
        """They are bound to another core from now on."""
        if self._preempt != NULL:
            cs_preempt_follow(self._preempt, integer(home, "home", 0))

    def close(self):
        """Move them back, and end."""
        cdef cs_preempt *preempt = self._preempt
        self._preempt = NULL
        if preempt != NULL:
            with nogil:
                cs_preempt_stop(preempt)
