/* Convolution of an NCHW image with a vector of neighbouring output pixels for each filter, where
 * conv.tmpl.h has a vector of filters for each pixel: for first layers whose filters would leave
 * lanes idle, or whose few taps don't pay for loading each pixel by itself.
 *
 * A tile is `nf` filters x `nv` vectors. The last vector of a row reaches back into the one before
 * instead of beyond the row. Tiles are put down filter by filter, pooled there if asked (2 x 2,
 * stride 2, largest), and transposed into the blocked layout; an NCHW result takes them as they are.
 * The order of the sums is that of conv.tmpl.h, so that the bits are the same. */

#if CS_VL == 16
#define CS_PIXEL_VECTORS 4
#else
#define CS_PIXEL_VECTORS 2
#endif
#define CS_PIXEL_FILTERS 6

typedef struct pixel_place {
    int row, column;    /* of the first pixel in the output of the convolution */
} pixel_place;

/* Where a tile's vectors go: filters are `filter` floats apart. */
typedef struct pixel_target {
    float *y;
    int64_t filter, vector[CS_PIXEL_VECTORS];
    int far;            /* past the caches */
} pixel_target;

/* w: the weights of one tap are w_step floats apart */
CS_INLINE void pixel_tile(const int nf, const int nv, const cs_conv *p, int planes, const float *x,
                          const pixel_place *at, const float *w, int64_t w_step, const float *bias,
                          const pixel_target *to, int first) {
    vf acc[CS_PIXEL_FILTERS][CS_PIXEL_VECTORS];
    int64_t from[CS_PIXEL_VECTORS];
CS_UNROLL(4)
    for (int v = 0; v < nv; v++)
        from[v] = at[v].row * p->x_oh + at[v].column;
CS_UNROLL(6)
    for (int f = 0; f < nf; f++)
CS_UNROLL(4)
        for (int v = 0; v < nv; v++)
            acc[f][v] = v_set(bias[f]);
    for (int c = 0; c < planes; c++)
        for (int kh = 0; kh < p->kh; kh++)
            for (int kw = 0; kw < p->kw; kw++) {
                const float *xr = x + c * p->x_plane + kh * p->x_kh + kw * p->x_kw;
                for (int k = 0; k < p->inner; k++, w += w_step) {
                    vf xv[CS_PIXEL_VECTORS];
CS_UNROLL(4)
                    for (int v = 0; v < nv; v++)
                        xv[v] = v_load(xr + from[v] + k);
CS_UNROLL(6)
                    for (int f = 0; f < nf; f++) {
                        const vf wv = v_set(w[f]);
CS_UNROLL(4)
                        for (int v = 0; v < nv; v++)
                            acc[f][v] += xv[v] * wv;
                    }
                }
            }
    const vf low = v_set(p->activation.low), high = v_set(p->activation.high);
CS_UNROLL(6)
    for (int f = 0; f < nf; f++) {
        float *y = to->y + (first + f) * to->filter;
CS_UNROLL(4)
        for (int v = 0; v < nv; v++) {
            const vf result = v_clip(acc[f][v], low, high);
            if (to->far)
                v_stream(y + to->vector[v], result);
            else
                v_store(y + to->vector[v], result);
        }
    }
}

typedef void pixel_tile_fn(const cs_conv *p, int planes, const float *x, const pixel_place *at,
                           const float *w, int64_t w_step, const float *bias,
                           const pixel_target *to, int first);

#define CS_PIXEL_TILE(nf, nv)                                                                      \
    static void pixel_tile_##nf##x##nv(const cs_conv *p, int planes, const float *x,               \
                                       const pixel_place *at, const float *w, int64_t w_step,      \
                                       const float *bias, const pixel_target *to, int first) {     \
        pixel_tile(nf, nv, p, planes, x, at, w, w_step, bias, to, first);                          \
    }
#define CS_PIXEL_TILES(nv)                                                                         \
    CS_PIXEL_TILE(1, nv) CS_PIXEL_TILE(2, nv) CS_PIXEL_TILE(3, nv)                                 \
    CS_PIXEL_TILE(4, nv) CS_PIXEL_TILE(5, nv) CS_PIXEL_TILE(6, nv)
