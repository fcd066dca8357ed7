/* Direct convolution by register tiles of `nb` output blocks x `np` output pixels.
 *
 * An output is one chain of multiply-adds over (plane, filter row, filter column, inner), started at
 * the bias, whatever the tile: its bits depend neither on the tile's shape nor on its neighbours.
 * That is what makes results independent of the batch and of the number of threads. An affine layer
 * is the same kernel with the images of a batch as its pixels. */

#define CS_PX_MAX (CS_PX1 > CS_PX2 ? CS_PX1 : CS_PX2)

/* The pixels of nr rows, as many of each. `step`: floats between pixels where the compiler may know them,
 * 0 for p->x_px */
CS_INLINE void conv_tile(const int nb, const int nr, const int np, const int step, const cs_conv *p,
                         int planes, int last, const float *x, const float *w, const float *bias,
                         const float *r, float *y) {
    const int row = np / nr;
    vf acc[4][CS_PX_MAX];
    const int64_t x_px = step ? step : p->x_px;
CS_UNROLL(4)
    for (int b = 0; b < nb; b++)
CS_UNROLL(16)
        for (int i = 0; i < np; i++)
            acc[b][i] = v_load(bias + b * CS_VL);

    for (int c = 0; c < planes; c++) {
        const int inner = c == last ? p->inner_last : p->inner;
        for (int kh = 0; kh < p->kh; kh++)
            for (int kw = 0; kw < p->kw; kw++) {
                const float *xr = x + c * p->x_plane + kh * p->x_kh + kw * p->x_kw;
                for (int k = 0; k < inner; k++, w += nb * CS_VL) {
                    vf wv[4];
CS_UNROLL(4)
                    for (int b = 0; b < nb; b++)
                        wv[b] = v_load(w + b * CS_VL);
CS_UNROLL(16)
                    for (int i = 0; i < np; i++) {
                        const vf xv = v_set(xr[i / row * p->x_oh + i % row * x_px + k]);
CS_UNROLL(4)
                        for (int b = 0; b < nb; b++)
                            acc[b][i] += xv * wv[b];
                    }
                }
            }
    }

    const vf low = v_set(p->activation.low), high = v_set(p->activation.high);
CS_UNROLL(4)
    for (int b = 0; b < nb; b++)
CS_UNROLL(16)
        for (int i = 0; i < np; i++) {
            vf v = acc[b][i];
            if (r)
                v += v_load(r + b * p->r_block + i / row * p->r_row + i % row * p->r_px);
            v_store(y + b * p->y_block + i / row * p->y_row + i % row * p->y_px, v_clip(v, low, high));
        }
}

#if CS_HALF
/* One block of which only the lower half of the lanes are filters: half a vector does it in half the
 * time, where the vectors are worked off in halves. */
CS_INLINE void conv_half_tile(const int np, const int step, const cs_conv *p, int planes, int last,
                              const float *x, const float *w, const float *bias, const float *r,
                              float *y) {
    vh acc[CS_PX1];
    const int64_t x_px = step ? step : p->x_px;
CS_UNROLL(16)
    for (int i = 0; i < np; i++)
        acc[i] = *(const vh *)bias;
    for (int c = 0; c < planes; c++) {
        const int inner = c == last ? p->inner_last : p->inner;
        for (int kh = 0; kh < p->kh; kh++)
            for (int kw = 0; kw < p->kw; kw++) {
                const float *xr = x + c * p->x_plane + kh * p->x_kh + kw * p->x_kw;
                for (int k = 0; k < inner; k++, w += CS_VL) {
                    const vh wv = *(const vh *)w;
CS_UNROLL(16)
                    for (int i = 0; i < np; i++)
                        acc[i] += (xr[i * x_px + k] - (vh){0}) * wv;
                }
            }
    }
CS_UNROLL(16)
    for (int i = 0; i < np; i++) {
        vf v = {0};
        if (r)
            acc[i] += *(const vh *)(r + i * p->r_px);
        memcpy(&v, &acc[i], sizeof(vh));
        v = v_clip(v, v_set(p->activation.low), v_set(p->activation.high));
        memcpy(y + i * p->y_px, &v, sizeof(vh));
    }
}
#endif

typedef void conv_tile_fn(const cs_conv *p, int planes, int last, const float *x, const float *w,
                          const float *bias, const float *r, float *y);

/* one function a tile shape: conv_tile_<blocks>x<pixels>_<step> */
#define CS_TILE(nb, np, name, step)                                                                \
    static void conv_tile_##nb##x##np##_##name(const cs_conv *p, int planes, int last,             \
                                               const float *x, const float *w, const float *bias,  \
                                               const float *r, float *y) {                         \
        conv_tile(nb, 1, np, step, p, planes, last, x, w, bias, r, y);                             \
    }
#define CS_TILES6(nb, name, step)                                                                  \
    CS_TILE(nb, 1, name, step) CS_TILE(nb, 2, name, step) CS_TILE(nb, 3, name, step)               \
    CS_TILE(nb, 4, name, step) CS_TILE(nb, 5, name, step) CS_TILE(nb, 6, name, step)
