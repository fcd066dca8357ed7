/* The compiled training step: the three passes of a convolution against plain loops in double, on every
 * instruction set; a step of a small network on one thread and on several, whose gradient must foretell
 * how the loss changes. Built with -fsanitize=thread it shows every unsynchronised access of a step. */
#include "check.h"
#include "team.h"
#include "train_step.h"

#include <float.h>

static const cs_kernels *k;
static int b;   /* channels a block */

static int up(int n) { return (n + b - 1) / b * b; }

/* -- one convolution ------------------------------------------------------------------------------- */

static cs_train_layout layout(int channels, int h, int w, int halo, int planar) {
    const int64_t px = planar ? 1 : b, row = (w + 2 * halo) * px, plane = (h + 2 * halo) * row;
    return (cs_train_layout){(planar ? channels : up(channels) / b) * plane, plane, row, halo};
}

static float *pixel(float *start, const cs_train_layout *l, int planar, int n, int c, int h, int w) {
    const int px = planar ? 1 : b;
    return start + n * l->image + c / px * l->plane + (h + l->halo) * l->row + (w + l->halo) * px + c % px;
}

/* Images of numbers, zeros around each, NaN in the surplus channels. */
static float *images(const cs_train_layout *l, int planar, int n, int channels, int h, int w) {
    float *x = floats(n * l->image);
    memset(x, 0, sizeof(float) * n * l->image);
    for (int i = 0; i < n; i++)
        for (int c = 0; c < (planar ? channels : up(channels)); c++)
            for (int y = 0; y < h; y++)
                for (int z = 0; z < w; z++)
                    *pixel(x, l, planar, i, c, y, z) = c < channels ? number() : NAN;
    return x;
}

typedef struct sums {
    double *y, *dx, *dweight, *dbias;
} sums;

static double *zeros(int64_t n) {
    double *p = calloc((size_t)n, sizeof(double));
    if (!p)
        abort();
    return p;
}

/* dx holds 1 before, which the gradient is added to. */
static sums plain(const cs_train_conv *l, float *x, const float *weight, const float *bias, float *dy) {
    const int n = l->images, depth = l->c / l->groups, each = l->o / l->groups;
    sums s = {zeros((int64_t)n * l->o * l->oh * l->ow), zeros((int64_t)n * l->c * l->h * l->w),
              zeros((int64_t)l->o * depth * l->kh * l->kw), zeros(l->o)};
    for (int64_t i = 0; i < (int64_t)n * l->c * l->h * l->w; i++)
        s.dx[i] = 1;
    for (int i = 0; i < n; i++)
        for (int o = 0; o < l->o; o++)
            for (int p = 0; p < l->oh * l->ow; p++) {
                const double g = *pixel(dy, &l->dy, 0, i, o, p / l->ow, p % l->ow);
                double sum = bias[o];
                s.dbias[o] += g;
                for (int t = 0; t < depth * l->kh * l->kw; t++) {
                    const int c = o / each * depth + t / (l->kh * l->kw);
                    const int h = p / l->ow * l->sh - l->pt + t / l->kw % l->kh * l->dh;
                    const int w = p % l->ow * l->sw - l->pl + t % l->kw * l->dw;
                    if (h < 0 || h >= l->h || w < 0 || w >= l->w)
                        continue;
                    const int64_t at = (int64_t)o * depth * l->kh * l->kw + t;
                    const double v = *pixel(x, &l->x, l->planar, i, c, h, w);
                    sum += v * weight[at];
                    s.dweight[at] += v * g;
                    s.dx[((i * l->c + c) * l->h + h) * l->w + w] += g * weight[at];
                }
                s.y[((int64_t)i * l->o + o) * l->oh * l->ow + p] = sum;
            }
    return s;
}