#define CS_PIXEL_ROW(nv)                                                                           \
    {NULL, pixel_tile_1x##nv, pixel_tile_2x##nv, pixel_tile_3x##nv, pixel_tile_4x##nv,             \
     pixel_tile_5x##nv, pixel_tile_6x##nv}

CS_PIXEL_TILES(1)
CS_PIXEL_TILES(2)
#if CS_PIXEL_VECTORS == 4
CS_PIXEL_TILES(3)
CS_PIXEL_TILES(4)
#endif

static pixel_tile_fn *const pixel_tiles[CS_PIXEL_VECTORS + 1][CS_PIXEL_FILTERS + 1] = {
    {NULL}, CS_PIXEL_ROW(1), CS_PIXEL_ROW(2),
#if CS_PIXEL_VECTORS == 4
    CS_PIXEL_ROW(3), CS_PIXEL_ROW(4),
#endif
};

/* Vectors of one filter each -> CS_VL pixels, the first half at y0, the second at y1. */
CS_INLINE void pixel_store(vf v[CS_VL], int filters, float *y0, float *y1, int64_t y_px) {
    if (filters <= CS_VL / 2) {
        v_transpose_halves(v);
CS_UNROLL(8)
        for (int i = 0; i < CS_VL / 2; i++) {
            vh half[2];
            memcpy(half, &v[i], sizeof half);
            *(vh *)(y0 + i * y_px) = half[0];
            *(vh *)(y1 + i * y_px) = half[1];
        }
        return;
    }
    v_transpose(v);
CS_UNROLL(8)
    for (int i = 0; i < CS_VL / 2; i++) {
        v_store(y0 + i * y_px, v[i]);
        v_store(y1 + i * y_px, v[i + CS_VL / 2]);
    }
}

/* One block of filters at the nv places; y at the block's first pixel. */
CS_INLINE void pixel_block(const cs_conv *p, int filters, int planes, int nv, const pixel_place *at,
                           const float *x, const float *w, int64_t w_step, const float *bias, float *y) {
    vf out[CS_VL][CS_PIXEL_VECTORS], row[CS_VL];
    /* a curve can't be followed where vectors overlap */
    const int planar = p->y_px == 1, direct = planar && !p->activation.curve && !p->pool;
    pixel_target to = {(float *)out, CS_PIXEL_VECTORS * CS_VL, {0}, 0};
    if (direct) {
        to.y = y;
        to.filter = p->y_block / CS_VL;
        to.far = p->far && p->ow % CS_VL == 0;
    }
    for (int v = 0; v < nv; v++)
        to.vector[v] = direct ? at[v].row * p->y_row + at[v].column : v * CS_VL;
    const int parts = (filters + CS_PIXEL_FILTERS - 1) / CS_PIXEL_FILTERS;
    for (int i = 0; i < parts; i++) {
        const int f = filters * i / parts;
        pixel_tiles[nv][filters * (i + 1) / parts - f](p, planes, x, at, w + f, w_step, bias + f, &to, f);
    }
    if (direct)
        return;
    if (p->activation.curve)
        for (int f = 0; f < filters; f++)
            follow_curve(&p->activation, nv, (float *)out[f], CS_VL);
    if (planar) {
        for (int f = 0; f < filters; f++)
            for (int v = 0; v < nv; v++)
                v_store(y + f * (p->y_block / CS_VL) + at[v].row * p->y_row + at[v].column, out[f][v]);
        return;
    }
    /* filters that are not there make surplus channels: any values do */
    if (!p->pool) {
        for (int v = 0; v < nv; v++) {
CS_UNROLL(16)
            for (int f = 0; f < CS_VL; f++)
                row[f] = out[f < filters ? f : 0][v];
            float *start = y + at[v].row * p->y_row + at[v].column * p->y_px;
            pixel_store(row, filters, start, start + CS_VL / 2 * p->y_px, p->y_px);
        }
        return;
    }
    /* places come in pairs of one column: a row, and the row below it */
    for (int v = 0; v < nv; v += 4) {
        const int other = v + 2 < nv ? v + 2 : v;
CS_UNROLL(16)
        for (int f = 0; f < CS_VL; f++) {
            const vf *of = out[f < filters ? f : 0];
            const vf a = v_max(of[v], of[v + 1]), b = v_max(of[other], of[other + 1]);
            row[f] = v_max(V_EVEN(a, b), V_ODD(a, b));
        }
        float *start = y + at[v].row / 2 * p->y_row;
        pixel_store(row, filters, start + at[v].column / 2 * p->y_px,
                    start + at[other].column / 2 * p->y_px, p->y_px);
    }
}

/* Rows [oh0, oh1) of the output (pooled, if p->pool) of all blocks of a tile. */
static void conv_pixels(const cs_conv *p, const cs_conv_tile *tile, int oh0, int oh1, const float *x,
                        const float *w, const float *bias, float *y) {
    const int pooled = p->pool ? 2 : 1;
    const int width = p->ow / pooled * pooled, columns = (width + CS_VL - 1) / CS_VL;
    const int total = (oh1 - oh0) * columns;    /* groups of `pooled` vectors */
    const int most = CS_PIXEL_VECTORS / pooled;
    x += tile->plane * p->x_plane;
    for (int first = 0; first < total; first += most) {
        pixel_place at[CS_PIXEL_VECTORS];
        /* pooled places of different rows can't be stored together */
        int count = total - first < most ? total - first : most;
        if (p->pool && count > columns - first % columns)
            count = columns - first % columns;
        for (int i = 0; i < count * pooled; i++) {
            const int group = first + i / pooled, column = group % columns * CS_VL;
            at[i].row = (oh0 + group / columns) * pooled + i % pooled;
            at[i].column = column + CS_VL <= width ? column : width - CS_VL;
        }
        for (int b = 0; b < tile->blocks; b++) {
            const int block = tile->block + b, left = p->filters - block * CS_VL;
            pixel_block(p, left < CS_VL ? left : CS_VL, tile->planes, count * pooled, at, x,
                        w + tile->weight + b * CS_VL, tile->blocks * CS_VL,
                        bias + (int64_t)block * CS_VL, y + block * p->y_block);
        }
        first -= most - count;
    }
}
