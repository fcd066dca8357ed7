/* What each kind of operation does for the images, and the part of the work, of one task. */
#include "task.h"

#include <assert.h>
#include <string.h>

/* The arena's memory is shared by tensors whose lives don't overlap, so a halo is written anew. */
static void zero_halo(const cs_task *task, const cs_tensor *t, float *first_pixel) {
    if (!(t->top | t->bottom | t->left | t->right))
        return;
    const int64_t lines = t->top + t->height + t->bottom;
    const cs_span part = cs_share(task, cs_planes(t, task->plan->kernels->block));
    for (int64_t p = part.from; p < part.to; p++) {
        float *start = first_pixel + p * t->plane - t->top * t->row - t->left * t->px;
        memset(start, 0, sizeof(float) * (t->top * t->row));
        memset(start + (t->top + t->height) * t->row, 0, sizeof(float) * (t->bottom * t->row));
        if (t->left | t->right)
            for (int64_t h = t->top; h < lines - t->bottom; h++) {
                memset(start + h * t->row, 0, sizeof(float) * (t->left * t->px));
                memset(start + h * t->row + (t->left + t->width) * t->px, 0,
                       sizeof(float) * (t->right * t->px));
            }
    }
}

/* Raw pixels through a table of 256 values for each channel; the arguments as of `stage`. */
static void stage_bytes(const cs_task *task, const cs_tensor *tx, const cs_tensor *ty, const uint8_t *x,
                        const float *table, float *y) {
    const int block = ty->planar ? 1 : task->plan->kernels->block;
    const cs_span part = cs_share(task, tx->channels * (int64_t)tx->height);
    for (int64_t i = part.from; i < part.to; i++) {
        const int64_t c = i / tx->height, h = i % tx->height;
        const uint8_t *row = x + c * tx->plane + h * tx->row;
        float *out = y + c / block * ty->plane + h * ty->row + c % block;
        for (int w = 0; w < tx->width; w++)
            out[w * ty->px] = table[c * 256 + row[w]];
    }
}

static void stage(const cs_task *task, const cs_tensor *tx, const cs_tensor *ty, const float *x, float *y) {
    const cs_kernels *k = task->plan->kernels;
    const int height = tx->height, blocks = cs_planes(ty, k->block);
    const int by_rows = height * tx->width >= CS_LARGE_PLANE && cs_by_rows(task, height);
    for (int p = 0; p < blocks; p++) {
        const cs_span rows = cs_rows(task, by_rows, blocks, height, p);
        const int h0 = (int)rows.from, h1 = (int)rows.to;
        if (h0 >= h1)
            continue;
        if (ty->planar) {
            for (int h = h0; h < h1; h++)
                memcpy(y + p * ty->plane + h * ty->row, x + p * tx->plane + h * tx->row,
                       sizeof(float) * tx->width);
        } else {
            const int left = tx->channels - p * k->block;
            k->pack(left < k->block ? left : k->block, h0, h1, tx->width,
                    x + p * k->block * tx->plane, tx->plane, tx->row, tx->px, y + p * ty->plane,
                    ty->row, ty->px);
        }
    }
}

/* a tensor of either layout -> C-contiguous NCHW */
static void to_nchw(const cs_task *task, const cs_tensor *t, const float *x, float *y) {
    const cs_kernels *k = task->plan->kernels;
    const int64_t area = (int64_t)t->height * t->width;
    const cs_span part = cs_share(task, cs_planes(t, k->block));
    for (int64_t p = part.from; p < part.to; p++) {
        if (t->planar) {
            for (int h = 0; h < t->height; h++)
                memcpy(y + p * area + h * t->width, x + p * t->plane + h * t->row,
                       sizeof(float) * t->width);
        } else {
            const int left = t->channels - (int)p * k->block;
            k->unpack(left < k->block ? left : k->block, 0, t->height, t->width, x + p * t->plane,
                      t->row, y + p * k->block * area, area, t->width);
        }
    }
}

