/* What training adds to Winograd convolution (winograd.tmpl.h). With y = A'[(G g G') * (B'd B)]A the
 * gradient of g is the adjoint G'[(B'd B) * (A dY A')]G, its middle summed over all tiles, which is a
 * matrix product for each coefficient. */

/* n vectors -> n + 2, one dimension of A */
CS_INLINE void winograd_a4(const vf *d, const int step, vf *v, const int out) {
    const vf d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step];
    const vf even1 = d0 + v_set(0.5f) * d2, odd1 = v_set(CS_SQRT2 / 2) * d1 + v_set(CS_SQRT2 / 4) * d3;
    const vf even2 = d0 + v_set(2.0f) * d2, odd2 = v_set(CS_SQRT2) * d1 + v_set(2 * CS_SQRT2) * d3;
    v[0] = d0;
    v[out] = even1 + odd1;
    v[2 * out] = even1 - odd1;
    v[3 * out] = even2 + odd2;
    v[4 * out] = even2 - odd2;
    v[5 * out] = d3;
}

CS_INLINE void winograd_a2(const vf *d, const int step, vf *v, const int out) {
    const vf d0 = d[0], d1 = d[step];
    v[0] = d0;
    v[out] = d0 + d1;
    v[2 * out] = d0 - d1;
    v[3 * out] = d1;
}

/* three vectors -> m + 2, one dimension of G */
CS_INLINE void winograd_g(const int m, const vf *g, const int step, vf *u, const int out) {
    const vf g0 = g[0], g1 = g[step], g2 = g[2 * step];
    u[0] = g0;
    if (m == 4) {
        const vf even1 = v_set(-2.0f / 3) * g0 - v_set(1.0f / 3) * g2, odd1 = v_set(-CS_SQRT2 / 3) * g1;
        const vf even2 = v_set(1.0f / 6) * g0 + v_set(1.0f / 3) * g2, odd2 = v_set(CS_SQRT2 / 6) * g1;
        u[out] = even1 + odd1;
        u[2 * out] = even1 - odd1;
        u[3 * out] = even2 + odd2;
        u[4 * out] = even2 - odd2;
        u[5 * out] = g2;
    } else {
        const vf even = v_set(0.5f) * (g0 + g2), odd = v_set(0.5f) * g1;
        u[out] = even + odd;
        u[2 * out] = even - odd;
        u[3 * out] = g2;
    }
}

/* m + 2 vectors -> three, one dimension of G' */
CS_INLINE void winograd_gt(const int m, const vf *u, const int step, vf *g, const int out) {
    if (m == 4) {
        const vf sum1 = u[step] + u[2 * step], difference1 = u[step] - u[2 * step];
        const vf sum2 = u[3 * step] + u[4 * step], difference2 = u[3 * step] - u[4 * step];
        g[0] = u[0] - v_set(2.0f / 3) * sum1 + v_set(1.0f / 6) * sum2;
        g[out] = v_set(CS_SQRT2 / 6) * difference2 - v_set(CS_SQRT2 / 3) * difference1;
        g[2 * out] = v_set(1.0f / 3) * (sum2 - sum1) + u[5 * step];
    } else {
        const vf sum = v_set(0.5f) * (u[step] + u[2 * step]);
        g[0] = u[0] + sum;
        g[out] = v_set(0.5f) * (u[step] - u[2 * step]);
        g[2 * out] = sum + u[3 * step];
    }
}

/* One tile of one block, of which the first `columns` lie in the image; two rows at a time, as in
 * winograd_input_tile4. */
CS_INLINE void winograd_gradient_tile4(const int columns, const float *const *line, float *v, int64_t step) {
    const float *g = line[0], *g1 = line[1], *g2 = line[2], *g3 = line[3];
    vf a[4] = {{0}}, b[4] = {{0}}, row[6];
    float *v5 = v + 30 * step;
CS_UNROLL(4)
    for (int j = 0; j < columns; j++) {
        a[j] = v_load(g + j * CS_VL);
        b[j] = v_load(g3 + j * CS_VL);
    }
    winograd_a4(a, 1, row, 1);
    v = winograd_store6(row, v, step);
    winograd_a4(b, 1, row, 1);
    winograd_store6(row, v5, step);
CS_UNROLL(4)
    for (int j = 0; j < columns; j++) {
        const int d = j * CS_VL;
        const vf even = v_load(g + d) + v_set(0.5f) * v_load(g2 + d);
        const vf odd = v_set(CS_SQRT2 / 2) * v_load(g1 + d) + v_set(CS_SQRT2 / 4) * v_load(g3 + d);
        a[j] = even + odd;
        b[j] = even - odd;
    }
    winograd_a4(a, 1, row, 1);
    v = winograd_store6(row, v, step);
    winograd_a4(b, 1, row, 1);
    v = winograd_store6(row, v, step);
CS_UNROLL(4)
    for (int j = 0; j < columns; j++) {
        const int d = j * CS_VL;
        const vf even = v_load(g + d) + v_set(2.0f) * v_load(g2 + d);
        const vf odd = v_set(CS_SQRT2) * v_load(g1 + d) + v_set(2 * CS_SQRT2) * v_load(g3 + d);
        a[j] = even + odd;
        b[j] = even - odd;
    }
    winograd_a4(a, 1, row, 1);
    v = winograd_store6(row, v, step);
    winograd_a4(b, 1, row, 1);
    winograd_store6(row, v, step);
}