static void check_conv(int n, int c, int side, int o, int size, int stride, int padding, int dilation,
                       int groups, int planar, int way, int halo) {
    const int out = (side + 2 * padding - (size - 1) * dilation - 1) / stride + 1;
    const int across = (side + 2 + 2 * padding - (size - 1) * dilation - 1) / stride + 1;
    cs_train_conv l = {.kernels = k, .images = n, .c = c, .h = side, .w = side + 2, .o = o, .oh = out,
                       .ow = across, .kh = size, .kw = size, .sh = stride, .sw = stride, .pt = padding,
                       .pl = padding, .dh = dilation, .dw = dilation, .groups = groups, .planar = planar, .bias = 1,
                       .x = layout(c, side, side + 2, halo, planar), .y = layout(o, out, across, 0, 0),
                       .dx = layout(c, side, side + 2, 1, 0), .dy = layout(o, out, across, halo, 0),
                       .forward_way = way, .data_way = way, .weight_way = way};
    if (cs_train_conv_init(&l))
        abort();
    const int64_t taps = (int64_t)c / groups * size * size;
    float *x = images(&l.x, planar, n, c, side, side + 2), *dy = images(&l.dy, 0, n, o, out, across);
    float *weight = floats(o * taps), *bias = floats(o), *scratch = floats(l.scratch_floats);
    float *y = floats(n * l.y.image), *dx = floats(n * l.dx.image), *partial = floats(2 * l.partial_floats);
    float *forward = calloc((size_t)l.forward_floats, sizeof(float));
    float *backward = calloc((size_t)l.backward_floats + 1, sizeof(float));
    float *dweight = floats(o * taps), *dbias = floats(o);
    const sums s = plain(&l, x, weight, bias, dy);
    const double growth = 16 * (double)FLT_EPSILON;

    for (int part = 0; part < 2; part++)
        cs_train_conv_pack(&l, weight, forward, planar ? NULL : backward, part, 2);
    float *const first_x = pixel(x, &l.x, planar, 0, 0, 0, 0), *const first_dy = pixel(dy, &l.dy, 0, 0, 0, 0, 0);
    float *const first_dx = pixel(dx, &l.dx, 0, 0, 0, 0, 0);
    for (int by_parts = 0; by_parts <= (l.forward_parts > 0); by_parts++) {
        if (by_parts)
            for (int part = 0; part < l.forward_parts; part++)
                cs_train_conv_forward_part(&l, n, part, first_x, weight, bias, NULL, y, scratch);
        else
            for (int i = 0; i < n; i++)
                cs_train_conv_forward(&l, i, i + 1, first_x, forward, bias, NULL, y, NULL, scratch);
        for (int64_t i = 0; i < (int64_t)n * o * out * across; i++)
            check(k->isa, "forward pass",
                  *pixel(y, &l.y, 0, (int)(i / across / out / o), (int)(i / across / out % o),
                         (int)(i / across % out), (int)(i % across)), s.y[i], (double)taps * growth);
    }
    for (int by_parts = 0; !planar && by_parts <= (l.data_parts > 0); by_parts++) {
        for (int64_t i = 0; i < n * l.dx.image; i++)
            dx[i] = 1;
        if (by_parts)
            for (int part = 0; part < l.data_parts; part++)
                cs_train_conv_data_part(&l, n, part, first_dy, weight, first_dx, 1, scratch);
        else
            cs_train_conv_data_gradient(&l, 0, n, first_dy, backward, first_dx, 1, scratch);
        for (int64_t i = 0; i < (int64_t)n * c * side * (side + 2); i++)
            check(k->isa, "data gradient",
                  *pixel(dx, &l.dx, 0, (int)(i / (side + 2) / side / c), (int)(i / (side + 2) / side % c),
                         (int)(i / (side + 2) % side), (int)(i % (side + 2))), s.dx[i], o * size * size * growth);
    }
    for (int by_parts = 0; by_parts <= (l.weight_parts > 0); by_parts++) {
        if (by_parts) {
            for (int part = 0; part < l.weight_parts; part++)
                cs_train_conv_weight_part(&l, n, part, first_x, first_dy, dweight, dbias, scratch);
        } else {
            for (int lane = 0; lane < 2; lane++)
                cs_train_conv_weight_gradient(&l, n * lane / 2, n * (lane + 1) / 2, 0, l.filter_parts, first_x,
                                              first_dy, partial + lane * l.partial_floats, 0, scratch);
            for (int part = 0; part < 3; part++)
                cs_train_conv_reduce(&l, partial, 2, dweight, dbias, part, 3);
        }
        for (int64_t i = 0; i < o * taps; i++)
            check(k->isa, "weight gradient", dweight[i], s.dweight[i], (double)n * out * across * growth);
        for (int i = 0; i < o; i++)
            check(k->isa, "bias gradient", dbias[i], s.dbias[i], (double)n * out * across * growth);
    }
    cs_train_conv_free(&l);
    float *const memory[] = {x, dy, weight, bias, scratch, y, dx, partial, forward, backward, dweight, dbias};
    for (size_t i = 0; i < sizeof memory / sizeof *memory; i++)
        free(memory[i]);
    free(s.y);
    free(s.dx);
    free(s.dweight);
    free(s.dbias);
}