#define CS_TILES12(nb, name, step)                                                                 \
    CS_TILES6(nb, name, step) CS_TILE(nb, 7, name, step) CS_TILE(nb, 8, name, step)                \
    CS_TILE(nb, 9, name, step) CS_TILE(nb, 10, name, step) CS_TILE(nb, 11, name, step)             \
    CS_TILE(nb, 12, name, step)
#define CS_TILES14(nb, name, step)                                                                 \
    CS_TILES12(nb, name, step) CS_TILE(nb, 13, name, step) CS_TILE(nb, 14, name, step)
#define CS_ROW6(nb, name)                                                                          \
    NULL, conv_tile_##nb##x1_##name, conv_tile_##nb##x2_##name, conv_tile_##nb##x3_##name,         \
        conv_tile_##nb##x4_##name, conv_tile_##nb##x5_##name, conv_tile_##nb##x6_##name
#define CS_ROW12(nb, name)                                                                         \
    CS_ROW6(nb, name), conv_tile_##nb##x7_##name, conv_tile_##nb##x8_##name,                       \
        conv_tile_##nb##x9_##name, conv_tile_##nb##x10_##name, conv_tile_##nb##x11_##name,         \
        conv_tile_##nb##x12_##name
#define CS_ROW14(nb, name)                                                                         \
    CS_ROW12(nb, name), conv_tile_##nb##x13_##name, conv_tile_##nb##x14_##name

#if CS_HALF
#define CS_HALF_TILE(np, name, step)                                                               \
    static void conv_tile_halfx##np##_##name(const cs_conv *p, int planes, int last,               \
                                             const float *x, const float *w, const float *bias,    \
                                             const float *r, float *y) {                           \
        conv_half_tile(np, step, p, planes, last, x, w, bias, r, y);                               \
    }
#define CS_HALF_TILES14(name, step)                                                                \
    CS_HALF_TILE(1, name, step) CS_HALF_TILE(2, name, step) CS_HALF_TILE(3, name, step)            \
    CS_HALF_TILE(4, name, step) CS_HALF_TILE(5, name, step) CS_HALF_TILE(6, name, step)            \
    CS_HALF_TILE(7, name, step) CS_HALF_TILE(8, name, step) CS_HALF_TILE(9, name, step)            \
    CS_HALF_TILE(10, name, step) CS_HALF_TILE(11, name, step) CS_HALF_TILE(12, name, step)         \
    CS_HALF_TILE(13, name, step) CS_HALF_TILE(14, name, step)
CS_HALF_TILES14(blocked, CS_VL)
CS_HALF_TILES14(blocked2, 2 * CS_VL)
CS_HALF_TILES14(planar, 1)
CS_HALF_TILES14(any, 0)
static conv_tile_fn *const conv_half_tiles[4][15] = {
    {CS_ROW14(half, blocked)}, {CS_ROW14(half, blocked2)}, {CS_ROW14(half, planar)}, {CS_ROW14(half, any)},
};
#endif

/* steps: one block (stride 1), two blocks (stride 2), one float (NCHW, stride 1), any */
#if CS_PX4
#define CS_FAMILY(name, step)                                                                      \
    CS_TILES14(1, name, step) CS_TILES14(2, name, step) CS_TILES6(4, name, step)
#define CS_FAMILY_ROWS(name) {{CS_ROW14(1, name)}, {CS_ROW14(2, name)}, {CS_ROW6(4, name)}}
#else
#define CS_FAMILY(name, step) CS_TILES12(1, name, step) CS_TILES6(2, name, step)
#define CS_FAMILY_ROWS(name) {{CS_ROW12(1, name)}, {CS_ROW6(2, name)}}
#endif

CS_FAMILY(blocked, CS_VL)
CS_FAMILY(blocked2, 2 * CS_VL)
CS_FAMILY(planar, 1)
CS_FAMILY(any, 0)

static conv_tile_fn *const conv_tiles[4][3][15] = {
    CS_FAMILY_ROWS(blocked),
    CS_FAMILY_ROWS(blocked2),
    CS_FAMILY_ROWS(planar),
    CS_FAMILY_ROWS(any),
};

#if CS_PX2 >= 14
/* Two rows of 4 to 7 pixels at a time: a wider tile loads the weights half as often. */
#define CS_ROW_PAIR(np, name, step)                                                                \
    static void conv_pair_##np##_##name(const cs_conv *p, int planes, int last, const float *x,    \
                                        const float *w, const float *bias, const float *r,         \
                                        float *y) {                                                \
        conv_tile(2, 2, 2 * np, step, p, planes, last, x, w, bias, r, y);                          \
    }
#define CS_ROW_PAIRS(name, step)                                                                   \
    CS_ROW_PAIR(4, name, step) CS_ROW_PAIR(5, name, step)                                          \
    CS_ROW_PAIR(6, name, step) CS_ROW_PAIR(7, name, step)
CS_ROW_PAIRS(blocked, CS_VL)
CS_ROW_PAIRS(blocked2, 2 * CS_VL)
static conv_tile_fn *const conv_pairs[4][8] = {
    {[4] = conv_pair_4_blocked, conv_pair_5_blocked, conv_pair_6_blocked, conv_pair_7_blocked},
    {[4] = conv_pair_4_blocked2, conv_pair_5_blocked2, conv_pair_6_blocked2, conv_pair_7_blocked2},
};
#endif