/* row h of one block of y; x and y at their first pixels */
static void pad(const cs_pad *p, const cs_tensor *tx, const cs_tensor *ty, int block_floats, int h,
                const float *x, float *y) {
    const int inside = h >= p->top && h - p->top < tx->height;
    const int first = p->left < 0 ? 0 : p->left;
    const int end = p->left + tx->width < ty->width ? p->left + tx->width : ty->width;
    y += h * ty->row;
    if (inside)
        memcpy(y + (int64_t)first * block_floats,
               x + (h - p->top) * tx->row + (int64_t)(first - p->left) * block_floats,
               sizeof(float) * (end - first) * block_floats);
    const int64_t before = (int64_t)(inside ? first : ty->width) * block_floats;
    for (int64_t i = 0; i < before; i++)
        y[i] = p->value;
    if (inside)
        for (int64_t i = (int64_t)end * block_floats; i < (int64_t)ty->width * block_floats; i++)
            y[i] = p->value;
}

/* rows [h0, h1) of one of the blocks that the operation writes */
static void rearrange(const cs_task *task, const cs_rearrange *r, const cs_tensor *ty, int64_t i, int block, int h0, int h1, float *y) {
    const cs_kernels *k = task->plan->kernels;
    const int32_t *to = r->to[block];
    const float *x[16];     /* a block has no more lanes */
    assert(to[2] <= k->block && k->block <= 16);
    y += to[0] * ty->plane;
    for (int h = h0; h < h1; h++) {
        for (int s = 0; s < to[2]; s++) {
            const int32_t *from = r->from[to[1] + s];
            const cs_tensor *t = &task->plan->tensors[from[0]];
            x[s] = cs_pixels(task, from[0], i) + from[1] * t->plane + h * t->row;
        }
        k->rearrange(ty->width, to[2], x, r->lanes + (int64_t)to[1] * k->block, y + h * ty->row);
    }
}

/* Rows [h0, h1) of block b of image i; y at the image's first pixel. */
static void rows_of_block(const cs_task *task, const cs_op *op, int64_t i, int b, int h0, int h1, float *y) {
    const cs_kernels *k = task->plan->kernels;
    const cs_tensor *tx = &task->plan->tensors[op->x], *ty = &task->plan->tensors[op->y];
    const float *x = cs_pixels(task, op->x, i) + op->x_start;
    const float *r = op->r < 0 ? NULL : cs_pixels(task, op->r, i);
    switch (op->kind) {
    case CS_DEPTHWISE:
        k->depthwise(&op->as.depthwise, b, h0, h1, x, op->weight, op->bias, y);
        break;
    case CS_MAX_POOL:
        k->max_pool(&op->as.pool, b, h0, h1, x, y);
        break;
    case CS_AVG_POOL:
        k->avg_pool(&op->as.pool, b, h0, h1, x, y);
        break;
    case CS_GLOBAL_AVG_POOL:
        k->global_avg_pool(tx->height, tx->width, tx->row, x + b * tx->plane, y + b * ty->plane);
        break;
    case CS_GLOBAL_MAX_POOL:
        k->global_max_pool(tx->height, tx->width, tx->row, x + b * tx->plane, y + b * ty->plane);
        break;
    case CS_SCALE_SHIFT:
        k->scale_shift(&op->as.pointwise, b, h0, h1, x, op->weight + b * k->block,
                       op->bias + b * k->block, y);
        break;
    case CS_PRELU:
        k->prelu(&op->as.pointwise, b, h0, h1, x, op->weight + b * k->block, y);
        break;
    case CS_ARITHMETIC:
        k->arithmetic(&op->as.pointwise, b, h0, h1, x, r, y);
        break;
    case CS_ACTIVATE:
        for (int h = h0; h < h1; h++)
            k->activate(&op->as.activation, ty->width, x + b * tx->plane + h * tx->row, tx->px,
                        y + b * ty->plane + h * ty->row, ty->px);
        break;
    case CS_LRN:
        k->lrn(&op->as.norm, b, h0, h1, x, y);
        break;
    case CS_REARRANGE:
        rearrange(task, &op->as.rearrange, ty, i, b, h0, h1, y);
        break;
    case CS_PAD:
        for (int h = h0; h < h1; h++)
            pad(&op->as.pad, tx, ty, k->block, h, x + b * tx->plane, y + b * ty->plane);
        break;
    default:
        assert(0);
    }
}

