/* Tiles of F(6, 3), for winograd.tmpl.h. 64 coefficients for 36 outputs are a fifth less products than
 * those of F(4, 3), for more weights and, with the points 0, +-1, +-2, +-1/2, inf, a larger rounding
 * error. No registers hold them: tiles go column by column, then row by row, through the first-level
 * cache. */

/* eight vectors -> eight, one dimension of B' */
CS_INLINE void winograd_bt6(const vf *d, vf *v, const int out) {
    const vf even1 = d[2] + d[6] - v_set(4.25f) * d[4], odd1 = d[1] + d[5] - v_set(4.25f) * d[3];
    const vf even2 = d[6] + v_set(0.25f) * d[2] - v_set(1.25f) * d[4];
    const vf odd2 = v_set(0.5f) * d[1] - v_set(2.5f) * d[3] + v_set(2.0f) * d[5];
    const vf even3 = d[6] + v_set(4.0f) * d[2] - v_set(5.0f) * d[4];
    const vf odd3 = v_set(2.0f) * d[1] - v_set(2.5f) * d[3] + v_set(0.5f) * d[5];
    v[0] = d[0] - d[6] + v_set(5.25f) * (d[4] - d[2]);
    v[out] = even1 + odd1;
    v[2 * out] = even1 - odd1;
    v[3 * out] = even2 + odd2;
    v[4 * out] = even2 - odd2;
    v[5 * out] = even3 + odd3;
    v[6 * out] = even3 - odd3;
    v[7 * out] = d[7] - d[1] + v_set(5.25f) * (d[3] - d[5]);
}

/* eight vectors -> six, one dimension of A' */
CS_INLINE void winograd_at6(const vf *m, vf *y, const int out) {
    const vf sum1 = m[1] + m[2], difference1 = m[1] - m[2];
    const vf sum2 = m[3] + m[4], difference2 = m[3] - m[4];
    const vf sum3 = m[5] + m[6], difference3 = m[5] - m[6];
    y[0] = m[0] + sum1 + sum2 + v_set(32.0f) * sum3;
    y[out] = difference1 + v_set(2.0f) * difference2 + v_set(16.0f) * difference3;
    y[2 * out] = sum1 + v_set(4.0f) * sum2 + v_set(8.0f) * sum3;
    y[3 * out] = difference1 + v_set(8.0f) * difference2 + v_set(4.0f) * difference3;
    y[4 * out] = sum1 + v_set(16.0f) * sum2 + v_set(2.0f) * sum3;
    y[5 * out] = difference1 + v_set(32.0f) * difference2 + difference3 + m[7];
}

/* One tile of one plane, of which the columns [c0, c1) lie in the image. */
static void winograd_input_tile6(int c0, int c1, const float *const *line, float *v, int64_t step) {
    vf t[64];
    for (int j = 0; j < 8; j++) {
        if (j < c0 || j >= c1) {
CS_UNROLL(8)
            for (int i = 0; i < 8; i++)
                t[i * 8 + j] = v_set(0);
            continue;
        }
        vf column[8];
CS_UNROLL(8)
        for (int i = 0; i < 8; i++)
            column[i] = v_load(line[i] + j * CS_VL);
        winograd_bt6(column, t + j, 8);
    }
    for (int i = 0; i < 8; i++, v += 8 * step) {
        vf row[8];
        winograd_bt6(t + i * 8, row, 1);
CS_UNROLL(8)
        for (int j = 0; j < 8; j++)
            v_store(v + j * step, row[j]);
    }
}

/* One tile of one block; y and r at its first pixel, of which rows x columns lie in the output. */
static void winograd_output_tile6(const float *m, int64_t step, vf bias, const cs_activation *f,
                                  const float *r, int64_t r_row, int pool, float *y, int64_t y_row,
                                  int rows, int columns) {
    const vf low = v_set(f->low), high = v_set(f->high);
    vf t[48], two[12];
    for (int j = 0; j < 8; j++, m += step) {
        vf column[8];
CS_UNROLL(8)
        for (int i = 0; i < 8; i++)
            column[i] = v_load(m + i * 8 * step);
        winograd_at6(column, t + j, 8);
    }
    for (int i = 0; i < 6 && i < rows; i++) {
        float *to = pool ? (float *)(two + i % 2 * 6) : y + i * y_row;
        vf row[6];
        winograd_at6(t + i * 8, row, 1);
CS_UNROLL(6)
        for (int j = 0; j < 6; j++) {
            if (j >= columns)
                break;
            row[j] += bias;
            if (r)
                row[j] += v_load(r + i * r_row + j * CS_VL);
            v_store(to + j * CS_VL, v_clip(row[j], low, high));
        }
        follow_curve(f, columns < 6 ? columns : 6, to, CS_VL);
        if (pool && i % 2)
            for (int j = 0; j < 6 && j + 1 < columns; j += 2)
                v_store(y + i / 2 * y_row + j / 2 * CS_VL,
                        v_max(v_max(two[j], two[j + 1]), v_max(two[j + 6], two[j + 7])));
    }
}
