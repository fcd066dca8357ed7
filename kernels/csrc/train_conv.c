/* Geometry, choice of kernels and memory of a layer's three passes (train_conv.h). */
#include "train_parts.h"

#include <stdlib.h>
#include <string.h>

static int divisor(int a, int b) {
    while (b) {
        const int rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

/* Of one axis and the outputs of data gradient with one residue: taps first, first + step, ..., whose
 * order turns round; the first row read, the distance between rows. */
typedef struct cs_axis {
    int taps, first, step, top, dilation, size;
} cs_axis;

static cs_axis residue_axis(int residue, int size, int kernel, int stride, int dilation, int before) {
    const int common = divisor(stride, dilation);
    cs_axis a = {0, 0, stride / common, 0, dilation / common, (size - residue + stride - 1) / stride};
    while (a.first < kernel && (residue + before - a.first * dilation) % stride)
        a.first++;
    if (a.first < kernel && a.size > 0) {
        a.taps = (kernel - a.first + a.step - 1) / a.step;
        a.top = (residue + before - a.first * dilation) / stride - (a.taps - 1) * a.dilation;
    }
    return a;
}

/* Tiles of 4, 2 or 1 output blocks; a tile over several groups would multiply with zeros. */
static int lay_tiles(const cs_train_conv *l, struct cs_train_direct *d, int planar, int ow) {
    const cs_kernels *k = l->kernels;
    const int b = k->block, blocks = cs_blocks(d->filters, b);
    const int each = d->filters / d->groups, depth = d->channels / d->groups;
    int size = k->conv_tile_blocks(ow, blocks), t = 0;
    while (d->groups > 1 && size > 1 && each % (size * b))
        size /= 2;
    cs_conv_tile *tile = malloc(sizeof(cs_conv_tile) * blocks);
    if (!tile)
        return -1;
    int together = blocks;
    if (k->half && d->filters % b && d->filters % b <= b / 2)
        together--;     /* a last block with few filters is a tile of its own */
    d->floats = 0;
    for (int first = 0; first < blocks; first += tile[t++].blocks) {
        int wide = size;
        while (wide > 1 && wide > together - first)
            wide /= 2;
        const int low = first * b / each * depth;
        const int high = (int)((cs_min(d->filters, (first + wide) * b) - 1) / each * depth + depth);
        const int plane = planar ? 1 : b;
        tile[t] = (cs_conv_tile){first, wide, low / plane, (high - 1) / plane + 1 - low / plane, d->floats};
        const int64_t channels = planar ? tile[t].planes : cs_min(d->channels, (tile[t].plane + tile[t].planes) * b) - tile[t].plane * b;
        d->floats += channels * d->conv.kh * d->conv.kw * (planar ? d->conv.inner : 1) * wide * b;
    }
    d->conv.tile = tile;
    d->conv.tiles = t;
    return 0;
}

static void forward_direct(const cs_train_conv *l, struct cs_train_direct *d) {
    const int b = l->block, row_taps = l->planar && l->dw == 1 ? l->kw : 1;
    *d = (struct cs_train_direct){
        .conv = {.oh = l->oh, .ow = l->ow, .kh = l->kh, .kw = l->kw / row_taps,
                 .inner = l->planar ? row_taps : b, .last_plane = l->planes - 1, .filters = l->o},
        .filters = l->o, .channels = l->c, .groups = l->groups, .planes = l->planes,
        .top = -l->pt, .left = -l->pl,
        .rows = (l->oh - 1) * l->sh + (l->kh - 1) * l->dh + 1,
        .columns = (l->ow - 1) * l->sw + (l->kw - 1) * l->dw + 1,
        .dilation = l->sh == 1 ? l->dh : 0, .step_h = 1, .step_w = 1,
    };
    cs_conv *c = &d->conv;
    c->inner_last = l->planar ? row_taps : l->c - (l->planes - 1) * b;
    if (l->planar && l->sw == 1 && l->groups == 1)
        c->pixels = l->kernels->conv_by_pixels(l->ow, l->o, l->c * l->kh * l->kw);
    c->y_block = l->y.plane;
    c->y_row = l->y.row;
    c->y_px = b;
}

static void data_direct(const cs_train_conv *l, struct cs_train_direct *d, int rh, int rw) {
    const int b = l->block;
    const cs_axis h = residue_axis(rh, l->h, l->kh, l->sh, l->dh, l->pt);
    const cs_axis w = residue_axis(rw, l->w, l->kw, l->sw, l->dw, l->pl);
    const int any = h.taps && w.taps;
    *d = (struct cs_train_direct){
        .conv = {.oh = h.size, .ow = w.size, .kh = any ? h.taps : 0, .kw = any ? w.taps : 0, .inner = b,
                 .last_plane = l->blocks - 1, .inner_last = l->o - (l->blocks - 1) * b, .filters = l->c},
        .filters = l->c, .channels = l->o, .groups = l->groups, .planes = l->blocks,
        .top = h.top, .left = w.top, .dilation = h.dilation,
        .rows = any ? h.size + (h.taps - 1) * h.dilation : 0,
        .columns = any ? w.size + (w.taps - 1) * w.dilation : 0,
        .y_start = rh * l->dx.row + (int64_t)rw * b,
        .first_h = h.first + (h.taps - 1) * h.step, .step_h = -h.step,
        .first_w = w.first + (w.taps - 1) * w.step, .step_w = -w.step,
    };
    d->conv.x_kh = h.dilation;      /* in pixels, until the steps are known */
    d->conv.x_kw = w.dilation;
    d->conv.y_block = l->dx.plane;
    d->conv.y_row = l->sh * l->dx.row;
    d->conv.y_px = (int64_t)l->sw * b;
}

cs_window cs_train_window_x(const cs_train_conv *l) {
    const struct cs_train_direct *d = &l->direct[0];
    return (cs_window){d->top, d->left, d->rows, d->columns};
}

cs_window cs_train_window_dy(const cs_train_conv *l) {
    int top = 0, left = 0, bottom = l->oh, right = l->ow;
    for (int i = 1; i < l->directs; i++) {
        const struct cs_train_direct *d = &l->direct[i];
        if (!d->rows)
            continue;
        top = (int)cs_min(top, d->top);
        left = (int)cs_min(left, d->left);
        bottom = (int)cs_max(bottom, d->top + d->rows);
        right = (int)cs_max(right, d->left + d->columns);
    }
    return (cs_window){top, left, bottom - top, right - left};
}

static int want(const cs_window *v, int h, int w) {
    const int64_t before = cs_max(-v->top, -v->left);
    const int64_t after = cs_max(v->top + v->rows - h, v->left + v->columns - w);
    return (int)cs_max(0, cs_max(before, after));
}

/* Steps of what is read: of the tensor, or of a window of it in scratch memory. */
static int64_t read_from(cs_conv *c, const cs_window *v, const cs_train_layout *x, int px, int in_place,
                         int planes, int sh, int sw, int dh, int dw) {
    const int64_t row = in_place ? x->row : (int64_t)v->columns * px;
    const int64_t plane = in_place ? x->plane : row * v->rows;
    c->x_plane = plane;
    c->x_kh = dh * row;
    c->x_kw = (int64_t)dw * px;
    c->x_oh = sh * row;
    c->x_px = (int64_t)sw * px;
    return in_place ? 0 : plane * planes;
}

cs_winograd cs_train_tiles(const cs_train_conv *l, int way, int backward) {
    const int m = cs_winograd_m(way);
    cs_winograd t = {.m = m};
    if (backward) {
        t = (cs_winograd){.m = m, .planes = l->blocks, .blocks = l->planes, .h = l->oh, .w = l->ow, .oh = l->h,
                          .ow = l->w, .top = 2 - l->pt, .left = 2 - l->pl, .x_plane = l->dy.plane,
                          .x_row = l->dy.row, .y_block = l->dx.plane, .y_row = l->dx.row};
    } else {
        t = (cs_winograd){.m = m, .planes = l->planes, .blocks = l->blocks, .h = l->h, .w = l->w, .oh = l->oh,
                          .ow = l->ow, .top = l->pt, .left = l->pl, .x_plane = l->x.plane,
                          .x_row = l->x.row, .y_block = l->y.plane, .y_row = l->y.row};
    }
    t.rows = (t.oh + m - 1) / m;
    t.columns = (t.ow + m - 1) / m;
    t.r_block = t.y_block;
    t.r_row = t.y_row;
    return t;
}

/* Winograd's direct twin: the products of its coefficients, tiles as the pixels of one row. */
static void as_products(struct cs_train_direct *d) {
    d->conv.kh = d->conv.kw = 1;
    d->conv.oh = 1;
    d->conv.pixels = 0;
}

static int allowed(const cs_train_conv *l, int way) {
    const int depthwise = l->groups > 1 && l->groups == l->c && l->o == l->c && !l->planar;
    if (depthwise || way == CS_WAY_DEPTHWISE)
        return depthwise && way == CS_WAY_DEPTHWISE;
    if (cs_is_winograd(way))
        return l->kh == 3 && l->kw == 3 && l->sh == 1 && l->sw == 1 && l->dh == 1 && l->dw == 1 &&
               l->groups == 1 && !l->planar;
    return way == CS_WAY_DIRECT;
}

/* Of a pass with `pixels` results an image; the gain of Winograd tiles and what their edges waste. */
static int best_way(const cs_train_conv *l, int wish, int oh, int ow) {
    if (wish != CS_WAY_AUTO && allowed(l, wish))
        return wish;
    if (allowed(l, CS_WAY_DEPTHWISE))
        return CS_WAY_DEPTHWISE;
    if (!allowed(l, CS_WAY_WINOGRAD4) || l->c < 12 || l->o < 12 || oh < 4 || ow < 4)
        return CS_WAY_DIRECT;
    return CS_WAY_WINOGRAD4;
}

/* Winograd weights, or their gradient, that the second-level cache does not hold (floats). */
#define LARGE_WEIGHTS (256 * 1024)

/* Tiles that go through their products together: their transforms fill most of the second-level cache,
 * or, where each pass has to fetch the weights from farther away, a part of the last-level one. */
static int slots(const cs_train_conv *l, int way, int weight_gradient, int oh, int ow) {
    const int m = cs_winograd_m(way), n = m + 2, b = l->block;
    const int64_t tiles = (int64_t)l->images * ((oh + m - 1) / m) * ((ow + m - 1) / m);
    const int64_t a_tile = n * n * (int64_t)(l->planes + l->blocks) * b;
    const int large = n * n * (int64_t)l->c * l->o > LARGE_WEIGHTS;
    const int64_t floats = !large ? 160 * 1024 : weight_gradient ? 3072 * 1024 : 1280 * 1024;
    const int64_t most = weight_gradient && large ? 256 : 112;
    return (int)cs_min(cs_max(14, cs_min(floats / a_tile, most)), tiles);
}

static int64_t winograd_floats(int way, int planes, int blocks, int tiles, int block) {
    const int n = cs_winograd_m(way) + 2;
    return n * n * (cs_winograd_step(planes, tiles, block) + cs_winograd_step(blocks, tiles, block));
}

static int64_t pack_forms(const cs_train_conv *l, int way, int first, int count) {
    const int n = cs_winograd_m(way) + 2;
    if (way == CS_WAY_DEPTHWISE)
        return (int64_t)l->blocks * l->kh * l->kw * l->block;
    if (cs_is_winograd(way))
        return n * n * cs_coefficient(l->direct[first].floats, l->block);
    int64_t floats = 0;
    for (int i = first; i < first + count; i++) {
        l->direct[i].weight = floats;
        floats += l->direct[i].floats;
    }
    return floats;
}

cs_squares cs_train_squares(const cs_train_conv *l, int blocks) {
    const int64_t square = l->block * l->block, b = l->block;
    const int winograd = cs_is_winograd(l->weight_way), n = cs_winograd_m(l->weight_way) + 2;
    cs_squares s = {.taps = winograd ? n * n : l->kh * l->kw};
    if (l->weight_way == CS_WAY_DEPTHWISE) {        /* [block][tap][b] */
        s.tap = b;
        s.block = s.taps * b;
        s.bias = blocks * s.block;
    } else if (l->planar) {                         /* [block][channel and tap][b] */
        s.tap = b;
        s.plane = s.taps * b;
        s.block = l->planes * s.plane;
        s.bias = blocks * s.block;
    } else if (winograd) {
        s.plane = square;
        s.block = l->planes * square;
        s.tap = blocks * s.block + b;
        s.bias = s.taps * s.tap;
    } else {
        s.tap = square;
        s.plane = s.taps * square;
        s.block = l->planes * s.plane;
        s.bias = blocks * s.block;
    }
    s.floats = s.bias + blocks * b;
    return s;
}

/* Tiles of the whole batch up to which a layer of large weights goes by filters, and into how many parts.
 * Each of them transforms all of the images again, which then costs less than the way of the packed
 * weights through memory. */
#define FEW_TILES 256
#define MOST_PARTS 8

static int parts_by_filters(const cs_train_conv *l, int backward) {
    const int way = backward ? l->data_way : l->forward_way, m = cs_winograd_m(way);
    const int oh = backward ? l->h : l->oh, ow = backward ? l->w : l->ow;
    const int64_t tiles = (int64_t)l->images * ((oh + m - 1) / m) * ((ow + m - 1) / m);
    if (!cs_is_winograd(way) || tiles > FEW_TILES ||
        (m + 2) * (m + 2) * l->direct[backward].floats < 4 * LARGE_WEIGHTS)
        return 0;
    return (int)cs_min(l->direct[backward].conv.tiles, MOST_PARTS);
}

int64_t cs_train_tile_coefficient(const struct cs_train_direct *d, int block) {
    return cs_coefficient(d->conv.tiles > 1 ? d->conv.tile[1].weight : d->floats, block);
}

int cs_train_conv_init(cs_train_conv *l) {
    const int b = l->block = l->kernels->block;
    l->planes = l->planar ? l->c : cs_blocks(l->c, b);
    l->blocks = cs_blocks(l->o, b);
    l->forward_way = best_way(l, l->forward_way, l->oh, l->ow);
    l->data_way = best_way(l, l->data_way, l->h, l->w);
    l->weight_way = best_way(l, l->weight_way, l->oh, l->ow);
    l->directs = 1 + (l->planar ? 0 : l->sh * l->sw);
    l->direct = calloc(l->directs, sizeof(*l->direct));
    if (!l->direct)
        return -1;
    forward_direct(l, &l->direct[0]);
    for (int i = 1; i < l->directs; i++)
        data_direct(l, &l->direct[i], (i - 1) / l->sw, (i - 1) % l->sw);

    const cs_window x = cs_train_window_x(l), dy = cs_train_window_dy(l);
    /* Winograd's transforms need no halo */
    l->want_x = cs_is_winograd(l->forward_way) && cs_is_winograd(l->weight_way) ? 0 : want(&x, l->h, l->w);
    l->want_dy = cs_is_winograd(l->data_way) ? 0 : want(&dy, l->oh, l->ow);
    const int x_there = l->want_x <= l->x.halo, dy_there = l->want_dy <= l->dy.halo;
    l->staged_x = read_from(&l->direct[0].conv, &x, &l->x, l->planar ? 1 : b, x_there, l->planes, l->sh, l->sw,
                            l->dh, l->dw);
    l->staged_dy = 0;
    for (int i = 1; i < l->directs; i++) {
        cs_conv *c = &l->direct[i].conv;
        l->staged_dy = read_from(c, &dy, &l->dy, b, dy_there, l->blocks, 1, 1, (int)c->x_kh, (int)c->x_kw);
    }
    if (cs_is_winograd(l->forward_way))
        as_products(&l->direct[0]);
    if (l->directs > 1 && cs_is_winograd(l->data_way))
        as_products(&l->direct[1]);
    for (int i = 0; i < l->directs; i++) {
        const int winograd = cs_is_winograd(i ? l->data_way : l->forward_way);
        if (lay_tiles(l, &l->direct[i], !i && l->planar, winograd ? 64 : l->direct[i].conv.ow))
            return -1;
    }
    l->forward_floats = pack_forms(l, l->forward_way, 0, 1);
    l->backward_floats = l->directs > 1 ? pack_forms(l, l->data_way, 1, l->directs - 1) : 0;
    l->partial_floats = cs_train_squares(l, l->blocks).floats;
    l->filter_parts = l->weight_way == CS_WAY_DEPTHWISE ? l->blocks : (l->blocks + 1) / 2;
    l->sums_doubles = 2 * (int64_t)l->blocks * b;

    /* bias, then what the passes stage and transform */
    const int wide = (int)cs_max(l->planes, l->blocks);
    int64_t most = cs_max(l->staged_x, l->staged_dy);
    if (l->weight_way == CS_WAY_DEPTHWISE)      /* data gradient scatters into a padded image */
        most = cs_max(most, cs_max(l->staged_x, (int64_t)x.rows * x.columns * b) + l->staged_dy);
    l->batch = 1;
    const int ways[3] = {l->forward_way, l->data_way, l->weight_way};
    int32_t *const counts[3] = {&l->forward_slots, &l->data_slots, &l->weight_slots};
    for (int i = 0; i < 3; i++) {
        if (!cs_is_winograd(ways[i]) || (i == 1 && l->directs == 1))
            continue;
        const int oh = i == 1 ? l->h : l->oh, ow = i == 1 ? l->w : l->ow, m = cs_winograd_m(ways[i]);
        *counts[i] = slots(l, ways[i], i == 2, oh, ow);
        most = cs_max(most, winograd_floats(ways[i], l->planes, l->blocks, *counts[i], b));
        const int tiles = ((oh + m - 1) / m) * ((ow + m - 1) / m);
        l->batch = (int)cs_max(l->batch, (cs_min(*counts[i], 56) + tiles - 1) / tiles);
    }
    l->batch = (int)cs_min(l->batch, l->images);
    l->forward_parts = parts_by_filters(l, 0);
    l->data_parts = l->directs > 1 ? parts_by_filters(l, 1) : 0;
    if (l->partial_floats > 4 * LARGE_WEIGHTS && l->blocks >= 4 && l->weight_way != CS_WAY_DEPTHWISE)
        l->weight_parts = (int)cs_min((l->blocks + 1) / 2, MOST_PARTS);
    int64_t own = l->weight_parts ? cs_train_squares(l, 2).floats : 0;
    for (int backward = 0; backward < 2; backward++)
        if (backward ? l->data_parts : l->forward_parts)
            own = cs_max(own, 36 * cs_train_tile_coefficient(&l->direct[backward], b));
    l->scratch_floats = (int64_t)2 * wide * b + most + own;
    return 0;
}

void cs_train_conv_free(cs_train_conv *l) {
    for (int i = 0; l->direct && i < l->directs; i++)
        free((void *)l->direct[i].conv.tile);
    free(l->direct);
    l->direct = NULL;
}
