/* Pooling, and operations value by value. */
#include "train_rows.h"

#include <assert.h>
#include <string.h>

static int64_t row_of(const cs_train_task *task, int number) { return number < 0 ? 0 : tensor(task, number)->row; }

void cs_train_pooling(const cs_train_task *task, const cs_train_op *op) {
    const cs_kernels *k = task->plan->kernels;
    const int forward = op->kind == CS_TRAIN_MAX_POOL || op->kind == CS_TRAIN_AVG_POOL;
    const cs_tensor *ty = tensor(task, forward ? op->y : op->dy);
    const cs_pool_rows rows = {row_of(task, op->x), row_of(task, op->y), row_of(task, op->dx), row_of(task, op->dy)};
    for (int64_t i = task->first; i < task->first + task->images; i++)
        for (int p = 0; p < planes(task, ty); p++) {
            const float *x = line_of(task, op->x, i, p, 0), *dy = line_of(task, op->dy, i, p, 0);
            float *y = line_of(task, op->y, i, p, 0), *dx = line_of(task, op->dx, i, p, 0);
            if (op->kind == CS_TRAIN_MAX_POOL)
                k->max_pool(&op->as.pool, 0, 0, ty->height, x, y);
            else if (op->kind == CS_TRAIN_AVG_POOL)
                k->avg_pool(&op->as.pool, 0, 0, ty->height, x, y);
            else if (op->kind == CS_TRAIN_MAX_POOL_DX)
                k->train->max_pool_dx(&op->as.pool, &rows, &op->activation, op->add, x, y, dy, dx);
            else
                k->train->avg_pool_dx(&op->as.pool, &rows, op->add, dy, dx);
        }
}

void cs_train_global_pooling(const cs_train_task *task, const cs_train_op *op) {
    const cs_kernels *k = task->plan->kernels;
    const int wide = op->dx >= 0 ? op->dx : op->x;
    const cs_tensor *t = tensor(task, wide);
    const float area = (float)((int64_t)t->height * t->width);
    for (int64_t i = task->first; i < task->first + task->images; i++)
        for (int p = 0; p < planes(task, t); p++) {
            int32_t done[16] = {0};
            const float *x = line_of(task, op->x, i, p, 0), *dy = line_of(task, op->dy, i, p, 0);
            float *y = line_of(task, op->y, i, p, 0);
            if (op->kind == CS_TRAIN_GLOBAL_AVG)
                k->global_avg_pool(t->height, t->width, t->row, x, y);
            else if (op->kind == CS_TRAIN_GLOBAL_MAX)
                k->global_max_pool(t->height, t->width, t->row, x, y);
            else
                for (int h = 0; h < t->height; h++) {
                    float *dx = line_of(task, op->dx, i, p, h);
                    if (op->kind == CS_TRAIN_GLOBAL_AVG_DX)
                        k->train->fill(t->width, dy, 1 / area, op->add, dx);
                    else
                        k->train->global_max_dx(t->width, line_of(task, op->x, i, p, h), y, dy, done, op->add, dx);
                }
        }
}

static void pointwise_line(const cs_train_task *task, const cs_train_op *op, const line *l) {
    const cs_kernels *k = task->plan->kernels;
    const int block = k->block;
    switch (op->kind) {
    case CS_TRAIN_ACTIVATE:
        k->activate(&op->activation, l->n, l->x, block, l->y, block);
        break;
    case CS_TRAIN_ACTIVATE_DX:
        k->train->activate_dx(&op->activation, l->x == NULL, op->add, l->n, l->x ? l->x : l->y, l->dy, l->dx);
        break;
    case CS_TRAIN_PRELU: {
        const cs_pointwise row = {.h = 1, .w = (int32_t)l->n};
        k->prelu(&row, 0, 0, 1, l->x, op->weight + l->plane * block, l->y);
        break;
    }
    case CS_TRAIN_PRELU_DX:
        k->train->prelu_dx(op->weight + l->plane * block, op->add, l->n, l->x, l->dy, l->dx);
        break;
    case CS_TRAIN_PRELU_SLOPES:
        k->train->prelu_slopes(l->n, l->x, l->dy, op->as.prelu.sums + task->lane * op->as.prelu.room + l->plane * block);
        break;
    case CS_TRAIN_SCALE_DX:
        k->train->scale_dx(op->as.pointwise.factor, op->add, l->n, l->dy, l->dx);
        break;
    case CS_TRAIN_MULTIPLY_DX: {
        const cs_tensor *tr = tensor(task, op->r), *t = tensor(task, op->dy);
        k->train->multiply_dx(op->add, l->n, l->dy, l->r, tr->height == t->height && tr->width == t->width ? block : 0, l->dx);
        break;
    }
    default:
        assert(0);
    }
}

