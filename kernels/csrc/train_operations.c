/* What each kind of operation of a training step does. */
#include "train_rows.h"

#include <string.h>

/* Memory is shared by tensors whose lives don't overlap, so a halo is written anew. */
static void zero_halo(const cs_train_task *task, int number) {
    const cs_tensor *t = tensor(task, number);
    if (no_halo(t))
        return;
    for (int64_t i = task->first; i < task->first + task->images; i++)
        for (int p = 0; p < planes(task, t); p++) {
            float *start = pixels(task, number, i) + p * t->plane - t->top * t->row - t->left * t->px;
            memset(start, 0, sizeof(float) * t->top * t->row);
            for (int h = t->top; h < t->top + t->height; h++) {
                memset(start + h * t->row, 0, sizeof(float) * t->left * t->px);
                memset(start + h * t->row + (t->left + t->width) * t->px, 0, sizeof(float) * t->right * t->px);
            }
            memset(start + (t->top + t->height) * t->row, 0, sizeof(float) * t->bottom * t->row);
        }
}

void cs_each_line(const cs_train_task *task, const cs_train_op *op, int sized,
                  void (*what)(const cs_train_task *task, const cs_train_op *op, const line *l)) {
    const int numbers[] = {sized, op->x, op->r, op->y, op->dx, op->dy, op->dr};
    const cs_tensor *t = tensor(task, sized);
    const rows r = rows_of(task, numbers, 7);
    for (int64_t i = task->first; i < task->first + task->images; i++)
        for (int p = 0; p < planes(task, t); p++)
            for (int64_t h = 0; h < r.height; h++) {
                line l = {i, r.n, h * r.n, p, NULL, NULL, NULL, NULL, NULL, NULL};
                float **const at[] = {&l.x, &l.r, &l.y, &l.dx, &l.dy, &l.dr};
                for (int k = 0; k < 6; k++)
                    if (numbers[k + 1] >= 0) {
                        const cs_tensor *own = tensor(task, numbers[k + 1]);
                        *at[k] = line_of(task, numbers[k + 1], i, p, own->height == t->height ? h : 0);
                    }
                what(task, op, &l);
            }
}

void cs_train_of_images(const cs_train_task *task, const cs_train_op *op) {
    const int written[] = {op->dx >= 0 || op->dy >= 0 ? -1 : op->y, op->dx, op->dr};
    for (int i = 0; i < 3; i++)
        if (written[i] >= 0)
            zero_halo(task, written[i]);
    switch (op->kind) {
    case CS_TRAIN_LOAD: cs_train_load(task, op); break;
    case CS_TRAIN_CONV: case CS_TRAIN_CONV_DX: case CS_TRAIN_CONV_DW: cs_train_convolution(task, op); break;
    case CS_TRAIN_AFFINE: case CS_TRAIN_AFFINE_DX: cs_train_affine(task, op); break;
    case CS_TRAIN_STATISTICS: case CS_TRAIN_NORM: case CS_TRAIN_NORM_SUMS: case CS_TRAIN_NORM_DX:
        cs_train_normalisation(task, op);
        break;
    case CS_TRAIN_MAX_POOL: case CS_TRAIN_MAX_POOL_DX: case CS_TRAIN_AVG_POOL: case CS_TRAIN_AVG_POOL_DX:
        cs_train_pooling(task, op);
        break;
    case CS_TRAIN_GLOBAL_AVG: case CS_TRAIN_GLOBAL_AVG_DX: case CS_TRAIN_GLOBAL_MAX: case CS_TRAIN_GLOBAL_MAX_DX:
        cs_train_global_pooling(task, op);
        break;
    case CS_TRAIN_ARITHMETIC: cs_train_arithmetic(task, op); break;
    case CS_TRAIN_DROPOUT: cs_train_dropout(task, op); break;
    case CS_TRAIN_CHANNELS: cs_train_channels(task, op); break;
    case CS_TRAIN_FLATTEN: case CS_TRAIN_FLATTEN_DX: cs_train_flatten(task, op); break;
    case CS_TRAIN_SOFTMAX: case CS_TRAIN_SOFTMAX_DX: cs_train_softmax(task, op); break;
    case CS_TRAIN_LOSS: cs_train_loss(task, op); break;
    default: cs_train_pointwise(task, op);
    }
}

void cs_train_of_part(const cs_train_task *task, const cs_train_op *op, int part) {
    const cs_train_conv_op *c = &op->as.conv;
    const int n = (int)task->batch->n;
    switch (op->kind) {
    case CS_TRAIN_CONV_PACK:
        cs_train_conv_pack(c->layer, op->weight, c->forward, c->backward, part, op->parts);
        break;
    case CS_TRAIN_CONV_REDUCE:
        cs_train_conv_reduce(c->layer, c->partials, task->lane_count, op->dweight, op->dbias, part, op->parts);
        break;
    case CS_TRAIN_CONV_PARTS:
        cs_train_conv_forward_part(c->layer, n, part, pixels(task, op->x, 0), op->weight, op->bias, &op->activation,
                                   pixels(task, op->y, 0), task->scratch);
        break;
    case CS_TRAIN_CONV_DX_PARTS:
        cs_train_conv_data_part(c->layer, n, part, pixels(task, op->dy, 0), op->weight, pixels(task, op->dx, 0),
                                op->add, task->scratch);
        break;
    case CS_TRAIN_CONV_DW_PARTS:
        cs_train_conv_weight_part(c->layer, n, part, pixels(task, op->x, 0), pixels(task, op->dy, 0), op->dweight,
                                  op->dbias, task->scratch);
        break;
    case CS_TRAIN_AFFINE_PACK: cs_train_affine_pack(task, op, part); break;
    case CS_TRAIN_PRELU_REDUCE: cs_train_prelu_reduce(task, op); break;
    default: cs_train_affine_dw(task, op, part);
    }
}

void cs_train_once(const cs_train_task *task, const cs_train_op *op) {
    if (op->kind == CS_TRAIN_STATISTICS_DONE)
        cs_train_statistics_done(task, op);
    else
        cs_train_norm_sums_done(task, op);
}
