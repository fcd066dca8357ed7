/* Winograd convolution F(m x m, 3 x 3), m = 4 or 2: of an (m + 2)^2 input tile, m^2 outputs with
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

/* A tile of n x n pixels of which only those of rows [r0, r1) and columns [c0, c1) are there: a copy
 * in `tile`, zeros elsewhere; x at the first pixel of the tile. */
static const float *winograd_edge(int n, const float *x, int64_t x_row, int r0, int r1, int c0, int c1,
                                  float *tile) {
    memset(tile, 0, sizeof(float) * n * n * CS_VL);
    for (int i = r0; i < r1 && i < n; i++)
        for (int j = c0; j < c1 && j < n; j++)
            v_store(tile + (i * n + j) * CS_VL, v_load(x + i * x_row + j * CS_VL));
    return tile;
}

/* One tile of one plane; x at its first pixel. */
CS_INLINE void winograd_input_tile(const int m, const float *x, int64_t x_row, float *v,
                                   int64_t v_coefficient) {
    const int n = m + 2;
    vf d[36], t[36];
CS_UNROLL(6)
    for (int i = 0; i < n; i++)
CS_UNROLL(6)
        for (int j = 0; j < n; j++)
            d[i * n + j] = v_load(x + i * x_row + j * CS_VL);
CS_UNROLL(6)
    for (int j = 0; j < n; j++)
        if (m == 4)
            winograd_bt4(d + j, n, t + j, n);
        else
            winograd_bt2(d + j, n, t + j, n);
CS_UNROLL(6)
    for (int i = 0; i < n; i++) {
        vf row[6];
        if (m == 4)
            winograd_bt4(t + i * n, 1, row, 1);
        else
            winograd_bt2(t + i * n, 1, row, 1);
CS_UNROLL(6)
        for (int j = 0; j < n; j++)
            v_store(v + (i * n + j) * v_coefficient, row[j]);
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
    float tile[36 * CS_VL];
    for (int c = 0; c < p->planes; c++)
        for (int i = 0; i < count; i++) {
            int h, w;
            winograd_place(p, first + i, &h, &w);
            h -= p->top;
            w -= p->left;
            const float *start = x + c * p->x_plane + h * p->x_row + (int64_t)w * CS_VL;
            float *out = v + ((int64_t)c * slots + slot + i) * CS_VL;
            int64_t row = p->x_row;
            if (h < 0 || w < 0 || h + n > p->h || w + n > p->w) {
                start = winograd_edge(n, start, row, h < 0 ? -h : 0, p->h - h, w < 0 ? -w : 0, p->w - w,
                                      tile);
                row = n * CS_VL;
            }
            if (p->m == 4)
                winograd_input_tile(4, start, row, out, coefficient);
            else
                winograd_input_tile(2, start, row, out, coefficient);
        }
}

static void winograd_output(const cs_winograd *p, int block, int blocks, int first, int count,
                            const float *m, int slot, int slots, const float *bias, const float *r,
                            float *y) {
    const int64_t coefficient = cs_winograd_step(blocks, slots, CS_VL);
    for (int b = 0; b < blocks; b++)
        for (int i = 0; i < count; i++) {
            int h, w;
            winograd_place(p, first + i, &h, &w);
            const float *in = m + ((int64_t)b * slots + slot + i) * CS_VL;
            const vf shift = v_load(bias + (int64_t)(block + b) * CS_VL);
            const int step = p->pool ? 2 : 1;
            float *out = y + (block + b) * p->y_block + h / step * p->y_row + (int64_t)(w / step) * CS_VL;
            const float *residual =
                r ? r + (block + b) * p->r_block + h * p->r_row + (int64_t)w * CS_VL : NULL;
            const int rows = p->oh - h, columns = p->ow - w;
            if (p->m == 4 && p->pool)
                winograd_output_tile(4, in, coefficient, shift, &p->activation, residual, p->r_row, 1,
                                     out, p->y_row, rows, columns);
            else if (p->m == 4)
                winograd_output_tile(4, in, coefficient, shift, &p->activation, residual, p->r_row, 0,
                                     out, p->y_row, rows, columns);
            else
                winograd_output_tile(2, in, coefficient, shift, &p->activation, residual, p->r_row,
                                     p->pool, out, p->y_row, rows, columns);
        }
}