/* dx is one value a channel: the sum over the pixels */
static void summed(const cs_train_task *task, const cs_train_op *op) {
    const cs_kernels *k = task->plan->kernels;
    const cs_tensor *t = tensor(task, op->dy);
    const float factor = op->kind == CS_TRAIN_SCALE_DX ? op->as.pointwise.factor : 1.0f;
    for (int64_t i = task->first; i < task->first + task->images; i++)
        for (int p = 0; p < planes(task, t); p++) {
            float sum[16] = {0};
            for (int h = 0; h < t->height; h++)
                k->train->sum(t->width, line_of(task, op->dy, i, p, h), line_of(task, op->r, i, p, h), sum);
            k->train->fill(1, sum, factor, op->add, line_of(task, op->dx, i, p, 0));
        }
}

void cs_train_pointwise(const cs_train_task *task, const cs_train_op *op) {
    const int sized = op->dy >= 0 ? op->dy : op->y;
    const cs_train_prelu_op *p = &op->as.prelu;
    if (op->kind == CS_TRAIN_PRELU_SLOPES && task->fresh)
        memset(p->sums + task->lane * p->room, 0, sizeof(double) * p->room);
    if (op->dx >= 0 && one_pixel(tensor(task, op->dx)) && !one_pixel(tensor(task, sized)))
        summed(task, op);
    else
        cs_each_line(task, op, sized, pointwise_line);
}

/* Lane by lane, so the bits do not depend on who summed which. */
void cs_train_prelu_reduce(const cs_train_task *task, const cs_train_op *op) {
    const cs_train_prelu_op *p = &op->as.prelu;
    for (int c = 0; c < p->channels; c++) {
        double sum = 0;
        for (int lane = 0; lane < task->lane_count; lane++)
            sum += p->sums[lane * p->room + c];
        op->dweight[c] = (float)sum;
    }
}

void cs_train_arithmetic(const cs_train_task *task, const cs_train_op *op) {
    const cs_tensor *ty = tensor(task, op->y), *a = tensor(task, op->x), *b = tensor(task, op->r);
    const int a_same = !one_pixel(a) || one_pixel(ty), b_same = !one_pixel(b) || one_pixel(ty);
    const cs_pointwise p = {ty->height, ty->width, op->as.pointwise.arithmetic, op->activation,
                            a_same ? a->px : 0, a_same ? a->row : 0, a->plane,
                            b_same ? b->px : 0, b_same ? b->row : 0, b->plane, ty->row, ty->plane};
    for (int64_t i = task->first; i < task->first + task->images; i++)
        for (int q = 0; q < planes(task, ty); q++)
            task->plan->kernels->arithmetic(&p, q, 0, ty->height, pixels(task, op->x, i), pixels(task, op->r, i),
                                            pixels(task, op->y, i));
}

static void dropout_line(const cs_train_task *task, const cs_train_op *op, const line *l) {
    const cs_kernels *k = task->plan->kernels;
    const cs_tensor *t = tensor(task, op->dx >= 0 ? op->dx : op->y);
    const uint32_t area = (uint32_t)t->height * t->width;
    const uint32_t *key = task->batch->keys[op->as.dropout.key];
    /* counted in the batch, in the order of NCHW */
    const uint32_t first = ((uint32_t)l->image * t->channels + (uint32_t)l->plane * k->block) * area + (uint32_t)l->first;
    k->train->dropout(op->as.dropout.rate, key, first, area, op->add, l->n, op->dx >= 0 ? l->dy : l->x,
                      op->dx >= 0 ? l->dx : l->y);
}

/* channels from .. from + count of one tensor to `to` .. of another */
void cs_train_channels(const cs_train_task *task, const cs_train_op *op) {
    const int from = op->x >= 0 ? op->x : op->dy, to = op->x >= 0 ? op->y : op->dx;
    const cs_tensor *tx = tensor(task, from), *ty = tensor(task, to);
    const int block = task->plan->kernels->block, a = op->as.channels.from, b = op->as.channels.to;
    const int whole = a % block == 0 && b % block == 0;
    const rows r = rows_of(task, (const int[]){from, to}, 2);
    for (int64_t i = task->first; i < task->first + task->images; i++)
        for (int c = 0; c < op->as.channels.count; c += whole ? block : 1)
            for (int64_t h = 0; h < r.height; h++) {
                const float *x = pixels(task, from, i) + (a + c) / block * tx->plane + h * tx->row + (a + c) % block;
                float *y = pixels(task, to, i) + (b + c) / block * ty->plane + h * ty->row + (b + c) % block;
                const int left = op->as.channels.count - c;
                if (whole && (left >= block || b + c + left == ty->channels))
                    task->plan->kernels->train->scale_dx(1.0f, op->add, r.n, x, y);
                else
                    for (int64_t w = 0; w < r.n * block; w += block)
                        for (int l = 0; l < (whole ? left : 1); l++)
                            y[w + l] = op->add ? y[w + l] + x[w + l] : x[w + l];
            }
}

void cs_train_dropout(const cs_train_task *task, const cs_train_op *op) {
    cs_each_line(task, op, op->dx >= 0 ? op->dx : op->y, dropout_line);
}