/* -- a step ---------------------------------------------------------------------------------------- */

/* 5@6x6 -> conv 20 -> batch norm, ReLU -> conv 24 (Winograd) -> affine 10 -> loss */
enum { IMAGES = 37, THREADS = 3, SIDE = 6, AREA = SIDE * SIDE, IN = 5, MIDDLE = 20, LAST = 24, CLASSES = 10,
       FEATURES = LAST * AREA, LANES = 3 };
enum { X, LOADED, CONV1, NORM, CONV2, FLAT, LOGITS, D_LOGITS, D_FLAT, D_CONV2, D_NORM, D_CONV1, TENSORS };
enum { WEIGHTS1 = MIDDLE * IN * 9, WEIGHTS2 = LAST * MIDDLE * 9, WEIGHTS3 = CLASSES * FEATURES,
       AT1 = 0, AT2 = AT1 + WEIGHTS1, AT3 = AT2 + WEIGHTS2, AT_BIAS = AT3 + WEIGHTS3, AT_SCALE = AT_BIAS + CLASSES,
       AT_SHIFT = AT_SCALE + MIDDLE, PARAMETERS = AT_SHIFT + MIDDLE };

static cs_tensor tensors[TENSORS];
static int64_t arena_floats;

static void make_tensor(int i, int channels, int side) {
    cs_tensor *t = &tensors[i];
    *t = (cs_tensor){.channels = channels, .height = side, .width = side, .level = 1, .planar = i == X,
                     .px = i == X ? 1 : b, .offset = arena_floats};
    t->row = side * t->px;
    t->plane = side * t->row;
    t->image = (i == X ? channels : up(channels) / b) * t->plane;
    if (i == X)
        t->offset = -1;
    else
        arena_floats += IMAGES * t->image;
}

static cs_train_conv make_layer(int x, int y, int dx, int dy) {
    const cs_tensor *of[] = {&tensors[x], &tensors[y], &tensors[dx], &tensors[dy]};
    cs_train_layout l[4];
    for (int i = 0; i < 4; i++)
        l[i] = (cs_train_layout){of[i]->image, of[i]->plane, of[i]->row, 0};
    cs_train_conv conv = {.kernels = k, .images = IMAGES, .c = of[0]->channels, .h = SIDE, .w = SIDE,
                          .o = of[1]->channels, .oh = SIDE, .ow = SIDE, .kh = 3, .kw = 3, .sh = 1, .sw = 1,
                          .pt = 1, .pl = 1, .dh = 1, .dw = 1, .groups = 1,
                          .x = l[0], .y = l[1], .dx = l[2], .dy = l[3]};
    if (cs_train_conv_init(&conv))
        abort();
    return conv;
}

typedef struct network {
    cs_train_conv conv[2];
    float *forward[2], *backward[2], *partials[2], *packed, *arena, *local[THREADS], *norms;
    double *norm_sums;
    int64_t scratch;
} network;

