/* NCHW <-> blocked, one block of channels at a time: squares of CS_VL pixels and channels by
 * transposition in registers, the last one of a row reaching back into the one before. */

static void pack(int channels, int h0, int h1, int w, const float *x, int64_t x_c, int64_t x_h, int64_t x_w,
                 float *y, int64_t y_row, int64_t y_px) {
    const int by_squares = x_w == 1 && w >= CS_VL;
    for (int h = h0; h < h1; h++) {
        for (int first = 0; by_squares && first < w; first += CS_VL) {
            const int j = first + CS_VL <= w ? first : w - CS_VL;
            vf square[CS_VL];
CS_UNROLL(16)
            for (int c = 0; c < CS_VL; c++)
                square[c] = c < channels ? v_load(x + c * x_c + h * x_h + j) : (vf){0};
            v_transpose(square);
CS_UNROLL(16)
            for (int i = 0; i < CS_VL; i++)
                v_store(y + h * y_row + (j + i) * y_px, square[i]);
        }
        for (int j = 0; !by_squares && j < w; j++) {
            const float *xp = x + h * x_h + j * x_w;
            float *yp = y + h * y_row + j * y_px;
            if (channels == CS_VL) {
CS_UNROLL(16)
                for (int c = 0; c < CS_VL; c++)
                    yp[c] = xp[c * x_c];
            } else {
                for (int c = 0; c < CS_VL; c++)
                    yp[c] = c < channels ? xp[c * x_c] : 0.0f;
            }
        }
    }
}

static void unpack(int channels, int h0, int h1, int w, const float *x, int64_t x_row,
                   float *y, int64_t y_c, int64_t y_h) {
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
