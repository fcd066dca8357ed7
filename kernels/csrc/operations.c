/* What each kind of operation does for the images, and the part of the work, of one task. */
#include "plan.h"

#include <assert.h>
#include <string.h>

static int planes(const cs_tensor *t, int block) {
    return t->planar ? t->channels : (t->channels + block - 1) / block;
}

/* this task's share of `total` equal parts */
typedef struct span {
    int64_t from, to;
} span;

static span share(const cs_task *task, int64_t total) {
    return (span){total * task->rank / task->size, total * (task->rank + 1) / task->size};
}

/* the first pixel, behind the halo, of image i (counted in the batch) */
static float *pixels(const cs_task *task, int tensor, int64_t i) {
    const cs_tensor *t = &task->plan->tensors[tensor];
    if (t->offset < 0)   /* an input, which is only read */
        return (float *)task->inputs[-1 - t->offset] + i * t->image;
    return task->arena + t->offset + (i - task->group_start[t->level]) * t->image +
           t->top * t->row + t->left * t->px;
}

/* The arena's memory is shared by tensors whose lives don't overlap, so a halo is written anew. */
static void zero_halo(const cs_task *task, const cs_tensor *t, float *first_pixel) {
    if (!(t->top | t->bottom | t->left | t->right))
        return;
    const int64_t lines = t->top + t->height + t->bottom;
    const span part = share(task, planes(t, task->plan->kernels->block));
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
    const span part = share(task, tx->channels * (int64_t)tx->height);
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
    const int64_t height = tx->height;
    const span part = share(task, planes(ty, k->block) * height);
    for (int64_t p = part.from / height; p * height < part.to; p++) {
        const int h0 = part.from > p * height ? (int)(part.from - p * height) : 0;
        const int h1 = part.to < (p + 1) * height ? (int)(part.to - p * height) : (int)height;
        if (ty->planar) {
            for (int h = h0; h < h1; h++)
                memcpy(y + p * ty->plane + h * ty->row, x + p * tx->plane + h * tx->row,
                       sizeof(float) * tx->width);
        } else {
            const int left = tx->channels - (int)p * k->block;
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
    const span part = share(task, planes(t, k->block));
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

/* Rows from..to of the pooled output of one tile: strip by strip, the convolution's rows for a strip
 * are made in scratch memory. Rows that the next strip's windows reach too are moved to its front. */
static void convolve_and_pool(const cs_task *task, const cs_op *op, int t, int from, int to, int64_t i) {
    const cs_conv_op *o = &op->as.conv;
    const cs_kernels *k = task->plan->kernels;
    const cs_conv_tile *tile = &o->conv.tile[t];
    const cs_pool *p = &o->pool;
    const float *x = pixels(task, op->x, i) + op->x_start;
    const float *r = op->r < 0 ? NULL : pixels(task, op->r, i);
    float *y = pixels(task, op->y, i), *strip = task->scratch;
    cs_conv c = o->conv;
    c.y_block = p->x_plane;
    c.y_row = p->x_row;
    int start = 0, end = 0;     /* the convolution's rows in the strip */
    for (int row = from; row < to; row += o->strip) {
        const int last = to - row < o->strip ? to : row + o->strip;
        const int top = row * p->sh - p->pt, bottom = (last - 1) * p->sh - p->pt + p->kh;
        const int first = top < 0 ? 0 : top, stop = bottom < p->h ? bottom : p->h;
        const int kept = end > first ? end - first : 0;
        if (kept)
            for (int b = 0; b < tile->blocks; b++)
                memmove(strip + b * p->x_plane, strip + b * p->x_plane + (first - start) * p->x_row,
                        sizeof(float) * kept * p->x_row);
        k->conv(&c, t, first + kept, stop, x, op->weight, op->bias, r,
                strip - tile->block * p->x_plane - first * p->x_row);
        for (int b = 0; b < tile->blocks; b++)
            (o->pooling == CS_MAX_POOL ? k->max_pool : k->avg_pool)(
                p, 0, row, last, strip + b * p->x_plane - first * p->x_row,
                y + (tile->block + b) * p->y_plane);
        start = first;
        end = stop;
    }
}

/* Rows from..to of what tile t stores, of all images. */
static void convolve_rows(const cs_task *task, const cs_op *op, int t, int from, int to) {
    const cs_conv_op *o = &op->as.conv;
    for (int64_t i = task->first; i < task->first + task->images; i++) {
        if (o->pooling >= 0)
            convolve_and_pool(task, op, t, from, to, i);
        else
            task->plan->kernels->conv(&o->conv, t, from, to, pixels(task, op->x, i) + op->x_start,
                                      op->weight, op->bias, op->r < 0 ? NULL : pixels(task, op->r, i),
                                      pixels(task, op->y, i));
    }
}

static void convolve(const cs_task *task, const cs_op *op) {
    const cs_conv_op *o = &op->as.conv;
    if (o->band) {
        /* a few rows for all tiles: the input, too large for the cache, is read once */
        const span rows = share(task, o->rows);
        for (int64_t row = rows.from; row < rows.to; row += o->band)
            for (int t = 0; t < o->conv.tiles; t++)
                convolve_rows(task, op, t, (int)row,
                              (int)(rows.to - row < o->band ? rows.to : row + o->band));
        return;
    }
    /* all rows of one tile after the other: threads take different output channels first, and so
     * different weights */
    const span part = share(task, (int64_t)o->conv.tiles * o->rows);
    for (int t = (int)(part.from / o->rows); t * (int64_t)o->rows < part.to; t++) {
        const int64_t start = (int64_t)t * o->rows;
        convolve_rows(task, op, t, part.from > start ? (int)(part.from - start) : 0,
                      part.to < start + o->rows ? (int)(part.to - start) : o->rows);
    }
}

static void affine(const cs_task *task, const cs_op *op) {
    cs_conv c = op->as.affine;
    const span part = share(task, c.tiles);
    c.ow = (int32_t)task->images;
    for (int64_t t = part.from; t < part.to; t++)
        task->plan->kernels->conv(&c, (int)t, 0, 1, pixels(task, op->x, task->first), op->weight,
                                  op->bias, NULL, pixels(task, op->y, task->first));
}

/* Calls the input (or output) transform for tiles from..to of the images' tiles in a row. */
static void transform_input(const cs_task *task, const cs_op *op, span tiles, float *v, int64_t place, int slots) {
    const cs_winograd *w = &op->as.winograd.tiles;
    const int each = w->rows * w->columns;
    for (int64_t at = tiles.from; at < tiles.to;) {
        const int first = (int)(at % each);
        const int count = (int)(tiles.to - at < each - first ? tiles.to - at : each - first);
        task->plan->kernels->winograd_input(w, first, count,
                                            pixels(task, op->x, task->first + at / each) + op->x_start,
                                            v, (int)(at - place), slots);
        at += count;
    }
}

static void multiply_and_store(const cs_task *task, const cs_op *op, int t, span tiles, const float *v, float *m) {
    const cs_winograd_op *o = &op->as.winograd;
    const cs_winograd *w = &o->tiles;
    const cs_kernels *k = task->plan->kernels;
    const int each = w->rows * w->columns, slots = (int)(tiles.to - tiles.from);
    const int coefficients = (w->m + 2) * (w->m + 2);
    const cs_conv_tile *tile = &o->product.tile[t];
    const int64_t line = (int64_t)slots * k->block;
    cs_conv product = o->product;
    product.ow = slots;
    product.x_plane = product.y_block = line;
    for (int c = 0; c < coefficients; c++)
        k->conv(&product, t, 0, 1, v + c * cs_winograd_step(w->planes, slots, k->block),
                op->weight + c * o->coefficient, op->bias + (int64_t)w->blocks * k->block, NULL,
                m + c * cs_winograd_step(tile->blocks, slots, k->block) - tile->block * line);
    for (int64_t at = tiles.from; at < tiles.to;) {
        const int64_t i = task->first + at / each;
        const int first = (int)(at % each);
        const int count = (int)(tiles.to - at < each - first ? tiles.to - at : each - first);
        k->winograd_output(w, tile->block, tile->blocks, first, count, m, (int)(at - tiles.from),
                           slots, op->bias, op->r < 0 ? NULL : pixels(task, op->r, i),
                           pixels(task, op->y, i));
        at += count;
    }
}

/* op->bias: the layer's bias, then as many zeros for the products. */
static void winograd(const cs_task *task, const cs_op *op) {
    const cs_winograd_op *o = &op->as.winograd;
    const int block = task->plan->kernels->block;
    const int coefficients = (o->tiles.m + 2) * (o->tiles.m + 2);
    const int64_t total = task->images * o->tiles.rows * o->tiles.columns;
    const int64_t v_floats = coefficients * cs_winograd_step(o->tiles.planes, o->slots, block);
    float *m = task->scratch + v_floats;

    if (task->size > 1 && total <= o->slots && o->product.tiles >= task->size) {
        /* few tiles, so reading the weights takes the time: each thread reads a part of them */
        const span mine = share(task, total), part = share(task, o->product.tiles);
        transform_input(task, op, mine, task->shared_scratch, 0, (int)total);
        cs_wait(task);
        for (int64_t t = part.from; t < part.to; t++)
            multiply_and_store(task, op, (int)t, (span){0, total}, task->shared_scratch, m);
        return;
    }
    const span mine = share(task, total);
    const int64_t passes = (mine.to - mine.from + o->slots - 1) / o->slots;
    for (int64_t p = 0; p < passes; p++) {
        const span now = {mine.from + (mine.to - mine.from) * p / passes,
                          mine.from + (mine.to - mine.from) * (p + 1) / passes};
        transform_input(task, op, now, task->scratch, now.from, (int)(now.to - now.from));
        for (int t = 0; t < o->product.tiles; t++)
            multiply_and_store(task, op, t, now, task->scratch, m);
    }
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
            x[s] = pixels(task, from[0], i) + from[1] * t->plane + h * t->row;
        }
        k->rearrange(ty->width, to[2], x, r->lanes + (int64_t)to[1] * k->block, y + h * ty->row);
    }
}

/* Operations on blocks and rows: the rows of all blocks, one block after the other. */
static void by_rows(const cs_task *task, const cs_op *op, int64_t i) {
    const cs_kernels *k = task->plan->kernels;
    const cs_tensor *tx = &task->plan->tensors[op->x], *ty = &task->plan->tensors[op->y];
    const float *x = pixels(task, op->x, i) + op->x_start;
    const float *r = op->r < 0 ? NULL : pixels(task, op->r, i);
    float *y = pixels(task, op->y, i);
    const int height = ty->height;
    const int blocks = op->kind == CS_REARRANGE ? op->as.rearrange.blocks : planes(ty, k->block);
    const span part = share(task, (int64_t)blocks * height);
    for (int b = (int)(part.from / height); (int64_t)b * height < part.to; b++) {
        const int64_t start = (int64_t)b * height;
        const int h0 = part.from > start ? (int)(part.from - start) : 0;
        const int h1 = part.to < start + height ? (int)(part.to - start) : height;
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
}

static void softmax(const cs_kernels *k, int kind, const cs_tensor *tx, const float *x, float *y) {
    if (tx->plane != k->block) {   /* an image of one pixel with a halo: make it a row */
        for (int p = 0; p < planes(tx, k->block); p++)
            memcpy(y + p * k->block, x + p * tx->plane, sizeof(float) * k->block);
        x = y;
    }
    (kind == CS_SOFTMAX ? k->softmax : k->log_softmax)(tx->channels, x, y);
}

static void one_image(const cs_task *task, const cs_op *op, int64_t i) {
    const cs_plan *plan = task->plan;
    const cs_tensor *tx = &plan->tensors[op->x];
    const float *x = pixels(task, op->x, i);
    span rows;
    switch (op->kind) {
    case CS_STAGE:
        if (tx->offset < 0 && task->tables[-1 - tx->offset])
            stage_bytes(task, tx, &plan->tensors[op->y],
                        (const uint8_t *)task->inputs[-1 - tx->offset] + i * tx->image,
                        task->tables[-1 - tx->offset], pixels(task, op->y, i));
        else
            stage(task, tx, &plan->tensors[op->y], x, pixels(task, op->y, i));
        break;
    case CS_FLATTEN:
        to_nchw(task, tx, x, pixels(task, op->y, i));
        break;
    case CS_OUTPUT:
        to_nchw(task, tx, x,
                task->results[op->first] + i * ((int64_t)tx->channels * tx->height * tx->width));
        break;
    case CS_LAYER_NORM:
        /* by rows only: a pixel's channels are summed by one thread */
        rows = share(task, tx->height);
        plan->kernels->layer_norm(&op->as.norm, (int)rows.from, (int)rows.to, x, op->weight,
                                  op->bias, pixels(task, op->y, i));
        break;
    case CS_SOFTMAX:
    case CS_LOG_SOFTMAX:
        if (task->rank == 0)
            softmax(plan->kernels, op->kind, tx, x, pixels(task, op->y, i));
        break;
    default:
        by_rows(task, op, i);
    }
}

void cs_execute(const cs_task *task, const cs_op *op) {
    if (op->y >= 0)
        for (int64_t i = task->first; i < task->first + task->images; i++)
            zero_halo(task, &task->plan->tensors[op->y], pixels(task, op->y, i));
    switch (op->kind) {
    case CS_CONV:
        convolve(task, op);
        break;
    case CS_WINOGRAD:
        winograd(task, op);
        break;
    case CS_AFFINE:
        affine(task, op);
        break;
    default:
        for (int64_t i = task->first; i < task->first + task->images; i++)
            one_image(task, op, i);
    }
}
