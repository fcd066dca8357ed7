/* The executable plan: an array of operations over tensors in one arena a thread.
 *
 * Each thread takes chunks of the batch through the whole plan. Operations of phase 0 run for one
 * image after the other, depth first, so that what they pass on stays in the cache; from the first
 * affine layer on, phase 1 runs for the whole chunk, whose images are an affine layer's pixels. */
#ifndef CS_EXECUTOR_H
#define CS_EXECUTOR_H

#include "cs.h"

enum cs_op_kind {
    CS_STAGE,       /* the input, or any planar tensor -> y with its own layout and halo */
    CS_CONV,
    CS_AFFINE,
    CS_DEPTHWISE,
    CS_MAX_POOL,
    CS_AVG_POOL,
    CS_GLOBAL_AVG_POOL,
    CS_SCALE_SHIFT,
    CS_ADD,
    CS_CONCAT,      /* the channels of x go to y from channel `first` on */
    CS_SOFTMAX,
    CS_FLATTEN,
    CS_OUTPUT       /* x -> result `first`, NCHW */
};

/* Blocked or planar (NCHW), with a halo of zeros that the convolutions after it read as padding. */
typedef struct cs_tensor {
    int32_t channels, height, width;
    int32_t top, bottom, left, right;   /* the halo */
    int32_t planar;
    int64_t px, row, plane;             /* steps, in floats */
    int64_t offset;                     /* of its first float in the arena; -1: the plan's input */
    int64_t image;                      /* step between the images of a chunk; 0: one at a time */
} cs_tensor;

typedef union cs_op_parameters {
    cs_conv conv;
    cs_depthwise depthwise;
    cs_pool pool;
    cs_pointwise pointwise;
} cs_op_parameters;

typedef struct cs_op {
    int32_t kind, phase;
    int32_t x, r, y;        /* tensors: input, second input or -1, output */
    int32_t first;
    int64_t x_start;        /* from the input's first pixel to where the first window starts */
    cs_op_parameters as;
    const float *weight, *bias;     /* for CS_SCALE_SHIFT: scale and shift */
} cs_op;

typedef struct cs_plan {
    const cs_kernels *kernels;
    const cs_tensor *tensors;
    const cs_op *ops;
    int32_t op_count, chunk;        /* chunk: images at a time, at the most */
} cs_plan;

/* Runs n images x float32[n][C][H][W] into results[i] float32[n][...]. arenas: one a thread. */
void cs_plan_run(const cs_plan *plan, int64_t n, const float *x, float *const *results,
                 float *const *arenas, int threads);

#endif