/* Operations on blocks and rows, one block after the other. */
static void of_blocks(const cs_task *task, const cs_op *op, int64_t i) {
    const cs_tensor *ty = &task->plan->tensors[op->y];
    const int height = ty->height;
    const int by_rows = height * ty->width >= CS_LARGE_PLANE && cs_by_rows(task, height);
    const int blocks = op->kind == CS_REARRANGE ? op->as.rearrange.blocks : cs_planes(ty, task->plan->kernels->block);
    for (int b = 0; b < blocks; b++) {
        const cs_span rows = cs_rows(task, by_rows, blocks, height, b);
        const int h0 = (int)rows.from, h1 = (int)rows.to;
        if (h0 >= h1)
            continue;
        if (!op->strip) {
            rows_of_block(task, op, i, b, h0, h1, cs_pixels(task, op->y, i));
            continue;
        }
        for (int h = h0, end; h < h1; h = end) {
            end = h1 - h < op->strip ? h1 : h + op->strip;
            rows_of_block(task, op, i, b, h, end, task->scratch - b * ty->plane - h * ty->row);
            cs_store(task, op, i, b, 1, h, end, 0, ty->width);
        }
    }
}

/* Of a row, or of an image of one pixel: with a halo around it its blocks are no row, so that one is made
 * of them, in y if that is one. */
static void softmax(const cs_task *task, const cs_op *op, const float *x, float *y) {
    const cs_kernels *k = task->plan->kernels;
    const cs_tensor *tx = &task->plan->tensors[op->x], *ty = &task->plan->tensors[op->y];
    float *row = ty->plane == k->block ? y : task->scratch;
    if (tx->plane != k->block) {
        for (int p = 0; p < cs_planes(tx, k->block); p++)
            memcpy(row + p * k->block, x + p * tx->plane, sizeof(float) * k->block);
        x = row;
    }
    (op->kind == CS_SOFTMAX ? k->softmax : k->log_softmax)(tx->channels, x, row);
    if (row == y)
        return;
    for (int p = 0; p < cs_planes(ty, k->block); p++) {
        const int left = ty->channels - p * k->block;
        memcpy(y + p * ty->plane, row + p * k->block, sizeof(float) * (left < k->block ? left : k->block));
    }
}

static void one_image(const cs_task *task, const cs_op *op, int64_t i) {
    const cs_plan *plan = task->plan;
    const cs_tensor *tx = &plan->tensors[op->x];
    const float *x = cs_pixels(task, op->x, i);
    cs_span rows;
    switch (op->kind) {
    case CS_STAGE:
        if (tx->offset < 0 && task->tables[-1 - tx->offset])
            stage_bytes(task, tx, &plan->tensors[op->y],
                        (const uint8_t *)task->inputs[-1 - tx->offset] + i * tx->image,
                        task->tables[-1 - tx->offset], cs_pixels(task, op->y, i));
        else
            stage(task, tx, &plan->tensors[op->y], x, cs_pixels(task, op->y, i));
        break;
    case CS_FLATTEN:
        to_nchw(task, tx, x, cs_pixels(task, op->y, i));
        break;
    case CS_OUTPUT:
        to_nchw(task, tx, x,
                task->results[op->first] + i * ((int64_t)tx->channels * tx->height * tx->width));
        break;
    case CS_LAYER_NORM:
        /* by rows only: a pixel's channels are summed by one thread */
        rows = cs_share(task, tx->height);
        plan->kernels->layer_norm(&op->as.norm, (int)rows.from, (int)rows.to, x, op->weight,
                                  op->bias, cs_pixels(task, op->y, i));
        break;
    case CS_SOFTMAX:
    case CS_LOG_SOFTMAX:
        if (task->rank == 0)
            softmax(task, op, x, cs_pixels(task, op->y, i));
        break;
    default:
        of_blocks(task, op, i);
    }
}

void cs_execute(const cs_task *task, const cs_op *op) {
    if (op->y >= 0 && !op->strip)
        for (int64_t i = task->first; i < task->first + task->images; i++)
            zero_halo(task, &task->plan->tensors[op->y], cs_pixels(task, op->y, i));
    switch (op->kind) {
    case CS_CONV:
        cs_convolve(task, op);
        break;
    case CS_WINOGRAD:
        cs_winograd_convolve(task, op);
        break;
    case CS_AFFINE:
        cs_affine(task, op);
        break;
    default:
        for (int64_t i = task->first; i < task->first + task->images; i++)
            one_image(task, op, i);
    }
}