static network make_network(void) {
    const int channels[TENSORS] = {IN, IN, MIDDLE, MIDDLE, LAST, FEATURES, CLASSES, CLASSES, FEATURES, LAST,
                                   MIDDLE, MIDDLE};
    arena_floats = 0;
    for (int i = 0; i < TENSORS; i++)
        make_tensor(i, channels[i], channels[i] == FEATURES || channels[i] == CLASSES ? 1 : SIDE);
    network net = {.conv = {make_layer(LOADED, CONV1, LOADED, D_CONV1), make_layer(NORM, CONV2, D_NORM, D_CONV2)}};
    for (int i = 0; i < 2; i++) {
        net.forward[i] = calloc((size_t)net.conv[i].forward_floats, sizeof(float));
        net.backward[i] = calloc((size_t)net.conv[i].backward_floats, sizeof(float));
        net.partials[i] = floats(LANES * net.conv[i].partial_floats);
        net.scratch = net.scratch > net.conv[i].scratch_floats ? net.scratch : net.conv[i].scratch_floats;
    }
    net.packed = floats((int64_t)FEATURES * up(CLASSES));
    net.arena = floats(arena_floats + 64);
    for (int i = 0; i < THREADS; i++)
        net.local[i] = floats(net.scratch);
    net.norms = floats((9 + LANES) * up(MIDDLE));
    net.norm_sums = zeros(2 * LANES * up(MIDDLE));
    return net;
}

static void free_network(network *net) {
    for (int i = 0; i < 2; i++) {
        cs_train_conv_free(&net->conv[i]);
        free(net->forward[i]);
        free(net->backward[i]);
        free(net->partials[i]);
    }
    for (int i = 0; i < THREADS; i++)
        free(net->local[i]);
    free(net->packed);
    free(net->arena);
    free(net->norms);
    free(net->norm_sums);
}

static cs_train_op blank(int kind, int x, int y, int dx, int dy) {
    return (cs_train_op){.kind = kind, .x = x, .r = -1, .y = y, .dx = dx, .dy = dy, .dr = -1,
                         .activation = {-INFINITY, INFINITY, CS_NO_CURVE, 0, 0}};
}

