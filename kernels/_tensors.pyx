"""A plan's tensors: their sizes, halos and layouts, and their places in the arena."""

from libc.stdint cimport int64_t
from libc.stdlib cimport free, realloc

from convserve.kernels._core cimport table
from convserve.kernels._plan cimport CS_MAX_LEVELS, cs_tensor


cdef class Tensors:
    """Tensors by number, in the order in which they are made.

    groups: how many images the operations of level 0, 1, ... take at a time, each at least as many
    as the one before; operations are added level by level. results: their shapes, of one image.
    """

    def __cinit__(self):
        self.tensors = NULL

    def __init__(self, groups, results):
        if not 1 <= len(groups) <= CS_MAX_LEVELS:
            raise ValueError(f"a plan has 1 to {CS_MAX_LEVELS} levels, got {len(groups)}")
        self.plan.kernels = table()
        self.plan.levels = len(groups)
        for i, group in enumerate(groups):
            self.plan.group[i] = group
        self.output_shapes = [tuple(shape) for shape in results]

    def __dealloc__(self):
        free(self.tensors)

    def input(self, int channels, int height, int width):
        """The plan's next input, float32[N, C, H, W], C-contiguous; returns its number."""
        cdef cs_tensor *t = self._tensor(channels, height, width, True)
        t.row, t.plane = width, <int64_t>width * height
        self.input_count += 1
        t.offset, t.image = -self.input_count, t.plane * channels
        return self.tensor_count - 1

    def result(self, int number, int channels, int height, int width):
        """A result as a tensor: what an operation makes is stored there as NCHW, at once."""
        cdef cs_tensor *t = self._tensor(channels, height, width, True)
        t.result, t.row, t.plane = number + 1, width, <int64_t>width * height
        t.image = t.plane * channels
        return self.tensor_count - 1

    def tensor(self, int channels, int height, int width, halo, bint planar, int level):
        """A tensor in the arena; halo = (top, bottom, left, right). Returns its number.

        level: the highest of the operations that make or read it.
        """
        cdef cs_tensor *t = self._tensor(channels, height, width, planar)
        t.top, t.bottom, t.left, t.right = halo
        t.row = t.px * (t.left + width + t.right)
        t.plane = t.row * (t.top + height + t.bottom)
        t.level = level
        planes = channels if planar else (channels + t.px - 1) // t.px
        # Whole vectors: a flat tensor is written and read a vector at a time.
        t.image = (planes * t.plane + 15) // 16 * 16
        return self.tensor_count - 1

    def part(self, int whole, int block, int channels):
        """Channels of a tensor that has its place already, from that block on, as a tensor."""
        cdef cs_tensor *t = self._tensor(channels, 1, 1, False)
        t[0] = self.tensors[whole]
        t.channels = channels
        t.offset += block * t.plane
        return self.tensor_count - 1

    @property
    def block(self):
        """Channels that lie together."""
        return self.plan.kernels.block

    def floats(self, int number):
        """What a tensor takes of the arena, in floats."""
        cdef cs_tensor *t = &self.tensors[number]
        return t.image * self.plan.group[t.level]

    def place(self, int number, int64_t offset):
        """Gives a tensor its place in the arena."""
        self.tensors[number].offset = offset
        self.arena_floats = max(self.arena_floats, offset + <int64_t>self.floats(number))

    cdef cs_tensor *_tensor(self, int channels, int height, int width, bint planar) except NULL:
        cdef void *grown = realloc(self.tensors, (self.tensor_count + 1) * sizeof(cs_tensor))
        if grown == NULL:
            raise MemoryError("no memory for a plan's tensors")
        self.tensors = <cs_tensor *>grown
        self.plan.tensors = self.tensors
        cdef cs_tensor *t = &self.tensors[self.tensor_count]
        self.tensor_count += 1
        t[0] = cs_tensor(channels, height, width, 0, 0, 0, 0, planar, 0, 0, 0, 0, 0, 0, 0)
        t.px = 1 if planar else self.plan.kernels.block
        return t

    @property
    def arena_bytes(self):
        """Memory that one thread needs for the plan's tensors."""
        return (self.arena_floats + self.scratch_floats) * 4
