"""An activation as the C kernels know it."""

from convserve.kernels._core cimport cs_activation


# None: nothing is done.
cdef cs_activation described(activation) except *
