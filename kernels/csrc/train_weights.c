/* The gradient of the weights (train_conv.h). A partial sum holds a square [b of x][b of dy] for each
 * output block, plane of x and filter tap (cs_squares), then the gradient of the bias. */
#include "train_parts.h"

#include <string.h>

/* Images of which a pass over the taps keeps x and dy in the second-level cache. */
#define STAGED_FLOATS (96 * 1024)

static void direct_gradient(const cs_train_conv *l, const cs_squares *s, int n0, int n1, int b0, int b1,
                            const float *x, const float *dy, float *partial, int add, float *room) {
    const cs_kernels *k = l->kernels;
    const int b = l->block, px = l->planar ? 1 : b;
    const cs_window window = cs_train_window_x(l);
    const cs_conv *c = &l->direct[0].conv;
    const int inner = l->planar ? c->inner : b, taps_w = l->planar ? c->kw : l->kw;
    cs_wgrad a = {.oh = l->oh, .ow = l->ow, .x_image = l->x.image, .x_oh = c->x_oh, .x_px = c->x_px,
                  .g_image = l->dy.image, .g_row = l->dy.row, .g_block = l->dy.plane};
    const int64_t one = l->planes * l->x.plane + (b1 - b0) * l->dy.plane;
    const int group = l->staged_x ? 1 : (int)cs_max(1, STAGED_FLOATS / one);
    for (int n = n0; n < n1; n += group, add = 1) {
        const float *first = x + n * l->x.image + window.top * l->x.row + (int64_t)window.left * px;
        a.n = cs_min(group, n1 - n);
        if (l->staged_x) {
            cs_train_stage(k, &window, l->planar, l->planes, l->h, l->w, x + n * l->x.image, l->x.plane,
                           l->x.row, room);
            first = room;
        }
        for (int i = b0; i < b1; i += 2) {
            const int count = i + 1 < b1 ? 2 : 1;
            a.half = k->half && count == 1 && l->o - i * b <= b / 2;
            /* planes of the groups of these filters */
            const int each = l->o / l->groups, depth = l->c / l->groups, plane = l->planar ? 1 : b;
            const int low = i * b / each * depth / plane;
            const int high = (int)((cs_min(l->o, (i + count) * b) - 1) / each * depth + depth - 1) / plane;
            for (int p = low; p <= high; p++) {
                const int rows = !l->planar && p == l->planes - 1 ? l->c - p * b : inner;
                float *to = partial + (i - b0) * s->block + p * s->plane;
                for (int tap = 0; tap < l->kh * taps_w; tap++)
                    k->weight_gradient(&a, rows, count,
                                       first + p * c->x_plane + tap / taps_w * c->x_kh + tap % taps_w * c->x_kw,
                                       dy + n * l->dy.image + i * l->dy.plane,
                                       to + tap * (l->planar ? inner * b : s->tap), s->block, add);
            }
        }
    }
}

static void depthwise_gradient(const cs_train_conv *l, const cs_squares *s, int n0, int n1, int b0, int b1,
                               const float *x, const float *dy, float *partial, int add, float *room) {
    const cs_window window = cs_train_window_x(l);
    const cs_conv *c = &l->direct[0].conv;
    const cs_depthwise d = {.oh = l->oh, .ow = l->ow, .kh = l->kh, .kw = l->kw, .x_kh = c->x_kh,
                            .x_kw = c->x_kw, .x_px = c->x_px, .x_oh = c->x_oh};
    const cs_wgrad a = {.oh = l->oh, .ow = l->ow, .g_row = l->dy.row};
    for (int n = n0; n < n1; n++, add = 1) {
        const float *first = x + n * l->x.image + window.top * l->x.row + (int64_t)window.left * l->block;
        if (l->staged_x) {
            cs_train_stage(l->kernels, &window, 0, l->planes, l->h, l->w, x + n * l->x.image, l->x.plane,
                           l->x.row, room);
            first = room;
        }
        for (int i = b0; i < b1; i++)
            l->kernels->depthwise_gradient(&d, &a, first + i * c->x_plane, dy + n * l->dy.image + i * l->dy.plane,
                                           partial + (i - b0) * s->block, add);
    }
}

