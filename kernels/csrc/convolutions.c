/* Convolutions and affine layers: tile by tile, and where rows are pooled or go to a result, strip by
 * strip, while the strip is in the cache. */
#include "task.h"

#include <string.h>

/* Rows from..to of the pooled output of one tile: strip by strip, the convolution's rows for a strip
 * are made in scratch memory. Rows that the next strip's windows reach too are moved to its front. */
static void convolve_and_pool(const cs_task *task, const cs_op *op, int t, int from, int to, int64_t i,
                              float *y) {
    const cs_conv_op *o = &op->as.conv;
    const cs_kernels *k = task->plan->kernels;
    const cs_conv_tile *tile = &o->conv.tile[t];
    const cs_pool *p = &o->pool;
    const float *x = cs_pixels(task, op->x, i) + op->x_start;
    const float *r = op->r < 0 ? NULL : cs_pixels(task, op->r, i);
    float *strip = task->scratch + op->scratch;
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

/* Rows from..to of what tile t stores of one image. */
static void convolve_image(const cs_task *task, const cs_op *op, int t, int from, int to, int64_t i, float *y) {
    if (op->as.conv.pooling >= 0) {
        convolve_and_pool(task, op, t, from, to, i, y);
        return;
    }
    const cs_tensor *ty = &task->plan->tensors[op->y];
    cs_conv c = op->as.conv.conv;
    c.far = ty->result && (uintptr_t)y % (sizeof(float) * task->plan->kernels->block) == 0 && cs_is_far(task, ty);
    task->plan->kernels->conv(&c, t, from, to, cs_pixels(task, op->x, i) + op->x_start, op->weight, op->bias,
                              op->r < 0 ? NULL : cs_pixels(task, op->r, i), y);
}

/* likewise of all images */
static void convolve_rows(const cs_task *task, const cs_op *op, int t, int from, int to) {
    const cs_conv_tile *tile = &op->as.conv.conv.tile[t];
    const cs_tensor *ty = &task->plan->tensors[op->y];
    for (int64_t i = task->first; i < task->first + task->images; i++) {
        if (!op->strip) {
            convolve_image(task, op, t, from, to, i, cs_pixels(task, op->y, i));
            continue;
        }
        for (int row = from, end; row < to; row = end) {
            end = to - row < op->strip ? to : row + op->strip;
            convolve_image(task, op, t, row, end, i,
                           task->scratch - tile->block * ty->plane - row * ty->row);
            cs_store(task, op, i, tile->block, tile->blocks, row, end, 0, ty->width);
        }
    }
}

void cs_convolve(const cs_task *task, const cs_op *op) {
    const cs_conv_op *o = &op->as.conv;
    if (o->band) {
        /* a few rows for all tiles: the input, too large for the cache, is read once */
        const cs_span rows = cs_share(task, o->rows);
        for (int64_t row = rows.from; row < rows.to; row += o->band)
            for (int t = 0; t < o->conv.tiles; t++)
                convolve_rows(task, op, t, (int)row,
                              (int)(rows.to - row < o->band ? rows.to : row + o->band));
        return;
    }
    /* All rows of one tile after the other. Where there are many weights threads take different output
     * channels first, and so different weights. */
    const int by_rows = o->light && cs_by_rows(task, o->rows);
    for (int t = 0; t < o->conv.tiles; t++) {
        const cs_span rows = cs_rows(task, by_rows, o->conv.tiles, o->rows, t);
        if (rows.from < rows.to)
            convolve_rows(task, op, t, (int)rows.from, (int)rows.to);
    }
}

void cs_affine(const cs_task *task, const cs_op *op) {
    cs_conv c = op->as.affine;
    const cs_span part = cs_share(task, c.tiles);
    c.ow = (int32_t)task->images;
    for (int64_t t = part.from; t < part.to; t++)
        task->plan->kernels->conv(&c, (int)t, 0, 1, cs_pixels(task, op->x, task->first), op->weight,
                                  op->bias, NULL, cs_pixels(task, op->y, task->first));
}

/* Calls the input (or output) transform for tiles from..to of the images' tiles in a row. */
static void transform_input(const cs_task *task, const cs_op *op, cs_span tiles, float *v, int64_t place, int slots) {
    const cs_winograd *w = &op->as.winograd.tiles;
    const int each = w->rows * w->columns;
    for (int64_t at = tiles.from; at < tiles.to;) {
        const int first = (int)(at % each);
        const int count = (int)(tiles.to - at < each - first ? tiles.to - at : each - first);
        task->plan->kernels->winograd_input(w, first, count,
                                            cs_pixels(task, op->x, task->first + at / each) + op->x_start,
                                            v, (int)(at - place), slots);
        at += count;
    }
}

static void multiply_and_store(const cs_task *task, const cs_op *op, int t, cs_span tiles, const float *v, float *m) {
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
        const float *r = op->r < 0 ? NULL : cs_pixels(task, op->r, i);
        int count = (int)(tiles.to - at < each - first ? tiles.to - at : each - first);
        if (op->strip) {
            /* of one row of tiles, as many as the strip is wide */
            const cs_tensor *ty = &task->plan->tensors[op->y];
            const int side = w->pool ? w->m / 2 : w->m;
            const int column = first % w->columns, whole = ty->row == (int64_t)ty->width * k->block;
            const int fit = whole ? w->columns : (int)(ty->row / (side * k->block));
            const int h = first / w->columns * side, left = column * side;
            count = count < fit ? count : fit;
            count = count < w->columns - column ? count : w->columns - column;
            const int bottom = h + side < ty->height ? h + side : ty->height;
            const int right = left + count * side < ty->width ? left + count * side : ty->width;
            k->winograd_output(w, tile->block, tile->blocks, first, count, m, (int)(at - tiles.from), slots,
                               op->bias, r, task->scratch - tile->block * ty->plane - h * ty->row -
                               (int64_t)left * k->block);
            cs_store(task, op, i, tile->block, tile->blocks, h, bottom, left, right);
        } else {
            k->winograd_output(w, tile->block, tile->blocks, first, count, m, (int)(at - tiles.from),
                               slots, op->bias, r, cs_pixels(task, op->y, i));
        }
        at += count;
    }
}

