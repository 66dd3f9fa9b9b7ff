// SOAP (Vyas et al. 2024, arXiv 2409.11321): Adam in the eigenvector basis of Shampoo's two covariances of a matrix's
// gradient. nbs/learn/soap.ipynb has the same in torch.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

struct SoapSettings { float learning_rate, beta1, beta2, beta_covariance; int32_t interval; };  // updates between rotations

// ---------------------------------------------------------------- small dense matrices, row-major
// c (n, m) = a (n, k) b (k, m); `transposed`: a is stored as (k, n)
template <bool transposed> void product(const float* a, const float* b, int n, int k, int m, float* c) {
    std::fill(c, c + (size_t)n * m, 0.f);
    for (int i = 0; i < n; i++)
        for (int l = 0; l < k; l++) {
            const float x = transposed ? a[l * n + i] : a[i * k + l];
            for (int j = 0; j < m; j++) c[i * m + j] += x * b[l * m + j];
        }
}
void transpose_into(const float* a, int n, int m, float* out) {  // (n, m) -> (m, n)
    for (int i = 0; i < n; i++)
        for (int j = 0; j < m; j++) out[j * n + i] = a[i * m + j];
}
// (1 - scale v v^T) a, of rows and columns k and later; v is column k of `from`, with v_k = 1
void reflect(const float* from, float* a, int n, int k, int first, float scale, float* along) {
    const auto v = [&](int i) { return i == k ? 1.f : from[i * n + k]; };
    std::fill(along + first, along + n, 0.f);
    for (int i = k; i < n; i++)
        for (int j = first; j < n; j++) along[j] += v(i) * a[i * n + j];
    for (int i = k; i < n; i++) {
        const float x = scale * v(i);
        for (int j = first; j < n; j++) a[i * n + j] -= x * along[j];
    }
}
// The orthonormal factor of a (n, n), by Householder reflections; `a` is overwritten
void orthonormal(float* a, int n, float* q) {
    std::vector<float> scale(n), along(n);
    for (int k = 0; k < n; k++) {
        double squares = 0;
        for (int i = k; i < n; i++) squares += (double)a[i * n + k] * a[i * n + k];
        const float pivot = a[k * n + k], norm = (float)(pivot < 0 ? -std::sqrt(squares) : std::sqrt(squares));
        const float head = pivot + norm;
        scale[k] = squares > 0 ? head / norm : 0.f;  // 2 / v^T v, with v_k = 1
        if (squares > 0)
            for (int i = k + 1; i < n; i++) a[i * n + k] /= head;
        reflect(a, a, n, k, k + 1, scale[k], along.data());
    }
    for (int i = 0; i < n * n; i++) q[i] = i % (n + 1) == 0 ? 1.f : 0.f;
    for (int k = n - 1; k >= 0; k--) reflect(a, q, n, k, k, scale[k], along.data());
}

// ---------------------------------------------------------------- a matrix and what is remembered of its gradients
struct SoapMatrix {
    int rows, columns;                     // the last row is the bias
    float *mean, *squares;                 // (rows, columns): of the gradient; of the rotated one, squared
    float *left, *right, *from_left, *from_right;  // covariances (rows, rows), (columns, columns); their bases
    static size_t size(int rows, int columns) { return 2 * ((size_t)rows * columns + rows * rows + columns * columns); }
    static SoapMatrix at(float*& p, int rows, int columns) {
        SoapMatrix m{};
        m.rows = rows;
        m.columns = columns;
        const size_t n = rows * columns, l = rows * rows, r = columns * columns;
        float** parts[] = {&m.mean, &m.squares, &m.left, &m.right, &m.from_left, &m.from_right};
        const size_t sizes[] = {n, n, l, r, l, r};
        for (int i = 0; i < 6; i++) {
            *parts[i] = p;
            p += sizes[i];
        }
        return m;
    }
    // gradient (rows, columns) -> the step, to be subtracted from the weights; update: 1, 2, ...
    void step(const SoapSettings& how, const float* gradient, int update, float* out) {
        const int n = rows * columns, most = std::max(rows, columns);
        std::vector<float> a((size_t)most * most), b((size_t)most * most);
        const auto remember = [&](float* covariance, int size) {
            const float keep = how.beta_covariance;
            for (int i = 0; i < size * size; i++) covariance[i] = keep * covariance[i] + (1.f - keep) * a[i];
        };
        const auto turn = [&](const float* covariance, float* basis, int size) {
            product<false>(covariance, basis, size, size, size, a.data());
            orthonormal(a.data(), size, basis);
        };
        if (update == 1) {
            for (int i = 0; i < rows * rows; i++) from_left[i] = i % (rows + 1) == 0 ? 1.f : 0.f;
            for (int i = 0; i < columns * columns; i++) from_right[i] = i % (columns + 1) == 0 ? 1.f : 0.f;
        }
        transpose_into(gradient, rows, columns, b.data());
        product<false>(gradient, b.data(), rows, columns, rows, a.data());
        remember(left, rows);
        product<true>(gradient, gradient, columns, rows, columns, a.data());
        remember(right, columns);
        if (update % how.interval == 0) {
            turn(left, from_left, rows);
            turn(right, from_right, columns);
        }
        const auto rotate = [&](const float* x, float* to) {
            product<true>(from_left, x, rows, rows, columns, b.data());
            product<false>(b.data(), from_right, rows, columns, columns, to);
        };
        rotate(gradient, a.data());
        for (int i = 0; i < n; i++) {
            mean[i] = how.beta1 * mean[i] + (1.f - how.beta1) * gradient[i];
            squares[i] = how.beta2 * squares[i] + (1.f - how.beta2) * a[i] * a[i];
        }
        rotate(mean, a.data());
        adam(how, a.data(), squares, n, update);
        product<false>(from_left, a.data(), rows, rows, columns, b.data());
        transpose_into(from_right, columns, columns, a.data());
        product<false>(b.data(), a.data(), rows, columns, columns, out);
    }
    // mean -> Adam's step
    static void adam(const SoapSettings& how, float* mean, const float* squares, int n, int update) {
        const float first = 1.f - std::pow(how.beta1, (float)update), second = 1.f - std::pow(how.beta2, (float)update);
        for (int i = 0; i < n; i++)
            mean[i] = how.learning_rate * (mean[i] / first) / (std::sqrt(squares[i] / second) + 1e-8f);
    }
};

}  // namespace
