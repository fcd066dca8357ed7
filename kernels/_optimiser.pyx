"""Update rules of training: one fused pass over all parameters, without the GIL.

Parameters, their gradients and the optimiser's slots are walked side by side, each part (one
parameter array) with a learning rate and a weight decay of its own. Every element is computed by
itself, and sums are taken piece by piece in double and joined in order: the bits depend on neither
the number of threads nor the instruction set.
"""

import numpy as np
from cython.parallel cimport prange
from libc.math cimport sqrt, sqrtf
from libc.stdlib cimport calloc, free

from convserve.errors import ShapeError

from convserve.kernels._core cimport thread_count

# Elements that a thread takes at a time, and below which waking others costs more than they save.
cdef Py_ssize_t PIECE = 1 << 14
cdef Py_ssize_t SMALL = 1 << 20

cdef struct Part:
    float *param
    const float *other   # the gradient, or what `lerp` moves towards
    float *first         # slots
    float *second

cdef struct Piece:
    Py_ssize_t part, start, count


cdef class Arena:
    """Parameter arrays, part by part, with `slots` (0 to 2) float32 arrays of state beside each.

    params: C-contiguous writable float32 arrays, which every pass changes in place; views into one
    flat array or arrays of their own. The slots are zeros at first.
    """

    cdef Part *_parts
    cdef Piece *_pieces
    cdef Py_ssize_t _count, _piece_count, _size
    cdef list _params, _slots
    cdef object _others
    cdef tuple _held

    def __cinit__(self, params, int slots=0):
        cdef Py_ssize_t i, start, number = 0
        cdef float[::1] values
        self._params = list(params)
        self._count = len(self._params)
        self._size = sum(p.size for p in self._params)
        self._piece_count = sum((p.size + PIECE - 1) // PIECE for p in self._params)
        self._parts = <Part *> calloc(max(self._count, 1), sizeof(Part))
        self._pieces = <Piece *> calloc(max(self._piece_count, 1), sizeof(Piece))
        if not self._parts or not self._pieces:
            raise MemoryError
        self._slots = []
        for _ in range(slots):
            flat, at, views = np.zeros(self._size, np.float32), 0, []
            for p in self._params:
                views.append(flat[at:at + p.size].reshape(p.shape))
                at += p.size
            self._slots.append(views)
        number = 0
        for i in range(self._count):
            if not self._params[i].size:
                continue
            values = _flat(self._params[i])
            self._parts[i].param = &values[0]
            if slots > 0:
                values = _flat(self._slots[0][i])
                self._parts[i].first = &values[0]
            if slots > 1:
                values = _flat(self._slots[1][i])
                self._parts[i].second = &values[0]
            for start in range(0, self._params[i].size, PIECE):
                self._pieces[number].part = i
                self._pieces[number].start = start
                self._pieces[number].count = min(PIECE, <Py_ssize_t> self._params[i].size - start)
                number += 1

    def __dealloc__(self):
        free(self._parts)
        free(self._pieces)

    def slots(self, int number):
        """The live arrays of a slot, one a parameter, shaped as it is."""
        return list(self._slots[number])

    def bind(self, others):
        """Take `others`, a tuple of arrays shaped as the parameters, for the next pass.

        They are kept: a tuple that was bound last time (the same object) costs nothing.
        """
        cdef Py_ssize_t i
        cdef const float[::1] values
        if others is self._others:
            return
        if len(others) != self._count:
            raise ShapeError(f"{len(others)} arrays for {self._count} parameters")
        held = tuple(np.ascontiguousarray(other, np.float32) for other in others)
        for i in range(self._count):
            if held[i].shape != self._params[i].shape:
                raise ShapeError(
                    f"an array of {held[i].shape} for a parameter of {self._params[i].shape}"
                )
            if held[i].size:
                values = held[i].reshape(-1)
                self._parts[i].other = &values[0]
        # Copies were made of strided ones, which would not follow a later change.
        same = all(a is b for a, b in zip(held, others))
        self._others, self._held = (others if same else None), held

    def squared_norm(self):
        """The sum of the squares of what is bound."""
        cdef Py_ssize_t i
        cdef double[::1] sums = np.zeros(max(self._piece_count, 1))
        cdef int threads = self._threads()
        self._check_bound()
        for i in prange(self._piece_count, nogil=True, num_threads=threads, schedule="static"):
            sums[i] = _squares(
                self._parts[self._pieces[i].part].other + self._pieces[i].start,
                self._pieces[i].count,
            )
        return float(np.sum(np.asarray(sums)))

    def sgd(
        self, const float[::1] lr, const float[::1] decay, float momentum, bint nesterov,
        bint decoupled, float scale
    ):
        """v = momentum v + g; p -= lr v, or with Nesterov lr (g + momentum v). One slot: v.

        g: scale times the gradient, plus decay p unless decoupled: then p first shrinks by lr
        decay. lr, decay: one a parameter.
        """
        cdef Py_ssize_t i
        cdef int threads = self._threads()
        self._check_bound()
        self._check_settings(lr, decay, 1)
        for i in prange(self._piece_count, nogil=True, num_threads=threads, schedule="static"):
            _sgd(
                &self._parts[self._pieces[i].part], &self._pieces[i],
                lr[self._pieces[i].part], decay[self._pieces[i].part], momentum, nesterov,
                decoupled, scale,
            )

    def adam(
        self, const float[::1] lr, const float[::1] decay, double beta1, double beta2, float eps,
        bint decoupled, float scale, int step
    ):
        """m and v: running means of g and g²; p -= lr m' / (sqrt(v') + eps). Slots: m, v.

        m' and v' are m and v without the pull of their start at zero, at the `step`-th update,
        counted from 1. g, lr, decay: as for `sgd`.
        """
        cdef Py_ssize_t i
        cdef int threads = self._threads()
        # sqrt(v') = sqrt(v) / sqrt(correction): done on the constants, once.
        cdef double correction1 = 1.0 - beta1 ** step
        cdef double root = sqrt(1.0 - beta2 ** step)
        cdef float rate = root / correction1
        cdef float floor = eps * root
        cdef float keep1 = 1.0 - beta1
        cdef float keep2 = 1.0 - beta2
        self._check_bound()
        self._check_settings(lr, decay, 2)
        for i in prange(self._piece_count, nogil=True, num_threads=threads, schedule="static"):
            _adam(
                &self._parts[self._pieces[i].part], &self._pieces[i],
                lr[self._pieces[i].part], decay[self._pieces[i].part], keep1, keep2, rate, floor,
                decoupled, scale,
            )

    def lerp(self, float weight):
        """p += weight (other - p): weight 0 leaves the parameters, 1 makes them what is bound."""
        cdef Py_ssize_t i
        cdef int threads = self._threads()
        self._check_bound()
        for i in prange(self._piece_count, nogil=True, num_threads=threads, schedule="static"):
            _lerp(&self._parts[self._pieces[i].part], &self._pieces[i], weight)

    cdef int _threads(self):
        return thread_count() if self._size >= SMALL else 1

    cdef int _check_bound(self) except -1:
        if self._held is None:
            raise ShapeError("no arrays are bound")
        return 0

    cdef int _check_settings(
        self, const float[::1] lr, const float[::1] decay, int slots
    ) except -1:
        if lr.shape[0] != self._count or decay.shape[0] != self._count:
            raise ShapeError(f"lr and decay must have {self._count} values, one a parameter")
        if len(self._slots) != slots:
            raise ShapeError(f"the arena has {len(self._slots)} slots, the rule needs {slots}")
        return 0


def _flat(array):
    if array.dtype != np.float32 or not array.flags.c_contiguous or not array.flags.writeable:
        raise ShapeError("parameters must be writable C-contiguous float32 arrays")
    return array.reshape(-1)


cdef double _squares(const float *x, Py_ssize_t count) noexcept nogil:
    # Eight sums side by side: one would wait for itself at each element.
    cdef double[8] sums
    cdef double total = 0
    cdef Py_ssize_t i, j, whole = count - count % 8
    for j in range(8):
        sums[j] = 0
    for i in range(0, whole, 8):
        for j in range(8):
            sums[j] += <double> x[i + j] * x[i + j]
    for i in range(whole, count):
        sums[0] += <double> x[i] * x[i]
    for j in range(8):
        total += sums[j]
    return total


cdef void _sgd(
    Part *part, Piece *piece, float lr, float decay, float momentum, bint nesterov,
    bint decoupled, float scale
) noexcept nogil:
    cdef float *p = part.param + piece.start
    cdef const float *g = part.other + piece.start
    cdef float *v = part.first + piece.start
    cdef float shrink = 1 - lr * decay if decoupled else 1
    cdef float pull = 0 if decoupled else decay
    # A step of the current gradient and one of the velocity: without Nesterov the latter only.
    cdef float now = lr if nesterov else 0
    cdef float before = lr * momentum if nesterov else lr
    cdef float d
    cdef Py_ssize_t i
    for i in range(piece.count):
        d = scale * g[i] + pull * p[i]
        v[i] = momentum * v[i] + d
        p[i] = shrink * p[i] - (now * d + before * v[i])


cdef void _adam(
    Part *part, Piece *piece, float lr, float decay, float keep1, float keep2, float rate,
    float floor, bint decoupled, float scale
) noexcept nogil:
    cdef float *p = part.param + piece.start
    cdef const float *g = part.other + piece.start
    cdef float *m = part.first + piece.start
    cdef float *v = part.second + piece.start
    cdef float shrink = 1 - lr * decay if decoupled else 1
    cdef float pull = 0 if decoupled else decay
    cdef float step = lr * rate
    cdef float d
    cdef Py_ssize_t i
    for i in range(piece.count):
        d = scale * g[i] + pull * p[i]
        m[i] += keep1 * (d - m[i])
        v[i] += keep2 * (d * d - v[i])
        p[i] = shrink * p[i] - step * m[i] / (sqrtf(v[i]) + floor)


cdef void _lerp(Part *part, Piece *piece, float weight) noexcept nogil:
    cdef float *p = part.param + piece.start
    cdef const float *other = part.other + piece.start
    cdef Py_ssize_t i
    if weight == 1:
        for i in range(piece.count):
            p[i] = other[i]
    else:
        for i in range(piece.count):
            p[i] += weight * (other[i] - p[i])
