"""What a plan computes on: tensors and their places in the arena."""

from libc.stdint cimport int64_t

from convserve.kernels._plan cimport cs_plan, cs_tensor


cdef class Tensors:
    cdef cs_plan plan
    cdef cs_tensor *tensors
    cdef int tensor_count, input_count
    cdef int64_t arena_floats, scratch_floats   # the latter for operations themselves
    cdef list output_shapes

    cdef cs_tensor *_tensor(self, int channels, int height, int width, bint planar) except NULL
