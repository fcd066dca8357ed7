"""The C executor's plan (csrc/plan.h, csrc/executor.h) as Cython sees it."""

from libc.stdint cimport int32_t, int64_t

from convserve.kernels._core cimport (
    cs_activation, cs_conv, cs_depthwise, cs_kernels, cs_norm, cs_pointwise, cs_pool, cs_winograd,
)


cdef extern from "executor.h" nogil:
    enum: CS_STAGE, CS_CONV, CS_WINOGRAD, CS_AFFINE, CS_DEPTHWISE, CS_MAX_POOL, CS_AVG_POOL
    enum: CS_GLOBAL_AVG_POOL, CS_GLOBAL_MAX_POOL, CS_SCALE_SHIFT, CS_PRELU, CS_ARITHMETIC
    enum: CS_ACTIVATE, CS_LAYER_NORM, CS_LRN, CS_REARRANGE, CS_PAD, CS_SOFTMAX, CS_LOG_SOFTMAX
    enum: CS_FLATTEN, CS_OUTPUT
    enum: CS_MAX_LEVELS

    ctypedef struct cs_tensor:
        int32_t channels, height, width, top, bottom, left, right, planar, result, level
        int64_t px, row, plane, image, offset

    ctypedef struct cs_conv_op:
        cs_conv conv
        int32_t pooling, rows, band, light, strip
        cs_pool pool

    ctypedef struct cs_winograd_op:
        cs_winograd tiles
        cs_conv product
        int64_t coefficient
        int32_t slots

    ctypedef struct cs_rearrange:
        int32_t blocks
        const int32_t (*to)[3]
        const int32_t (*from_ "from")[2]
        const int32_t *lanes

    ctypedef struct cs_pad:
        int32_t top, left
        float value

    ctypedef union cs_op_parameters:
        cs_conv_op conv
        cs_conv affine
        cs_winograd_op winograd
        cs_depthwise depthwise
        cs_pool pool
        cs_pointwise pointwise
        cs_activation activation
        cs_norm norm
        cs_rearrange rearrange
        cs_pad pad

    ctypedef struct cs_op:
        int32_t kind, level, x, r, y, first, strip
        int64_t scratch, x_start
        cs_op_parameters as_ "as"
        const float *weight
        const float *bias

    ctypedef struct cs_plan:
        const cs_kernels *kernels
        const cs_tensor *tensors
        const cs_op *ops
        int32_t op_count, levels
        int32_t group[8]
        int64_t scratch

    ctypedef struct cs_pace:
        pass

    void cs_plan_run(const cs_plan *plan, cs_pace *pace, int64_t n, const float **inputs,
                     const float **tables, float **results, float **arenas, int threads,
                     int64_t *spent)
