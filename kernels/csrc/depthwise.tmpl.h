/* Depthwise convolution: one filter a channel, the vector runs over the channels of a block.
 *
 * An output is one chain of multiply-adds over (filter row, filter column), started at the bias,
 * whatever the tile. */

/* Output rows a tile: two share most of the rows that they read, where the registers hold both. */
#if CS_VL == 16 || defined(__aarch64__)
#define CS_DW_ROWS 2
#else
#define CS_DW_ROWS 1
#endif
#define CS_DW_PX 6

CS_INLINE void depthwise_store(const cs_depthwise *p, vf v, float *y) {
    v_store(y, v_clip(v, v_set(p->activation.low), v_set(p->activation.high)));
}

/* nr rows of np pixels each, of a square filter whose taps lie side by side; w: the whole filter */
CS_INLINE void depthwise_tile(const int nr, const int np, const int taps, const int step,
                              const cs_depthwise *p, const float *x, const vf *w, vf bias, float *y) {
    vf acc[CS_DW_ROWS][CS_DW_PX];
CS_UNROLL(2)
    for (int r = 0; r < nr; r++)
CS_UNROLL(8)
        for (int i = 0; i < np; i++)
            acc[r][i] = bias;
CS_UNROLL(8)
    for (int h = 0; h < (nr - 1) * step + taps; h++) {
        vf in[(CS_DW_PX - 1) * 2 + 5];
CS_UNROLL(16)
        for (int j = 0; j < (np - 1) * step + taps; j++)
            in[j] = v_load(x + h * p->x_kh + j * CS_VL);
CS_UNROLL(2)
        for (int r = 0; r < nr; r++) {
            const int kh = h - r * step;
            if (kh < 0 || kh >= taps)
                continue;
CS_UNROLL(8)
            for (int kw = 0; kw < taps; kw++)
CS_UNROLL(8)
                for (int i = 0; i < np; i++)
                    acc[r][i] += in[i * step + kw] * w[kh * taps + kw];
        }
    }
CS_UNROLL(2)
    for (int r = 0; r < nr; r++)
CS_UNROLL(8)
        for (int i = 0; i < np; i++)
            depthwise_store(p, acc[r][i], y + r * p->y_row + i * CS_VL);
}

#define CS_DW_CASE(np)                                                                             \
    case np:                                                                                       \
        depthwise_tile(nr, np, taps, step, p, xt, w, bias, yt);                                    \
        break

CS_INLINE void depthwise_row(const int nr, const int taps, const int step, const cs_depthwise *p,
                             const float *x, const vf *w, vf bias, float *y) {
    /* equal parts: a tail of one pixel would wait for its own multiply-adds */
    const int parts = (p->ow + CS_DW_PX - 1) / CS_DW_PX;
    for (int i = 0; i < parts; i++) {
        const int ow = (int)((int64_t)p->ow * i / parts);
        const float *xt = x + ow * p->x_px;
        float *yt = y + (int64_t)ow * CS_VL;
        switch ((int)((int64_t)p->ow * (i + 1) / parts) - ow) {
            CS_DW_CASE(1);
            CS_DW_CASE(2);
            CS_DW_CASE(3);
            CS_DW_CASE(4);
            CS_DW_CASE(5);
            CS_DW_CASE(6);
        }
    }
    for (int r = 0; r < nr; r++)
        follow_curve(&p->activation, p->ow, y + r * p->y_row, CS_VL);
}

/* The filter is loaded once, and as much of it as there is room for stays in registers. */
CS_INLINE void depthwise_rows(const int nr, const int taps, const int step, const cs_depthwise *p,
                              int oh0, int oh1, const float *x, const float *w, vf bias, float *y) {
    vf weights[25];
CS_UNROLL(32)
    for (int k = 0; k < taps * taps; k++)
        weights[k] = v_load(w + k * CS_VL);
    int oh = oh0;
    for (; oh + nr <= oh1; oh += nr)
        depthwise_row(nr, taps, step, p, x + oh * p->x_oh, weights, bias, y + oh * p->y_row);
    for (; oh < oh1; oh++)
        depthwise_row(1, taps, step, p, x + oh * p->x_oh, weights, bias, y + oh * p->y_row);
}

