/* NCHW <-> blocked, one block of channels at a time: squares of CS_VL pixels and channels by
 * transposition in registers, the last one of a row reaching back into the one before. Rows that
 * follow each other without a gap are one long row. */

/* `count` pixels at y, of those that begin `skip` pixels after x */
CS_INLINE void pack_square(int channels, const float *x, int64_t x_c, int skip, int count, float *y,
                           int64_t y_px) {
    vf square[CS_VL];
CS_UNROLL(16)
    for (int c = 0; c < CS_VL; c++)
        square[c] = c < channels ? v_load(x + c * x_c) : (vf){0};
    v_transpose(square);
CS_UNROLL(16)
    for (int i = 0; i < CS_VL; i++)
        if (i >= skip && i < skip + count)
            v_store(y + (i - skip) * y_px, square[i]);
}

static void pack(int channels, int h0, int h1, int w, const float *x, int64_t x_c, int64_t x_h, int64_t x_w,
                 float *y, int64_t y_row, int64_t y_px) {
    if (x_w == 1 && x_h == w && y_row == w * y_px && h1 > h0) {
        x += h0 * x_h;
        y += h0 * y_row;
        w *= h1 - h0;
        h0 = 0;
        h1 = 1;
    }
    const int64_t start = h0 * x_h, end = (h1 - 1) * x_h + w;   /* of what may be read */
    for (int h = h0; h < h1; h++) {
        const int64_t row = h * x_h;
        float *yr = y + h * y_row;
        /* of a short row: the vector goes on into the next rows, or begins in those before */
        const int64_t skip = row + CS_VL > end ? row + CS_VL - end : 0;
        if (x_w == 1 && w >= CS_VL) {
            for (int first = 0; first < w; first += CS_VL) {
                const int j = first + CS_VL <= w ? first : w - CS_VL;
                pack_square(channels, x + row + j, x_c, 0, CS_VL, yr + j * y_px, y_px);
            }
        } else if (x_w == 1 && x_h >= w && row - skip >= start) {
            pack_square(channels, x + row - skip, x_c, (int)skip, w, yr, y_px);
        } else {
            for (int j = 0; j < w; j++)
                for (int c = 0; c < CS_VL; c++)
                    yr[j * y_px + c] = c < channels ? x[c * x_c + row + j * x_w] : 0.0f;
        }
    }
}

static void unpack(int channels, int h0, int h1, int w, const float *x, int64_t x_row,
                   float *y, int64_t y_c, int64_t y_h) {
    if (x_row == (int64_t)w * CS_VL && y_h == w && h1 > h0) {
        x += h0 * x_row;
        y += h0 * y_h;
        w *= h1 - h0;
        h0 = 0;
        h1 = 1;
    }
    for (int h = h0; h < h1; h++) {
        const float *xr = x + h * x_row;
        float *yr = y + h * y_h;
        for (int first = 0; w >= CS_VL && first < w; first += CS_VL) {
            const int j = first + CS_VL <= w ? first : w - CS_VL;
            vf square[CS_VL];
CS_UNROLL(16)
            for (int i = 0; i < CS_VL; i++)
                square[i] = v_load(xr + (int64_t)(j + i) * CS_VL);
            v_transpose(square);
CS_UNROLL(16)
            for (int c = 0; c < CS_VL; c++)
                if (c < channels)
                    v_store(yr + c * y_c + j, square[c]);
        }
        for (int c = 0; w < CS_VL && c < channels; c++)
            for (int j = 0; j < w; j++)
                yr[c * y_c + j] = xr[(int64_t)j * CS_VL + c];
    }
}
