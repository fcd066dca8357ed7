/* Batch norm in training. */
#include "train_rows.h"

#include <math.h>
#include <string.h>

static cs_norm_block norm_block(const cs_train_op *op, int64_t at) {
    const cs_train_norm *n = op->as.norm.norm;
    return (cs_norm_block){&op->as.norm.activation, op->as.norm.slope_at, op->add, n->mean + at, n->scale + at,
                           n->shift + at, n->of_dy + at, n->of_x + at, n->offset + at};
}

static void start_sums(const cs_train_task *task, const cs_train_op *op) {
    const cs_train_norm *n = op->as.norm.norm;
    const int64_t at = task->lane * n->room;
    memset(n->sums + at, 0, sizeof(double) * n->room);
    memset(n->squares + at, 0, sizeof(double) * n->room);
    if (op->kind != CS_TRAIN_STATISTICS)
        return;
    /* near the mean: that of the lane's first image */
    const cs_tensor *t = tensor(task, op->x);
    for (int p = 0; p < planes(task, t); p++)
        task->plan->kernels->global_avg_pool(t->height, t->width, t->row, line_of(task, op->x, task->first, p, 0),
                                             n->start + at + p * task->plan->kernels->block);
}

static void norm_line(const cs_train_task *task, const cs_train_op *op, const line *l) {
    const cs_train_norm *n = op->as.norm.norm;
    const cs_train_kernels *k = task->plan->kernels->train;
    const int64_t at = l->plane * task->plan->kernels->block, in_lane = task->lane * n->room + at;
    const cs_norm_block b = norm_block(op, at);
    if (op->kind == CS_TRAIN_STATISTICS)
        k->norm_statistics(l->n, l->x, n->start + in_lane, n->sums + in_lane, n->squares + in_lane);
    else if (op->kind == CS_TRAIN_NORM)
        k->norm(&b, l->n, l->x, l->r, l->y);
    else if (op->kind == CS_TRAIN_NORM_SUMS)
        k->norm_sums(&b, l->n, l->x, l->y, l->dy, l->dr, n->sums + in_lane, n->squares + in_lane);
    else
        k->norm_dx(&b, l->n, l->x, l->dy, l->dx);
}

void cs_train_statistics_done(const cs_train_task *task, const cs_train_op *op) {
    const cs_train_norm *n = op->as.norm.norm;
    const cs_tensor *t = tensor(task, op->x);
    const double area = (double)t->height * t->width;
    for (int c = 0; c < n->channels; c++) {
        /* lane by lane: Chan et al. 1979, "Updating formulae" */
        double count = 0, mean = 0, squares = 0;
        for (int lane = 0; lane < task->lane_count; lane++) {
            const int64_t at = lane * n->room + c;
            const double own = area * (double)(cs_lane_first(task, lane + 1) - cs_lane_first(task, lane));
            const double own_mean = n->sums[at] / own, d = own_mean + n->start[at] - mean;
            squares += n->squares[at] - own * own_mean * own_mean + d * d * count * own / (count + own);
            mean += d * own / (count + own);
            count += own;
        }
        const double var = squares > 0 ? squares / count : squares * 0;
        const double istd = 1 / sqrt(var + n->eps);
        n->mean[c] = (float)mean;
        n->istd[c] = (float)istd;
        n->scale[c] = (float)(n->weight[c] * istd);
        n->shift[c] = (float)(n->bias[c] - n->weight[c] * istd * mean);
        /* the running variance is the unbiased estimate */
        const double unbiased = var * (count / (count > 1 ? count - 1 : 1));
        n->running_mean[c] += n->momentum * (float)(mean - n->running_mean[c]);
        n->running_var[c] += n->momentum * (float)(unbiased - n->running_var[c]);
    }
}

void cs_train_norm_sums_done(const cs_train_task *task, const cs_train_op *op) {
    const cs_train_norm *n = op->as.norm.norm;
    const cs_tensor *t = tensor(task, op->x);
    const double count = (double)t->height * t->width * (double)task->batch->n;
    for (int c = 0; c < n->channels; c++) {
        double sum = 0, product = 0;
        for (int lane = 0; lane < task->lane_count; lane++) {
            sum += n->sums[lane * n->room + c];
            product += n->squares[lane * n->room + c];
        }
        const double istd = n->istd[c], scale = n->weight[c] * istd;
        n->dbias[c] = (float)sum;
        n->dweight[c] = (float)(product * istd);
        n->of_dy[c] = (float)scale;
        n->of_x[c] = (float)(-scale * istd * istd * product / count);
        n->offset[c] = (float)(-scale * sum / count);
    }
}

void cs_train_normalisation(const cs_train_task *task, const cs_train_op *op) {
    if (task->fresh && (op->kind == CS_TRAIN_STATISTICS || op->kind == CS_TRAIN_NORM_SUMS))
        start_sums(task, op);
    cs_each_line(task, op, op->x, norm_line);
}
