"""A training step as an array of operations (csrc/train_step.h)."""

from libc.stdint cimport int32_t, int64_t, uint32_t

from convserve.kernels._core cimport cs_activation, cs_kernels, cs_pool
from convserve.kernels._train_conv cimport cs_train_conv

cdef extern from "plan.h" nogil:
    ctypedef struct cs_tensor:
        int32_t channels, height, width, top, bottom, left, right, planar, level
        int64_t px, row, plane, image, offset

cdef extern from "train_step.h" nogil:
    enum: CS_MAX_LANES
    enum: CS_TRAIN_LOAD, CS_TRAIN_CONV, CS_TRAIN_CONV_DX, CS_TRAIN_CONV_DW, CS_TRAIN_AFFINE
    enum: CS_TRAIN_AFFINE_DX, CS_TRAIN_STATISTICS, CS_TRAIN_NORM, CS_TRAIN_NORM_SUMS
    enum: CS_TRAIN_PRELU, CS_TRAIN_PRELU_DX, CS_TRAIN_PRELU_SLOPES, CS_TRAIN_PRELU_REDUCE
    enum: CS_TRAIN_NORM_DX, CS_TRAIN_ACTIVATE, CS_TRAIN_ACTIVATE_DX, CS_TRAIN_MAX_POOL
    enum: CS_TRAIN_MAX_POOL_DX, CS_TRAIN_AVG_POOL, CS_TRAIN_AVG_POOL_DX, CS_TRAIN_GLOBAL_AVG
    enum: CS_TRAIN_GLOBAL_AVG_DX, CS_TRAIN_GLOBAL_MAX, CS_TRAIN_GLOBAL_MAX_DX
    enum: CS_TRAIN_ARITHMETIC, CS_TRAIN_SCALE_DX, CS_TRAIN_MULTIPLY_DX, CS_TRAIN_DROPOUT
    enum: CS_TRAIN_CHANNELS, CS_TRAIN_FLATTEN, CS_TRAIN_FLATTEN_DX, CS_TRAIN_SOFTMAX
    enum: CS_TRAIN_SOFTMAX_DX, CS_TRAIN_LOSS, CS_TRAIN_CONV_PACK, CS_TRAIN_CONV_REDUCE
    enum: CS_TRAIN_CONV_PARTS, CS_TRAIN_CONV_DX_PARTS, CS_TRAIN_CONV_DW_PARTS
    enum: CS_TRAIN_AFFINE_PACK, CS_TRAIN_AFFINE_DW
    enum: CS_TRAIN_STATISTICS_DONE, CS_TRAIN_NORM_SUMS_DONE
    enum: CS_SLOPE_NONE, CS_SLOPE_AT_RESULT, CS_SLOPE_AT_INPUT
    enum: CS_DW_ROWS

    ctypedef struct cs_train_conv_op:
        const cs_train_conv *layer
        float *forward
        float *backward
        float *partials

    ctypedef struct cs_train_affine_op:
        int64_t inputs, outputs, packed_row
        float *packed

    ctypedef struct cs_train_norm:
        int32_t channels
        int64_t room
        float eps, momentum
        const float *weight
        const float *bias
        float *running_mean
        float *running_var
        float *dweight
        float *dbias
        float *mean
        float *istd
        float *scale
        float *shift
        float *of_dy
        float *of_x
        float *offset
        float *start
        double *sums
        double *squares

    ctypedef struct cs_train_norm_op:
        cs_train_norm *norm
        cs_activation activation
        int32_t slope_at

    ctypedef struct cs_train_prelu_op:
        int32_t channels
        int64_t room
        double *sums

    ctypedef struct cs_train_pointwise_op:
        int32_t arithmetic
        float factor

    ctypedef struct cs_train_dropout_op:
        float rate
        int32_t key

    ctypedef struct cs_train_channels_op:
        int32_t from_ "from", to, count

    ctypedef union cs_train_parameters:
        cs_train_conv_op conv
        cs_train_affine_op affine
        cs_train_norm_op norm
        cs_train_prelu_op prelu
        cs_pool pool
        cs_train_pointwise_op pointwise
        cs_train_dropout_op dropout
        cs_train_channels_op channels

    ctypedef struct cs_train_op:
        int32_t kind, x, r, y, dx, dy, dr, add, part, parts
        cs_activation activation
        cs_train_parameters as_ "as"
        const float *weight
        const float *bias
        float *dweight
        float *dbias

    ctypedef struct cs_segment:
        int32_t first, once, end, parts, group

    ctypedef struct cs_train_plan:
        const cs_kernels *kernels
        const cs_tensor *tensors
        const cs_train_op *ops
        const cs_segment *segments
        int32_t segment_count, op_count, lanes, classes

    ctypedef struct cs_train_progress:
        pass

    ctypedef struct cs_train_batch:
        int64_t n, scratch, correct
        const float *x
        const float *targets
        const uint32_t (*keys)[2]
        float *arena
        float **local
        cs_train_progress *progress
        int64_t *spent
        double loss

    void cs_train_run(const cs_train_plan *plan, cs_train_batch *batch, int threads,
                      void (*team)(int threads,
                                   void (*work)(void *argument, int rank, int size) noexcept nogil,
                                   void *argument) noexcept nogil)