/* The loss; the gradient goes to g, in the order of the parameters p. */
static double step(network *net, const float *x, const float *targets, const float *p, float *g, int threads) {
    const int64_t room = up(MIDDLE);
    float *n = net->norms;
    float *statistics = n + 7 * room + LANES * room;   /* the running ones */
    for (int64_t i = 0; i < 2 * room; i++)
        statistics[i] = 0;
    cs_train_norm norm = {.channels = MIDDLE, .room = room, .eps = 1e-5f, .momentum = 0.1f, .weight = p + AT_SCALE,
                          .bias = p + AT_SHIFT, .running_mean = statistics, .running_var = statistics + room,
                          .dweight = g + AT_SCALE, .dbias = g + AT_SHIFT, .mean = n, .istd = n + room,
                          .scale = n + 2 * room, .shift = n + 3 * room, .of_dy = n + 4 * room, .of_x = n + 5 * room,
                          .offset = n + 6 * room, .start = n + 7 * room, .sums = net->norm_sums,
                          .squares = net->norm_sums + LANES * room};
    cs_train_op ops[] = {
        /* by parts */
        blank(CS_TRAIN_CONV_PACK, -1, -1, -1, -1), blank(CS_TRAIN_CONV_PACK, -1, -1, -1, -1),
        blank(CS_TRAIN_AFFINE_PACK, -1, -1, -1, -1),
        /* by images, then once */
        blank(CS_TRAIN_LOAD, X, LOADED, -1, -1), blank(CS_TRAIN_CONV, LOADED, CONV1, -1, -1),
        blank(CS_TRAIN_STATISTICS, CONV1, -1, -1, -1), blank(CS_TRAIN_STATISTICS_DONE, CONV1, -1, -1, -1),
        blank(CS_TRAIN_NORM, CONV1, NORM, -1, -1), blank(CS_TRAIN_CONV, NORM, CONV2, -1, -1),
        blank(CS_TRAIN_FLATTEN, CONV2, FLAT, -1, -1), blank(CS_TRAIN_AFFINE, FLAT, LOGITS, -1, -1),
        blank(CS_TRAIN_LOSS, LOGITS, -1, D_LOGITS, -1), blank(CS_TRAIN_AFFINE_DX, -1, -1, D_FLAT, D_LOGITS),
        blank(CS_TRAIN_FLATTEN_DX, -1, -1, D_CONV2, D_FLAT), blank(CS_TRAIN_CONV_DW, NORM, -1, -1, D_CONV2),
        blank(CS_TRAIN_CONV_DX, -1, -1, D_NORM, D_CONV2), blank(CS_TRAIN_NORM_SUMS, CONV1, NORM, -1, D_NORM),
        blank(CS_TRAIN_NORM_SUMS_DONE, CONV1, -1, -1, -1),
        blank(CS_TRAIN_NORM_DX, CONV1, -1, D_CONV1, D_NORM), blank(CS_TRAIN_CONV_DW, LOADED, -1, -1, D_CONV1),
        /* by parts */
        blank(CS_TRAIN_CONV_REDUCE, -1, -1, -1, -1), blank(CS_TRAIN_CONV_REDUCE, -1, -1, -1, -1),
        blank(CS_TRAIN_AFFINE_DW, FLAT, -1, -1, D_LOGITS),
    };
    enum { OPS = sizeof ops / sizeof *ops };
    const int of_conv[][2] = {{0, 0}, {1, 1}, {4, 0}, {8, 1}, {14, 1}, {15, 1}, {19, 0}, {20, 0}, {21, 1}};
    for (size_t i = 0; i < sizeof of_conv / sizeof *of_conv; i++) {
        const int c = of_conv[i][1];
        cs_train_op *op = &ops[of_conv[i][0]];
        op->as.conv = (cs_train_conv_op){&net->conv[c], net->forward[c], net->backward[c], net->partials[c]};
        op->weight = p + (c ? AT2 : AT1);
        op->dweight = g + (c ? AT2 : AT1);
    }
    const int of_affine[] = {2, 10, 12, 22}, of_norm[] = {5, 6, 7, 16, 17, 18};
    for (size_t i = 0; i < sizeof of_affine / sizeof *of_affine; i++) {
        cs_train_op *op = &ops[of_affine[i]];
        op->as.affine = (cs_train_affine_op){FEATURES, CLASSES, net->packed, up(CLASSES)};
        op->weight = p + AT3;
        op->dweight = g + AT3;
        op->dbias = g + AT_BIAS;
    }
    float bias[64] = {0};   /* it is read up to whole vectors */
    memcpy(bias, p + AT_BIAS, sizeof(float) * CLASSES);
    ops[10].bias = bias;
    for (size_t i = 0; i < sizeof of_norm / sizeof *of_norm; i++)
        ops[of_norm[i]].as.norm = (cs_train_norm_op){&norm, {0, INFINITY, CS_NO_CURVE, 0, 0}, CS_SLOPE_AT_RESULT};
    ops[16].dr = D_NORM;        /* masked in place */
    const int parts[][2] = {{0, 3}, {1, 3}, {2, (CLASSES + b - 1) / b}, {20, 3}, {21, 3},
                            {22, (CLASSES + CS_DW_ROWS - 1) / CS_DW_ROWS}};
    cs_segment segments[] = {{0, 3, 3, 0, 0}, {3, 6, 7, 0, 4}, {7, 17, 18, 0, 4}, {18, 20, 20, 0, 4},
                             {20, 23, 23, 0, 0}};
    for (int i = 0; i < 6; i++) {
        cs_segment *s = &segments[i < 3 ? 0 : 4];
        ops[parts[i][0]].part = s->parts;
        ops[parts[i][0]].parts = parts[i][1];
        s->parts += parts[i][1];
    }
    const cs_train_plan plan = {k, tensors, ops, segments, 5, OPS, CLASSES, LANES};
    cs_train_progress progress[5];
    cs_train_batch batch = {.n = IMAGES, .x = x, .targets = targets, .arena = net->arena, .local = net->local,
                            .progress = progress};
    cs_train_run(&plan, &batch, threads, cs_team_run);
    check(k->isa, "images that were right", batch.correct >= 0 && batch.correct <= IMAGES, 1, 0);
    return batch.loss;
}

