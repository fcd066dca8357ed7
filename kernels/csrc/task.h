/* What the operations have in common: how the work is shared, where a tensor's pixels are, and how rows
 * go to a result. */
#ifndef CS_TASK_H
#define CS_TASK_H

#include "plan.h"

static inline int cs_planes(const cs_tensor *t, int block) {
    return t->planar ? t->channels : (t->channels + block - 1) / block;
}

/* this task's share of `total` equal parts */
typedef struct cs_span {
    int64_t from, to;
} cs_span;

static inline cs_span cs_share(const cs_task *task, int64_t total) {
    return (cs_span){total * task->rank / task->size, total * (task->rank + 1) / task->size};
}

/* Whether threads may share the rows, all channels of each, rather than the channels: what a thread has
 * made it then mostly reads itself in the next operation, from its own cache. Not where one of them would
 * have many more rows than another. */
static inline int cs_by_rows(const cs_task *task, int64_t rows) {
    const int64_t most = (rows + task->size - 1) / task->size;
    return task->size > 1 && 8 * most * task->size <= 9 * rows;
}

/* Pixels from which on it is better for what treats each channel by itself: a part of a small plane is
 * less than memory hands out at once. */
enum { CS_LARGE_PLANE = 1024 };

/* This task's rows of block b, of `blocks` blocks that have as many rows each; none where to <= from. */
static inline cs_span cs_rows(const cs_task *task, int by_rows, int64_t blocks, int64_t rows, int64_t b) {
    if (by_rows)
        return cs_share(task, rows);
    const cs_span part = cs_share(task, blocks * rows);
    const int64_t from = part.from - b * rows, to = part.to - b * rows;
    return (cs_span){from > 0 ? from : 0, to < rows ? to : rows};
}

/* the first pixel, behind the halo, of image i (counted in the batch) */
static inline float *cs_pixels(const cs_task *task, int tensor, int64_t i) {
    const cs_tensor *t = &task->plan->tensors[tensor];
    if (t->offset < 0)   /* an input, which is only read */
        return (float *)task->inputs[-1 - t->offset] + i * t->image;
    if (t->result)
        return task->results[t->result - 1] + i * t->image;
    return task->arena + t->offset + (i - task->group_start[t->level]) * t->image +
           t->top * t->row + t->left * t->px;
}

/* Results from this size on are stored past the caches, which they would only sweep. */
enum { CS_FAR_BYTES = 8 << 20 };

static inline int cs_is_far(const cs_task *task, const cs_tensor *t) {
    return task->batch * t->channels * t->height * t->width >= CS_FAR_BYTES / (int64_t)sizeof(float);
}

/* Rows [h0, h1) and columns [w0, w1) of `blocks` blocks from `block` on, from a strip of their own size
 * to the operation's result; w1 - w0 < y's width only where a strip is narrower than y. */
static inline void cs_store(const cs_task *task, const cs_op *op, int64_t i, int block, int blocks, int h0, int h1,
                            int w0, int w1) {
    const cs_kernels *k = task->plan->kernels;
    const cs_tensor *t = &task->plan->tensors[op->y];
    const int64_t area = (int64_t)t->height * t->width;
    float *y = task->results[op->first] + (i * t->channels + (int64_t)block * k->block) * area;
    for (int b = 0; b < blocks; b++) {
        const int left = t->channels - (block + b) * k->block;
        (cs_is_far(task, t) ? k->unpack_far : k->unpack)(
            left < k->block ? left : k->block, 0, h1 - h0, w1 - w0, task->scratch + b * t->plane, t->row,
            y + b * k->block * area + (int64_t)h0 * t->width + w0, area, t->width);
    }
}

/* convolutions.c */
void cs_convolve(const cs_task *task, const cs_op *op);
void cs_affine(const cs_task *task, const cs_op *op);
void cs_winograd_convolve(const cs_task *task, const cs_op *op);

#endif
