"""The training step's Python face: `convserve.training` describes tensors and operations; `run`
walks.

Addresses come only from tensors that were placed and from arrays that are kept alive here.
"""

from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport free, realloc
from libc.string cimport memset

from convserve.kernels._activation cimport described
from convserve.kernels._core cimport CS_ADD, CS_MUL, CS_SUB, Buffer, cs_pool, table
from convserve.kernels._executor cimport run_on_team
from convserve.kernels._train_layers cimport ConvLayer, NormLayer, address
from convserve.kernels._train_step cimport *

MAX_LANES, DW_ROWS = CS_MAX_LANES, CS_DW_ROWS
cdef int MAX_THREADS = 256

# Each kind of operation: its number, and the tensors that it has; in brackets: that it may have.
KINDS = {
    "load": (CS_TRAIN_LOAD, "x y"),
    "conv": (CS_TRAIN_CONV, "x y"),
    "conv_dx": (CS_TRAIN_CONV_DX, "dy dx"),
    "conv_dw": (CS_TRAIN_CONV_DW, "x dy"),
    "affine": (CS_TRAIN_AFFINE, "x y"),
    "affine_dx": (CS_TRAIN_AFFINE_DX, "dy dx"),
    "statistics": (CS_TRAIN_STATISTICS, "x"),
    "norm": (CS_TRAIN_NORM, "x y [r]"),
    "norm_sums": (CS_TRAIN_NORM_SUMS, "x dy [y] [dr]"),
    "norm_dx": (CS_TRAIN_NORM_DX, "x dy dx"),
    "activate": (CS_TRAIN_ACTIVATE, "x y"),
    "activate_dx": (CS_TRAIN_ACTIVATE_DX, "[x] [y] dy dx"),
    "prelu": (CS_TRAIN_PRELU, "x y"),
    "prelu_dx": (CS_TRAIN_PRELU_DX, "x dy dx"),
    "prelu_slopes": (CS_TRAIN_PRELU_SLOPES, "x dy"),
    "max_pool": (CS_TRAIN_MAX_POOL, "x y"),
    "max_pool_dx": (CS_TRAIN_MAX_POOL_DX, "x y dy dx"),
    "avg_pool": (CS_TRAIN_AVG_POOL, "x y"),
    "avg_pool_dx": (CS_TRAIN_AVG_POOL_DX, "dy dx"),
    "global_avg": (CS_TRAIN_GLOBAL_AVG, "x y"),
    "global_avg_dx": (CS_TRAIN_GLOBAL_AVG_DX, "dy dx"),
    "global_max": (CS_TRAIN_GLOBAL_MAX, "x y"),
    "global_max_dx": (CS_TRAIN_GLOBAL_MAX_DX, "x y dy dx"),
    "arithmetic": (CS_TRAIN_ARITHMETIC, "x r y"),
    "scale_dx": (CS_TRAIN_SCALE_DX, "dy dx"),
    "multiply_dx": (CS_TRAIN_MULTIPLY_DX, "dy r dx"),
    "dropout": (CS_TRAIN_DROPOUT, "x y"),
    "dropout_dx": (CS_TRAIN_DROPOUT, "dy dx"),
    "channels": (CS_TRAIN_CHANNELS, "x y"),
    "channels_dx": (CS_TRAIN_CHANNELS, "dy dx"),
    "flatten": (CS_TRAIN_FLATTEN, "x y"),
    "flatten_dx": (CS_TRAIN_FLATTEN_DX, "dy dx"),
    "softmax": (CS_TRAIN_SOFTMAX, "x y"),
    "softmax_dx": (CS_TRAIN_SOFTMAX_DX, "y dy dx"),
    "loss": (CS_TRAIN_LOSS, "x dx"),
    "conv_pack": (CS_TRAIN_CONV_PACK, ""),
    "conv_reduce": (CS_TRAIN_CONV_REDUCE, ""),
    "conv_parts": (CS_TRAIN_CONV_PARTS, "x y"),
    "conv_dx_parts": (CS_TRAIN_CONV_DX_PARTS, "dy dx"),
    "conv_dw_parts": (CS_TRAIN_CONV_DW_PARTS, "x dy"),
    "affine_pack": (CS_TRAIN_AFFINE_PACK, ""),
    "affine_dw": (CS_TRAIN_AFFINE_DW, "x dy"),
    "prelu_reduce": (CS_TRAIN_PRELU_REDUCE, ""),
    "statistics_done": (CS_TRAIN_STATISTICS_DONE, "x"),
    "norm_sums_done": (CS_TRAIN_NORM_SUMS_DONE, "x"),
}
ARITHMETIC = {"add": CS_ADD, "sub": CS_SUB, "mul": CS_MUL}
SLOPES = {"none": CS_SLOPE_NONE, "result": CS_SLOPE_AT_RESULT, "input": CS_SLOPE_AT_INPUT}