/* Few pixels a row leave registers for more output blocks, which reuse each broadcast. */
static int conv_tile_blocks(int ow, int blocks) {
    if (CS_PX4 && ow <= CS_PX4 && blocks >= 4)
        return 4;
    return blocks >= 2 ? 2 : 1;
}

/* Both ways in vector multiply-adds a row, from measurements: transposing a vector takes about 9 a
 * filter lane, and half for half a block, or 3 from a strip that a result is made of; the loads and short
 * loops over taps, where each pixel is loaded by itself, take more the fewer they are. */
CS_INLINE double by_filters(int ow, int blocks, int taps) {
    return (double)ow * blocks * taps / (blocks > 1 ? 0.82 : taps < 16 ? 0.55 : 0.65);
}

static int conv_by_pixels(int ow, int filters, int taps) {
    const int vectors = (ow + CS_VL - 1) / CS_VL, blocks = (filters + CS_VL - 1) / CS_VL;
    const int transposed = filters <= CS_VL / 2 ? 4 * CS_VL : blocks * 9 * CS_VL;
    return ow >= CS_VL && (double)vectors * (filters * taps + transposed) < by_filters(ow, blocks, taps);
}

static int conv_planar_by_pixels(int ow, int filters, int taps) {
    const int vectors = (ow + CS_VL - 1) / CS_VL, blocks = (filters + CS_VL - 1) / CS_VL;
    const double transposed = (double)vectors * blocks * 3 * CS_VL;
    return ow >= CS_VL && (double)vectors * filters * taps / 0.85 < by_filters(ow, blocks, taps) + transposed;
}

/* The most pixels that a tile of 1, 2 or 4 output blocks takes. */
static int conv_tile_pixels(int blocks) {
    return blocks == 4 ? CS_PX4 : blocks == 2 ? CS_PX2 : CS_PX1;
}

static void conv(const cs_conv *p, int t, int oh0, int oh1, const float *x, const float *w,
                 const float *bias, const float *r, float *y) {
    const cs_conv_tile *tile = &p->tile[t];
    if (p->pixels) {
        assert(!r && p->x_px == 1 && p->ow >= CS_VL);
        conv_pixels(p, tile, oh0, oh1, x, w, bias, y);
        return;
    }
    const int size = tile->blocks == 4 ? 2 : tile->blocks - 1;
    const int step = p->x_px == CS_VL ? 0 : p->x_px == 2 * CS_VL ? 1 : p->x_px == 1 ? 2 : 3;
    const int widest = conv_tile_pixels(tile->blocks);
    const int last = p->last_plane - tile->plane;
    /* rows that follow each other without a gap are one long row */
    const int together = p->x_oh == p->ow * p->x_px && p->y_row == p->ow * p->y_px &&
                         (!r || p->r_row == p->ow * p->r_px) ? oh1 - oh0 : 1;
    const int width = p->ow * together, parts = (width + widest - 1) / widest;
    assert(tile->blocks == 1 || tile->blocks == 2 || (CS_PX4 && tile->blocks == 4));
    assert(0 <= oh0 && oh1 <= p->oh);

    conv_tile_fn *const *run = conv_tiles[step][size];
#if CS_HALF
    if (tile->blocks == 1 && p->filters - tile->block * CS_VL <= CS_VL / 2)
        run = conv_half_tiles[step];
#endif
    x += tile->plane * p->x_plane;
    w += tile->weight;
    bias += (int64_t)tile->block * CS_VL;
    y += tile->block * p->y_block;
    if (r)
        r += tile->block * p->r_block;
#if CS_PX2 >= 14
    conv_tile_fn *pair = tile->blocks == 2 && together == 1 && p->ow <= 7 ? conv_pairs[step][p->ow] : NULL;
    for (; pair && oh0 + 2 <= oh1; oh0 += 2) {
        float *yt = y + oh0 * p->y_row;
        pair(p, tile->planes, last, x + oh0 * p->x_oh, w, bias, r ? r + oh0 * p->r_row : NULL, yt);
        for (int b = 0; b < 2; b++)
            for (int h = 0; h < 2; h++)
                follow_curve(&p->activation, p->ow, yt + b * p->y_block + h * p->y_row, p->y_px);
    }
#endif
    for (int oh = oh0; oh < oh1; oh += together)
        for (int i = 0; i < parts; i++) {
            /* equal parts: a tail of one pixel would wait for its own multiply-adds */
            const int ow = (int)((int64_t)width * i / parts);
            const int np = (int)((int64_t)width * (i + 1) / parts) - ow;
            float *yt = y + oh * p->y_row + ow * p->y_px;
            run[np](p, tile->planes, last, x + oh * p->x_oh + ow * p->x_px, w, bias,
                    r ? r + oh * p->r_row + ow * p->r_px : NULL, yt);
            for (int b = 0; b < tile->blocks; b++)
                follow_curve(&p->activation, np, yt + b * p->y_block, p->y_px);
        }
}
