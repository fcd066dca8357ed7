/* Depthwise convolution: one filter a channel, the vector runs over the channels of a block. */

/* np pixels of a row. taps, step: filter columns and stride, in pixels, where the compiler may know
 * them (and the dilation is 1): each input pixel is then loaded once a filter row, not once a tap. */
CS_INLINE void depthwise_tile(const int np, const int taps, const int step, const cs_depthwise *p,
                              const float *x, const float *w, vf bias, float *y) {
    vf acc[6];
CS_UNROLL(8)
    for (int i = 0; i < np; i++)
        acc[i] = bias;
    for (int kh = 0; kh < p->kh; kh++) {
        const float *xr = x + kh * p->x_kh;
        if (taps) {
            vf row[16];
CS_UNROLL(16)
            for (int j = 0; j < (np - 1) * step + taps; j++)
                row[j] = v_load(xr + j * CS_VL);
CS_UNROLL(8)
            for (int kw = 0; kw < taps; kw++, w += CS_VL) {
                const vf wv = v_load(w);
CS_UNROLL(8)
                for (int i = 0; i < np; i++)
                    acc[i] += row[i * step + kw] * wv;
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
    const vf low = v_set(p->activation.low), high = v_set(p->activation.high);
CS_UNROLL(8)
    for (int i = 0; i < np; i++)
        v_store(y + i * CS_VL, v_clip(acc[i], low, high));
}

CS_INLINE void depthwise_rows(const int taps, const int step, const cs_depthwise *p, int oh0,
                              int oh1, const float *x, const float *w, vf bias, float *y) {
    for (int oh = oh0; oh < oh1; oh++) {
        const float *xr = x + oh * p->x_oh;
        float *yr = y + oh * p->y_row;
        int ow = 0;
        for (; ow + 6 <= p->ow; ow += 6)
            depthwise_tile(6, taps, step, p, xr + ow * p->x_px, w, bias, yr + (int64_t)ow * CS_VL);
        for (; ow + 2 <= p->ow; ow += 2)
            depthwise_tile(2, taps, step, p, xr + ow * p->x_px, w, bias, yr + (int64_t)ow * CS_VL);
        for (; ow < p->ow; ow++)
            depthwise_tile(1, taps, step, p, xr + ow * p->x_px, w, bias, yr + (int64_t)ow * CS_VL);
        follow_curve(&p->activation, p->ow, yr, CS_VL);
    }
}

static void depthwise(const cs_depthwise *p, int block, int oh0, int oh1, const float *x,
                      const float *w, const float *bias, float *y) {
    const vf b = v_load(bias + (int64_t)block * CS_VL);
    const int next = p->x_kw == CS_VL;  /* taps side by side */
    const int64_t step = p->x_px / CS_VL;
    x += block * p->x_plane;
    w += (int64_t)block * p->kh * p->kw * CS_VL;
    y += block * p->y_block;
    if (next && p->kw == 3 && step == 1)
        depthwise_rows(3, 1, p, oh0, oh1, x, w, b, y);
    else if (next && p->kw == 3 && step == 2)
        depthwise_rows(3, 2, p, oh0, oh1, x, w, b, y);
    else if (next && p->kw == 5 && step == 1)
        depthwise_rows(5, 1, p, oh0, oh1, x, w, b, y);
    else
        depthwise_rows(0, 0, p, oh0, oh1, x, w, b, y);
}