cdef class Trainer:
    """Tensors, operations and segments in the order of their execution; built once for a largest
    batch, then run on any smaller one."""

    cdef cs_train_plan plan
    cdef cs_tensor *tensors
    cdef cs_train_op *ops
    cdef cs_segment *segments
    cdef int tensor_count
    cdef int64_t arena_floats, local_floats, scratch_floats, batch
    cdef tuple input_shape
    cdef list kept, local
    cdef readonly list kinds    # of the operations, in their order
    cdef Buffer arena, progress

    def __cinit__(self):
        self.tensors = NULL
        self.ops = NULL
        self.segments = NULL

    def __init__(self, int64_t batch, input_shape, int classes, int lanes):
        if not 1 <= lanes <= CS_MAX_LANES:
            raise ValueError(f"lanes must be from 1 to {CS_MAX_LANES}, got {lanes}")
        self.plan.kernels, self.plan.classes, self.plan.lanes = table(), classes, lanes
        self.batch, self.input_shape = batch, tuple(input_shape)
        self.kept, self.local, self.kinds = [], [], []

    def __dealloc__(self):
        free(self.tensors)
        free(self.ops)
        free(self.segments)

    @property
    def block(self):
        """Channels that lie together."""
        return self.plan.kernels.block

    # -- tensors ------------------------------------------------------------------------------

    def tensor(self, int channels, int height, int width, int halo, bint planar, bint whole):
        """A tensor with so many zeros on each side; whole: it holds the batch, not a group."""
        self.tensors = <cs_tensor *>grown(self.tensors, self.tensor_count, sizeof(cs_tensor))
        self.plan.tensors = self.tensors
        cdef cs_tensor *t = &self.tensors[self.tensor_count]
        self.tensor_count += 1
        t.channels, t.height, t.width, t.planar, t.level = channels, height, width, planar, whole
        t.top = t.bottom = t.left = t.right = halo
        t.px = 1 if planar else self.plan.kernels.block
        t.row = t.px * (width + 2 * halo)
        t.plane = t.row * (height + 2 * halo)
        t.image = (channels if planar else (channels + t.px - 1) // t.px) * t.plane
        t.offset = -1 if planar else 0     # the only planar tensor is the batch
        return self.tensor_count - 1

    def layout(self, int number):
        """(image, plane, row, halo) of a tensor: the first three in floats."""
        cdef cs_tensor *t = self._at(number)
        return t.image, t.plane, t.row, t.top

    def image_floats(self, int number):
        """What one image takes."""
        return self._at(number).image

    def place(self, int number, int64_t offset, int64_t images):
        """Where a tensor begins, in the arena of the batch or in that of a thread."""
        cdef cs_tensor *t = self._at(number)
        t.offset = offset
        if t.level:
            self.arena_floats = max(self.arena_floats, offset + images * t.image)
        else:
            self.local_floats = max(self.local_floats, offset + images * t.image)

    cdef cs_tensor *_at(self, int number) except NULL:
        if not 0 <= number < self.tensor_count:
            raise ValueError(f"there is no tensor {number}")
        return &self.tensors[number]

    # -- operations ---------------------------------------------------------------------------

    def op(self, kind, tensors, bint add=False, activation=None):
        """The next operation; tensors: numbers by role. Returns its number."""
        number, roles = KINDS[kind]
        needed = {role for role in roles.split() if role[0] != "["}
        allowed = {role.strip("[]") for role in roles.split()}
        if not needed <= tensors.keys() <= allowed:
            raise ValueError(f"{kind} has the tensors {roles!r}, got {', '.join(tensors)}")
        for tensor in tensors.values():
            self._at(tensor)
        self.ops = <cs_train_op *>grown(self.ops, self.plan.op_count, sizeof(cs_train_op))
        self.plan.ops = self.ops
        cdef cs_train_op *op = &self.ops[self.plan.op_count]
        self.plan.op_count += 1
        self.kinds.append(kind)
        op.kind, op.add, op.activation = number, add, described(activation)
        op.x, op.r, op.y = tensors.get("x", -1), tensors.get("r", -1), tensors.get("y", -1)
        op.dx, op.dy, op.dr = tensors.get("dx", -1), tensors.get("dy", -1), tensors.get("dr", -1)
        return self.plan.op_count - 1

    cdef cs_train_op *_last(self) except NULL:
        if not self.plan.op_count:
            raise ValueError("there is no operation yet")
        return &self.ops[self.plan.op_count - 1]

    # What the operation added last works with; each array is float32 and C-contiguous.

    def set_parameters(self, weight, bias, dweight, dbias):
        cdef cs_train_op *op = self._last()
        op.weight = address(weight.reshape(-1), self.kept)
        if bias is not None:
            op.bias = address(bias, self.kept)
        if dweight is not None:
            op.dweight = address(dweight.reshape(-1), self.kept)
        if dbias is not None:
            op.dbias = address(dbias, self.kept)

    def set_conv(self, ConvLayer layer):
        self._last().as_.conv = cs_train_conv_op(
            &layer.layer, data_of(layer.forward), data_of(layer.backward), data_of(layer.partials),
        )
        self.kept.append(layer)
        self.scratch_floats = max(self.scratch_floats, layer.layer.scratch_floats)

    def set_affine(self, int64_t inputs, int64_t outputs, Buffer packed):
        cdef int64_t block = self.plan.kernels.block
        cdef int64_t row = (outputs + block - 1) // block * block
        if packed.floats < <size_t>(inputs * row):
            raise ValueError(f"packed weights take {inputs * row} floats, got {packed.floats}")
        self._last().as_.affine = cs_train_affine_op(inputs, outputs, row, packed.data)
        self.kept.append(packed)

    def affine_buffer(self, int64_t inputs, int64_t outputs):
        """Memory for packed weights."""
        cdef int64_t block = self.plan.kernels.block
        return Buffer(inputs * ((outputs + block - 1) // block * block))

    def set_norm(self, NormLayer layer, slope):
        cdef cs_train_op *op = self._last()
        op.as_.norm.norm, op.as_.norm.slope_at = &layer.norm, SLOPES[slope]
        op.as_.norm.activation = op.activation
        self.kept.append(layer)

    def set_prelu(self, int channels, Buffer sums):
        """sums: of the lanes, for the gradient by the slopes (`set_parameters`)."""
        cdef cs_train_op *op = self._last()
        cdef int64_t room = self._room(channels)
        if sums.floats < <size_t>(2 * self.plan.lanes * room):
            raise ValueError(f"sums take {2 * self.plan.lanes * room} floats, got {sums.floats}")
        op.as_.prelu = cs_train_prelu_op(channels, room, <double *>sums.data)
        self.kept.append(sums)

    def prelu_buffer(self, int channels):
        """Memory for the lanes' sums."""
        return Buffer(2 * self.plan.lanes * self._room(channels))

    cdef int64_t _room(self, int64_t channels) noexcept:
        """Up to whole blocks."""
        return (channels + self.plan.kernels.block - 1) // self.plan.kernels.block \
            * self.plan.kernels.block

    def set_pool(self, int x, int y, window, bint count_padding):
        """x, y: the tensors of the window's input and output, or of their gradients."""
        cdef cs_pool *p = &self._last().as_.pool
        cdef cs_tensor *tx = self._at(x)
        cdef cs_tensor *ty = self._at(y)
        p.h, p.w, p.oh, p.ow = tx.height, tx.width, window.oh, window.ow
        p.kh, p.kw, p.sh, p.sw = window.kh, window.kw, window.sh, window.sw
        p.pt, p.pb, p.pl, p.pr = window.pt, window.pb, window.pl, window.pr
        p.count_padding = count_padding
        p.x_row, p.x_plane, p.y_row, p.y_plane = tx.row, tx.plane, ty.row, ty.plane

    def set_pointwise(self, arithmetic="add", float factor=1.0):
        self._last().as_.pointwise = cs_train_pointwise_op(ARITHMETIC[arithmetic], factor)

    def set_dropout(self, float rate, int key):
        """key: the number of its random numbers' key."""
        self._last().as_.dropout = cs_train_dropout_op(rate, key)

    def set_channels(self, int source, int target, int count):
        self._last().as_.channels = cs_train_channels_op(source, target, count)

    def segment(self, int first, int once, int end, int group=0, parts=()):
        """Operations first .. once of images, `group` at a time, or each with so many `parts`; then
        once .. end are done once."""
        if not 0 <= first < once <= end <= self.plan.op_count:
            raise ValueError(f"a segment can't be {first} .. {once} .. {end}")
        if (group < 1) == (len(parts) != once - first):
            raise ValueError("a segment has a group of images, or parts for each operation")
        cdef int64_t size = sizeof(cs_segment)
        self.segments = <cs_segment *>grown(self.segments, self.plan.segment_count, size)
        self.plan.segments = self.segments
        cdef cs_segment *s = &self.segments[self.plan.segment_count]
        self.plan.segment_count += 1
        s.first, s.once, s.end, s.group, s.parts = first, once, end, group, 0
        for i, count in enumerate(parts):
            self.ops[first + i].part, self.ops[first + i].parts = s.parts, count
            s.parts += count

    # -- running ------------------------------------------------------------------------------

    @property
    def memory(self):
        """Bytes of the tensors: of all threads together, and of each thread."""
        return self.arena_floats * 4, (self.local_floats + self.scratch_floats) * 4

    def allocate(self):
        """The tensors' memory, touched now rather than in a step."""
        self.arena = Buffer(self.arena_floats + 64)
        self.progress = Buffer(64 * (self.plan.segment_count + 1))
        self._local_of(0)

    cdef float *_local_of(self, int rank) except NULL:
        cdef Buffer buffer
        while len(self.local) <= rank:
            self.local.append(Buffer(self._scratch() + self.scratch_floats + 64))
        buffer = self.local[rank]
        return buffer.data

    cdef int64_t _scratch(self) noexcept:
        return (self.local_floats + 15) // 16 * 16 + 16

    def run(self, x, targets, keys, int threads, spent=None):
        """Forward, loss and backward: (mean loss, how many were right); gradients are overwritten.

        x: float32[N, C, H, W]; targets: float32[N, classes]; keys: uint32[dropouts, 2]; all
        C-contiguous. spent: int64[threads, operations], to be added to: nanoseconds.
        """
        cdef cs_train_batch batch
        cdef float *local[256]
        cdef const float[::1] xv = x.reshape(-1)
        cdef const float[:, ::1] tv = targets
        cdef const uint32_t[:, ::1] kv = keys
        cdef int64_t[:, ::1] sv
        cdef uint32_t none[2]
        memset(&batch, 0, sizeof(batch))
        if self.arena is None or not self.plan.segment_count:
            raise ValueError("the step has no memory or no segments yet")
        batch.n = len(x)
        if x.shape[1:] != self.input_shape or not 1 <= batch.n <= self.batch:
            raise ValueError(
                f"x must be [1 to {self.batch}, {', '.join(map(str, self.input_shape))}], "
                f"got {list(x.shape)}"
            )
        if tv.shape[0] != batch.n or tv.shape[1] != self.plan.classes:
            raise ValueError(f"targets must be [{batch.n}, {self.plan.classes}], "
                             f"got {list(targets.shape)}")
        threads = max(1, min(threads, MAX_THREADS))
        for i in range(threads):
            local[i] = self._local_of(i)
        batch.x, batch.targets, batch.arena, batch.local = &xv[0], &tv[0, 0], self.arena.data, local
        batch.keys = <const uint32_t (*)[2]>(&kv[0, 0] if kv.shape[0] else none)
        batch.scratch = self._scratch()
        cdef size_t aligned = (<size_t>self.progress.data + 127) // 128 * 128
        batch.progress = <cs_train_progress *>aligned
        if spent is not None:
            sv = spent
            if sv.shape[0] < threads or sv.shape[1] != self.plan.op_count:
                raise ValueError(f"spent must be [{threads}, {self.plan.op_count}]")
            batch.spent = &sv[0, 0]
        with nogil:
            cs_train_run(&self.plan, &batch, threads, run_on_team)
        return batch.loss, batch.correct


cdef void *grown(void *memory, int64_t count, size_t size) except NULL:
    """The array with room for one more, which is zero."""
    cdef void *more = realloc(memory, (count + 1) * size)
    if more == NULL:
        raise MemoryError("no memory for a training step")
    memset(<char *>more + count * size, 0, size)
    return more


cdef float *data_of(Buffer buffer) noexcept:
    return NULL if buffer is None else buffer.data
