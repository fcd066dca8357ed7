/* Winograd convolution F(m x m, 3 x 3), m = 6, 4 or 2: of an (m + 2)^2 input tile, m^2 outputs with
 * (m + 2)^2 multiplications a channel instead of 9 m^2 (Lavin and Gray, 2015).
 *
 *     V = B'dB of each tile and channel      transform_input:  V[coefficient][plane][tile][b]
 *     M = sum over channels of U V           the 1x1 convolution kernel, tiles as its pixels
 *     y = A'MA, bias, residual, activation   transform_output: M[coefficient][block][tile][b]
 *
 * F(4, 3) uses the points 0, +-sqrt(1/2), +-sqrt(2), inf, whose rounding error is less than half
 * that of 0, +-1, +-2, inf. A tile beyond the image's edge reads zeros and stores what is inside. */

#define CS_SQRT2 1.41421356237309504880f

/* n vectors at d, d + step, ... -> n vectors, one dimension of B' */
CS_INLINE void winograd_bt4(const vf *d, const int step, vf *v, const int out) {
    const vf d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step], d5 = d[5 * step];
    const vf even1 = d4 - v_set(2.0f) * d2, odd1 = v_set(CS_SQRT2 / 2) * d3 - v_set(CS_SQRT2) * d1;
    const vf even2 = d4 - v_set(0.5f) * d2, odd2 = v_set(CS_SQRT2) * d3 - v_set(CS_SQRT2 / 2) * d1;
    v[0] = d0 - v_set(2.5f) * d2 + d4;
    v[out] = even1 + odd1;
    v[2 * out] = even1 - odd1;
    v[3 * out] = even2 + odd2;
    v[4 * out] = even2 - odd2;
    v[5 * out] = d1 - v_set(2.5f) * d3 + d5;
}

CS_INLINE void winograd_bt2(const vf *d, const int step, vf *v, const int out) {
    const vf d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step];
    v[0] = d0 - d2;
    v[out] = d1 + d2;
    v[2 * out] = d2 - d1;
    v[3 * out] = d3 - d1;
}

CS_INLINE void winograd_at4(const vf *m, const int step, vf *y, const int out) {
    const vf sum1 = m[step] + m[2 * step], difference1 = m[step] - m[2 * step];
    const vf sum2 = m[3 * step] + m[4 * step], difference2 = m[3 * step] - m[4 * step];
    y[0] = m[0] + sum1 + sum2;
    y[out] = v_set(CS_SQRT2 / 2) * difference1 + v_set(CS_SQRT2) * difference2;
    y[2 * out] = v_set(0.5f) * sum1 + v_set(2.0f) * sum2;
    y[3 * out] = v_set(CS_SQRT2 / 4) * difference1 + v_set(2 * CS_SQRT2) * difference2 + m[5 * step];
}

CS_INLINE void winograd_at2(const vf *m, const int step, vf *y, const int out) {
    y[0] = m[0] + m[step] + m[2 * step];
    y[out] = m[step] - m[2 * step] + m[3 * step];
}

/* Rows and columns of a tile that lie in the image. */
typedef struct winograd_part {
    int r0, r1, c0, c1;
} winograd_part;

static const float winograd_zeros[8 * CS_VL] __attribute__((aligned(4 * CS_VL)));

/* n rows of a tile: those outside the image are zeros */
CS_INLINE void winograd_lines(const int n, const float *x, int64_t x_row, winograd_part part,
                              const float **line) {
CS_UNROLL(8)
    for (int i = 0; i < n; i++)
        line[i] = i >= part.r0 && i < part.r1 ? x + i * x_row : winograd_zeros;
}

/* A copy of a tile with the zeros of its outside columns; line: its rows, changed to those of the copy. */
static __attribute__((noinline)) void winograd_edge(int n, winograd_part part, const float **line, float *tile) {
    for (int i = 0; i < n; i++, tile += n * CS_VL) {
        for (int j = 0; j < n; j++)
            v_store(tile + j * CS_VL, j >= part.c0 && j < part.c1 ? v_load(line[i] + j * CS_VL) : v_set(0));
        line[i] = tile;
    }
}

