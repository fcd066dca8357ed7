/* A training step: forward, loss and backward of a batch as an array of operations over tensors.
 *
 * The operations come in segments. One "by images" is walked by each thread on its own, for one lane
 * of the batch after the other, a group of images at a time: what a layer hands to the next, and later
 * back, stays in the cache. One "by parts" deals out other work, such as rows of a weight's gradient.
 * Where an operation needs something of all images (batch norm's statistics, sums of gradients) the
 * segment ends: whoever does the last lane or part does its `once` operations, and the next begins.
 *
 * Lanes are a fixed division of the batch, each with partial sums of its own that are added up in
 * their order, so the bits depend neither on the number of threads nor on who did what. */
#ifndef CS_TRAIN_STEP_H
#define CS_TRAIN_STEP_H

#include "plan.h"
#include "train_conv.h"
#include "train_kernels.h"

#define CS_MAX_LANES 16
#define CS_DW_ROWS 24       /* rows (outputs) of an affine layer's weight gradient a part */
#define CS_LANE_IMAGES 16   /* that a lane should have */

enum cs_train_kind {
    /* by images */
    CS_TRAIN_LOAD,          /* the batch -> y */
    CS_TRAIN_CONV,
    CS_TRAIN_CONV_DX,
    CS_TRAIN_CONV_DW,       /* a partial sum for each lane */
    CS_TRAIN_AFFINE,
    CS_TRAIN_AFFINE_DX,
    CS_TRAIN_STATISTICS,
    CS_TRAIN_NORM,
    CS_TRAIN_NORM_SUMS,
    CS_TRAIN_NORM_DX,
    CS_TRAIN_ACTIVATE,
    CS_TRAIN_ACTIVATE_DX,
    CS_TRAIN_PRELU,
    CS_TRAIN_PRELU_DX,
    CS_TRAIN_PRELU_SLOPES,  /* a partial sum for each lane */
    CS_TRAIN_MAX_POOL,
    CS_TRAIN_MAX_POOL_DX,
    CS_TRAIN_AVG_POOL,
    CS_TRAIN_AVG_POOL_DX,
    CS_TRAIN_GLOBAL_AVG,
    CS_TRAIN_GLOBAL_AVG_DX,
    CS_TRAIN_GLOBAL_MAX,
    CS_TRAIN_GLOBAL_MAX_DX,
    CS_TRAIN_ARITHMETIC,
    CS_TRAIN_SCALE_DX,      /* dx = factor * dy, or the sum over pixels where x is one value a channel */
    CS_TRAIN_MULTIPLY_DX,   /* dx = dy * r, likewise */
    CS_TRAIN_DROPOUT,       /* x -> y or dy -> dx */
    CS_TRAIN_CHANNELS,      /* some channels of x -> some of y, or of dy -> dx */
    CS_TRAIN_FLATTEN,
    CS_TRAIN_FLATTEN_DX,
    CS_TRAIN_SOFTMAX,
    CS_TRAIN_SOFTMAX_DX,
    CS_TRAIN_LOSS,          /* logits x -> dx */
    /* by parts */
    CS_TRAIN_CONV_PACK,
    CS_TRAIN_CONV_REDUCE,
    CS_TRAIN_CONV_PARTS,    /* these three of all images, some filters (or channels of dx) a part */
    CS_TRAIN_CONV_DX_PARTS,
    CS_TRAIN_CONV_DW_PARTS,
    CS_TRAIN_AFFINE_PACK,
    CS_TRAIN_AFFINE_DW,
    CS_TRAIN_PRELU_REDUCE,
    /* once */
    CS_TRAIN_STATISTICS_DONE,
    CS_TRAIN_NORM_SUMS_DONE
};

typedef struct cs_train_conv_op {
    const cs_train_conv *layer;
    float *forward, *backward, *partials;   /* packed weights; partial sums; NULL where parts have their own */
} cs_train_conv_op;

typedef struct cs_train_affine_op {
    int64_t inputs, outputs;
    float *packed;              /* [inputs][outputs, up to whole vectors] */
    int64_t packed_row;
} cs_train_affine_op;

/* Arrays of one value a channel, up to whole blocks. */
typedef struct cs_train_norm {
    int32_t channels;
    int64_t room;               /* channels, up to whole blocks */
    float eps, momentum;
    const float *weight, *bias;
    float *running_mean, *running_var, *dweight, *dbias;
    float *mean, *istd, *scale, *shift, *of_dy, *of_x, *offset;
    float *start;               /* [lane][room]: what is subtracted before the lane's sums */
    double *sums, *squares;     /* [lane][room]; in the backward pass: of dy, of dy * (x - mean) */
} cs_train_norm;