static void check_step(int rounds) {
    network net = make_network();
    float *x = floats((int64_t)IMAGES * IN * AREA), *targets = floats(IMAGES * CLASSES), *p = floats(PARAMETERS);
    float *g = floats(PARAMETERS), *other = floats(PARAMETERS), *moved = floats(PARAMETERS);
    for (int i = 0; i < IMAGES * CLASSES; i++)
        targets[i] = i % CLASSES == i / CLASSES % CLASSES;
    for (int i = 0; i < AT_BIAS; i++)
        p[i] *= i < AT2 ? 0.3f : i < AT3 ? 0.1f : 0.03f;
    for (int i = 0; i < MIDDLE; i++)
        p[AT_SCALE + i] += 1.5f;
    const double loss = step(&net, x, targets, p, g, 1);
    double square = 0, changed[2];
    for (int i = 0; i < PARAMETERS; i++)
        square += (double)g[i] * g[i];
    for (int side = 0; side < 2; side++) {
        for (int i = 0; i < PARAMETERS; i++)
            moved[i] = p[i] + (side ? 0.002f : -0.002f) * g[i];
        changed[side] = step(&net, x, targets, moved, other, 1);
    }
    check(k->isa, "change of the loss along the gradient", (changed[1] - changed[0]) / 0.004, square, 0.02 * square);
    for (int round = 0; round < rounds; round++) {
        memset(other, 0xff, sizeof(float) * PARAMETERS);
        const double again = step(&net, x, targets, p, other, 1 + round % THREADS);
        check(k->isa, "loss on several threads", again, loss, 0);
        check(k->isa, "gradients that differ on several threads",
              memcmp(g, other, sizeof(float) * PARAMETERS) != 0, 0, 0);
    }
    free_network(&net);
    free(x);
    free(targets);
    free(p);
    free(g);
    free(other);
    free(moved);
}

/* check_training [rounds] */
int main(int argc, char **argv) {
    const int rounds = argc > 1 ? atoi(argv[1]) : 30;
    const char *names[8];
    const int count = cs_available(names, 8);
    for (int i = 0; i < count; i++) {
        k = cs_kernels_for(names[i]);
        b = k->block;
        for (int halo = 0; halo <= 2; halo += 2) {
            for (int way = CS_WAY_DIRECT; way <= CS_WAY_WINOGRAD4; way++)
                check_conv(3, b + 3, 7, 2 * b + 1, 3, 1, 1, 1, 1, 0, way, halo);
            check_conv(2, b + 3, 8, b + 1, 3, 2, 1, 1, 1, 0, CS_WAY_AUTO, halo);
            check_conv(2, 2 * b, 6, b, 1, 2, 0, 1, 1, 0, CS_WAY_AUTO, halo);
            check_conv(2, 3, 9, b / 2, 5, 1, 2, 1, 1, 1, CS_WAY_AUTO, halo);
            check_conv(2, 3, 2 * b, b / 2, 3, 1, 1, 1, 1, 1, CS_WAY_AUTO, halo);
            check_conv(2, 2 * b, 7, 4 * b, 3, 1, 2, 2, 2, 0, CS_WAY_AUTO, halo);
            check_conv(2, b + 1, 7, b + 1, 3, 1, 1, 1, b + 1, 0, CS_WAY_AUTO, halo);
            check_conv(2, b + 1, 8, b + 1, 5, 2, 2, 1, b + 1, 0, CS_WAY_AUTO, halo);
        }
        check_conv(2, 192, 4, 208, 3, 1, 1, 1, 1, 0, CS_WAY_AUTO, 0);    /* by filters */
        check_step(rounds);
    }
    return report("check_training");
}
