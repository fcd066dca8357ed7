/* The forward pass and the gradient of the input (train_conv.h). */
#include "train_parts.h"

#include <math.h>
#include <string.h>

void cs_train_stage(const cs_kernels *k, const cs_window *v, int planar, int planes, int h, int w,
                    const float *x, int64_t plane, int64_t row, float *staged) {
    const int64_t px = planar ? 1 : k->block, line = v->columns * px;
    const int h0 = (int)cs_max(0, v->top), h1 = (int)cs_min(h, v->top + v->rows);
    const int w0 = (int)cs_max(0, v->left), w1 = (int)cs_min(w, v->left + v->columns);
    const int64_t before = (w0 - v->left) * px, inside = cs_max(0, w1 - w0) * px;
    for (int p = 0; p < planes; p++)
        for (int i = 0; i < v->rows; i++, staged += line) {
            const int at = v->top + i;
            if (at < h0 || at >= h1 || inside == 0) {
                memset(staged, 0, sizeof(float) * line);
                continue;
            }
            memset(staged, 0, sizeof(float) * before);
            memcpy(staged + before, x + p * plane + at * row + w0 * px, sizeof(float) * inside);
            memset(staged + before + inside, 0, sizeof(float) * (line - before - inside));
        }
}

static const cs_activation no_activation = {-INFINITY, INFINITY, CS_NO_CURVE, 0, 0};

/* float[filters] or NULL -> a multiple of a block */
static const float *padded_bias(const float *bias, int filters, int64_t room, float *scratch) {
    memset(scratch, 0, sizeof(float) * room);
    if (bias)
        memcpy(scratch, bias, sizeof(float) * filters);
    return scratch;
}

/* One output row of a convolution of a single plane, without the filter rows that would meet zeros: of
 * `size` rows of x, row `first` is the first that the row's window reaches. */
static void row_inside(const cs_kernels *k, const cs_conv *p, int row, int first, int size, int dilation,
                       const float *x, const float *weights, const float *bias, const float *r, float *y) {
    cs_conv c = *p;
    const int skip = first < 0 ? (int)cs_min((-first + dilation - 1) / dilation, p->kh) : 0;
    const int end = first < size ? (int)cs_min((size - first + dilation - 1) / dilation, p->kh) : 0;
    c.kh = (int)cs_max(0, end - skip);
    for (int t = 0; t < c.tiles; t++)
        k->conv(&c, t, row, row + 1, x + skip * c.x_kh,
                weights + (int64_t)skip * c.kw * c.inner_last * c.tile[t].blocks * k->block, bias, r, y);
}

/* x at the window's first pixel, in row d->top of an image of h rows; y at the tensor's */
static void direct(const cs_kernels *k, const struct cs_train_direct *d, int h, const cs_activation *activation,
                   const float *x, const float *weights, const float *bias, float *y, int add) {
    cs_conv c = d->conv;
    if (c.oh <= 0 || c.ow <= 0 || (add && !c.kh))
        return;
    c.activation = *activation;
    c.r_block = c.y_block;
    c.r_row = c.y_row;
    c.r_px = c.y_px;
    weights += d->weight;
    y += d->y_start;
    /* large filters on small images meet many zeros */
    if (d->planes == 1 && d->dilation && !c.pixels && c.kh > 3 && c.oh < 4 * c.kh)
        for (int row = 0; row < c.oh; row++)
            row_inside(k, &c, row, d->top + row, h, d->dilation, x, weights, bias, add ? y : NULL, y);
    else
        for (int t = 0; t < c.tiles; t++)
            k->conv(&c, t, 0, c.oh, x, weights, bias, add ? y : NULL, y);
}

/* where a pass begins to read: in the window's copy, or in the tensor */
static const float *start_of(const struct cs_train_direct *d, int px, const cs_window *window,
                             const float *staged, const float *x, int64_t row) {
    if (staged)
        return staged + ((int64_t)(d->top - window->top) * window->columns + d->left - window->left) * px;
    return x + d->top * row + (int64_t)d->left * px;
}