/* Calls for m x m pixels of the row of tiles after this one: so short are the rows of small images that
 * the processor would not foresee them. */
CS_INLINE void winograd_prefetch(const int m, const float *p, int64_t row, const int write) {
CS_UNROLL(6)
    for (int i = 0; i < m; i++)
CS_UNROLL(6)
        for (int j = 0; j < m * CS_VL; j += 16)
            __builtin_prefetch(p + i * row + j, write, 2);
}

/* six vectors, and where the next ones go */
CS_INLINE float *winograd_store6(const vf *row, float *v, int64_t step) {
CS_UNROLL(6)
    for (int j = 0; j < 6; j++)
        v_store(v + j * step, row[j]);
    v += 6 * step;
    CS_OPAQUE(v);
    return v;
}

/* One tile of one plane, of which the columns [c0, c1) lie in the image. The columns' transform makes
 * two rows at a time, from pixels loaded again: all six would not fit into the registers. */
CS_INLINE void winograd_input_tile4(const int c0, const int c1, const float *const *line, float *v,
                                    int64_t step) {
    const float *x = line[0], *x1 = line[1], *x2 = line[2], *x3 = line[3], *x4 = line[4], *x5 = line[5];
    vf a[6] = {{0}}, b[6] = {{0}}, row[6];
    float *v5 = v + 30 * step;
CS_UNROLL(6)
    for (int j = c0; j < c1; j++) {
        const int d = j * CS_VL;
        a[j] = v_load(x + d) - v_set(2.5f) * v_load(x2 + d) + v_load(x4 + d);
        b[j] = v_load(x1 + d) - v_set(2.5f) * v_load(x3 + d) + v_load(x5 + d);
    }
    winograd_bt4(a, 1, row, 1);
    v = winograd_store6(row, v, step);
    winograd_bt4(b, 1, row, 1);
    winograd_store6(row, v5, step);
CS_UNROLL(6)
    for (int j = c0; j < c1; j++) {
        const int d = j * CS_VL;
        const vf even = v_load(x4 + d) - v_set(2.0f) * v_load(x2 + d);
        const vf odd = v_set(CS_SQRT2 / 2) * v_load(x3 + d) - v_set(CS_SQRT2) * v_load(x1 + d);
        a[j] = even + odd;
        b[j] = even - odd;
    }
    winograd_bt4(a, 1, row, 1);
    v = winograd_store6(row, v, step);
    winograd_bt4(b, 1, row, 1);
    v = winograd_store6(row, v, step);
CS_UNROLL(6)
    for (int j = c0; j < c1; j++) {
        const int d = j * CS_VL;
        const vf even = v_load(x4 + d) - v_set(0.5f) * v_load(x2 + d);
        const vf odd = v_set(CS_SQRT2) * v_load(x3 + d) - v_set(CS_SQRT2 / 2) * v_load(x1 + d);
        a[j] = even + odd;
        b[j] = even - odd;
    }
    winograd_bt4(a, 1, row, 1);
    v = winograd_store6(row, v, step);
    winograd_bt4(b, 1, row, 1);
    winograd_store6(row, v, step);
}

typedef void winograd_tile_fn(const float *const *line, float *v, int64_t step);

#define CS_WINOGRAD_TILE(c0, c1)                                                                   \
    static __attribute__((noinline)) void winograd_input_##c0##c1(const float *const *line,        \
                                                                  float *v, int64_t step) {        \
        winograd_input_tile4(c0, c1, line, v, step);                                               \
    }