/* op->bias: the layer's bias, then as many zeros for the products. */
void cs_winograd_convolve(const cs_task *task, const cs_op *op) {
    const cs_winograd_op *o = &op->as.winograd;
    const int block = task->plan->kernels->block;
    const int coefficients = (o->tiles.m + 2) * (o->tiles.m + 2);
    const int64_t total = task->images * o->tiles.rows * o->tiles.columns;
    const int64_t v_floats = coefficients * cs_winograd_step(o->tiles.planes, o->slots, block);
    float *v = task->scratch + op->scratch, *shared = task->shared_scratch + op->scratch, *m = v + v_floats;

    if (task->size > 1 && total <= o->slots && o->product.tiles >= task->size) {
        /* few tiles, so reading the weights takes the time: each thread reads a part of them */
        const cs_span mine = cs_share(task, total), part = cs_share(task, o->product.tiles);
        transform_input(task, op, mine, shared, 0, (int)total);
        cs_wait(task);
        for (int64_t t = part.from; t < part.to; t++)
            multiply_and_store(task, op, (int)t, (cs_span){0, total}, shared, m);
        return;
    }
    const cs_span mine = cs_share(task, total);
    const int64_t passes = (mine.to - mine.from + o->slots - 1) / o->slots;
    for (int64_t p = 0; p < passes; p++) {
        const cs_span now = {mine.from + (mine.to - mine.from) * p / passes,
                          mine.from + (mine.to - mine.from) * (p + 1) / passes};
        transform_input(task, op, now, v, now.from, (int)(now.to - now.from));
        for (int t = 0; t < o->product.tiles; t++)
            multiply_and_store(task, op, t, now, v, m);
    }
}