/* Chunk by chunk of tiles, all stages of one chunk in the cache. */
void cs_train_winograd(const cs_winograd_pass *p, int n0, int n1, const float *x, float *y, int add, float *scratch) {
    const cs_kernels *k = p->k;
    const cs_winograd *w = &p->tiles;
    const int b = k->block, coefficients = (w->m + 2) * (w->m + 2), each = w->rows * w->columns;
    const int64_t total = (int64_t)(n1 - n0) * each, chunks = (total + p->slots - 1) / p->slots;
    float *packed = scratch;
    if (p->unpacked)
        scratch += coefficients * p->coefficient;
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        const int64_t from = total * chunk / chunks, to = total * (chunk + 1) / chunks;
        const int count = (int)(to - from);
        const int64_t v_step = cs_winograd_step(w->planes, count, b);
        /* One register tile reads all planes of its pixels before it stores: products in place spare cache. */
        const int in_place = p->products->conv.tiles == 1 && w->planes == w->blocks;
        float *m = in_place ? scratch : scratch + coefficients * v_step;
        for (int64_t at = from; at < to;) {
            const int first = (int)(at % each), now = (int)cs_min(to - at, each - first);
            k->winograd_input(w, first, now, x + (n0 + at / each) * p->x_image, scratch, (int)(at - from), count);
            at += now;
        }
        cs_conv c = p->products->conv;
        c.ow = count;
        c.x_plane = c.y_block = (int64_t)count * b;
        c.y_px = b;
        c.activation = no_activation;
        for (int t = p->t0; t < p->t1; t++) {
            const cs_conv_tile *tile = &c.tile[t];
            const int64_t m_step = cs_winograd_step(tile->blocks, count, b);
            const float *weights = p->weights;
            if (p->unpacked) {
                cs_train_pack_winograd(p->unpacked, p->backward, p->weights, packed, p->coefficient, t, t + 1, 0, 1);
                weights = packed - tile->weight;
            }
            for (int i = 0; i < coefficients; i++)
                k->conv(&c, t, 0, 1, scratch + i * v_step, weights + i * p->coefficient, p->zeros, NULL,
                        m + i * m_step - tile->block * c.y_block);
            for (int64_t at = from; at < to;) {
                const int first = (int)(at % each), now = (int)cs_min(to - at, each - first);
                float *out = y + (n0 + at / each) * p->y_image;
                k->winograd_output(w, tile->block, tile->blocks, first, now, m, (int)(at - from), count,
                                   p->bias, add ? out : NULL, out);
                at += now;
            }
        }
    }
}

cs_winograd_pass cs_train_forward_pass(const cs_train_conv *l, const float *packed, const float *bias,
                                       const cs_activation *activation, const float *zeros) {
    cs_winograd_pass p = {l->kernels, cs_train_tiles(l, l->forward_way, 0), &l->direct[0], l->forward_slots, l->x.image,
                          l->y.image, packed, bias, zeros, cs_coefficient(l->direct[0].floats, l->block), 0,
                          l->direct[0].conv.tiles, NULL, 0};
    p.tiles.activation = activation ? *activation : no_activation;
    return p;
}

cs_winograd_pass cs_train_data_pass(const cs_train_conv *l, const float *packed, const float *zeros) {
    cs_winograd_pass p = {l->kernels, cs_train_tiles(l, l->data_way, 1), &l->direct[1], l->data_slots, l->dy.image,
                          l->dx.image, packed, zeros, zeros, cs_coefficient(l->direct[1].floats, l->block), 0,
                          l->direct[1].conv.tiles, NULL, 1};
    p.tiles.activation = no_activation;
    return p;
}

static cs_depthwise depthwise_of(const cs_train_conv *l) {
    const cs_conv *c = &l->direct[0].conv;
    return (cs_depthwise){.oh = l->oh, .ow = l->ow, .kh = l->kh, .kw = l->kw, .x_plane = c->x_plane,
                          .x_kh = c->x_kh, .x_kw = c->x_kw, .x_px = c->x_px, .x_oh = c->x_oh,
                          .y_block = l->y.plane, .y_row = l->y.row};
}