CS_WINOGRAD_TILE(0, 2) CS_WINOGRAD_TILE(0, 3) CS_WINOGRAD_TILE(0, 4) CS_WINOGRAD_TILE(0, 5)
CS_WINOGRAD_TILE(0, 6) CS_WINOGRAD_TILE(1, 2) CS_WINOGRAD_TILE(1, 3) CS_WINOGRAD_TILE(1, 4)
CS_WINOGRAD_TILE(1, 5) CS_WINOGRAD_TILE(1, 6)

static winograd_tile_fn *const winograd_input_tiles[2][7] = {
    {NULL, NULL, winograd_input_02, winograd_input_03, winograd_input_04, winograd_input_05, winograd_input_06},
    {NULL, NULL, winograd_input_12, winograd_input_13, winograd_input_14, winograd_input_15, winograd_input_16},
};

static void winograd_input_tile2(const float *const *line, float *v, int64_t step) {
    vf d[16], t[16];
CS_UNROLL(4)
    for (int i = 0; i < 4; i++)
CS_UNROLL(4)
        for (int j = 0; j < 4; j++)
            d[i * 4 + j] = v_load(line[i] + j * CS_VL);
CS_UNROLL(4)
    for (int j = 0; j < 4; j++)
        winograd_bt2(d + j, 4, t + j, 4);
CS_UNROLL(4)
    for (int i = 0; i < 4; i++) {
        vf row[4];
        winograd_bt2(t + i * 4, 1, row, 1);
CS_UNROLL(4)
        for (int j = 0; j < 4; j++)
            v_store(v + (i * 4 + j) * step, row[j]);
    }
}

/* A whole tile of 4 x 4 outputs without pooling or curve, two rows at a time. */
CS_INLINE void winograd_output_rows4(const vf *a, const vf *b, vf bias, const cs_activation *f, const float *ra,
                                     const float *rb, float *ya, float *yb) {
    const vf low = v_set(f->low), high = v_set(f->high);
    vf out[8];
    winograd_at4(a, 1, out, 1);
    winograd_at4(b, 1, out + 4, 1);
CS_UNROLL(8)
    for (int j = 0; j < 8; j++)
        out[j] += bias;
    if (ra)
CS_UNROLL(4)
        for (int j = 0; j < 4; j++) {
            out[j] += v_load(ra + j * CS_VL);
            out[4 + j] += v_load(rb + j * CS_VL);
        }
CS_UNROLL(4)
    for (int j = 0; j < 4; j++) {
        v_store(ya + j * CS_VL, v_clip(out[j], low, high));
        v_store(yb + j * CS_VL, v_clip(out[4 + j], low, high));
    }
}

static __attribute__((noinline)) void winograd_output_whole4(const float *m, int64_t m_coefficient, vf bias, const cs_activation *f,
                                      const float *r, int64_t r_row, float *y, int64_t y_row) {
    const int64_t step = 6 * m_coefficient;
    const float *m1 = m + step, *m2 = m1 + step, *m3 = m2 + step, *m4 = m3 + step, *m5 = m4 + step;
    vf a[6], b[6];
    CS_OPAQUE(m1);
    CS_OPAQUE(m2);
    CS_OPAQUE(m3);
    CS_OPAQUE(m4);
    CS_OPAQUE(m5);
    int64_t at = 0;
CS_UNROLL(6)
    for (int j = 0; j < 6; j++, at += m_coefficient) {
        const vf sum1 = v_load(m1 + at) + v_load(m2 + at), sum2 = v_load(m3 + at) + v_load(m4 + at);
        a[j] = v_load(m + at) + sum1 + sum2;
        b[j] = v_set(0.5f) * sum1 + v_set(2.0f) * sum2;
        CS_OPAQUE(at);
    }
    winograd_output_rows4(a, b, bias, f, r, r ? r + 2 * r_row : NULL, y, y + 2 * y_row);
    at = 0;
CS_UNROLL(6)
    for (int j = 0; j < 6; j++, at += m_coefficient) {
        const vf difference1 = v_load(m1 + at) - v_load(m2 + at), difference2 = v_load(m3 + at) - v_load(m4 + at);
        a[j] = v_set(CS_SQRT2 / 2) * difference1 + v_set(CS_SQRT2) * difference2;
        b[j] = v_set(CS_SQRT2 / 4) * difference1 + v_set(2 * CS_SQRT2) * difference2 + v_load(m5 + at);
        CS_OPAQUE(at);
    }
    winograd_output_rows4(a, b, bias, f, r ? r + r_row : NULL, r ? r + 3 * r_row : NULL, y + y_row,
                          y + 3 * y_row);
}

