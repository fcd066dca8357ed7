"""Random numbers that belong to a counter: hashes, so that none depends on which others are drawn.

The hash is splitmix64's, which passes the usual tests of randomness as a counter-based generator.
"""

import numpy as np
from libc.math cimport floor
from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef uint64_t GOLDEN = 0x9E3779B97F4A7C15


cdef inline uint64_t mixed(uint64_t z) noexcept nogil:
    z = (z ^ (z >> 30)) * <uint64_t> 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * <uint64_t> 0x94D049BB133111EB
    return z ^ (z >> 31)


def mix(uint64_t z):
    """64 bits of 64, of which each depends on all."""
    return mixed(z + GOLDEN)


cdef inline double unit(uint64_t key, int64_t counter) noexcept nogil:
    """0 <= number < 1."""
    return (mixed(<uint64_t> counter * GOLDEN + key) >> 11) * 2.0 ** -53


def uniform(const int64_t[::1] counters, uint64_t key, uint32_t stream, double low, double high):
    """float64 [N] in low <= number < high; each a function of (key, stream, its counter)."""
    cdef Py_ssize_t i, count = counters.shape[0]
    cdef uint64_t own = mixed((key ^ stream) + GOLDEN)
    result = np.empty(count)
    cdef double[::1] numbers = result
    for i in range(count):
        numbers[i] = low + (high - low) * unit(own, counters[i])
    return result


def integers(const int64_t[::1] counters, uint64_t key, uint32_t stream, int64_t low, int64_t high):
    """int64 [N] in low..high, both included, alike."""
    cdef Py_ssize_t i, count = counters.shape[0]
    cdef uint64_t own = mixed((key ^ stream) + GOLDEN)
    result = np.empty(count, np.int64)
    cdef int64_t[::1] numbers = result
    for i in range(count):
        numbers[i] = low + <int64_t> floor(unit(own, counters[i]) * (high - low + 1))
    return result
