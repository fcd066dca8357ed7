"""Sums over contiguous rows, in double and in an order that the number of threads can't change.

Eight partial sums let the compiler use vectors without reordering anything else.
"""


cdef inline double row_sum(const float *x, Py_ssize_t n) noexcept nogil:
    """sum(x)"""
    cdef double part[8]
    cdef Py_ssize_t i = 0
    cdef int j
    for j in range(8):
        part[j] = 0
    while i + 8 <= n:
        for j in range(8):
            part[j] += <double>x[i + j]
        i += 8
    for j in range(<int>(n - i)):
        part[j] += <double>x[i + j]
    return fold(part)


cdef inline double row_squares(const float *x, double mean, Py_ssize_t n) noexcept nogil:
    """sum((x - mean) ** 2)"""
    cdef double part[8]
    cdef Py_ssize_t i = 0
    cdef int j
    for j in range(8):
        part[j] = 0
    while i + 8 <= n:
        for j in range(8):
            part[j] += (<double>x[i + j] - mean) * (<double>x[i + j] - mean)
        i += 8
    for j in range(<int>(n - i)):
        part[j] += (<double>x[i + j] - mean) * (<double>x[i + j] - mean)
    return fold(part)


cdef inline double row_products(
    const float *g, const float *x, double mean, Py_ssize_t n
) noexcept nogil:
    """sum(g * (x - mean))"""
    cdef double part[8]
    cdef Py_ssize_t i = 0
    cdef int j
    for j in range(8):
        part[j] = 0
    while i + 8 <= n:
        for j in range(8):
            part[j] += <double>g[i + j] * (<double>x[i + j] - mean)
        i += 8
    for j in range(<int>(n - i)):
        part[j] += <double>g[i + j] * (<double>x[i + j] - mean)
    return fold(part)


cdef inline double row_negative_products(
    const float *g, const float *x, Py_ssize_t n
) noexcept nogil:
    """sum(g * x) where x is not above 0"""
    cdef double part[8]
    cdef Py_ssize_t i = 0
    cdef int j
    for j in range(8):
        part[j] = 0
    while i + 8 <= n:
        for j in range(8):
            part[j] += 0.0 if x[i + j] > 0 else <double>g[i + j] * x[i + j]
        i += 8
    for j in range(<int>(n - i)):
        part[j] += 0.0 if x[i + j] > 0 else <double>g[i + j] * x[i + j]
    return fold(part)


cdef inline double fold(const double *part) noexcept nogil:
    return ((part[0] + part[4]) + (part[2] + part[6])) + (
        (part[1] + part[5]) + (part[3] + part[7])
    )