CS_INLINE void winograd_gradient_tile2(const int columns, const float *const *line, float *v, int64_t step) {
    vf t[8] = {{0}};
CS_UNROLL(2)
    for (int j = 0; j < columns; j++) {
        const vf d[2] = {v_load(line[0] + j * CS_VL), v_load(line[1] + j * CS_VL)};
        winograd_a2(d, 1, t + j, 2);
    }
CS_UNROLL(4)
    for (int i = 0; i < 4; i++) {
        vf row[4];
        winograd_a2(t + i * 2, 1, row, 1);
CS_UNROLL(4)
        for (int j = 0; j < 4; j++)
            v_store(v + (i * 4 + j) * step, row[j]);
    }
}

#define CS_WINOGRAD_GRADIENT(m, columns)                                                           \
    static __attribute__((noinline)) void winograd_gradient_##m##_##columns(                       \
        const float *const *line, float *v, int64_t step) {                                        \
        winograd_gradient_tile##m(columns, line, v, step);                                         \
    }
CS_WINOGRAD_GRADIENT(2, 1) CS_WINOGRAD_GRADIENT(2, 2) CS_WINOGRAD_GRADIENT(4, 1)
CS_WINOGRAD_GRADIENT(4, 2) CS_WINOGRAD_GRADIENT(4, 3) CS_WINOGRAD_GRADIENT(4, 4)

static void winograd_gradient(const cs_winograd *p, int blocks, int first, int count, const float *g,
                              float *v, int slot, int slots) {
    static winograd_tile_fn *const tiles2[2] = {winograd_gradient_2_1, winograd_gradient_2_2};
    static winograd_tile_fn *const tiles4[4] = {winograd_gradient_4_1, winograd_gradient_4_2,
                                                winograd_gradient_4_3, winograd_gradient_4_4};
    const int64_t coefficient = cs_winograd_step(blocks, slots, CS_VL);
    for (int i = 0; i < count; i++) {
        int h, w;
        winograd_place(p, first + i, &h, &w);
        const int columns = p->ow - w < p->m ? p->ow - w : p->m;
        const winograd_part part = {0, p->oh - h, 0, columns};
        assert(1 <= columns && columns <= 4);
        winograd_tile_fn *run = p->m == 4 ? tiles4[columns - 1] : tiles2[columns - 1];
        const float *start = g + h * p->y_row + (int64_t)w * CS_VL, *line[4];
        float *out = v + (int64_t)(slot + i) * CS_VL;
        for (int b = 0; b < blocks; b++, start += p->y_block, out += (int64_t)slots * CS_VL) {
            winograd_prefetch(4, start + 4 * p->y_row, p->y_row, 0);
            winograd_lines(4, start, p->y_row, part, line);
            run(line, out, coefficient);
        }
    }
}

CS_INLINE void winograd_filter_vectors(const int m, int turn, int count, const float *g, int64_t g_step,
                                       int64_t g_tap, float *u, int64_t u_step, int64_t u_coefficient) {
    const int n = m + 2;
    for (int v = 0; v < count; v++, g += g_step, u += u_step) {
        vf d[9], t[18];
CS_UNROLL(9)
        for (int k = 0; k < 9; k++)
            d[k] = v_load(g + (turn ? 8 - k : k) * g_tap);
CS_UNROLL(3)
        for (int j = 0; j < 3; j++)
            winograd_g(m, d + j, 3, t + j, 3);
CS_UNROLL(6)
        for (int i = 0; i < n; i++) {
            vf row[6];
            winograd_g(m, t + i * 3, 1, row, 1);
CS_UNROLL(6)
            for (int j = 0; j < n; j++)
                v_store(u + (i * n + j) * u_coefficient, row[j]);
        }
    }
}

static void winograd_filter(int m, int turn, int count, const float *g, int64_t g_step, int64_t g_tap,
                            float *u, int64_t u_step, int64_t u_coefficient) {
    if (m == 4)
        winograd_filter_vectors(4, turn, count, g, g_step, g_tap, u, u_step, u_coefficient);
    else
        winograd_filter_vectors(2, turn, count, g, g_step, g_tap, u, u_step, u_coefficient);
}

CS_INLINE void winograd_filter_gradient_vectors(const int m, int count, const float *u,
                                                int64_t u_coefficient, float *g) {
    const int n = m + 2;
    for (int v = 0; v < count; v++, u += CS_VL, g += 9 * CS_VL) {
        vf t[18];
CS_UNROLL(6)
        for (int i = 0; i < n; i++) {
            vf row[6];
CS_UNROLL(6)
            for (int j = 0; j < n; j++) {
                row[j] = v_load(u + (i * n + j) * u_coefficient);
                /* more streams than a processor follows by itself */
                __builtin_prefetch(u + (i * n + j) * u_coefficient + CS_VL * CS_VL);
            }
            winograd_gt(m, row, 1, t + i * 3, 1);
        }
CS_UNROLL(3)
        for (int j = 0; j < 3; j++) {
            vf column[3];
            winograd_gt(m, t + j, 3, column, 1);
CS_UNROLL(3)
            for (int i = 0; i < 3; i++)
                v_store(g + (i * 3 + j) * CS_VL, column[i]);
        }
    }
}

static void winograd_filter_gradient(int m, int count, const float *u, int64_t u_coefficient, float *g) {
    if (m == 4)
        winograd_filter_gradient_vectors(4, count, u, u_coefficient, g);
    else
        winograd_filter_gradient_vectors(2, count, u, u_coefficient, g);
}