/* Of such a tile only rows x columns are there: all of it is made, and what is there copied. */
static __attribute__((noinline)) void winograd_output_part4(const float *m, int64_t m_coefficient, vf bias, const cs_activation *f,
                                  const float *r, int64_t r_row, float *y, int64_t y_row, int rows,
                                  int columns) {
    static const cs_activation none = {-INFINITY, INFINITY, CS_NO_CURVE, 0, 0};
    const vf low = v_set(f->low), high = v_set(f->high);
    float tile[16 * CS_VL] __attribute__((aligned(4 * CS_VL)));
    winograd_output_whole4(m, m_coefficient, bias, &none, NULL, 0, tile, 4 * CS_VL);
    for (int i = 0; i < 4 && i < rows; i++)
        for (int j = 0; j < 4 && j < columns; j++) {
            vf v = v_load(tile + (i * 4 + j) * CS_VL);
            if (r)
                v += v_load(r + i * r_row + j * CS_VL);
            v_store(y + i * y_row + j * CS_VL, v_clip(v, low, high));
        }
}

/* One tile of one block; y and r at its first pixel, of which rows x columns lie in the output. */
CS_INLINE void winograd_output_tile(const int m, const float *mm, int64_t m_coefficient, vf bias,
                                    const cs_activation *f, const float *r, int64_t r_row,
                                    const int pool, float *y, int64_t y_row, int rows, int columns) {
    const int n = m + 2;
    vf t[24], out[16];
CS_UNROLL(6)
    for (int j = 0; j < n; j++) {
        vf column[6], half[4];
CS_UNROLL(6)
        for (int i = 0; i < n; i++)
            column[i] = v_load(mm + (i * n + j) * m_coefficient);
        if (m == 4)
            winograd_at4(column, 1, half, 1);
        else
            winograd_at2(column, 1, half, 1);
CS_UNROLL(4)
        for (int i = 0; i < m; i++)
            t[i * n + j] = half[i];
    }
CS_UNROLL(4)
    for (int i = 0; i < m; i++)
        if (m == 4)
            winograd_at4(t + i * n, 1, out + i * m, 1);
        else
            winograd_at2(t + i * n, 1, out + i * m, 1);
    const vf low = v_set(f->low), high = v_set(f->high);
    for (int i = 0; i < m && i < rows; i++) {
        for (int j = 0; j < m && j < columns; j++) {
            vf value = out[i * m + j] + bias;
            if (r)
                value += v_load(r + i * r_row + j * CS_VL);
            out[i * m + j] = v_clip(value, low, high);
            if (!pool)
                v_store(y + i * y_row + j * CS_VL, out[i * m + j]);
        }
        if (pool)
            follow_curve(f, m, (float *)(out + i * m), CS_VL);
        else
            follow_curve(f, m < columns ? m : columns, y + i * y_row, CS_VL);
    }
    if (pool)
        for (int i = 0; i < m && i + 1 < rows; i += 2)
            for (int j = 0; j < m && j + 1 < columns; j += 2) {
                const vf *o = out + i * m + j;
                v_store(y + i / 2 * y_row + j / 2 * CS_VL, v_max(v_max(o[0], o[1]), v_max(o[m], o[m + 1])));
            }
}

/* where tile number `tile` of the image begins */
CS_INLINE void winograd_place(const cs_winograd *p, int tile, int *h, int *w) {
    *h = tile / p->columns * p->m;
    *w = tile % p->columns * p->m;
}