/* As the products of the forward pass, but summed over the tiles. */
static void winograd_gradient(const cs_train_conv *l, const cs_squares *s, int n0, int n1, int b0, int b1,
                              const float *x, const float *dy, float *partial, int add, float *room, int again) {
    const cs_kernels *k = l->kernels;
    cs_winograd t = cs_train_tiles(l, l->weight_way, 0);
    t.y_block = l->dy.plane;
    t.y_row = l->dy.row;
    const int b = l->block, blocks = b1 - b0, each = t.rows * t.columns;
    const int64_t total = (int64_t)(n1 - n0) * each, chunks = (total + l->weight_slots - 1) / l->weight_slots;
    for (int64_t chunk = 0; chunk < chunks; chunk++, add = 1) {
        const int64_t from = total * chunk / chunks, to = total * (chunk + 1) / chunks;
        const int count = (int)(to - from);
        const int64_t v_step = cs_winograd_step(l->planes, count, b), g_step = cs_winograd_step(blocks, count, b);
        float *g = room + s->taps * v_step;
        for (int64_t at = from; at < to;) {
            const int first = (int)(at % each), now = (int)cs_min(to - at, each - first);
            const int64_t n = n0 + at / each;
            if (!again || chunks > 1)
                k->winograd_input(&t, first, now, x + n * l->x.image, room, (int)(at - from), count);
            k->winograd_gradient(&t, blocks, first, now, dy + n * l->dy.image + b0 * l->dy.plane, g,
                                 (int)(at - from), count);
            at += now;
        }
        const cs_wgrad a = {.n = 1, .oh = 1, .ow = count, .x_px = b, .g_block = (int64_t)count * b};
        for (int tap = 0; tap < s->taps; tap++)
            for (int i = 0; i < blocks; i += 2)
                for (int p = 0; p < l->planes; p++)
                    k->weight_gradient(&a, p == l->planes - 1 ? l->c - p * b : b, i + 1 < blocks ? 2 : 1,
                                       room + tap * v_step + (int64_t)p * count * b,
                                       g + tap * g_step + (int64_t)i * count * b,
                                       partial + tap * s->tap + i * s->block + p * s->plane, s->block, add);
    }
}

void cs_train_bias_gradient(const cs_train_conv *l, int n0, int n1, int b0, int b1, const float *dy, float *dbias,
                            int add) {
    for (int i = b0; i < b1; i++) {
        double sums[16] = {0};      /* a block has no more lanes */
        for (int n = n0; n < n1; n++)
            l->kernels->channel_sums(l->oh, l->ow, dy + n * l->dy.image + i * l->dy.plane, l->dy.row, sums, NULL);
        for (int lane = 0; lane < l->block; lane++)
            dbias[lane] = (float)(sums[lane] + (add ? dbias[lane] : 0));
        dbias += l->block;
    }
}

void cs_train_weight_gradient(const cs_train_conv *l, const cs_squares *s, int n0, int n1, int b0, int b1,
                              const float *x, const float *dy, float *partial, int add, float *room, int again) {
    if (l->weight_way == CS_WAY_DEPTHWISE)
        depthwise_gradient(l, s, n0, n1, b0, b1, x, dy, partial, add, room);
    else if (cs_is_winograd(l->weight_way))
        winograd_gradient(l, s, n0, n1, b0, b1, x, dy, partial, add, room, again);
    else
        direct_gradient(l, s, n0, n1, b0, b1, x, dy, partial, add, room);
}

void cs_train_conv_weight_gradient(const cs_train_conv *l, int n0, int n1, int f0, int f1, const float *x,
                                   const float *dy, float *partial, int add, float *scratch) {
    const cs_squares s = cs_train_squares(l, l->blocks);
    const int each = l->weight_way == CS_WAY_DEPTHWISE ? 1 : 2;
    const int b0 = f0 * each, b1 = (int)cs_min(f1 * each, l->blocks);
    if (b0 >= b1 || n0 >= n1)
        return;
    cs_train_weight_gradient(l, &s, n0, n1, b0, b1, x, dy, partial + b0 * s.block, add, scratch, 0);
    if (l->bias)
        cs_train_bias_gradient(l, n0, n1, b0, b1, dy, partial + s.bias + b0 * l->block, add);
}

