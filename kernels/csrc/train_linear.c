/* Convolution, affine layers, the batch, the rows after the last image, and the loss. */
#include "train_rows.h"

void cs_train_convolution(const cs_train_task *task, const cs_train_op *op) {
    const cs_train_conv_op *c = &op->as.conv;
    const int n0 = (int)task->first, n1 = (int)(task->first + task->images);
    if (op->kind == CS_TRAIN_CONV)
        cs_train_conv_forward(c->layer, n0, n1, image_0(task, op->x), c->forward, op->bias, &op->activation,
                              image_0(task, op->y), NULL, task->scratch);
    else if (op->kind == CS_TRAIN_CONV_DX)
        cs_train_conv_data_gradient(c->layer, n0, n1, image_0(task, op->dy), c->backward,
                                    image_0(task, op->dx), op->add, task->scratch);
    else
        cs_train_conv_weight_gradient(c->layer, n0, n1, 0, c->layer->filter_parts, image_0(task, op->x),
                                      image_0(task, op->dy), c->partials + task->lane * c->layer->partial_floats,
                                      !task->fresh, task->scratch);
}

void cs_train_affine(const cs_train_task *task, const cs_train_op *op) {
    const cs_kernels *k = task->plan->kernels;
    const cs_train_affine_op *a = &op->as.affine;
    const int forward = op->kind == CS_TRAIN_AFFINE;
    const int from = forward ? op->x : op->dy, to = forward ? op->y : op->dx;
    const float *in = pixels(task, from, task->first);
    float *out = pixels(task, to, task->first);
    cs_gemm g = {.rows = task->images, .a_row = tensor(task, from)->image, .a_step = 1,
                 .c_row = tensor(task, to)->image, .add = op->add};
    if (forward) {
        g.columns = a->packed_row;
        g.depth = a->inputs;
        g.b_step = a->packed_row;
        k->train->gemm(&g, in, a->packed, op->bias, out);
        for (int64_t i = 0; i < task->images; i++)
            k->activate(&op->activation, a->packed_row / k->block, out + i * g.c_row, k->block,
                        out + i * g.c_row, k->block);
    } else {
        g.columns = a->inputs;
        g.depth = a->outputs;
        g.b_step = a->inputs;
        k->train->gemm(&g, in, op->weight, NULL, out);
    }
}

void cs_train_affine_dw(const cs_train_task *task, const cs_train_op *op, int part) {
    static const float one = 1.0f;
    const cs_train_affine_op *a = &op->as.affine;
    const cs_tensor *tx = tensor(task, op->x), *tdy = tensor(task, op->dy);
    const int64_t first = (int64_t)part * CS_DW_ROWS;
    const float *dy = pixels(task, op->dy, 0) + first;
    cs_gemm g = {.rows = a->outputs - first < CS_DW_ROWS ? a->outputs - first : CS_DW_ROWS, .columns = a->inputs,
                 .depth = task->batch->n, .a_row = 1, .a_step = tdy->image, .b_step = tx->image,
                 .c_row = a->inputs, .exact = 1};
    task->plan->kernels->train->gemm(&g, dy, pixels(task, op->x, 0), NULL, op->dweight + first * a->inputs);
    if (!op->dbias)
        return;
    cs_gemm sum = {.rows = 1, .columns = g.rows, .depth = g.depth, .b_step = tdy->image, .exact = 1};
    task->plan->kernels->train->gemm(&sum, &one, dy, NULL, op->dbias + first);
}

void cs_train_affine_pack(const cs_train_task *task, const cs_train_op *op, int part) {
    const cs_kernels *k = task->plan->kernels;
    const cs_train_affine_op *a = &op->as.affine;
    const int64_t first = (int64_t)part * k->block, left = a->outputs - first;
    k->pack(left < k->block ? (int)left : k->block, 0, 1, (int)a->inputs, op->weight + first * a->inputs,
            a->inputs, a->inputs, 1, a->packed + first, 0, a->packed_row);
}

/* blocked -> one row in the order of NCHW, or back */
void cs_train_flatten(const cs_train_task *task, const cs_train_op *op) {
    const cs_kernels *k = task->plan->kernels;
    const int forward = op->kind == CS_TRAIN_FLATTEN;
    const int image = forward ? op->x : op->dx, flat = forward ? op->y : op->dy;
    const cs_tensor *t = tensor(task, image);
    const int64_t area = (int64_t)t->height * t->width;
    for (int64_t i = task->first; i < task->first + task->images; i++)
        for (int p = 0; p < planes(task, t); p++) {
            const int left = t->channels - p * k->block, count = left < k->block ? left : k->block;
            float *row = pixels(task, flat, i) + p * k->block * area;
            float *at = line_of(task, image, i, p, 0);
            if (forward)
                k->unpack(count, 0, t->height, t->width, at, t->row, row, area, t->width);
            else if (!op->add)
                k->pack(count, 0, t->height, t->width, row, area, t->width, 1, at, t->row, t->px);
            else
                for (int h = 0; h < t->height; h++)
                    for (int w = 0; w < t->width; w++)
                        for (int c = 0; c < count; c++)
                            at[h * t->row + w * t->px + c] += row[c * area + (int64_t)h * t->width + w];
        }
}

void cs_train_load(const cs_train_task *task, const cs_train_op *op) {
    const cs_kernels *k = task->plan->kernels;
    const cs_tensor *tx = tensor(task, op->x), *ty = tensor(task, op->y);
    for (int64_t i = task->first; i < task->first + task->images; i++) {
        const float *x = task->batch->x + i * tx->image;
        for (int p = 0; p < planes(task, ty); p++) {
            const int left = ty->channels - p * k->block;
            k->pack(left < k->block ? left : k->block, 0, ty->height, ty->width, x + p * k->block * tx->plane,
                    tx->plane, tx->row, 1, line_of(task, op->y, i, p, 0), ty->row, ty->px);
        }
    }
}

static int64_t largest(int64_t n, const float *x) {
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++)
        if (x[i] > x[best])
            best = i;
    return best;
}

void cs_train_loss(const cs_train_task *task, const cs_train_op *op) {
    const int64_t classes = task->plan->classes;
    cs_train_lane *lane = &task->lanes[task->lane];
    for (int64_t i = task->first; i < task->first + task->images; i++) {
        const float *x = pixels(task, op->x, i), *t = task->batch->targets + i * classes;
        lane->loss += task->plan->kernels->train->cross_entropy(classes, x, t, 1.0f / (float)task->batch->n,
                                                                pixels(task, op->dx, i));
        lane->correct += largest(classes, x) == largest(classes, t);
    }
}

void cs_train_softmax(const cs_train_task *task, const cs_train_op *op) {
    const cs_kernels *k = task->plan->kernels;
    const int64_t n = tensor(task, op->y)->channels;
    for (int64_t i = task->first; i < task->first + task->images; i++)
        if (op->kind == CS_TRAIN_SOFTMAX)
            k->softmax(n, pixels(task, op->x, i), pixels(task, op->y, i));
        else
            k->train->softmax_dx(n, pixels(task, op->y, i), pixels(task, op->dy, i), op->add, pixels(task, op->dx, i));
}
