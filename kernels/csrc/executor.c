#include "executor.h"

#include <assert.h>
#include <stdatomic.h>
#include <string.h>

#include "team.h"
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

typedef struct run {
    const cs_plan *plan;
    int64_t n;
    const float *x;
    float *const *results;
    float *const *arenas;
    int64_t parts;
    _Atomic int64_t next;   /* part of the batch that no thread has taken yet */
} run;

/* A chunk of the batch in the hands of one thread. */
typedef struct chunk {
    const run *run;
    float *arena;
    int64_t first, images;  /* of the batch */
} chunk;

static int planes(const cs_tensor *t, int block) {
    return t->planar ? t->channels : (t->channels + block - 1) / block;
}

/* the first pixel of image i of the chunk, behind the halo */
static float *pixels(const chunk *c, const cs_tensor *t, int64_t i) {
    if (t->offset < 0)   /* the input, which is only read */
        return (float *)c->run->x + (c->first + i) * t->image;
    return c->arena + t->offset + i * t->image + t->top * t->row + t->left * t->px;
}

/* The arena's memory is shared by tensors whose lives don't overlap, so a halo is written anew. */
static void zero_halo(const cs_tensor *t, int block, float *first_pixel) {
    if (!(t->top | t->bottom | t->left | t->right))
        return;
    const int64_t lines = t->top + t->height + t->bottom;
    float *start = first_pixel - t->top * t->row - t->left * t->px;
    for (int p = 0; p < planes(t, block); p++, start += t->plane) {
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

static void stage(const cs_kernels *k, const cs_tensor *tx, const cs_tensor *ty, const float *x, float *y) {
    if (!ty->planar) {
        for (int p = 0; p < planes(ty, k->block); p++) {
            const int left = tx->channels - p * k->block;
            k->pack(left < k->block ? left : k->block, 0, tx->height, tx->width,
                    x + p * k->block * tx->plane, tx->plane, tx->row, tx->px, y + p * ty->plane,
                    ty->row, ty->px);
        }
        return;
    }
    for (int c = 0; c < tx->channels; c++)
        for (int h = 0; h < tx->height; h++)
            memcpy(y + c * ty->plane + h * ty->row, x + c * tx->plane + h * tx->row,
                   sizeof(float) * tx->width);
}

/* a tensor of either layout -> C-contiguous NCHW */
static void to_nchw(const cs_kernels *k, const cs_tensor *t, const float *x, float *y) {
    const int64_t area = (int64_t)t->height * t->width;
    if (t->planar) {
        for (int c = 0; c < t->channels; c++)
            for (int h = 0; h < t->height; h++)
                memcpy(y + c * area + h * t->width, x + c * t->plane + h * t->row,
                       sizeof(float) * t->width);
        return;
    }
    for (int c = 0; c < t->channels; c += k->block) {
        const int left = t->channels - c;
        k->unpack(left < k->block ? left : k->block, 0, t->height, t->width,
                  x + c / k->block * t->plane, t->row, y + c * area, area, t->width);
    }
}

static void concat(const cs_kernels *k, const cs_tensor *tx, const cs_tensor *ty, int first,
                   const float *x, float *y) {
    const int b = k->block;
    if (first % b == 0) {   /* whole blocks; what lies beyond the last channel is written later */
        for (int p = 0; p < planes(tx, b); p++)
            for (int h = 0; h < tx->height; h++)
                memcpy(y + (first / b + p) * ty->plane + h * ty->row, x + p * tx->plane + h * tx->row,
                       sizeof(float) * tx->width * b);
        return;
    }
    for (int c = 0; c < tx->channels; c++) {
        const float *xc = x + c / b * tx->plane + c % b;
        float *yc = y + (first + c) / b * ty->plane + (first + c) % b;
        for (int h = 0; h < tx->height; h++)
            for (int w = 0; w < tx->width; w++)
                yc[h * ty->row + (int64_t)w * b] = xc[h * tx->row + (int64_t)w * b];
    }
}

/* Image i of the chunk; an affine layer takes all of its images at once. */
static void execute(const chunk *c, const cs_op *op, int64_t i) {
    const cs_plan *plan = c->run->plan;
    const cs_kernels *k = plan->kernels;
    const cs_tensor *tx = &plan->tensors[op->x], *ty = op->y < 0 ? tx : &plan->tensors[op->y];
    const float *x = pixels(c, tx, i) + op->x_start;
    const float *r = op->r < 0 ? NULL : pixels(c, &plan->tensors[op->r], i);
    float *y = op->y < 0 ? NULL : pixels(c, ty, i);
    const int blocks = planes(ty, k->block);
    if (op->y >= 0)
        zero_halo(ty, k->block, y);

    switch ((enum cs_op_kind)op->kind) {
    case CS_STAGE:
        stage(k, tx, ty, x, y);
        break;
    case CS_CONV:
        for (int t = 0; t < op->as.conv.tiles; t++)
            k->conv(&op->as.conv, t, 0, op->as.conv.oh, x, op->weight, op->bias, r, y);
        break;
    case CS_AFFINE: {
        cs_conv conv = op->as.conv;
        conv.ow = (int32_t)c->images;
        for (int t = 0; t < conv.tiles; t++)
            k->conv(&conv, t, 0, 1, x, op->weight, op->bias, NULL, y);
        break;
    }
    case CS_DEPTHWISE:
        for (int b = 0; b < blocks; b++)
            k->depthwise(&op->as.depthwise, b, 0, op->as.depthwise.oh, x, op->weight, op->bias, y);
        break;
    case CS_MAX_POOL:
        for (int b = 0; b < blocks; b++)
            k->max_pool(&op->as.pool, b, 0, op->as.pool.oh, x, y);
        break;
    case CS_AVG_POOL:
        for (int b = 0; b < blocks; b++)
            k->avg_pool(&op->as.pool, b, 0, op->as.pool.oh, x, y);
        break;
    case CS_GLOBAL_AVG_POOL:
        for (int b = 0; b < blocks; b++)
            k->global_avg_pool(tx->height, tx->width, tx->row, x + b * tx->plane, y + b * ty->plane);
        break;
    case CS_SCALE_SHIFT:
        for (int b = 0; b < blocks; b++)
            k->scale_shift(&op->as.pointwise, b, 0, ty->height, x, op->weight + b * k->block,
                           op->bias + b * k->block, y);
        break;
    case CS_ADD:
        for (int b = 0; b < blocks; b++)
            k->add(&op->as.pointwise, b, 0, ty->height, x, r, y);
        break;
    case CS_CONCAT:
        concat(k, tx, ty, op->first, x, y);
        break;
    case CS_SOFTMAX:
        k->softmax(tx->channels, x, y);
        break;
    case CS_FLATTEN:
        to_nchw(k, tx, x, y);
        break;
    case CS_OUTPUT: {
        const int64_t size = (int64_t)tx->channels * tx->height * tx->width;
        to_nchw(k, tx, x, c->run->results[op->first] + (c->first + i) * size);
        break;
    }
    }
}

static void run_chunk(const chunk *c) {
    const cs_plan *plan = c->run->plan;
    for (int64_t i = 0; i < c->images; i++)
        for (int o = 0; o < plan->op_count; o++)
            if (plan->ops[o].phase == 0)
                execute(c, &plan->ops[o], i);
    for (int o = 0; o < plan->op_count; o++)
        if (plan->ops[o].phase == 1)
            for (int64_t i = 0; i < (plan->ops[o].kind == CS_AFFINE ? 1 : c->images); i++)
                execute(c, &plan->ops[o], i);
}

static void work(void *argument, int rank, int size) {
    run *r = argument;
    (void)size;
#if defined(__SSE__)
    /* denormals are flushed to zero: on some CPUs each one costs a hundred cycles */
    const unsigned before = _mm_getcsr();
    _mm_setcsr(before | 0x8040);
#endif
    for (;;) {
        const int64_t part = atomic_fetch_add(&r->next, 1);
        if (part >= r->parts)
            break;
        chunk c = {.run = r, .arena = r->arenas[rank], .first = r->n * part / r->parts};
        c.images = r->n * (part + 1) / r->parts - c.first;
        assert(c.images <= r->plan->chunk);
        run_chunk(&c);
    }
#if defined(__SSE__)
    _mm_setcsr(before);
#endif
}

void cs_plan_run(const cs_plan *plan, int64_t n, const float *x, float *const *results,
                 float *const *arenas, int threads) {
    /* equal parts, the same number for each thread */
    const int64_t rounds = (n + (int64_t)threads * plan->chunk - 1) / ((int64_t)threads * plan->chunk);
    run r = {.plan = plan, .n = n, .x = x, .results = results, .arenas = arenas};
    r.parts = rounds * threads;
    atomic_init(&r.next, 0);
    cs_team_run(threads, work, &r);
}
