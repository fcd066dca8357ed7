/* Depthwise convolution: one filter a channel, the vector runs over the channels of a block. */

CS_INLINE void depthwise_tile(const int np, const cs_depthwise *p, const float *x, const float *w,
                              vf bias, float *y) {
    vf acc[6];
#pragma GCC unroll 8
    for (int i = 0; i < np; i++)
        acc[i] = bias;
    for (int kh = 0; kh < p->kh; kh++)
        for (int kw = 0; kw < p->kw; kw++, w += CS_VL) {
            const float *xr = x + kh * p->x_kh + kw * p->x_kw;
            const vf wv = v_load(w);
#pragma GCC unroll 8
            for (int i = 0; i < np; i++)
                acc[i] += v_load(xr + i * p->x_px) * wv;
        }
    const vf low = v_set(p->activation.low), high = v_set(p->activation.high);
#pragma GCC unroll 8
    for (int i = 0; i < np; i++)
        v_store(y + i * CS_VL, v_clip(acc[i], low, high));
}

static void depthwise(const cs_depthwise *p, int block, int oh0, int oh1, const float *x,
                      const float *w, const float *bias, float *y) {
    const vf b = v_load(bias + (int64_t)block * CS_VL);
    x += block * p->x_plane;
    w += (int64_t)block * p->kh * p->kw * CS_VL;
    y += block * p->y_block;
    for (int oh = oh0; oh < oh1; oh++) {
        const float *xr = x + oh * p->x_oh;
        float *yr = y + oh * p->y_row;
        int ow = 0;
        for (; ow + 6 <= p->ow; ow += 6)
            depthwise_tile(6, p, xr + ow * p->x_px, w, b, yr + (int64_t)ow * CS_VL);
        for (; ow + 2 <= p->ow; ow += 2)
            depthwise_tile(2, p, xr + ow * p->x_px, w, b, yr + (int64_t)ow * CS_VL);
        for (; ow < p->ow; ow++)
            depthwise_tile(1, p, xr + ow * p->x_px, w, b, yr + (int64_t)ow * CS_VL);
        follow_curve(&p->activation, p->ow, yr, CS_VL);
    }
}