static void winograd_input(const cs_winograd *p, int first, int count, const float *x, float *v,
                           int slot, int slots) {
    const int64_t coefficient = cs_winograd_step(p->planes, slots, CS_VL);
    const int n = p->m + 2;
    float tile[36 * CS_VL] __attribute__((aligned(4 * CS_VL)));
    for (int i = 0; i < count; i++) {
        int h, w;
        winograd_place(p, first + i, &h, &w);
        h -= p->top;
        w -= p->left;
        const winograd_part part = {-h, p->h - h, w < 0 ? -w : 0, p->w - w < n ? p->w - w : n};
        winograd_tile_fn *run = n == 4 ? winograd_input_tile2 : winograd_input_06;
        const int known = n == 6 && part.c0 <= 1 && part.c1 >= 2;
        const int copy = n < 8 && !known && (part.c0 > 0 || part.c1 < n);
        if (known)
            run = winograd_input_tiles[part.c0][part.c1];
        const float *start = x + h * p->x_row + (int64_t)w * CS_VL, *line[8];
        float *out = v + (int64_t)(slot + i) * CS_VL;
        for (int c = 0; c < p->planes; c++, start += p->x_plane, out += (int64_t)slots * CS_VL) {
            winograd_lines(n, start, p->x_row, part, line);
            if (n == 8) {
                winograd_prefetch(6, start + 8 * p->x_row, p->x_row, 0);
                winograd_input_tile6(part.c0, part.c1, line, out, coefficient);
                continue;
            }
            winograd_prefetch(4, start + 6 * p->x_row, p->x_row, 0);
            if (copy)
                winograd_edge(n, part, line, tile);
            run(line, out, coefficient);
        }
    }
}

static void winograd_output(const cs_winograd *p, int block, int blocks, int first, int count,
                            const float *m, int slot, int slots, const float *bias, const float *r,
                            float *y) {
    const int64_t coefficient = cs_winograd_step(blocks, slots, CS_VL);
    const int plain = p->m == 4 && !p->pool && !p->activation.curve;
    for (int i = 0; i < count; i++) {
        int h, w;
        winograd_place(p, first + i, &h, &w);
        const int rows = p->oh - h, columns = p->ow - w;
        for (int b = 0; b < blocks; b++) {
            const float *in = m + ((int64_t)b * slots + slot + i) * CS_VL;
            const vf shift = v_load(bias + (int64_t)(block + b) * CS_VL);
            const int step = p->pool ? 2 : 1;
            float *out = y + (block + b) * p->y_block + h / step * p->y_row + (int64_t)(w / step) * CS_VL;
            const float *residual =
                r ? r + (block + b) * p->r_block + h * p->r_row + (int64_t)w * CS_VL : NULL;
            if (p->m == 6) {
                winograd_prefetch(6, out + 6 * p->y_row, p->y_row, 1);
                winograd_output_tile6(in, coefficient, shift, &p->activation, residual, p->r_row, p->pool,
                                      out, p->y_row, rows, columns);
                continue;
            }
            winograd_prefetch(4, out + 4 * p->y_row, p->y_row, 1);
            if (plain && rows >= 4 && columns >= 4)
                winograd_output_whole4(in, coefficient, shift, &p->activation, residual, p->r_row, out,
                                       p->y_row);
            else if (plain)
                winograd_output_part4(in, coefficient, shift, &p->activation, residual, p->r_row, out,
                                      p->y_row, rows, columns);
            else if (p->m == 4)
                winograd_output_tile(4, in, coefficient, shift, &p->activation, residual, p->r_row,
                                     p->pool, out, p->y_row, rows, columns);
            else
                winograd_output_tile(2, in, coefficient, shift, &p->activation, residual, p->r_row,
                                     p->pool, out, p->y_row, rows, columns);
        }
    }
}