void cs_train_conv_forward(const cs_train_conv *l, int n0, int n1, const float *x, const float *forward,
                           const float *bias, const cs_activation *activation, float *y, double *sums,
                           float *scratch) {
    const cs_kernels *k = l->kernels;
    const int b = l->block, blocks = l->blocks;
    const int64_t wide = cs_max(l->planes, blocks) * b;
    const cs_window window = cs_train_window_x(l);
    const float *padded = padded_bias(bias, l->o, wide, scratch);
    const cs_activation *f = activation ? activation : &no_activation;
    memset(scratch + wide, 0, sizeof(float) * wide);
    float *room = scratch + 2 * wide;
    if (cs_is_winograd(l->forward_way)) {
        const cs_winograd_pass p = cs_train_forward_pass(l, forward, padded, f, scratch + wide);
        cs_train_winograd(&p, n0, n1, x, y, 0, room);
    } else {
        for (int n = n0; n < n1; n++) {
            const float *image = x + n * l->x.image;
            const float *staged = NULL;
            if (l->staged_x) {
                cs_train_stage(k, &window, l->planar, l->planes, l->h, l->w, image, l->x.plane, l->x.row, room);
                staged = room;
            }
            const float *start = start_of(&l->direct[0], l->planar ? 1 : b, &window, staged, image, l->x.row);
            if (l->forward_way == CS_WAY_DEPTHWISE) {
                cs_depthwise d = depthwise_of(l);
                d.activation = *f;
                for (int i = 0; i < blocks; i++)
                    k->depthwise(&d, i, 0, l->oh, start, forward, padded, y + n * l->y.image);
            } else {
                direct(k, &l->direct[0], l->h, f, start, forward, padded, y + n * l->y.image, 0);
            }
        }
    }
    for (int n = n0; sums && n < n1; n++)
        for (int i = 0; i < blocks; i++)
            k->channel_sums(l->oh, l->ow, y + n * l->y.image + i * l->y.plane, l->y.row, sums + i * b,
                            sums + (blocks + i) * b);
}

/* A padded gradient of one block in scratch memory, to which each output adds its filter. */
static void depthwise_data(const cs_train_conv *l, const float *dy, const float *weights, float *dx, int add,
                           float *scratch) {
    const cs_kernels *k = l->kernels;
    const cs_window v = cs_train_window_x(l);
    const int b = l->block;
    const int64_t row = (int64_t)v.columns * b;
    cs_depthwise d = depthwise_of(l);
    d.x_kh = l->dh * row;
    d.x_oh = l->sh * row;
    d.y_row = l->dy.row;
    const int h0 = (int)cs_max(0, v.top), h1 = (int)cs_min(l->h, v.top + v.rows);
    const int w0 = (int)cs_max(0, v.left), w1 = (int)cs_min(l->w, v.left + v.columns);
    for (int i = 0; i < l->blocks; i++) {
        float *out = dx + i * l->dx.plane;
        memset(scratch, 0, sizeof(float) * v.rows * row);
        k->depthwise_scatter(&d, dy + i * l->dy.plane, weights + (int64_t)i * l->kh * l->kw * b, scratch);
        for (int h = 0; !add && h < l->h; h++)
            memset(out + h * l->dx.row, 0, sizeof(float) * l->w * b);
        if (h1 > h0 && w1 > w0)
            k->copy(h1 - h0, w1 - w0, add, scratch + (h0 - v.top) * row + (w0 - v.left) * b, row,
                    out + h0 * l->dx.row + (int64_t)w0 * b, l->dx.row);
    }
}

void cs_train_conv_data_gradient(const cs_train_conv *l, int n0, int n1, const float *dy,
                                 const float *backward, float *dx, int add, float *scratch) {
    const cs_kernels *k = l->kernels;
    const int b = l->block;
    const int64_t wide = cs_max(l->planes, l->blocks) * b;
    const cs_window window = cs_train_window_dy(l);
    float *room = scratch + 2 * wide;
    memset(scratch, 0, sizeof(float) * 2 * wide);
    if (cs_is_winograd(l->data_way)) {
        const cs_winograd_pass p = cs_train_data_pass(l, backward, scratch);
        cs_train_winograd(&p, n0, n1, dy, dx, add, room);
        return;
    }
    for (int n = n0; n < n1; n++) {
        const float *image = dy + n * l->dy.image, *staged = NULL;
        float *out = dx + n * l->dx.image;
        if (l->data_way == CS_WAY_DEPTHWISE) {
            depthwise_data(l, image, backward, out, add, room);
            continue;
        }
        if (l->staged_dy) {
            cs_train_stage(k, &window, 0, l->blocks, l->oh, l->ow, image, l->dy.plane, l->dy.row, room);
            staged = room;
        }
        for (int i = 1; i < l->directs; i++)
            direct(k, &l->direct[i], l->oh, &no_activation,
                   start_of(&l->direct[i], b, &window, staged, image, l->dy.row), backward, scratch, out, add);
    }
}
