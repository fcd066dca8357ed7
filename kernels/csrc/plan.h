/* The executable plan: an array of operations over tensors in an arena. */
#ifndef CS_PLAN_H
#define CS_PLAN_H

#include "cs.h"

#define CS_MAX_LEVELS 8

enum cs_op_kind {
    CS_STAGE,       /* the input, or any planar tensor -> y with its own layout and halo */
    CS_CONV,
    CS_WINOGRAD,
    CS_AFFINE,
    CS_DEPTHWISE,
    CS_MAX_POOL,
    CS_AVG_POOL,
    CS_GLOBAL_AVG_POOL,
    CS_GLOBAL_MAX_POOL,
    CS_SCALE_SHIFT,
    CS_PRELU,
    CS_ARITHMETIC,
    CS_ACTIVATE,
    CS_LAYER_NORM,
    CS_LRN,
    CS_REARRANGE,   /* channels of some tensors to channels of y: concatenation, slice, shuffle */
    CS_PAD,         /* or crop */
    CS_SOFTMAX,
    CS_LOG_SOFTMAX,
    CS_FLATTEN,
    CS_OUTPUT       /* x -> result `first`, NCHW */
};

/* Blocked or planar (NCHW), with a halo of zeros that the convolutions after it read as padding. */
typedef struct cs_tensor {
    int32_t channels, height, width;
    int32_t top, bottom, left, right;   /* the halo */
    int32_t planar;
    int32_t result;                     /* 1 + the result that it is, in place of memory of its own; or 0 */
    int32_t level;                      /* it holds the images of a group of this level */
    int64_t px, row, plane, image;      /* steps, in floats */
    int64_t offset;                     /* of its first float in the arena; -1 - i: the plan's input i */
} cs_tensor;

/* A convolution, and the pooling that is done on strips of its rows before they are stored. */
typedef struct cs_conv_op {
    cs_conv conv;
    int32_t pooling;        /* CS_MAX_POOL, CS_AVG_POOL or -1 */
    int32_t rows;           /* of what is stored */
    int32_t band;           /* rows that all tiles make before the next ones; 0: all rows */
    int32_t light;          /* it has fewer weights than its input has values */
    int32_t strip;          /* rows that are pooled and stored together */
    cs_pool pool;           /* x_plane: floats of a strip of the convolution's rows of one block */
} cs_conv_op;

typedef struct cs_winograd_op {
    cs_winograd tiles;
    cs_conv product;        /* of one coefficient: a 1 x 1 convolution whose pixels are the tiles */
    int64_t coefficient;    /* floats of the packed weights of one coefficient */
    int32_t slots;          /* tiles a pass, at the most */
} cs_winograd_op;

/* `blocks` blocks of y, each from some blocks of other tensors, which may be many. */
typedef struct cs_rearrange {
    int32_t blocks;
    const int32_t (*to)[3];         /* block of y, its first source, how many */
    const int32_t (*from)[2];       /* a source: tensor and block */
    const int32_t *lanes;           /* [source][b]: the lane of the source for each lane, or -1 */
} cs_rearrange;

/* Where x's first pixel goes in y; negative: rows and columns before it are left out. */
typedef struct cs_pad {
    int32_t top, left;
    float value;            /* of the pixels of y that x has not */
} cs_pad;

typedef union cs_op_parameters {
    cs_conv_op conv;
    cs_conv affine;
    cs_winograd_op winograd;
    cs_depthwise depthwise;
    cs_pool pool;
    cs_pointwise pointwise;
    cs_activation activation;
    cs_norm norm;
    cs_rearrange rearrange;
    cs_pad pad;
} cs_op_parameters;

typedef struct cs_op {
    int32_t kind, level;
    int32_t x, r, y;        /* tensors: input, second input or -1, output or -1 */
    int32_t first;          /* CS_OUTPUT and strips: the result */
    /* Rows of y, or 0. y then is a strip of rows of the blocks that are made together: whatever has been
     * made of it goes to the result as NCHW while it is in the cache. It lies where the thread's scratch
     * memory begins, and what the operation needs itself behind it. */
    int32_t strip;
    int64_t scratch;        /* floats of the strip */
    int64_t x_start;        /* from the input's first pixel to where the first window starts */
    cs_op_parameters as;
    const float *weight, *bias;     /* for CS_SCALE_SHIFT: scale and shift, for CS_PRELU: slopes */
} cs_op;

/* The operations of level 0 run for groups of group[0] images, those of level 1 then for group[1]
 * images, and so on: where images are large few go through the plan together, so that what a layer
 * hands to the next stays in the cache; where they are small many share a layer's weights. */
typedef struct cs_plan {
    const cs_kernels *kernels;
    const cs_tensor *tensors;
    const cs_op *ops;               /* in the order of their levels */
    int32_t op_count, levels;
    int32_t group[CS_MAX_LEVELS];
    int64_t scratch;                /* offset of a thread's scratch memory in its arena */
} cs_plan;

struct cs_barrier;

/* The part of an operation that one thread does: `images` images from image `first` of the batch
 * on, shared with `size` - 1 other threads. */
typedef struct cs_task {
    const cs_plan *plan;
    const float *const *inputs;     /* the batch */
    const float *const *tables;     /* float32[C][256] for an input of bytes, NULL for one of floats */
    float *const *results;
    float *arena;                   /* of all threads that share the images */
    float *scratch, *shared_scratch; /* this thread's own, and that of rank 0 */
    int64_t first, images, batch;
    int64_t group_start[CS_MAX_LEVELS];
    int32_t rank, size;
    struct cs_barrier *barrier;
    int64_t *spent;                 /* nanoseconds by operation, to be added to; NULL: not timed */
} cs_task;

void cs_execute(const cs_task *task, const cs_op *op);
/* Waits until all `size` threads of the task are here. */
void cs_wait(const cs_task *task);

#endif
