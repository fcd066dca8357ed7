/* Where the files of train_operations.c find the rows of tensors, and what each of them does. */
#ifndef CS_TRAIN_ROWS_H
#define CS_TRAIN_ROWS_H

#include "train_step.h"

/* A tensor's images as an operation walks them: rows of n pixels, all of an image in one row where it
 * has no halo. */
typedef struct rows {
    int64_t height, n;
} rows;

static inline const cs_tensor *tensor(const cs_train_task *task, int number) { return &task->plan->tensors[number]; }

static inline int planes(const cs_train_task *task, const cs_tensor *t) {
    const int block = task->plan->kernels->block;
    return (t->channels + block - 1) / block;
}

/* the first pixel, behind the halo, of image i (counted in the batch) */
static inline float *pixels(const cs_train_task *task, int number, int64_t i) {
    const cs_tensor *t = tensor(task, number);
    if (t->offset < 0)
        return (float *)task->batch->x + i * t->image;
    const int64_t inside = t->offset + t->top * t->row + t->left * t->px;
    return t->level ? task->batch->arena + inside + i * t->image
                    : task->local + inside + (i - task->first) * t->image;
}

/* where image 0 of the batch is, or would be */
static inline float *image_0(const cs_train_task *task, int number) {
    return pixels(task, number, task->first) - task->first * tensor(task, number)->image;
}

static inline int no_halo(const cs_tensor *t) { return t->row == t->px * t->width && t->plane == t->row * t->height; }

static inline rows rows_of(const cs_train_task *task, const int *numbers, int count) {
    const cs_tensor *t = tensor(task, numbers[0]);
    for (int i = 0; i < count; i++)
        if (numbers[i] >= 0 && !no_halo(tensor(task, numbers[i])))
            return (rows){t->height, t->width};
    return (rows){1, (int64_t)t->height * t->width};
}

static inline int one_pixel(const cs_tensor *t) { return t->height == 1 && t->width == 1; }

/* One row of each tensor that an operation has: n pixels of plane p. */
typedef struct line {
    int64_t image, n, first;        /* first: pixels of the image before it */
    int plane;
    float *x, *r, *y, *dx, *dy, *dr;
} line;

static inline float *line_of(const cs_train_task *task, int number, int64_t i, int p, int64_t h) {
    if (number < 0)
        return NULL;
    const cs_tensor *t = tensor(task, number);
    return pixels(task, number, i) + p * t->plane + h * t->row;
}

/* Calls `what` for each row of the operation's images; all its tensors have one size, or (other than
 * `sized`) one pixel, whose row is the same for all. */
void cs_each_line(const cs_train_task *task, const cs_train_op *op, int sized,
                  void (*what)(const cs_train_task *task, const cs_train_op *op, const line *l));

/* what each kind of operation does */
void cs_train_convolution(const cs_train_task *task, const cs_train_op *op);
void cs_train_affine(const cs_train_task *task, const cs_train_op *op);
void cs_train_affine_dw(const cs_train_task *task, const cs_train_op *op, int part);
void cs_train_affine_pack(const cs_train_task *task, const cs_train_op *op, int part);
void cs_train_normalisation(const cs_train_task *task, const cs_train_op *op);
void cs_train_statistics_done(const cs_train_task *task, const cs_train_op *op);
void cs_train_norm_sums_done(const cs_train_task *task, const cs_train_op *op);
void cs_train_pooling(const cs_train_task *task, const cs_train_op *op);
void cs_train_global_pooling(const cs_train_task *task, const cs_train_op *op);
void cs_train_pointwise(const cs_train_task *task, const cs_train_op *op);
void cs_train_prelu_reduce(const cs_train_task *task, const cs_train_op *op);
void cs_train_arithmetic(const cs_train_task *task, const cs_train_op *op);
void cs_train_channels(const cs_train_task *task, const cs_train_op *op);
void cs_train_flatten(const cs_train_task *task, const cs_train_op *op);
void cs_train_load(const cs_train_task *task, const cs_train_op *op);
void cs_train_loss(const cs_train_task *task, const cs_train_op *op);
void cs_train_softmax(const cs_train_task *task, const cs_train_op *op);
void cs_train_dropout(const cs_train_task *task, const cs_train_op *op);

#endif