typedef struct cs_train_norm_op {
    cs_train_norm *norm;
    cs_activation activation;
    int32_t slope_at;
} cs_train_norm_op;

typedef struct cs_train_prelu_op {
    int32_t channels;
    int64_t room;               /* channels, up to whole blocks */
    double *sums;               /* [lane][room]: of the gradient by the slopes */
} cs_train_prelu_op;

typedef struct cs_train_pointwise_op {
    int32_t arithmetic;
    float factor;
} cs_train_pointwise_op;

typedef struct cs_train_dropout_op {
    float rate;
    int32_t key;            /* which of the batch's */
} cs_train_dropout_op;

typedef struct cs_train_channels_op {
    int32_t from, to, count;
} cs_train_channels_op;

typedef union cs_train_parameters {
    cs_train_conv_op conv;
    cs_train_affine_op affine;
    cs_train_norm_op norm;
    cs_train_prelu_op prelu;
    cs_pool pool;
    cs_train_pointwise_op pointwise;
    cs_train_dropout_op dropout;
    cs_train_channels_op channels;
} cs_train_parameters;

typedef struct cs_train_op {
    int32_t kind;
    int32_t x, r, y, dx, dy, dr;    /* tensors, or -1: inputs, output, and the gradients by them */
    int32_t add;                    /* to what dx (or what is written) holds */
    int32_t part, parts;            /* of its segment: its first, and how many */
    cs_activation activation;       /* of what y holds, or of what made x */
    cs_train_parameters as;
    const float *weight, *bias;
    float *dweight, *dbias;
} cs_train_op;

typedef struct cs_segment {
    int32_t first, once, end;       /* operations first .. once of images or parts, then once .. end */
    int32_t parts;                  /* 0: by images */
    int32_t group;
} cs_segment;

/* A tensor of level 0 holds the images of a group, in memory of the thread; of level 1 the batch. */
typedef struct cs_train_plan {
    const cs_kernels *kernels;
    const cs_tensor *tensors;
    const cs_train_op *ops;
    const cs_segment *segments;
    int32_t segment_count, op_count, classes;
    int32_t lanes;                  /* at the most */
} cs_train_plan;

/* Parts of a segment that were taken and that are done, on cache lines of their own. */
typedef struct cs_train_progress {
    _Alignas(128) _Atomic int32_t taken;
    _Alignas(128) _Atomic int32_t done;
} cs_train_progress;

/* One batch. */
typedef struct cs_train_batch {
    int64_t n;
    const float *x, *targets;       /* NCHW; [n][classes] */
    const uint32_t (*keys)[2];      /* of each dropout */
    float *arena;
    float *const *local;            /* memory of each thread: tensors of level 0, then scratch */
    int64_t scratch;                /* its offset in them */
    cs_train_progress *progress;    /* one a segment, 128-byte aligned */
    int64_t *spent;                 /* [threads][operations] nanoseconds, added to, or NULL */
    double loss;                    /* OUT: the mean */
    int64_t correct;                /* OUT */
} cs_train_batch;

/* What one thread works on. */
typedef struct cs_train_task {
    const cs_train_plan *plan;
    cs_train_batch *batch;
    struct cs_train_lane *lanes;
    float *local, *scratch;
    int64_t first, images;
    int32_t lane, fresh;            /* fresh: it is the lane's first group */
    int32_t part, lane_count;
} cs_train_task;

typedef struct cs_train_lane {
    double loss;
    int64_t correct;
    char apart[112];                /* on cache lines of its own */
} cs_train_lane;

void cs_train_of_images(const cs_train_task *task, const cs_train_op *op);
void cs_train_of_part(const cs_train_task *task, const cs_train_op *op, int part);
void cs_train_once(const cs_train_task *task, const cs_train_op *op);

static inline int64_t cs_lane_first(const cs_train_task *task, int lane) {
    return task->batch->n * lane / task->lane_count;
}

/* team: runs the work on `threads` threads, as cs_team_run does. */
void cs_train_run(const cs_train_plan *plan, cs_train_batch *batch, int threads,
                  void (*team)(int threads, void (*work)(void *argument, int rank, int size), void *argument));

#endif