/* np pixels, the filter read row by row. taps, step: its columns and the stride, where the compiler
 * may know them and taps lie side by side; each input pixel is then loaded once a filter row. */
CS_INLINE void depthwise_pixels(const int np, const int taps, const int step, const cs_depthwise *p,
                                const float *x, const float *w, vf bias, float *y) {
    vf acc[CS_DW_PX];
CS_UNROLL(8)
    for (int i = 0; i < np; i++)
        acc[i] = bias;
    for (int kh = 0; kh < p->kh; kh++) {
        const float *xr = x + kh * p->x_kh;
        if (taps) {
            vf in[16];
CS_UNROLL(16)
            for (int j = 0; j < (np - 1) * step + taps; j++)
                in[j] = v_load(xr + j * CS_VL);
CS_UNROLL(8)
            for (int kw = 0; kw < taps; kw++, w += CS_VL) {
                const vf wv = v_load(w);
CS_UNROLL(8)
                for (int i = 0; i < np; i++)
                    acc[i] += in[i * step + kw] * wv;
            }
        } else {
            for (int kw = 0; kw < p->kw; kw++, w += CS_VL) {
                const vf wv = v_load(w);
CS_UNROLL(8)
                for (int i = 0; i < np; i++)
                    acc[i] += v_load(xr + kw * p->x_kw + i * p->x_px) * wv;
            }
        }
    }
CS_UNROLL(8)
    for (int i = 0; i < np; i++)
        depthwise_store(p, acc[i], y + i * CS_VL);
}

CS_INLINE void depthwise_any(const int taps, const int step, const cs_depthwise *p, int oh0,
                             int oh1, const float *x, const float *w, vf bias, float *y) {
    for (int oh = oh0; oh < oh1; oh++) {
        const float *xr = x + oh * p->x_oh;
        float *yr = y + oh * p->y_row;
        int ow = 0;
        for (; ow + 6 <= p->ow; ow += 6)
            depthwise_pixels(6, taps, step, p, xr + ow * p->x_px, w, bias, yr + (int64_t)ow * CS_VL);
        for (; ow + 2 <= p->ow; ow += 2)
            depthwise_pixels(2, taps, step, p, xr + ow * p->x_px, w, bias, yr + (int64_t)ow * CS_VL);
        for (; ow < p->ow; ow++)
            depthwise_pixels(1, taps, step, p, xr + ow * p->x_px, w, bias, yr + (int64_t)ow * CS_VL);
        follow_curve(&p->activation, p->ow, yr, CS_VL);
    }
}

static void depthwise(const cs_depthwise *p, int block, int oh0, int oh1, const float *x,
                      const float *w, const float *bias, float *y) {
    const vf b = v_load(bias + (int64_t)block * CS_VL);
    const int taps = p->kh == p->kw && p->x_kw == CS_VL ? p->kw : 0;    /* side by side */
    /* 0 where rows are further apart than columns, in dilation or stride */
    const int64_t step = p->x_oh == p->x_kh * (p->x_px / CS_VL) ? p->x_px / CS_VL : 0;
    x += block * p->x_plane;
    w += (int64_t)block * p->kh * p->kw * CS_VL;
    y += block * p->y_block;
    /* where the registers hold a filter; the others by measurement */
    if (CS_DW_ROWS > 1 && taps == 3 && step == 1)
        depthwise_rows(CS_DW_ROWS, 3, 1, p, oh0, oh1, x, w, b, y);
    else if (CS_DW_ROWS > 1 && taps == 5 && step == 2)
        depthwise_rows(1, 5, 2, p, oh0, oh1, x, w, b, y);
    else if (taps == 3 && step == 1)
        depthwise_any(3, 1, p, oh0, oh1, x, w, b, y);
    else if (taps == 3 && step == 2)
        depthwise_any(3, 2, p, oh0, oh1, x, w, b, y);
    else if (taps == 5 && step == 1)
        depthwise_any(5, 1, p, oh0, oh1, x, w, b, y);
    else if (CS_DW_ROWS > 1 && taps == 7 && step == 1)
        depthwise_any(7, 1, p, oh0, oh1, x, w, b, y);
    else
        depthwise_any(0, 0, p, oh0, oh1, x, w, b, y);
}