/* The sum of `count` partial sums of the b values at v. */
static void add_up(const float *v, int64_t floats, int count, int b, float *sum) {
    memcpy(sum, v, sizeof(float) * b);
    for (int i = 1; i < count; i++)
        for (int lane = 0; lane < b; lane++)
            sum[lane] += v[i * floats + lane];
}

/* Entries [e0, e1), numbered channel by channel, taps each, of a block and plane: b filters' values each. */
static void gather(const cs_train_conv *l, const cs_squares *s, const float *from, int count, int e0, int e1,
                   float *values) {
    const int b = l->block, taps = l->kh * l->kw;
    float coefficients[36 * 16];
    if (!cs_is_winograd(l->weight_way)) {
        for (int e = e0; e < e1; e++)
            add_up(from + e % taps * s->tap + (int64_t)(e / taps) * b, l->partial_floats, count, b,
                   values + (e - e0) * b);
        return;
    }
    if (count == 1) {
        l->kernels->winograd_filter_gradient(cs_winograd_m(l->weight_way), (e1 - e0) / 9,
                                             from + (int64_t)(e0 / 9) * b, s->tap, values);
        return;
    }
    for (int e = e0; e < e1; e += 9) {
        for (int i = 0; i < s->taps; i++)
            add_up(from + i * s->tap + (int64_t)(e / 9) * b, l->partial_floats, count, b, coefficients + i * b);
        l->kernels->winograd_filter_gradient(cs_winograd_m(l->weight_way), 1, coefficients, b,
                                             values + (e - e0) * b);
    }
}

void cs_train_reduce_units(const cs_train_conv *l, const cs_squares *s, const float *partials, int count, int first,
                           int u0, int u1, float *dweights) {
    enum { ROOM = 28 * 9 };     /* whole Winograd filters */
    const int b = l->block, taps = l->kh * l->kw, depth = l->c / l->groups, each = l->o / l->groups;
    const int depthwise = l->weight_way == CS_WAY_DEPTHWISE, planes = depthwise ? 1 : l->planes;
    const int64_t row = (int64_t)depth * taps;
    float values[ROOM * 16];
    for (int u = u0; u < u1; u++) {
        const int f0 = u / planes * b, c0 = depthwise ? 0 : l->planar ? u % planes : u % planes * b;
        const int channels = depthwise || l->planar ? 1 : (int)cs_min(b, l->c - c0);
        const int lanes = (int)cs_min(b, l->o - f0);
        const float *from = partials + (u - first) / planes * s->block + u % planes * s->plane;
        for (int e = 0; e < channels * taps; e += ROOM) {
            const int n = (int)cs_min(ROOM, channels * taps - e);
            gather(l, s, from, count, e, e + n, values);
            if (l->groups == 1 || depthwise) {
                l->kernels->unpack(lanes, 0, 1, n, values, n * b, dweights + f0 * row + c0 * taps + e, row, n);
                continue;
            }
            for (int lane = 0; lane < lanes; lane++)
                for (int i = 0; i < n; i++) {
                    const int o = f0 + lane, c = c0 + (e + i) / taps;
                    if (c / depth == o / each)
                        dweights[o * row + c % depth * taps + (e + i) % taps] = values[i * b + lane];
                }
        }
    }
}

void cs_train_conv_reduce(const cs_train_conv *l, const float *partials, int count, float *dweights, float *dbias,
                          int part, int parts) {
    const cs_squares s = cs_train_squares(l, l->blocks);
    const int64_t units = (int64_t)l->blocks * (l->weight_way == CS_WAY_DEPTHWISE ? 1 : l->planes);
    cs_train_reduce_units(l, &s, partials, count, 0, (int)(units * part / parts), (int)(units * (part + 1) / parts),
                          dweights);
    for (int o = l->o * part / parts; dbias && o < l->o * (part + 1) / parts; o++) {
        dbias[o] = partials[s.bias + o];
        for (int j = 1; j < count; j++)
            dbias[o] += partials[j * l->partial_floats + s.bias + o];
    }
}
